"""Values of new entries, so that the function is kept.

Producers' rows are fresh (Kaiming-uniform with a = √5, as the paper), consumers'
columns zero, entries of norms and other per-unit entries the mean of the old ones.
Copies repeat all entries of their template, and share its columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .ir import GrownSlot
    from .layout import Layout


def new_tensors(
    layout: Layout, old: Mapping[str, torch.Tensor], seed: int
) -> dict[str, torch.Tensor]:
    """Return every tensor that grows, in its new shape, dtype and device kept."""
    generator = torch.Generator().manual_seed(seed)
    slots: dict[str, list[tuple[GrownSlot, str]]] = defaultdict(list)
    for group in layout.groups:
        for slot in group.slots:
            slots[slot.tensor].append((slot, group.recipe))
    result: dict[str, torch.Tensor] = {}
    for name, axes in layout.index_map.axes.items():
        tensor = old[name].detach()
        for dim in axes:
            source = torch.from_numpy(layout.sources[name, dim]).to(tensor.device)
            tensor = tensor.index_select(dim, source)
        result[name] = tensor
    for name, own in slots.items():
        # Zero columns last: they win where new rows and new columns cross.
        for slot, recipe in sorted(own, key=lambda pair: pair[0].role == "consumer"):
            if recipe == "fresh":
                _fill(result, slot, generator)
            elif slot.role == "consumer":
                _share(result, slot, generator)
    return result


def _share(tensors: dict[str, torch.Tensor], slot: GrownSlot, generator: torch.Generator) -> None:
    """Split consumers' columns over a unit and its copies, unevenly, so that they part."""
    tensor = tensors[slot.tensor]
    width, slices = slot.old.shape
    family = np.concatenate([slot.old[:, None], slot.new.reshape(width, -1, slices)], axis=1)
    shares = torch.rand(family.shape[:2], generator=generator, dtype=torch.float64) + 0.5
    shares /= shares.sum(dim=1, keepdim=True)
    column = torch.ones(tensor.shape[slot.dim], dtype=torch.float64)
    column[torch.from_numpy(family.reshape(-1))] = (
        shares[..., None].expand(*family.shape).reshape(-1)
    )
    shape = [1] * tensor.ndim
    shape[slot.dim] = -1
    tensor.mul_(column.to(tensor).reshape(shape))


def _fill(tensors: dict[str, torch.Tensor], slot: GrownSlot, generator: torch.Generator) -> None:
    tensor = tensors[slot.tensor]
    index = torch.from_numpy(slot.new.reshape(-1)).to(tensor.device)
    if slot.role == "consumer":
        tensor.index_fill_(slot.dim, index, 0)
        return
    if slot.role == "producer":
        shape = list(tensor.shape)
        shape[slot.dim] = len(index)
        bound = 1 / math.sqrt(max(fan_in(tensors, slot), 1))
        fresh = torch.empty(
            shape, dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32
        )
        fresh.uniform_(-bound, bound, generator=generator)
        tensor.index_copy_(slot.dim, index, fresh.to(tensor))
        return
    old = torch.from_numpy(slot.old.reshape(-1)).to(tensor.device)
    mean = tensor.index_select(slot.dim, old).mean(slot.dim, keepdim=True)
    shape = list(mean.shape)
    shape[slot.dim] = len(index)
    tensor.index_copy_(slot.dim, index, mean.expand(shape))


def fan_in(tensors: Mapping[str, torch.Tensor], slot: GrownSlot) -> int:
    """Elements that one row of a producer reads; a bias has that of its weight."""
    tensor = tensors[slot.tensor]
    if tensor.ndim == 1:
        weight = tensors.get(weight_of(slot.tensor))
        if weight is None:
            return tensor.numel()
        tensor = weight
    return tensor.numel() // tensor.shape[slot.dim]


def weight_of(bias: str) -> str:
    """Name of the weight that goes with a bias (``a.bias`` → ``a.weight``)."""
    head, _, last = bias.rpartition(".")
    name = last.replace("bias", "weight")
    return f"{head}.{name}" if head else name
