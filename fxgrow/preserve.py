"""Values of new entries, so that the function is kept.

Producers' rows are fresh (Kaiming-uniform with a = √5, as the paper), consumers'
columns zero, entries of norms and other per-unit entries the mean of the old ones.
Copies repeat all entries of their template, and share its columns. Streams are filled last
(:mod:`fxgrow.fills`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from .fills import centre_columns, draw, fill_streams
from .shares import scale, shares

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from .ir import AxisMap, GrownSlot
    from .layout import Layout

_MOST_BLOCKS = 6  # copying more of them takes longer than one index
_MEANS = frozenset({"norm", "per_unit"})  # roles whose new entries are means of old ones


def new_tensors(
    layout: Layout,
    old: Mapping[str, torch.Tensor],
    seed: int,
    factors: Collection[str] = (),
) -> dict[str, torch.Tensor]:
    """Fill every tensor that grows, in its new shape; dtype and device are kept.

    Parameters
    ----------
    layout : Layout
    old : dict of str to torch.Tensor
        The model's tensors, by name; not changed.
    seed : int
        Of the fresh rows and the uneven shares of copies.
    factors : collection of str
        Buffers that multiply; those of zeros and ones are masks, open for new entries.

    Returns
    -------
    dict of str to torch.Tensor
        Only the tensors that grow.

    References
    ----------
    arXiv 2509.18842, section SWE (insertion).
    """
    slots = slots_of(layout)
    shapes = {name: _new_shape(old[name], axes) for name, axes in layout.index_map.axes.items()}
    if all(old[name].is_meta for name in slots):  # shapes are all that there is
        return {name: old[name].new_empty(shapes[name]) for name in slots}
    generator = torch.Generator().manual_seed(seed)
    vectors = _vectors(old, slots, factors)
    result: dict[str, torch.Tensor] = {}
    for names in vectors:
        result.update(_fill_vectors(old, layout, slots, names))
    for name, own in slots.items():
        if name not in result:
            tensor = old[name].detach()
            mask = name in factors and _is_mask(tensor)
            result[name] = _filled(tensor, layout, name, own, shapes, generator, mask=mask)
    for name, split in shares(layout.groups, layout.index_map, seed).items():
        scale(result[name], split)
    fill_streams(layout.groups, result, torch.Generator().manual_seed(seed))
    return result


def slots_of(layout: Layout) -> dict[str, list[tuple[GrownSlot, str]]]:
    """Slots, and the recipes of their groups, of every tensor that grows."""
    slots: dict[str, list[tuple[GrownSlot, str]]] = defaultdict(list)
    for group in layout.groups:
        for slot in group.slots:
            slots[slot.tensor].append((slot, group.recipe))
    return slots


def filled(
    old: torch.Tensor,
    layout: Layout,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    slots: Mapping[str, list[tuple[GrownSlot, str]]],
    generator: torch.Generator,
    factors: Collection[str] = (),
) -> torch.Tensor:
    """Fill one tensor as :func:`new_tensors` does, without what streams and copies need.

    Parameters
    ----------
    old : torch.Tensor
    layout : Layout
    name : str
    shapes : dict of str to tuple of int
        New shapes of all tensors that grow.
    slots : dict
        See :func:`slots_of`.
    generator : torch.Generator
        As it is when this tensor has its turn, see :func:`drawn`.
    factors : collection of str
        See :func:`new_tensors`.
    """
    if is_vector(len(old.shape), name, slots[name], factors):
        return _fill_vectors({name: old}, layout, slots, [name])[name]
    mask = name in factors and _is_mask(old)
    return _filled(old, layout, name, slots[name], shapes, generator, mask=mask)


def drawn(own: list[tuple[GrownSlot, str]], shape: Sequence[int]) -> int:
    """How many numbers are drawn to fill a tensor of the new ``shape``, streams aside."""
    return sum(
        sum(slot.new.size for slot in fresh) * math.prod(shape) // shape[dim]
        for (dim, role), fresh in _merged(own).items()
        if role == "producer"
    )


def is_vector(
    ndim: int, name: str, own: list[tuple[GrownSlot, str]], factors: Collection[str]
) -> bool:
    """Whether all new entries of a tensor are means of a vector: nothing is drawn."""
    fresh = all(slot.role in _MEANS and recipe != "copies" for slot, recipe in own)
    return ndim == 1 and fresh and name not in factors


def _vectors(
    old: Mapping[str, torch.Tensor],
    slots: Mapping[str, list[tuple[GrownSlot, str]]],
    factors: Collection[str],
) -> list[list[str]]:
    """Collect vectors whose new entries are all means (those of norms), by dtype and device."""
    found: dict[Any, list[str]] = defaultdict(list)
    for name, own in slots.items():
        tensor = old[name]
        if is_vector(tensor.ndim, name, own, factors):
            found[tensor.dtype, tensor.device].append(name)
    return list(found.values())


def _fill_vectors(
    old: Mapping[str, torch.Tensor],
    layout: Layout,
    slots: Mapping[str, list[tuple[GrownSlot, str]]],
    names: list[str],
) -> dict[str, torch.Tensor]:
    """Make many vectors in one pass: means stand behind the old entries that they are of."""
    tensors = [old[name].detach() for name in names]
    plans: dict[Any, _Means] = {}
    own: list[_Means] = []
    for name in names:
        source = layout.sources[name, 0]
        key = (id(source), *(id(slot.new) for slot, _ in slots[name]))
        if key not in plans:  # a norm's vectors share theirs
            plans[key] = _plan_means(source, len(old[name]), [slot for slot, _ in slots[name]])
        own.append(plans[key])
    counts = [len(plan.sizes) for plan in own]
    lengths = [len(tensor) for tensor in tensors]
    start = np.cumsum([0, *lengths])
    first = np.cumsum([0, *counts])
    flat = torch.cat(tensors)
    means = _means(
        flat,
        0,
        np.concatenate([plan.old + at for plan, at in zip(own, start, strict=False)]),
        np.concatenate([plan.sizes for plan in own]),
    ).split(counts)
    pool = torch.cat([part for pair in zip(tensors, means, strict=True) for part in pair])
    source = np.concatenate(
        [plan.source + at for plan, at in zip(own, start + first, strict=False)]
    )
    filled = pool.index_select(0, _index(source, pool)).split([len(plan.source) for plan in own])
    return {name: tensor.clone() for name, tensor in zip(names, filled, strict=True)}


class _Means(NamedTuple):
    """How a vector is made of its old entries with the means of its slots behind them."""

    source: np.ndarray
    old: np.ndarray  # positions of the old entries, slot by slot
    sizes: np.ndarray  # how many they are


def _plan_means(source: np.ndarray, length: int, slots: list[GrownSlot]) -> _Means:
    old = source[np.concatenate([slot.old.reshape(-1) for slot in slots])]
    source = source.copy()
    for number, slot in enumerate(slots):
        source[slot.new.reshape(-1)] = length + number
    return _Means(source, old, np.array([slot.old.size for slot in slots]))


def _filled(
    old: torch.Tensor,
    layout: Layout,
    name: str,
    own: list[tuple[GrownSlot, str]],
    shapes: Mapping[str, tuple[int, ...]],
    generator: torch.Generator,
    *,
    mask: bool = False,
) -> torch.Tensor:
    """Make one tensor (or several alike, stacked) in its new shape."""
    merged = _merged(own)
    axes = layout.index_map.axes[name]
    copies = any(recipe == "copies" for _, recipe in own)
    spread = None if copies else _by_runs(old, axes)
    tensor = _by_index(old, layout, name, copies=copies) if spread is None else spread
    tensor = tensor.contiguous(memory_format=memory_format(old))
    # Zero columns last: they win where new rows and new columns cross.
    for (dim, role), fresh in sorted(merged.items(), key=lambda item: item[0][1] == "consumer"):
        new = np.concatenate([slot.new.reshape(-1) for slot in fresh])
        if fresh[0].filling.kind == "centre":
            centre_columns(tensor, fresh[0], axes)
        elif role == "consumer" or (mask and role == "per_unit"):
            _set(tensor, dim, new, 0.0 if role == "consumer" else 1.0)
        elif role == "producer":
            bound = 1 / math.sqrt(max(fan_in(shapes, name, dim), 1))
            draw(tensor, dim, new, bound, generator)
        else:
            _average(tensor, dim, new, fresh)
    return tensor


def _set(tensor: torch.Tensor, dim: int, new: np.ndarray, value: float) -> None:
    if (np.diff(new) == 1).all():  # side by side
        tensor.narrow(dim, int(new[0]), len(new)).fill_(value)
    else:
        tensor.index_fill_(dim, torch.from_numpy(new).to(tensor.device), value)


def _is_mask(tensor: torch.Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == 1)).all())


def memory_format(tensor: torch.Tensor) -> torch.memory_format:
    """Memory format of a dense tensor: channels last, or contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if last is None or tensor.is_contiguous() or not tensor.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def _merged(own: list[tuple[GrownSlot, str]]) -> dict[tuple[int, str], list[GrownSlot]]:
    """Slots of units of one tensor that are no copies, by dimension and role: filled in one go."""
    merged: dict[tuple[int, str], list[GrownSlot]] = defaultdict(list)
    for slot, recipe in own:
        if recipe != "copies":
            merged[slot.dim, slot.role].append(slot)
    return merged


