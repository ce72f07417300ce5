"""What is known of parameters' axes beyond their labels: who trains, who closes, who scales."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .ir import PLAIN, Filling

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from .labels import Where
    from .planes import Axis


def shifted(axis: Axis) -> Axis:
    """Name an axis of a weight whose mean is subtracted, or give back that axis.

    It is another factor than the axis itself: it is zero where that is at the mean.

    Examples
    --------
    >>> shifted(("conv.weight", 1)), shifted(("conv.weight", -2))
    (('conv.weight', -2), ('conv.weight', 1))
    """
    return axis[0], ~axis[1]


def is_shifted(axis: Axis) -> bool:
    """Whether :func:`shifted` made an axis."""
    return axis[1] < 0


def unshifted(axis: Axis) -> Axis:
    """Return the axis of the weight itself."""
    return shifted(axis) if is_shifted(axis) else axis


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
    split : dict
        Axes that weights are reduced over by what is no sum: columns that copies share change it.
    behind : dict
        For weights of batch norms, the axes that write what they are multiplied with.
    factors : dict
        Axes along which weights are multiplied with weights, as spectral norms are: the
        product may not change, or others might be normalised by it.
    centred : dict
        For axes over which a weight's mean is subtracted: all the axes that the mean is over,
        and where it is. Zeros then are entries at that mean.
    torn : set
        Such axes whose weight is read as it is, too: no entry is zero for both.
    """

    rank: dict[Axis, int] = field(default_factory=dict)
    scales: dict[Axis, Axis] = field(default_factory=dict)
    rigid: dict[Axis, Where] = field(default_factory=dict)
    split: dict[Axis, Where] = field(default_factory=dict)
    behind: dict[Axis, set[Axis]] = field(default_factory=dict)
    factors: dict[Axis, Where] = field(default_factory=dict)
    centred: dict[Axis, tuple[tuple[Axis, ...], Where]] = field(default_factory=dict)
    torn: set[Axis] = field(default_factory=set)

    def centre(self, axes: tuple[Axis, ...], where: Where) -> None:
        """Write down that the mean over ``axes`` of one weight is subtracted from it.

        What stands for them among the factors that are zero is :func:`shifted`.
        """
        for axis in axes:
            if self.centred.setdefault(axis, (axes, where))[0] != axes:
                self.torn.add(axis)
            if axis in self.rank:
                self.rank[shifted(axis)] = self.rank[axis]

    def settle(self, closers: Container[Axis]) -> None:
        """Keep the axes that are centred where units are summed away; nothing else fits there."""
        self.torn |= {axis for axis in self.centred if axis in closers}
        for axis, (axes, where) in list(self.centred.items()):
            if any(shifted(a) in closers for a in axes):
                self.rigid.setdefault(axis, where)
            else:
                del self.centred[axis]

    def over(self, axis: Axis) -> tuple[Axis, ...]:
        """Return the axes that a mean which is subtracted is over (none: none is)."""
        return self.centred[axis][0] if axis in self.centred else ()

    def filling(self, axis: Axis) -> Filling:
        """How new columns along an axis are made."""
        axes = self.over(axis)
        return Filling("centre", axes) if axes else PLAIN

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
