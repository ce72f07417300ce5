"""The pure part of the vote: how many candidates stand, and what their slopes elect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from .errors import BudgetError, InputError
from .ir import Group, Unit
from .plan import price

Candidates = Literal["auto", "paper"] | int

FEWEST = 8
"""Candidates that every group can have, however small the budget's share."""


def candidate_count(
    groups: Sequence[Group],
    budget: float,
    candidates: Candidates = "auto",
    *,
    unit: Unit = "neurons",
) -> dict[str, int]:
    """How many candidate units each group of the clone gets.

    Parameters
    ----------
    groups : sequence of Group
        Frozen groups get none.
    budget : float
        The budget K, in ``unit``.
    candidates : {"auto", "paper"} or int
        ``"paper"``: what 2K buys. ``"auto"``: the same, but no more than it takes for four
        times the budget to stand in all, so that the clone costs about as much as the model
        (that of the paper grows quadratically in K); at least eight, at most four times the
        widest group's width; and as many in every
        group, or groups with more candidates win more votes. A number: that many units.
    unit : {"neurons", "params", "flops"}
        What the budget counts.

    Returns
    -------
    dict of str to int
        Multiples of the groups' ``multiple_of``; groups without candidates are left out.

    Raises
    ------
    InputError
        An unknown word or a number below 1.
    BudgetError
        No unit of any growable group can be bought.
    """
    if candidates not in ("auto", "paper") and (isinstance(candidates, str) or candidates < 1):
        raise InputError(
            f"candidates is {candidates!r}; take 'auto', 'paper' or a number of 1 or more"
        )
    steps = {
        group.name: price(group, unit) * group.multiple_of for group in groups if group.growable
    }
    steps = {name: step for name, step in steps.items() if step}
    if steps and min(steps.values()) > budget:
        cheapest = min(steps, key=lambda name: steps[name])
        raise BudgetError(
            f"a budget of {budget:g} {unit} buys nothing: the cheapest step is one of "
            f"{cheapest!r} for {steps[cheapest]} {unit}"
        )
    # neither frozen, nor free in this unit, nor too dear
    standing = [group for group in groups if 0 < steps.get(group.name, 0) <= budget]
    total = sum(price(group, unit) for group in standing)
    enough = max(FEWEST, math.ceil(4 * budget / max(1, total)))
    widest = max((group.width for group in standing), default=0)
    enough = min(enough, max(FEWEST, 4 * widest))  # a budget may be of any size, a clone not
    counts = {}
    for group in standing:
        units = candidates if isinstance(candidates, int) else int(2 * budget // price(group, unit))
        if candidates == "auto":
            units = min(units, enough)
        counts[group.name] = max(1, units // group.multiple_of) * group.multiple_of
    return counts


def count_votes(
    values: Mapping[str, np.ndarray], budget: float, prices: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Let the K most negative of all candidates vote for their groups.

    Candidates are pooled and taken in order of slope per price until the budget is
    reached. Only negative slopes vote, so there may be fewer votes than K.

    Parameters
    ----------
    values : dict of str to numpy.ndarray, shape ``(candidates,)``
        Slopes by group.
    budget : float
        K.
    prices : dict of str to int, optional
        Price of one unit by group, 1 by default (the paper's neurons).

    Returns
    -------
    dict of str to int
        Votes of every group, zeros included.
    """
    names = list(values)
    costs = np.array([float((prices or {}).get(name, 1)) for name in names])
    owner = np.repeat(np.arange(len(names)), [len(values[name]) for name in names])
    if not len(owner):
        return dict.fromkeys(names, 0)
    steepness = np.concatenate([values[name] for name in names]) / costs[owner]
    order = np.argsort(steepness, kind="stable")
    order = order[steepness[order] < 0]
    paid = np.cumsum(costs[owner[order]]) - costs[owner[order]]  # before each purchase
    winners = owner[order[paid < budget]]
    counts = np.bincount(winners, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def vote_noise(
    by_batch: Mapping[str, np.ndarray],
    budget: float,
    prices: Mapping[str, int] | None = None,
    *,
    draws: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    """Estimate how much the counts would vary on other batches, by a bootstrap.

    Parameters
    ----------
    by_batch : dict of str to numpy.ndarray, shape ``(batches, candidates)``
        See :func:`fxgrow.vote.gate_gradients_by_batch`.
    budget, prices
        As for :func:`count_votes`.
    draws : int
        Number of resamples of the batches.
    seed : int
        Makes the estimate reproducible.

    Returns
    -------
    dict of str to float
        Standard deviation of each group's count; empty with fewer than two batches.
    """
    total = min((len(rows) for rows in by_batch.values()), default=0)
    if total < 2:
        return {}
    generator = np.random.default_rng(seed)
    counts: dict[str, list[int]] = {name: [] for name in by_batch}
    for _ in range(draws):
        sample = generator.integers(total, size=total)
        means = {name: rows[sample].mean(axis=0) for name, rows in by_batch.items()}
        for name, count in count_votes(means, budget, prices).items():
            counts[name].append(count)
    return {name: float(np.std(drawn)) for name, drawn in counts.items()}