def _by_index(
    tensor: torch.Tensor, layout: Layout, name: str, *, copies: bool = True
) -> torch.Tensor:
    """Make the new tensor; every new entry is a copy of its template's.

    Without ``copies`` new rows at the end are still open.
    """
    axes = layout.index_map.axes[name]
    rows, *rest = axes
    if not copies and rows == 0 and len(rest) == 1 and axes[0].old[-1] == tensor.shape[0] - 1:
        new = tensor.new_empty(_new_shape(tensor, axes))
        source = _index(layout.sources[name, rest[0]], tensor)
        torch.index_select(tensor, rest[0], source, out=new[: tensor.shape[0]])
        return new
    for dim in axes:
        tensor = tensor.index_select(dim, _index(layout.sources[name, dim], tensor))
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


def _average(tensor: torch.Tensor, dim: int, new: np.ndarray, slots: list[GrownSlot]) -> None:
    """Give new entries the mean of their group's old ones, all groups of the axis in one pass."""
    old = np.concatenate([slot.old.reshape(-1) for slot in slots])
    means = _means(tensor, dim, old, np.array([slot.old.size for slot in slots]))
    takers = np.repeat(np.arange(len(slots)), [slot.new.size for slot in slots])
    tensor.index_copy_(dim, _index(new, tensor), means.index_select(dim, _index(takers, tensor)))


