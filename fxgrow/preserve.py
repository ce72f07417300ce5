"""Values of new entries, so that the function is kept.

Producers' rows are fresh (Kaiming-uniform with a = √5, as the paper), consumers'
columns zero, entries of norms and other per-unit entries the mean of the old ones.
Copies repeat all entries of their template, and share its columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .ir import AxisMap, GrownGroup, GrownSlot, IndexMap
    from .layout import Layout

_MOST_BLOCKS = 256


def new_tensors(
    layout: Layout, old: Mapping[str, torch.Tensor], seed: int
) -> dict[str, torch.Tensor]:
    """Fill every tensor that grows, in its new shape; dtype and device are kept.

    Parameters
    ----------
    layout : Layout
    old : dict of str to torch.Tensor
        The model's tensors, by name; not changed.
    seed : int
        Of the fresh rows and the uneven shares of copies.

    Returns
    -------
    dict of str to torch.Tensor
        Only the tensors that grow.

    References
    ----------
    arXiv 2509.18842, section SWE (insertion).
    """
    generator = torch.Generator().manual_seed(seed)
    slots: dict[str, list[tuple[GrownSlot, str]]] = defaultdict(list)
    for group in layout.groups:
        for slot in group.slots:
            slots[slot.tensor].append((slot, group.recipe))
    result: dict[str, torch.Tensor] = {}
    for name, axes in layout.index_map.axes.items():
        copies = any(recipe == "copies" for _, recipe in slots[name])
        spread = None if copies else _by_runs(old[name].detach(), axes)
        result[name] = _by_index(old[name].detach(), layout, name) if spread is None else spread
        result[name] = result[name].contiguous(memory_format=memory_format(old[name]))
    for name, own in slots.items():
        # Zero columns last: they win where new rows and new columns cross.
        for (dim, role), fresh in sorted(
            _merged(own).items(), key=lambda item: item[0][1] == "consumer"
        ):
            _fill(result, name, dim, role, fresh, generator)
    for name, factors in shares(layout.groups, layout.index_map, seed).items():
        scale(result[name], factors)
    return result


def memory_format(tensor: torch.Tensor) -> torch.memory_format:
    """Memory format of a dense tensor: channels last, or contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if last is None or tensor.is_contiguous() or not tensor.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def shares(
    groups: Sequence[GrownGroup], index_map: IndexMap, seed: int
) -> dict[str, dict[int, torch.Tensor]]:
    """Share of every column of a consumer that units and their copies split among them.

    The shares are uneven, so that copies part in training; they depend on groups and seed
    only, so that averages of weights can be split as the weights were.

    Parameters
    ----------
    groups : sequence of GrownGroup
    index_map : IndexMap
    seed : int

    Returns
    -------
    dict of str to dict of int to torch.Tensor of float64, shape ``(new size,)``
        Tensor name → dim → factors (1 for columns that are not split).
    """
    generator = torch.Generator().manual_seed(seed)
    result: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
    for group in groups:
        for slot in group.slots:
            if group.recipe != "copies" or slot.role != "consumer":
                continue
            size = index_map.axes[slot.tensor][slot.dim].size
            column = result[slot.tensor].setdefault(slot.dim, torch.ones(size, dtype=torch.float64))
            _share(column, slot, generator)
    return result


def scale(tensor: torch.Tensor, factors: Mapping[int, torch.Tensor]) -> None:
    """Multiply the columns along each dimension by their factors, in place."""
    for dim, column in factors.items():
        shape = [1] * tensor.ndim
        shape[dim] = -1
        tensor.mul_(column.to(tensor).reshape(shape))


def _merged(own: list[tuple[GrownSlot, str]]) -> dict[tuple[int, str], list[GrownSlot]]:
    """Slots of fresh units of one tensor, by dimension and role: filled in one go."""
    merged: dict[tuple[int, str], list[GrownSlot]] = defaultdict(list)
    for slot, recipe in own:
        if recipe == "fresh":
            merged[slot.dim, slot.role].append(slot)
    return merged


