"""The partition check: the widened model's units must be those that growth meant to make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .errors import VerificationError

if TYPE_CHECKING:
    from .layout import Layout
    from .propagate import Propagation

__all__ = ["check_partition"]


def check_partition(state: Propagation, layout: Layout) -> None:
    """Compare the partition of slices into units with the expected one, exactly.

    Raises
    ------
    VerificationError
        When they differ.
    """
    if state.axes.keys() != layout.units.keys():
        odd = sorted(state.axes.keys() ^ layout.units.keys())
        raise VerificationError(
            f"the widened model uses other parameters than the original, e.g. {odd[:3]}"
        )
    for axis, labels in state.axes.items():
        wanted = len(layout.units[axis])
        if len(labels) != wanted:
            raise VerificationError(
                f"{axis[0]} has {len(labels)} entries along dim {axis[1]}, not {wanted}"
            )
    # Label 0 is the outside world; those of no axis belong to initial states.
    owned = np.concatenate([[0], *state.axes.values()])
    expected = np.concatenate([[0], *(layout.units[axis] for axis in state.axes)])
    roots = state.book.find(owned)
    by_root = np.zeros(state.book.size, dtype=np.int64)
    by_root[roots] = expected
    by_unit = np.zeros(int(expected.max()) + 1, dtype=np.int64)
    by_unit[expected] = roots
    wrong = (by_root[roots] != expected) | (by_unit[expected] != roots)
    if wrong.any():
        label = int(owned[np.flatnonzero(wrong)[0]])
        tensor, dim = next(
            (a for a, labels in state.axes.items() if labels[0] <= label <= labels[-1]), ("?", 0)
        )
        raise VerificationError(
            f"in the widened model {int(wrong.sum())} slices belong to other units than in the "
            f"original, first in {tensor} (dim {dim}); the growth was refused: exclude this group"
        )
