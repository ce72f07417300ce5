"""When to grow: small frozen rules of a :class:`Moment`.

A schedule is any callable that takes a :class:`Moment` and says whether growth is due. It
should be pure: all that it may look at is in the moment, so that a resumed run decides as
the first one did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from .budgets import stalled
from .errors import InputError

if TYPE_CHECKING:
    from .budgets import Size

__all__ = ["Boundary", "Moment", "Schedule", "at", "every", "plateau"]

_T = TypeVar("_T")
Boundary = Literal["step", "epoch"]


@dataclass(frozen=True)
class Moment:
    """What a schedule sees at the end of a step or an epoch.

    Attributes
    ----------
    boundary : {"step", "epoch"}
        What has just ended.
    step, epoch : int
        How many of each have ended, over the whole run.
    round : int
        Growths made so far.
    steps_in_round, epochs_in_round : int
        How many of each have ended since the last growth.
    metrics : tuple of float
        Values given at this kind of boundary since the last growth, oldest first.
    mode : {"min", "max"}
        Which metrics are better.
    size : Size
        Of the model at present.
    """

    boundary: Boundary
    step: int
    epoch: int
    round: int
    steps_in_round: int
    epochs_in_round: int
    metrics: tuple[float, ...]
    mode: str
    size: Size


Schedule = Callable[[Moment], bool]


@dataclass(frozen=True)
class _Every:
    boundary: Boundary
    count: int

    def __call__(self, moment: Moment) -> bool:
        done = moment.step if self.boundary == "step" else moment.epoch
        return moment.boundary == self.boundary and done % self.count == 0


@dataclass(frozen=True)
class _At:
    boundary: Boundary
    listed: frozenset[int]

    def __call__(self, moment: Moment) -> bool:
        done = moment.step if self.boundary == "step" else moment.epoch
        return moment.boundary == self.boundary and done in self.listed


@dataclass(frozen=True)
class _Plateau:
    patience: int
    min_delta: float
    boundary: Boundary

    def __call__(self, moment: Moment) -> bool:
        return moment.boundary == self.boundary and stalled(
            moment.metrics, self.patience, self.min_delta, moment.mode
        )


def every(*, epochs: int | None = None, steps: int | None = None) -> Schedule:
    """Grow at every so many epochs or steps.

    Parameters
    ----------
    epochs, steps : int
        One of them: growth is due when the number of finished ones is a multiple of it.

    Returns
    -------
    Schedule

    Raises
    ------
    InputError
        Unless exactly one is given, and is 1 or more.

    Examples
    --------
    >>> import fxgrow
    >>> fxgrow.every(epochs=2)
    _Every(boundary='epoch', count=2)
    """
    boundary, count = _one_of(epochs, steps, "every")
    if count < 1:
        raise InputError(f"every({boundary}s={count}) never comes; give 1 or more")
    return _Every(boundary, count)


def at(*, epochs: Sequence[int] | None = None, steps: Sequence[int] | None = None) -> Schedule:
    """Grow when so many epochs or steps have ended.

    Parameters
    ----------
    epochs, steps : sequence of int
        One of them, each number 1 or more.

    Returns
    -------
    Schedule

    Raises
    ------
    InputError
        Unless exactly one is given, with numbers of 1 or more.
    """
    boundary, listed = _one_of(epochs, steps, "at")
    if not listed or min(listed) < 1:
        raise InputError(f"at({boundary}s={list(listed)}) never comes; list numbers of 1 or more")
    return _At(boundary, frozenset(listed))


def plateau(*, patience: int = 2, min_delta: float = 0.0, on: Boundary = "epoch") -> Schedule:
    """Grow when the metric has not become better for a while.

    Parameters
    ----------
    patience : int
        How many metrics in a row, since the last growth, may fail to beat the best one
        before them; the last of them makes growth due.
    min_delta : float
        Better means: by more than this.
    on : {"epoch", "step"}
        Look at the metrics given to ``epoch_end`` or to ``step_end``.

    Returns
    -------
    Schedule

    Raises
    ------
    InputError
        For a patience below 1, a negative ``min_delta`` or another ``on``.
    """
    if patience < 1 or not min_delta >= 0:
        raise InputError(
            f"plateau(patience={patience}, min_delta={min_delta}): patience must be 1 or more "
            "and min_delta not negative"
        )
    if on not in {"epoch", "step"}:
        raise InputError(f"plateau(on={on!r}): take 'epoch' or 'step'")
    return _Plateau(patience, min_delta, on)


def _one_of(epochs: _T | None, steps: _T | None, name: str) -> tuple[Boundary, _T]:
    if steps is None and epochs is not None:
        return "epoch", epochs
    if epochs is None and steps is not None:
        return "step", steps
    raise InputError(f"{name}() takes either epochs= or steps=")
