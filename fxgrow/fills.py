"""New entries of streams, whose recipes span tensors: means, zeros and random columns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .ir import AxisMap, GrownGroup, GrownSlot

    Tensors = Mapping[str, torch.Tensor]

__all__ = ["STREAMS", "centre_columns", "draw", "fill_streams", "stream_steps", "take_step"]

STREAMS = frozenset({"mean", "zero"})
"""Recipes of streams (see :class:`fxgrow.ir.Group`)."""


def fill_streams(
    groups: Sequence[GrownGroup], tensors: Tensors, generator: torch.Generator | None
) -> None:
    """Make the new entries of all streams, and scale what makes up for their widths, in place.

    Parameters
    ----------
    groups : sequence of GrownGroup
        Those of other recipes are passed over.
    tensors : dict of str to torch.Tensor
        In their new shapes, old entries in place, other groups filled.
    generator : torch.Generator or None
        Of the random columns; without one they stay as they are.
    """
    for group, slot in stream_steps(groups):
        take_step(tensors, group, slot, generator)


def stream_steps(groups: Sequence[GrownGroup]) -> Iterator[tuple[GrownGroup, GrownSlot]]:
    """Yield what :func:`fill_streams` fills, in its order."""
    streams = [group for group in groups if group.recipe in STREAMS]
    # Columns before rows, which may be means over what the columns hold; scales before the
    # rows that they are multiplied with; zero columns win where they cross random ones.
    for kind in ("random", "scale", "mean", "zero", "gain"):
        for group in streams:
            yield from ((group, slot) for slot in group.slots if slot.filling.kind == kind)


def take_step(
    tensors: Tensors, group: GrownGroup, slot: GrownSlot, generator: torch.Generator | None
) -> None:
    """Fill one slot of a stream, in place."""
    _FILLERS[slot.filling.kind](tensors, group, slot, generator)


def _random(
    tensors: Tensors, group: GrownGroup, slot: GrownSlot, generator: torch.Generator | None
) -> None:
    tensor = tensors[slot.tensor]
    if generator is None:
        return
    fan_in = tensor.shape[slot.dim] * math.prod(tensor.shape[2:])
    draw(tensor, slot.dim, slot.new.reshape(-1), 1 / math.sqrt(fan_in), generator)


def _scale(
    tensors: Tensors, group: GrownGroup, slot: GrownSlot, generator: torch.Generator | None
) -> None:
    """Root of the mean square: as large as needed for means of products to be products."""
    tensor = tensors[slot.tensor]
    old = tensor.index_select(slot.dim, _index(slot.old, tensor)).double()
    size = old.square().mean().sqrt().to(tensor)
    tensor.index_fill_(slot.dim, _index(slot.new, tensor), float(size))


def _mean(
    tensors: Tensors, group: GrownGroup, slot: GrownSlot, generator: torch.Generator | None
) -> None:
    """Rows that make the new unit the mean, scales taken into account."""
    tensor, dim = tensors[slot.tensor], slot.dim
    old, new = np.sort(slot.old, axis=1), np.sort(slot.new, axis=1)
    rows = tensor.index_select(dim, _index(old, tensor)).double()
    rows = rows.unflatten(dim, old.shape).movedim(dim, 0)
    factor, size = torch.ones(len(old), dtype=torch.float64, device=tensor.device), 1.0
    for name, along in slot.filling.scales:
        (own,) = (s for s in group.slots if (s.tensor, s.dim) == (name, along))
        values = tensors[name].double().reshape(-1).to(tensor.device)
        factor = factor * values[_index(own.old, tensor)]
        size *= float(values[int(own.new.flat[0])])
    mean = (rows * factor.reshape([-1, *[1] * (rows.ndim - 1)])).mean(0) / (size or 1.0)
    slices = torch.arange(old.shape[1], device=tensor.device).repeat(len(new))
    tensor.index_copy_(dim, _index(new, tensor), mean.index_select(dim, slices).to(tensor))


def _zero(
    tensors: Tensors, group: GrownGroup, slot: GrownSlot, generator: torch.Generator | None
) -> None:
    tensor = tensors[slot.tensor]
    tensor.index_fill_(slot.dim, _index(slot.new, tensor), 0.0)


def _gain(
    tensors: Tensors, group: GrownGroup, slot: GrownSlot, generator: torch.Generator | None
) -> None:
    """Weights of norms: new ones the mean of the old, all made up for the new width."""
    tensor, dim = tensors[slot.tensor], slot.dim
    old, new = _index(slot.old, tensor), _index(slot.new, tensor)
    values = tensor.index_select(dim, old).double()
    values *= math.sqrt(group.width / (group.width + group.added))
    tensor.index_copy_(dim, old, values.to(tensor))
    tensor.index_fill_(dim, new, values.mean())


_FILLERS: Mapping[str, Callable[[Tensors, GrownGroup, GrownSlot, torch.Generator | None], None]] = {
    "random": _random,
    "scale": _scale,
    "mean": _mean,
    "zero": _zero,
    "gain": _gain,
}


def _index(positions: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(positions.reshape(-1))).to(like.device)


def draw(
    tensor: torch.Tensor, dim: int, new: np.ndarray, bound: float, generator: torch.Generator
) -> None:
    """Draw new rows from U(-bound, bound), on the CPU, so that a seed means the same anywhere.

    Parameters
    ----------
    tensor : torch.Tensor
        Changed in place.
    dim : int
    new : numpy.ndarray of int64
        Positions along ``dim``.
    bound : float
    generator : torch.Generator
        On the CPU.
    """
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    plain = tensor.dtype == dtype and tensor.device.type == "cpu"
    if plain and (np.diff(new) == 1).all():  # side by side: no detour
        tensor.narrow(dim, int(new[0]), len(new)).uniform_(-bound, bound, generator=generator)
        return
    shape = list(tensor.shape)
    shape[dim] = len(new)
    values = torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)
    tensor.index_copy_(dim, torch.from_numpy(new).to(tensor.device), values.to(tensor))


def centre_columns(tensor: torch.Tensor, slot: GrownSlot, axes: Mapping[int, AxisMap]) -> None:
    """Let all new columns of a standardised weight hold the mean of their row's old entries.

    Parameters
    ----------
    tensor : torch.Tensor
        Changed in place; new rows are filled.
    slot : GrownSlot
        Of the columns; its filling names the axes that means are over.
    axes : dict of int to AxisMap
        All of the tensor that grow.
    """
    dims = [dim for _, dim in slot.filling.scales]
    old = tensor
    for dim in dims:
        if dim in axes:
            old = old.index_select(dim, _index(axes[dim].old, tensor))
    mean = old.double().mean(dims, keepdim=True).to(tensor.dtype)
    new = axes[slot.dim].new
    shape = list(tensor.shape)
    shape[slot.dim] = len(new)
    tensor.index_copy_(slot.dim, _index(new, tensor), mean.expand(shape))
