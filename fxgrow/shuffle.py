"""Interleavings (channel shuffle, flip, roll): found by their labels, made explicit.

A chain of data movements whose result is a permutation of its input along one
dimension can't be widened unit by unit as it stands (``view(n, 2, c // 2, ...)``
wants equal halves). It is replaced by an index of the same order, which can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from .analyse import Analysis
from .propagate import Noted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from .widths import Sizes

_MOVES = {
    *(
        "view",
        "reshape",
        "transpose",
        "permute",
        "contiguous",
        "flatten",
        "swapaxes",
        "unflatten",
        "movedim",
        "clone",
    ),
    *(
        torch.transpose,
        torch.permute,
        torch.reshape,
        torch.flatten,
        torch.swapaxes,
        torch.unflatten,
        torch.movedim,
    ),
}
_LONGEST = 6  # nodes between the first reshape of a shuffle and its last


@dataclass(frozen=True, eq=False)
class Shuffle:
    """``last`` is ``first``'s input, reordered along ``dim``: output[i] = input[order[i]]."""

    source: fx.Node
    nodes: tuple[fx.Node, ...]
    dim: int
    order: np.ndarray

    @property
    def last(self) -> fx.Node:
        """The node whose output is the permuted tensor."""
        return self.nodes[-1]


def find_shuffles(analysis: Analysis) -> list[Shuffle]:
    """Find interleavings of labelled dimensions in all graphs."""
    found = []
    irregular = {id(e.where.site) for e in analysis.state.book.reshapes}
    for _, graph in analysis.traced.distinct:
        for node in graph.nodes:
            if node.op in {"placeholder", "get_attr", "output"}:
                continue
            shuffle = _chain(analysis, node) if id(node) in irregular else _single(analysis, node)
            if shuffle is not None:
                found.append(shuffle)
    return found


def _source(node: fx.Node, planes: Mapping[fx.Node, Any]) -> fx.Node | None:
    if node.target is torch.index_select:  # what an earlier growth made of a shuffle
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    tensors = [n for n in node.all_input_nodes if isinstance(planes.get(n), Noted)]
    return tensors[0] if len(tensors) == 1 and isinstance(planes.get(node), Noted) else None


def _single(analysis: Analysis, node: fx.Node) -> Shuffle | None:
    """One operation that permutes (flip, roll, a shuffle in a leaf module)."""
    source = _source(node, analysis.planes)
    if source is None:
        return None
    before, after = analysis.planes[source], analysis.planes[node]
    if before.shape != after.shape or len(before.planes) != 1 or len(after.planes) != 1:
        return None
    if before.planes[0].labels is after.planes[0].labels:
        return None  # pointwise operations hand the labels on
    found = _permutation(before, after)
    return None if found is None else Shuffle(source, (node,), *found)


def _chain(analysis: Analysis, node: fx.Node) -> Shuffle | None:
    """Follow a reshape that splits a labelled dimension to the one that joins it again."""
    source = _source(node, analysis.planes)
    if source is None:
        return None
    before, nodes = analysis.planes[source], [node]
    while len(nodes) <= _LONGEST:
        last = nodes[-1]
        noted = analysis.planes[last]
        if len(nodes) > 1 and isinstance(noted, Noted) and noted.shape == before.shape:
            found = _permutation(before, noted)
            return None if found is None else Shuffle(source, tuple(nodes), *found)
        following = list(last.users)
        if len(following) != 1 or following[0].target not in _MOVES:
            return None
        nodes.append(following[0])
    return None


def _permutation(before: Noted, after: Noted) -> tuple[int, np.ndarray] | None:
    """Return dimension and order, if ``after`` is ``before`` reordered along one dimension."""
    if len(before.planes) != 1 or len(after.planes) != 1:
        return None
    old, new = before.planes[0].labels, after.planes[0].labels
    dims = before.planes[0].dims
    if old.shape != new.shape or len(dims) != 1:
        return None
    old, new = old.reshape(-1), new.reshape(-1)
    if new.min() < old.min() or new.max() > old.max():
        return None  # other labels, as behind a depthwise convolution
    by_label = np.argsort(old)
    if np.array_equal(old, new) or len(np.unique(old)) != len(old):
        return None
    spots = np.searchsorted(old[by_label], new).clip(max=len(old) - 1)
    order = by_label[spots]
    return (dims[0], order) if np.array_equal(old[order], new) else None


