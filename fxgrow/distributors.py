"""Distributors: how a budget is shared between groups.

A distributor is a function of the groups that returns :class:`~fxgrow.ir.Votes`; only
their ratios matter to :func:`fxgrow.plan.make_plan`. To add one, write such a function
and name it in :data:`DISTRIBUTORS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from .errors import InputError, NothingToGrow
from .ir import Group, Unit, Votes


class Distributor(Protocol):
    """Gets the growable groups and, where a vote was held, its outcome."""

    def __call__(
        self, groups: Sequence[Group], budget: float, seed: int, votes: Votes | None
    ) -> Mapping[str, int]:
        """Return the count of every group."""
        ...


def svod(
    groups: Sequence[Group], budget: float, seed: int, votes: Votes | None
) -> Mapping[str, int]:
    """Take the counts of the vote (:func:`fxgrow.vote.cast_votes`)."""
    del budget, seed
    if votes is None:
        raise InputError("distributor 'svod' votes on data; pass data, or take 'uniform'")
    return {group.name: int(votes.counts.get(group.name, 0)) for group in groups}


def uniform(
    groups: Sequence[Group], budget: float, seed: int, votes: Votes | None
) -> Mapping[str, int]:
    """Every group gains the same number of units."""
    del budget, seed, votes
    return {group.name: 1 for group in groups}


def proportional(
    groups: Sequence[Group], budget: float, seed: int, votes: Votes | None
) -> Mapping[str, int]:
    """Every group grows by the same share of its width."""
    del budget, seed, votes
    return {group.name: group.width for group in groups}


def random(
    groups: Sequence[Group], budget: float, seed: int, votes: Votes | None
) -> Mapping[str, int]:
    """Shares drawn evenly among all ways to share (a flat Dirichlet distribution)."""
    del budget, votes
    shares = np.random.default_rng(seed).dirichlet(np.ones(len(groups)))
    return {
        group.name: round(1000 * share)
        for group, share in zip(groups, shares.tolist(), strict=True)
    }


DISTRIBUTORS: Mapping[str, Distributor] = {
    "gain": svod,
    "proportional": proportional,
    "random": random,
    "svod": svod,
    "uniform": uniform,
}
"""Distributors by name."""

NEEDS_VOTE = frozenset({"gain", "svod"})
"""Names of distributors that need the outcome of a vote, hence data."""


def distribute(
    name: str,
    groups: Sequence[Group],
    *,
    budget: float,
    unit: Unit = "neurons",
    seed: int = 0,
    votes: Votes | None = None,
) -> Votes:
    """Run a distributor by name.

    Parameters
    ----------
    name : str
        Key of :data:`DISTRIBUTORS`.
    groups : sequence of Group
        Frozen groups get nothing.
    budget : float
        In ``unit``.
    unit : {"neurons", "params", "flops"}
        What the budget counts.
    seed : int
        Of distributors that draw.
    votes : Votes, optional
        Outcome of the vote, for those in :data:`NEEDS_VOTE`.

    Returns
    -------
    Votes
        ``votes`` itself with the distributor's counts, or one without values.

    Raises
    ------
    InputError
        Unknown name, or a vote is needed and missing.
    NothingToGrow
        No group is growable.
    """
    if name not in DISTRIBUTORS:
        known = ", ".join(sorted(DISTRIBUTORS))
        raise InputError(f"unknown distributor {name!r}; take one of {known}")
    growable = [group for group in groups if group.growable]
    if not growable:
        raise NothingToGrow("no growable group is left to share a budget between")
    counts = DISTRIBUTORS[name](growable, budget, seed, votes)
    if votes is not None and name in NEEDS_VOTE:
        return replace(votes, counts=counts, distributor=name)
    return Votes({}, counts, distributor=name, budget=budget, unit=unit, seed=seed)
