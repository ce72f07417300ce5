"""Convolutions along the channels (ECA): exact where new channels are zeros at the end.

Such a convolution is padded with zeros, so what it computes of the old channels stays when new
ones behind them hold zeros there. Elsewhere these units need not be zero: a branch ends in a
batch norm whose new weights and biases are zero, and what it is added to brings new values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .flows import VARIES
from .ir import Filling

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .analyse import Analysis
    from .ir import Slot
    from .planes import Axis
    from .streams import Mixed

__all__ = ["LOCAL", "at_rest"]

LOCAL = "local"
"""Code of reductions over neighbours along an axis."""


def at_rest(
    analysis: Analysis, slots: Sequence[Slot], mixed: Iterable[Mixed]
) -> tuple[Slot, ...] | None:
    """Let new units be zero where a convolution reads them along their axis, and only there.

    Parameters
    ----------
    analysis : Analysis
        Settled.
    slots : sequence of Slot
        Of a group of fresh units.
    mixed : iterable of Mixed
        All operations that reduce over them.

    Returns
    -------
    tuple of Slot or None
        Slots, those of the entries that make the zeros being consumers (zero until they train).
        None where there are no such entries, or units would be zero wherever they are.
    """
    own = {(slot.tensor, slot.dim) for slot in slots}
    zeros: set[Axis] = set()
    for found in mixed:
        flow = found.mixing.flow
        if found.mixing.code != LOCAL or flow is None or not flow.terms:
            return None
        for term in flow.terms:
            able = [axis for axis in term if axis != VARIES and _trains(analysis, axis)]
            if not own.intersection(able):
                return None
            if not zeros.intersection(able):
                zeros.add(next(axis for axis in able if axis in own))
    behind = analysis.state.book.weights.behind
    still = zeros.union(*(behind.get(axis, set()) for axis in zeros))
    if all(s.role != "producer" or (s.tensor, s.dim) in still for s in slots):
        return None
    rest = Filling("zero")  # no copies, and no pairs: the order counts
    return tuple(
        replace(s, role="consumer", filling=rest) if (s.tensor, s.dim) in zeros else s
        for s in slots
    )


def _trains(analysis: Analysis, axis: Axis) -> bool:
    weights = analysis.state.book.weights
    rank = 2 if analysis.trains else 1
    return weights.rank.get(axis, 0) >= rank and axis not in weights.scales
