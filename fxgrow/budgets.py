"""How much to grow, and when to stop: numbers, lists, shares, limits. Pure, without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

from .errors import BudgetError, InputError
from .ir import Group, Unit

__all__ = [
    "Amount",
    "Budget",
    "BudgetRule",
    "Limits",
    "Size",
    "budget_of",
    "geometric",
    "parse_budget",
    "stalled",
]


@dataclass(frozen=True)
class Size:
    """Size of a model.

    Attributes
    ----------
    neurons : int
        Rows of all growable groups together.
    params : int
        Parameter elements, shared ones once.
    flops : int
        2 per multiply-add on the example inputs.
    """

    neurons: int
    params: int
    flops: int

    @classmethod
    def measured(cls, groups: Iterable[Group], params: int, flops: int) -> Size:
        """Sum up the rows of growable groups; the rest is known (see :class:`Inspection`)."""
        neurons = sum(group.width * group.rows_per_unit for group in groups)
        return cls(int(neurons), int(params), int(flops))

    def in_unit(self, unit: str) -> int:
        """Size in a budget's unit.

        Raises
        ------
        InputError
            When there is no such unit.
        """
        table = {"neurons": self.neurons, "params": self.params, "flops": self.flops}
        if unit not in table:
            raise InputError(f"unknown budget unit {unit!r}; take one of {', '.join(table)}")
        return table[unit]


@dataclass(frozen=True)
class _Geometric:
    first: float
    ratio: float
    rounds: int | None

    def __call__(self, round_: int, size: float) -> float | None:
        del size
        over = self.rounds is not None and round_ >= self.rounds
        return None if over else self.first * self.ratio**round_


BudgetRule = Callable[[int, float], "float | None"]
Budget = float | str | Sequence[float] | BudgetRule


def geometric(first: float, ratio: float, rounds: int | None = None) -> BudgetRule:
    """Budgets that grow (or shrink) by a factor from round to round.

    Parameters
    ----------
    first : float
        Budget of the first growth.
    ratio : float
        Each later budget divided by the one before.
    rounds : int, optional
        How many growths there are; no limit by default.

    Returns
    -------
    callable
        ``(round, size) -> budget``, or None when the rounds are used up.

    Raises
    ------
    BudgetError
        Unless first and ratio are positive and finite.

    Examples
    --------
    >>> import fxgrow
    >>> [fxgrow.geometric(32, 1.5)(round, 0) for round in range(3)]
    [32.0, 48.0, 72.0]
    """
    if not (0 < first < math.inf and 0 < ratio < math.inf):
        raise BudgetError(f"geometric({first}, {ratio}): both must be positive numbers")
    return _Geometric(first, ratio, rounds)


_SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_UNITS: dict[str, Unit | None] = {
    "": None,
    **{"neuron": "neurons", "neurons": "neurons", "flop": "flops", "flops": "flops"},
    **{"param": "params", "params": "params", "parameter": "params", "parameters": "params"},
}
_NUMBER = r"[+-]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,3})?|[+-]?(?:nan|inf|infinity)"
_AMOUNT = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<scale>[%x×kmbgt]?)\s*(?P<unit>[a-z]*)")
_SHARES = "a share like '+25%' or a factor above 1 like '1.5x'"


@dataclass(frozen=True)
class Amount:
    """A budget as written.

    Attributes
    ----------
    number : Fraction or float
        How much; a float only where it is not finite.
    relative : bool
        Whether ``number`` is a share of the present size.
    unit : {"neurons", "params", "flops"} or None
        As far as the text names one.
    text : str
        What was written.
    """

    number: Fraction | float
    relative: bool
    unit: Unit | None
    text: str

    def of(self, size: float) -> float:
        """Return the budget of a model of a size in the budget's unit.

        Raises
        ------
        BudgetError
            When that is no positive number.
        """
        base = Fraction(size) if self.relative and math.isfinite(size) else 1
        value = math.inf if self.number > 10**300 else float(self.number * base)
        if not 0 < value < math.inf:
            hint = f": write {_SHARES}" if self.relative else ""
            raise BudgetError(f"the budget is {self.text}; it must be a positive number{hint}")
        return value

    def in_unit(self, unit: str | None) -> Unit:
        """Return the unit, given the one that was asked for beside the text, if any.

        Raises
        ------
        InputError
            When the two differ.
        """
        if unit is not None and self.unit is not None and unit != self.unit:
            raise InputError(
                f"the budget {self.text!r} is in {self.unit}, the unit asked for is {unit}; "
                "leave one of them out"
            )
        return self.unit or cast("Unit", unit or "neurons")


def parse_budget(text: str) -> Amount:
    """Read a budget as people write it.

    Parameters
    ----------
    text : str
        A number with or without a scale (k, M, G or B, T) and a unit (neurons, params,
        FLOPs), in upper or lower case; a share of the present size (``+25%``); or the new
        size as a multiple of the present one (``1.5x``).

    Returns
    -------
    Amount
        Not yet checked to be positive: :meth:`Amount.of` does that.

    Raises
    ------
    BudgetError
        When the text is not understood.

    Examples
    --------
    >>> parse_budget("2Mparams").of(0), parse_budget("2Mparams").unit
    (2000000.0, 'params')
    >>> parse_budget("+25%").of(400), parse_budget("1.5x").of(400)
    (100.0, 200.0)
    """
    match = _AMOUNT.fullmatch(text.strip().lower())
    if match is None or match["unit"] not in _UNITS:
        raise BudgetError(
            f"budget {text!r} is not understood; write a number (512), one with a unit "
            f"(2Mparams, 1.5GFLOPs), {_SHARES}"
        )
    unit, scale = _UNITS[match["unit"]], match["scale"]
    number = match["number"].replace("_", "")
    value: Fraction | float = float(number) if "n" in number else Fraction(number)
    if scale == "%":
        return Amount(value / 100, True, unit, text)
    if scale in ("x", "×"):
        return Amount(value - 1, True, unit, text)
    return Amount(value * _SCALES[scale], False, unit, text)


def budget_of(budget: Budget, round_: int, size: float) -> float | None:
    """Budget of one growth.

    Parameters
    ----------
    budget : float, str, sequence of float or callable
        The same for every round; a share of the present size (``"+25%"``, ``"1.25x"``); one
        for each round; or ``(round, size) -> float or None``.
    round_ : int
        Growths made so far.
    size : float
        Present size in the budget's unit.

    Returns
    -------
    float or None
        None when the rounds are used up.

    Raises
    ------
    BudgetError
        When the budget is no positive number.
    """
    rule: Any = budget  # a list can't be told from a callable by its type alone
    value: float | None
    if callable(rule):
        value = rule(round_, size)
    elif isinstance(rule, str):
        value = _part(parse_budget(rule), size)
    elif isinstance(rule, Sequence):
        value = rule[round_] if round_ < len(rule) else None
    else:
        value = rule
    if value is not None and not 0 < value < math.inf:
        raise BudgetError(
            f"the budget of growth {round_ + 1} is {value}; it must be a positive number"
        )
    return value


def _part(amount: Amount, size: float) -> float:
    if amount.unit is not None:
        raise BudgetError(f"budget {amount.text!r}: name the unit as unit={amount.unit!r} instead")
    return amount.of(size)


@dataclass(frozen=True)
class Limits:
    """When a run has grown enough.

    Attributes
    ----------
    rounds : int or None
        Most growths.
    max_neurons, max_params : int or None
        Sizes that are never exceeded.
    patience : int or None
        So many growths in a row whose best epoch metric is no better than the best one
        before them: growth no longer helps.
    min_delta : float
        Better means: by more than this.
    """

    rounds: int | None = None
    max_neurons: int | None = None
    max_params: int | None = None
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rounds", "max_neurons", "max_params", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; give 1 or more, or None for no limit")

    def reason(self, size: Size, bests: Sequence[float], round_: int, mode: str) -> str:
        """Say why there must be no further growth; "" when there may be one.

        Parameters
        ----------
        size : Size
            At present.
        bests : sequence of float
            Best epoch metric of every round so far.
        round_ : int
            Growths made so far.
        mode : {"min", "max"}
            Which metrics are better.
        """
        if self.rounds is not None and round_ >= self.rounds:
            return f"all {self.rounds} growths are made"
        for what, limit, present in (
            ("neurons", self.max_neurons, size.neurons),
            ("params", self.max_params, size.params),
        ):
            if limit is not None and present >= limit:
                return f"the model has {present} of at most {limit} {what}"
        if self.patience is not None and stalled(bests, self.patience, self.min_delta, mode):
            return f"the last {self.patience} growths made the metric no better"
        return ""

    def exceeded(self, size: Size) -> str:
        """Say which limit a size is beyond; "" for none."""
        for what, limit, present in (
            ("neurons", self.max_neurons, size.neurons),
            ("params", self.max_params, size.params),
        ):
            if limit is not None and present > limit:
                return f"another growth would exceed {limit} {what}"
        return ""

    def room(self, unit: str, size: Size) -> float:
        """Most that may still be spent in a unit; infinite when the limits are in another."""
        limit = {"neurons": self.max_neurons, "params": self.max_params}.get(unit)
        return math.inf if limit is None else limit - size.in_unit(unit)


def stalled(metrics: Sequence[float], patience: int, min_delta: float, mode: str) -> bool:
    """Say whether none of the last ``patience`` metrics beats the best one before them.

    NaN is never better.
    """
    sign = 1.0 if mode == "min" else -1.0
    values = [math.inf if math.isnan(value) else sign * value for value in metrics]
    if len(values) <= patience:
        return False
    return not min(values[-patience:]) < min(values[:-patience]) - min_delta