def widened_order(order: np.ndarray, gains: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Order after growth: every run of one unit followed by its clones, old order otherwise.

    Parameters
    ----------
    order : numpy.ndarray, shape ``(positions,)``
        ``output[i] = input[order[i]]`` before growth.
    gains : numpy.ndarray, shape ``(positions,)``
        Clones of every input position.
    units : numpy.ndarray, shape ``(positions,)``
        The unit of every input position; positions of one unit side by side are cloned
        as a block.

    Examples
    --------
    >>> widened_order(np.array([1, 0]), np.array([0, 2]), np.array([5, 6])).tolist()
    [1, 2, 3, 0]
    >>> units = np.array([5, 5, 6, 6])
    >>> widened_order(np.array([0, 2, 1, 3]), np.array([0, 0, 1, 1]), units).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    places: dict[int, list[int]] = {}  # input position → new positions of it and its clones
    start = 0
    for run in _runs_of(np.arange(len(units)), units):
        copies = 1 + int(gains[run[0]])
        for offset, position in enumerate(run):
            places[position] = [start + offset + clone * len(run) for clone in range(copies)]
        start += copies * len(run)
    return np.array(
        [
            places[position][clone]
            for run in _runs_of(order, units)
            for clone in range(1 + int(gains[run[0]]))
            for position in run
        ],
        dtype=np.int64,
    )


def _runs_of(positions: np.ndarray, units: np.ndarray) -> list[list[int]]:
    """Split positions where the unit changes."""
    cuts = np.flatnonzero(np.diff(units[positions])) + 1
    return [run.tolist() for run in np.split(positions, cuts)]


def make_explicit(
    shuffles: Sequence[Shuffle],
    nodes: Mapping[fx.Node, fx.Node],
    planes: Mapping[fx.Node, Any],
    sizes: Sizes,
    root: nn.Module,
) -> dict[fx.Node, fx.Node]:
    """Replace shuffles that grow, in a copied graph, by an index of the widened order.

    ``nodes`` maps the analysed graph's nodes to the copy's; the index becomes a buffer
    of ``root`` (not in the state dict). Returns new node → the old node it stands for.
    """
    made: dict[fx.Node, fx.Node] = {}
    for shuffle in shuffles:
        gains = sizes.gains(planes[shuffle.source], shuffle.dim)
        if shuffle.last not in nodes or not gains.any():
            continue
        last = nodes[shuffle.last]
        units = sizes.book.find(planes[shuffle.source].planes[0].labels).reshape(-1)
        name = add_order(root, widened_order(shuffle.order, gains, units))
        # Earlier replacements may have changed what the copy reads.
        source = nodes[shuffle.nodes[0]].args[0]
        with last.graph.inserting_before(last):
            index = last.graph.get_attr(name)
            picked = last.graph.call_function(torch.index_select, (source, shuffle.dim, index))
        picked.meta.update(last.meta)
        last.replace_all_uses_with(picked)
        for node in reversed(shuffle.nodes):
            if not nodes[node].users:
                last.graph.erase_node(nodes[node])
        made[picked] = shuffle.last
    return made


def add_order(root: nn.Module, order: np.ndarray) -> str:
    """Give a module an order of entries as a buffer (not in the state dict); return its name."""
    number = 0
    while hasattr(root, f"_order{number}"):
        number += 1
    device = next((p.device for p in root.parameters()), None)
    root.register_buffer(
        f"_order{number}", torch.from_numpy(order.copy()).to(device), persistent=False
    )
    return f"_order{number}"
