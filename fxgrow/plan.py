"""Cost and budget → plan: how many units each group gains. Pure, without torch.

Prices are exact and joint: a weight whose rows *and* columns grow costs the product.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from .errors import BudgetError, InputError, NothingToGrow
from .ir import Group, Plan, Unit, Votes

MAX_ADDED = 2**34
"""Most parameter elements that one plan may add (64 GiB in float32)."""

LONGEST_ORDER = 4096
"""Counts are scaled down to about this sum before they become an order of purchases."""


@dataclass(frozen=True)
class CostModel:
    """What additions cost in each unit.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        Shape of every parameter, by tensor name.
    tensor_flops : dict of str to int
        2 per multiply-add of all contractions with that weight on the example inputs.
    product_flops : tuple of (int, tuple of str)
        Products of two activations: their flops, and the names of the groups whose
        relative growth (width + k) / width multiplies them.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tensor_flops: Mapping[str, int]
    product_flops: tuple[tuple[int, tuple[str, ...]], ...] = ()

    def cost(self, unit: Unit, groups: Sequence[Group], additions: Mapping[str, int]) -> int:
        """Cost of ``additions`` (units per group) in ``unit``."""
        table = {"neurons": self.neurons, "params": self.params, "flops": self.flops}
        if unit not in table:
            raise InputError(f"unknown budget unit {unit!r}; take one of {', '.join(table)}")
        return table[unit](groups, additions)

    def neurons(self, groups: Sequence[Group], additions: Mapping[str, int]) -> int:
        """Sum of added units times rows per unit."""
        return sum(additions.get(group.name, 0) * group.rows_per_unit for group in groups)

    def params(self, groups: Sequence[Group], additions: Mapping[str, int]) -> int:
        """Parameter elements added, exactly, all groups growing together."""
        added = 0
        for name, (old, new) in self._sizes(groups, additions).items():
            if name in self.shapes:
                added += math.prod(new) - math.prod(old)
        return added

    def flops(self, groups: Sequence[Group], additions: Mapping[str, int]) -> int:
        """Flops added on the example inputs, rounded up per operation."""
        added = 0
        for name, (old, new) in self._sizes(groups, additions).items():
            base, entries = self.tensor_flops.get(name, 0), math.prod(old)
            if entries:  # else a layer without units
                added += -(-base * math.prod(new) // entries) - base
        widths = {group.name: group.width for group in groups}
        growing = {i for name in additions for i in self._products.get(name, ())}
        for base, names in (self.product_flops[i] for i in growing):
            known = [name for name in names if name in widths]
            old_width = math.prod(widths[name] for name in known)
            new_width = math.prod(widths[name] + additions.get(name, 0) for name in known)
            added += -(-base * new_width // old_width) - base
        return added

    @cached_property
    def _products(self) -> dict[str, list[int]]:
        """Products that each group's width multiplies."""
        found: dict[str, list[int]] = {}
        for i, (_, names) in enumerate(self.product_flops):
            for name in names:
                found.setdefault(name, []).append(i)
        return found

    def _sizes(
        self, groups: Sequence[Group], additions: Mapping[str, int]
    ) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Old and new shapes of the tensors that grow."""
        grown: dict[str, list[int]] = {}
        for group in groups:
            units = additions.get(group.name, 0)
            for slot in group.slots if units else ():
                if slot.tensor in self.shapes:
                    shape = grown.setdefault(slot.tensor, list(self.shapes[slot.tensor]))
                    shape[slot.dim] += units * slot.positions.shape[1]
        return {name: (self.shapes[name], tuple(shape)) for name, shape in grown.items()}


def make_plan(
    groups: Sequence[Group],
    votes: Votes,
    costs: CostModel,
    *,
    budget: float,
    unit: Unit = "neurons",
    round_to: int = 1,
    max_added: int = MAX_ADDED,
) -> Plan:
    """Spend a budget according to votes.

    *Neurons* follow the paper's rule (section SVoD): each group gets
    ``round(votes / all votes * budget)``, the remainder is given or taken in order of
    votes. *Params* and *flops* are spent in order of steepness per cost (in proportion to
    the counts for other distributors than SVoD) until nothing more fits. If nobody voted, all
    groups share equally.

    ``round_to`` applies to the new width in units: widths become multiples of it, and
    additions stay multiples of ``multiple_of``. Where both can't hold, ``multiple_of``
    alone does. Roundings go down; what they free is spent in order of votes.

    Parameters
    ----------
    groups : sequence of Group
        Frozen groups are passed over.
    votes : Votes
        ``counts`` and, for steepness, ``values``; groups not named have no votes.
    costs : CostModel
        Prices.
    budget : float
        Most that may be spent, in ``unit``.
    unit : {"neurons", "params", "flops"}
        What the budget counts.
    round_to : int
        New widths are multiples of it where possible.
    max_added : int
        Most parameter elements that may be added.

    Returns
    -------
    Plan
        Never costs more than the budget.

    Raises
    ------
    BudgetError
        The budget is zero, negative or not finite, buys nothing, or is too large.
    NothingToGrow
        There is no growable group.
    InputError
        ``round_to`` below 1, or an unknown unit.
    """
    if round_to < 1:
        raise InputError(f"round_to is {round_to}; it must be 1 or more")
    if not math.isfinite(budget) or budget <= 0:
        raise BudgetError(f"the budget is {budget} {unit}; it must be a positive number")
    growable = [group for group in groups if group.growable]
    if not growable:
        raise NothingToGrow(
            "no growable group is left; see the frozen groups' reasons in inspect(), "
            "or loosen include and exclude"
        )
    purse = _Purse(tuple(growable), costs, unit, math.floor(budget), round_to).priced()
    purse.check_buys_something()
    counts = {group.name: int(votes.counts.get(group.name, 0)) for group in purse.groups}
    if not any(counts.values()):
        counts = dict.fromkeys(counts, 1)
    order = _order(purse.groups, votes, counts, unit)
    asked = _paper_shares(purse.groups, counts, purse.budget) if unit == "neurons" else {}
    additions = purse.spend(order, asked)
    if not additions:  # the voted groups are too dear: the others may do
        order = list(counts)
        additions = purse.spend(order, {})
    return _finish(purse, additions, budget, frozenset(order), max_added)


def _paper_shares(
    groups: Sequence[Group], counts: Mapping[str, int], budget: int
) -> dict[str, int]:
    """Units per group by the paper's rule, before any rounding to steps.

    A vote for a unit is a vote for its ``rows_per_unit`` neurons.
    """
    weights = {group.name: counts[group.name] * group.rows_per_unit for group in groups}
    total = sum(weights.values())
    neurons = {name: round(weight / total * budget) for name, weight in weights.items()}
    voted = sorted((n for n in weights if weights[n]), key=lambda n: -weights[n])
    rest = budget - sum(neurons.values())
    while rest:
        for name in voted:
            step = (rest > 0) - (rest < 0)
            if step > 0 or (step < 0 and neurons[name]):
                neurons[name] += step
                rest -= step
    return {group.name: neurons[group.name] // group.rows_per_unit for group in groups}


def _order(
    groups: Sequence[Group], votes: Votes, counts: Mapping[str, int], unit: Unit
) -> list[str]:
    """Names of groups in the order in which single units are bought."""
    prices = {group.name: max(1, price(group, unit)) for group in groups}
    if unit != "neurons" and votes.distributor == "svod" and votes.values:
        steep = [
            (float(value) / prices[group.name], number, group.name)
            for number, group in enumerate(groups)
            for value in votes.values.get(group.name, ())
            if value < 0
        ]
        if steep:
            return [name for _, _, name in sorted(steep)]
    scale = max(1.0, sum(counts.values()) / LONGEST_ORDER)
    parts = {name: math.ceil(count / scale) for name, count in counts.items()}
    even = [
        ((turn + 0.5) / count, -count, number, name)
        for number, (name, count) in enumerate(parts.items())
        for turn in range(count)
    ]
    return [name for *_, name in sorted(even)]


def price(group: Group, unit: Unit) -> int:
    """Cost of one unit of a group while all others keep their width."""
    prices = {
        "neurons": group.rows_per_unit,
        "params": group.params_per_unit,
        "flops": group.flops_per_unit,
    }
    if unit not in prices:
        raise InputError(f"unknown budget unit {unit!r}; take one of {', '.join(prices)}")
    return prices[unit]


@dataclass(frozen=True)
class _Purse:
    """Buys units step by step without ever exceeding the budget."""

    groups: tuple[Group, ...]
    costs: CostModel
    unit: Unit
    budget: int
    round_to: int

    def cost(self, additions: Mapping[str, int]) -> int:
        return self.costs.cost(self.unit, self.groups, additions)

    def priced(self) -> _Purse:
        """Leave out groups that cost nothing in this unit: they would grow for ever."""
        groups = tuple(
            group
            for group in self.groups
            if self.cost({group.name: _next_step(group, self.round_to, 0)}) > 0
        )
        if not groups:
            raise BudgetError(
                f"no growable group costs any {self.unit} on the example inputs; "
                "give the budget in another unit"
            )
        return replace(self, groups=groups)

    def check_buys_something(self) -> None:
        price, group, units = self.cheapest({}, frozenset(g.name for g in self.groups))
        if price > self.budget:
            raise BudgetError(
                f"a budget of {self.budget} {self.unit} buys nothing: the cheapest step is "
                f"{units} unit(s) of {group.name!r} for {price} {self.unit}"
            )

    def cheapest(
        self, additions: Mapping[str, int], among: frozenset[str]
    ) -> tuple[int, Group, int]:
        """Return price, group and units of the cheapest next step."""
        now = self.cost(additions)
        steps = []
        for number, group in enumerate(self.groups):
            if group.name not in among:
                continue
            old = additions.get(group.name, 0)
            new = _next_step(group, self.round_to, old)
            more = self.cost({**additions, group.name: new}) - now
            steps.append((more, number, new - old))
        more, number, units = min(steps)
        return more, self.groups[number], units

    def snap(self, asked: Mapping[str, int]) -> dict[str, int]:
        """Round down to allowed additions, zeros left out."""
        snapped = {g.name: _snap(g, self.round_to, asked.get(g.name, 0)) for g in self.groups}
        return {name: units for name, units in snapped.items() if units}

    def spend(self, order: Sequence[str], asked: Mapping[str, int]) -> dict[str, int]:
        """Buy single units along ``order``, over and over, on top of ``asked``.

        A group whose next step does not fit any more drops out; the others go on.
        """
        total = Counter(asked)
        while order:
            fits = self._affordable(order, total)
            total = total + _walk(order, fits)
            dear = order[fits % len(order)]  # the one that did not fit
            turn = fits % len(order)
            order = [name for name in (*order[turn:], *order[:turn]) if name != dear]
        return self.snap(total)

    def _affordable(self, order: Sequence[str], total: Counter[str]) -> int:
        """Most single units along ``order`` that fit on top of ``total`` (bisection)."""

        def fits(units: int) -> bool:
            return self.cost(self.snap(total + _walk(order, units))) <= self.budget

        high = 1
        while fits(high):
            high *= 2
        return _bisect(fits, 0, high)


def _bisect(fits: Callable[[int], bool], low: int, high: int) -> int:
    """Largest number in [low, high) that fits, given that ``high`` does not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _walk(order: Sequence[str], units: int) -> Counter[str]:
    """Count the names met in ``units`` steps along ``order``, repeated for ever."""
    rounds, rest = divmod(units, len(order))
    walked = Counter({name: count * rounds for name, count in Counter(order).items()})
    walked.update(order[:rest])
    return walked


def _steps(group: Group, round_to: int) -> tuple[int, int]:
    """First allowed addition and the step between allowed additions."""
    multiple = group.multiple_of
    step = math.lcm(multiple, round_to)
    for first in range(multiple, step + 1, multiple):
        if (group.width + first) % round_to == 0:
            return first, step
    return multiple, multiple  # no width that is a multiple of round_to can be reached


def _snap(group: Group, round_to: int, units: int) -> int:
    first, step = _steps(group, round_to)
    return 0 if units < first else first + (units - first) // step * step


def _next_step(group: Group, round_to: int, units: int) -> int:
    first, step = _steps(group, round_to)
    return units + step if units else first


def _finish(
    purse: _Purse,
    additions: dict[str, int],
    budget: float,
    voted: frozenset[str],
    max_added: int,
) -> Plan:
    added = purse.costs.params(purse.groups, additions)
    if added > max_added:
        raise BudgetError(
            f"a budget of {budget:g} {purse.unit} would add {added} parameter elements, more "
            f"than the limit of {max_added}; take a smaller budget"
        )
    spent = purse.cost(additions)
    reason = ""
    if spent < purse.budget:
        price, group, units = purse.cheapest(additions, voted)
        reason = (
            f"{purse.budget - spent} {purse.unit} are left: the cheapest further step of a "
            f"group with votes, {units} unit(s) of {group.name!r}, costs {price}"
        )
    ordered = {g.name: additions[g.name] for g in purse.groups if g.name in additions}
    return Plan(ordered, budget=budget, unit=purse.unit, spent=spent, unspent_reason=reason)
