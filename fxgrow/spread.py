"""Spreading what belongs to old entries (moments, averages) over a grown tensor."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .fills import centre_columns
from .ir import IndexMap
from .shares import scale, shares

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .ir import AxisMap, GrownSlot, Growth

__all__ = ["Place", "fits", "places", "spread", "spread_average"]


@dataclass(frozen=True, eq=False)
class Place:
    """How one tensor grew.

    Attributes
    ----------
    name : str
    axes : dict of int to AxisMap
        Never empty.
    slots : tuple of (GrownSlot, str)
        The slots of all groups on this tensor, each with the group's recipe.
    factors : dict of int to torch.Tensor
        Along which dimensions units share their columns with their copies, and how.
    """

    name: str
    axes: Mapping[int, AxisMap]
    slots: tuple[tuple[GrownSlot, str], ...]
    factors: Mapping[int, torch.Tensor]

    def fresh(self, dim: int) -> int:
        """Count the new positions along a dimension that are no copies."""
        return sum(
            slot.new.size for slot, recipe in self.slots if slot.dim == dim and recipe != "copies"
        )

    def along(self, dims: frozenset[int]) -> Place:
        """Keep some of the axes: for tensors that do not vary along the others."""
        return replace(
            self,
            axes={dim: axis for dim, axis in self.axes.items() if dim in dims},
            slots=tuple((slot, recipe) for slot, recipe in self.slots if slot.dim in dims),
        )

    def shape(self, old: torch.Size) -> tuple[int, ...]:
        """Shape of a grown tensor that had shape ``old``."""
        return tuple(self.axes[d].size if d in self.axes else n for d, n in enumerate(old))


def places(growth: Growth) -> dict[str, Place]:
    """Every tensor that grew, by name."""
    slots: dict[str, list[tuple[GrownSlot, str]]] = defaultdict(list)
    factors = shares(growth.groups, growth.index_map, int(growth.report.get("seed", 0)))
    for group in growth.groups:
        for slot in group.slots:
            slots[slot.tensor].append((slot, group.recipe))
    return {
        name: Place(name, axes, tuple(slots[name]), factors.get(name, {}))
        for name, axes in growth.index_map.axes.items()
        if axes
    }


def fits(place: Place | None, old: torch.Tensor, new: torch.Tensor) -> bool:
    """Whether ``old`` has the shape before, and ``new`` the one after growth."""
    if place is None:
        return old.shape == new.shape
    if any(dim >= old.ndim or len(a.old) != old.shape[dim] for dim, a in place.axes.items()):
        return False
    return place.shape(old.shape) == tuple(new.shape)


def spread(place: Place, old: torch.Tensor, new: torch.Tensor, *, mean: bool = False) -> None:
    """Write the values of old entries into a tensor of the new shape, in place.

    Old entries hold their old values, copied units those of the unit they are copies of.
    Other new entries keep what ``new`` holds, or get the mean over the old units.

    Parameters
    ----------
    place : Place
    old : torch.Tensor
        In the old shape (1 where it does not vary).
    new : torch.Tensor
        In the new shape.
    mean : bool
        Whether fresh units get the mean over the old units of their group.
    """
    old = old.detach().to(new.device)
    new[IndexMap({place.name: place.axes}).region(place.name, old)] = old
    for slot, recipe in place.slots:
        if recipe == "copies":
            _repeat(new, slot)
        elif mean and slot.old.size:  # a transfer may bring units unlike any old one
            _average(new, slot)


def spread_average(place: Place, old: torch.Tensor, new: torch.Tensor, own: torch.Tensor) -> None:
    """Write averages of old weights into a tensor of the new shape, in place.

    The average computes what it did before: copied units are split as the weights were,
    what reads fresh units is zero, as it was before growth; their own entries are ``own``.
    (Streams need :func:`fxgrow.fills.fill_streams` in addition.)

    Parameters
    ----------
    place : Place
    old : torch.Tensor
        In the old shape.
    new : torch.Tensor
        In the new shape; overwritten.
    own : torch.Tensor
        The grown module's values.
    """
    new.zero_()
    spread(place, old, new)
    scale(new, place.factors)
    own = own.detach().to(new)
    fresh = [slot for slot, recipe in place.slots if recipe != "copies"]
    for slot in fresh:
        if slot.role != "consumer" or slot.filling.kind not in {"", "zero", "centre"}:
            where = _index(slot.new, new)
            new.index_copy_(slot.dim, where, own.index_select(slot.dim, where))
    for slot in fresh:  # last: they win where new rows and new columns cross
        if slot.role == "consumer" and slot.filling.kind in {"", "zero"}:
            new.index_fill_(slot.dim, _index(slot.new, new), 0)
        elif slot.filling.kind == "centre":
            centre_columns(new, slot, place.axes)


def _index(positions: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """Positions as a flat index tensor on the device of ``like``."""
    return torch.from_numpy(np.ascontiguousarray(positions.reshape(-1))).to(like.device)


def _repeat(tensor: torch.Tensor, slot: GrownSlot) -> None:
    """Give every copy the entries of its unit; copies are listed unit by unit."""
    old, new = np.sort(slot.old, axis=1), np.sort(slot.new, axis=1)
    template = np.repeat(old, len(new) // len(old), axis=0)
    tensor.index_copy_(
        slot.dim, _index(new, tensor), tensor.index_select(slot.dim, _index(template, tensor))
    )


def _average(tensor: torch.Tensor, slot: GrownSlot) -> None:
    """Give every new unit the mean over the old ones, slice by slice."""
    old, new = np.sort(slot.old, axis=1), np.sort(slot.new, axis=1)
    units = tensor.index_select(slot.dim, _index(old, tensor)).unflatten(slot.dim, old.shape)
    slices = np.tile(np.arange(new.shape[1]), len(new))
    means = units.mean(slot.dim).index_select(slot.dim, _index(slices, tensor))
    tensor.index_copy_(slot.dim, _index(new, tensor), means)
