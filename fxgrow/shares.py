"""Shares: what a unit and its copies each get of the columns that read them."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from .gates import COPY, SHARE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .ir import GrownGroup, GrownSlot, IndexMap

__all__ = ["scale", "shares"]


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
        if group.recipe != "copies":
            continue
        together: torch.Tensor | None = None  # norms that gate a tied weight share alike
        for slot in group.slots:
            gate = slot.filling == SHARE
            if not gate and (slot.role != "consumer" or slot.filling == COPY):
                continue
            size = index_map.axes[slot.tensor][slot.dim].size
            column = result[slot.tensor].setdefault(slot.dim, torch.ones(size, dtype=torch.float64))
            share = together if gate and together is not None else _draw(slot, generator)
            together = share if gate else together
            _share(column, slot, share)
    return result


def scale(tensor: torch.Tensor, factors: Mapping[int, torch.Tensor]) -> None:
    """Multiply the columns along each dimension by their factors, in place."""
    for dim, column in factors.items():
        shape = [1] * tensor.ndim
        shape[dim] = -1
        tensor.mul_(column.to(tensor).reshape(shape))


def _draw(slot: GrownSlot, generator: torch.Generator) -> torch.Tensor:
    """Shares of a unit and its copies, shape ``(old units, 1 + copies)``."""
    width = len(slot.old)
    share = torch.rand(
        (width, 1 + len(slot.new) // width), generator=generator, dtype=torch.float64
    )
    share += 0.5
    return share / share.sum(dim=1, keepdim=True)


def _share(column: torch.Tensor, slot: GrownSlot, share: torch.Tensor) -> None:
    """Split entries over a unit and its copies, unevenly, so that they part."""
    width, slices = slot.old.shape
    family = np.concatenate([slot.old[:, None], slot.new.reshape(width, -1, slices)], axis=1)
    column[torch.from_numpy(family.reshape(-1))] = (
        share[..., None].expand(*family.shape).reshape(-1)
    )