def _by_index(tensor: torch.Tensor, layout: Layout, name: str) -> torch.Tensor:
    """Make the new tensor; every new entry is a copy of its template's."""
    for dim in layout.index_map.axes[name]:
        source = torch.from_numpy(layout.sources[name, dim]).to(tensor.device)
        tensor = tensor.index_select(dim, source)
    return tensor


def _by_runs(tensor: torch.Tensor, axes: Mapping[int, AxisMap]) -> torch.Tensor | None:
    """Make the new tensor, old entries in place (copied in blocks), new ones still open.

    ``None`` where there would be too many blocks.
    """
    shape, runs = list(tensor.shape), []
    for dim, size in enumerate(tensor.shape):
        axis = axes.get(dim)
        if axis is None:
            runs.append([(0, 0, size)])
            continue
        shape[dim] = axis.size
        starts = np.concatenate([[0], np.flatnonzero(np.diff(axis.old) > 1) + 1, [size]])
        runs.append([(a, int(axis.old[a]), b - a) for a, b in pairwise(starts.tolist())])
    if math.prod(len(r) for r in runs) > _MOST_BLOCKS:
        return None
    new = tensor.new_empty(shape)
    for block in product(*runs):
        target = tuple(slice(to, to + length) for _, to, length in block)
        new[target] = tensor[tuple(slice(start, start + length) for start, _, length in block)]
    return new


def _share(column: torch.Tensor, slot: GrownSlot, generator: torch.Generator) -> None:
    width, slices = slot.old.shape
    family = np.concatenate([slot.old[:, None], slot.new.reshape(width, -1, slices)], axis=1)
    share = torch.rand(family.shape[:2], generator=generator, dtype=torch.float64) + 0.5
    share /= share.sum(dim=1, keepdim=True)
    column[torch.from_numpy(family.reshape(-1))] = (
        share[..., None].expand(*family.shape).reshape(-1)
    )


def _fill(
    tensors: dict[str, torch.Tensor],
    name: str,
    dim: int,
    role: str,
    slots: list[GrownSlot],
    generator: torch.Generator,
) -> None:
    tensor = tensors[name]
    new = np.concatenate([slot.new.reshape(-1) for slot in slots])
    index = torch.from_numpy(new).to(tensor.device)
    if role == "consumer":
        tensor.index_fill_(dim, index, 0)
        return
    shape = list(tensor.shape)
    shape[dim] = len(index)
    if role == "producer":
        bound = 1 / math.sqrt(max(fan_in(tensors, name, dim), 1))
        dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        values = torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)
        tensor.index_copy_(dim, index, values.to(tensor))
        return
    # Mean over the old units of each group, in one pass over all groups of the axis.
    owners = np.repeat(np.arange(len(slots)), [slot.old.size for slot in slots])
    old = torch.from_numpy(np.concatenate([slot.old.reshape(-1) for slot in slots])).to(
        tensor.device
    )
    shape[dim] = len(slots)
    sums = tensor.new_zeros(shape).index_add_(
        dim, torch.from_numpy(owners).to(tensor.device), tensor.index_select(dim, old)
    )
    column = [-1 if d == dim else 1 for d in range(tensor.ndim)]
    means = sums / torch.tensor([slot.old.size for slot in slots]).to(tensor).reshape(column)
    takers = np.repeat(np.arange(len(slots)), [slot.new.size for slot in slots])
    tensor.index_copy_(
        dim, index, means.index_select(dim, torch.from_numpy(takers).to(tensor.device))
    )


def fan_in(tensors: Mapping[str, torch.Tensor], name: str, dim: int) -> int:
    """Elements that one row of a producer reads; a bias has that of its weight."""
    tensor = tensors[name]
    if tensor.ndim == 1:
        weight = tensors.get(weight_of(name))
        if weight is None:
            return tensor.numel()
        tensor = weight
    return tensor.numel() // tensor.shape[dim]


def weight_of(bias: str) -> str:
    """Name of the weight that goes with a bias (``a.bias`` → ``a.weight``)."""
    head, _, last = bias.rpartition(".")
    name = last.replace("bias", "weight")
    return f"{head}.{name}" if head else name
