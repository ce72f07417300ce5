"""Groups that one operation mixes with each other: their units are joined, so that they grow.

A mean, a maximum or a layer normalisation over channels of several groups (a concatenation, or
parts of a stream that go different ways) stays what it is when all of them are copied equally
often. So the groups become one: of as many units as their widths have a common divisor, each
unit a part of every group. What recipe such a group grows by is judged as of any other.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import numpy.typing as npt

from .inner import join
from .ir import Slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .labels import Mixing
    from .propagate import Propagation
    from .slots import Census

__all__ = ["join_mixed", "rows_of"]

Keys = npt.NDArray[Any]


def join_mixed(state: Propagation, census: Census, keys: Keys, mixings: Iterable[Mixing]) -> bool:
    """Join the units of groups that are mixed with each other; say whether there were any.

    Parameters
    ----------
    state : Propagation
        Settled; its labels are united.
    census : Census
    keys : numpy.ndarray
        What group each label is of (0: of none).
    mixings : iterable of Mixing
        Those that may be exact when all channels are copied.
    """
    heads = np.flatnonzero(census.roots == np.arange(len(census.roots)))
    names, sizes = np.unique(keys[heads], return_counts=True)
    widths = dict(zip(names.tolist(), sizes.tolist(), strict=True))
    together: nx.Graph[int] = nx.Graph()
    held: set[int] = set()
    for mixing in mixings:
        members, even = _members(mixing, census, keys, widths)
        nx.add_path(together, members)
        if not even:
            held.update(members)
    joined = False
    for component in nx.connected_components(together):
        count = gcd(*(widths[key] for key in component))
        if len(component) > 1 and count > 1 and not component & held:
            _join(state, census, keys, sorted(component), count)
            joined = True
    return joined


def _members(
    mixing: Mixing, census: Census, keys: Keys, widths: dict[int, int]
) -> tuple[list[int], bool]:
    """Find the groups that an operation mixes, and whether it does so with each as a whole."""
    units, counts = np.unique(census.roots[mixing.labels], return_counts=True)
    own = keys[units]
    members, even = np.unique(own).tolist(), bool((census.frozen_by[units] < 0).all())
    for key in members:
        mine = counts[own == key]
        even = even and key != 0 and len(mine) == widths[key] and bool((mine == mine[0]).all())
    return members, even


def _join(
    state: Propagation, census: Census, keys: Keys, members: Iterable[int], count: int
) -> None:
    """Unite the units of groups in so many parts: the first ones of all, the second ones ..."""
    columns: list[Slot] = []
    rows = 0
    for key in members:
        mine = np.flatnonzero(keys[census.labels] == key)
        axis = census.axis_of[mine[0]]
        sizes = np.bincount(census.axis_of[mine])
        rows += int(sizes[sizes > 0].min()) // count
        mine = mine[census.axis_of[mine] == axis]
        _, first = np.unique(census.roots[census.labels[mine]], return_index=True)
        places = census.places[mine[first]].reshape(count, -1)
        tensor, dim = census.axes[int(axis)]
        columns += [Slot(tensor, dim, "producer", places[:, [j]]) for j in range(places.shape[1])]
    for column in columns[1:]:
        join(state, columns[0], column)
    head = columns[0]
    state.joint.append((int(state.axes[head.tensor, head.dim][head.positions[0, 0]]), rows))


def rows_of(state: Propagation, slots: Sequence[Slot]) -> int | None:
    """Rows that one unit of joined groups has in all of them (None: not joined)."""
    if not state.joint:
        return None
    labels = np.array([label for label, _ in state.joint])
    own = state.axes[slots[0].tensor, slots[0].dim][slots[0].positions]
    hit = np.isin(state.book.find(labels), state.book.find(own))
    return state.joint[int(np.flatnonzero(hit)[0])][1] if hit.any() else None