def _means(tensor: torch.Tensor, dim: int, old: np.ndarray, sizes: np.ndarray) -> torch.Tensor:
    """Means over entries at ``old``, of which ``sizes`` follow each other in one mean."""
    shape = list(tensor.shape)
    shape[dim] = len(sizes)
    exact = torch.promote_types(tensor.dtype, torch.float32)  # long sums drown in half precision
    values = tensor.index_select(dim, _index(old, tensor)).to(exact)
    owners = _index(np.repeat(np.arange(len(sizes)), sizes), tensor)
    sums = values.new_zeros(shape).index_add_(dim, owners, values)
    column = [-1 if d == dim else 1 for d in range(tensor.ndim)]
    return (sums / _index(sizes, tensor).reshape(column)).to(tensor.dtype)


def _index(positions: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(positions).to(like.device)


def fan_in(shapes: Mapping[str, tuple[int, ...]], name: str, dim: int) -> int:
    """Elements that one row of a producer reads; a bias has that of its weight."""
    shape = shapes[name]
    if len(shape) == 1:
        if weight_of(name) not in shapes:
            return shape[0]
        shape = shapes[weight_of(name)]
    return math.prod(shape) // shape[dim]


def _new_shape(old: torch.Tensor, axes: Mapping[int, AxisMap]) -> tuple[int, ...]:
    return tuple(axes[d].size if d in axes else size for d, size in enumerate(old.shape))


def weight_of(bias: str) -> str:
    """Name of the weight that goes with a bias (``a.bias`` → ``a.weight``)."""
    head, _, last = bias.rpartition(".")
    name = last.replace("bias", "weight")
    return f"{head}.{name}" if head else name
