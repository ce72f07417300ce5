"""Kernels that want rows of whole blocks of memory: by how many units groups then grow."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .ir import Group
    from .propagate import Propagation

__all__ = ["in_steps"]


def in_steps(state: Propagation, groups: Sequence[Group]) -> list[Group]:
    """Make ``multiple_of`` of each group a multiple of what the kernels ask for."""
    if not state.aligned:
        return list(groups)
    needed = [(state.book.find(labels.reshape(-1)), step) for labels, step in state.aligned]
    return [replace(g, multiple_of=_step(state, g, needed)) for g in groups]


def _step(state: Propagation, group: Group, needed: Sequence[tuple[np.ndarray, int]]) -> int:
    slot = group.slots[0]
    unit = state.book.find(state.axes[slot.tensor, slot.dim][slot.positions[:1, 0]])[0]
    step = group.multiple_of
    for roots, block in needed:
        entries = int((roots == unit).sum())  # of one unit along this row
        if entries:
            step = math.lcm(step, block // math.gcd(block, entries))
    return step
