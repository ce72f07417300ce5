"""What is known of parameters' axes beyond their labels: who trains, who closes, who scales."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .labels import Where
    from .planes import Axis


@dataclass
class WeightAxes:
    """Axes of parameters and buffers; rules write into it.

    Attributes
    ----------
    rank : dict
        2 for parameters that train, 1 for those that rest (``requires_grad=False``), 0 for
        buffers.
    scales : dict
        For rows that are normalised, the axis that holds their magnitudes (weight norm).
    rigid : dict
        Axes that weights are normalised over: zeros may be added there, nothing else.
    factors : dict
        Axes along which weights are multiplied with weights, as spectral norms are: the
        product may not change, or others might be normalised by it.
    """

    rank: dict[Axis, int] = field(default_factory=dict)
    scales: dict[Axis, Axis] = field(default_factory=dict)
    rigid: dict[Axis, Where] = field(default_factory=dict)
    factors: dict[Axis, Where] = field(default_factory=dict)

    def writer(self, zero: Sequence[Axis]) -> list[Axis]:
        """Axes among the factors ``zero`` that make rows: a parameter, and its scale.

        A buffer (a mask) makes rows only where no parameter does.
        """
        first = [a for a in zero if self.rank.get(a, 2)][:1] or list(zero[:1])
        if not self.scales:
            return first
        return first + [self.scales[a] for a in first if a in self.scales]

    def closer(self, zero: Sequence[Axis]) -> Axis | None:
        """Return the axis among ``zero`` that is zero for new units until it trains.

        Never a buffer, which can't train, nor a normalised row, which can't be zero.
        """
        able = [a for a in zero if self.rank.get(a, 2) and a not in self.scales]
        return max(reversed(able), key=lambda a: self.rank.get(a, 2), default=None)
