"""Deciding where a budget goes, without growing anything: votes and plans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .data import check_data
from .distributed import together
from .distributors import NEEDS_VOTE, distribute
from .errors import InputError
from .inspection import Inspection, inspect_model
from .measuring import votes_on
from .plan import make_plan
from .stages import asked, check_growable, fit_for, settled, shared_example

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch
    from torch.distributed import ProcessGroup

    from .ballot import Candidates
    from .data import LossFn, Progress
    from .distributed import Team
    from .ir import Plan, Unit, Votes
    from .rules.own import Declaration

__all__ = ["plan_for", "vote"]


def vote(
    model: torch.nn.Module,
    data: Iterable[Any],
    *,
    loss: LossFn | str | None = None,
    budget: float | str = 512,
    unit: Unit = "neurons",
    candidates: Candidates = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    inner: Sequence[str] = (),
    seed: int = 0,
    example_inputs: Any = None,
    progress: Progress | None = None,
    process_group: ProcessGroup | Team | None = None,
    rules: Iterable[Declaration] = (),
) -> Votes:
    """Let gradients of candidate neurons vote which groups get the budget.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed.
    data : re-iterable of (inputs, targets)
        E.g. a DataLoader.
    loss : callable, str or None
        ``None``: cross entropy for integer targets, MSE for float.
    budget : float or str
        K, in ``unit``; or a text such as ``"2Mparams"``, ``"+25%"`` or ``"1.5x"`` (see
        :func:`fxgrow.budgets.parse_budget`), whose unit, if it names one, takes the place of
        the default one.
    unit : {"neurons", "params", "flops"}
    candidates : "auto", "paper" or int
        Candidates per group: 2K; by default fewer, see
        :func:`fxgrow.ballot.candidate_count`.
    include, exclude : sequence of str
        Shell patterns over group and layer names.
    inner : sequence of str
        Heads and convolution groups that become larger, not more (see :func:`fxgrow.inspect`).
    seed : int
    example_inputs : tensor, tuple or dict, optional
        Taken from the first batch by default.
    progress : callable, optional
        Told ``(stage, done, total)``.
    process_group : torch.distributed.ProcessGroup, optional
        See :func:`fxgrow.expand`.
    rules : sequence of Declaration
        For custom operations and opaque modules, see :func:`fxgrow.inspect`.

    Returns
    -------
    Votes

    Raises
    ------
    DataError, BudgetError, NothingToGrow

    References
    ----------
    arXiv 2509.18842, section SVoD.
    """
    with together(model, process_group) as (team, model):
        budget, unit = asked(budget, unit)
        check_data(data)
        team.agree({"budget": budget, "unit": unit, "seed": seed}, "the arguments")
        example = shared_example(team, model, data, example_inputs)
        inspection = inspect_model(
            model, example, include=include, exclude=exclude, inner=inner, rules=rules
        )
        budget = settled(budget, unit, inspection)
        votes = votes_on(
            model, inspection, data, loss, budget, unit, candidates, seed, progress, team.mean
        )
        return team.share(votes, "the votes")


def plan_for(
    model: torch.nn.Module,
    data: Iterable[Any] | None,
    *,
    budget: float | str = 512,
    unit: Unit = "neurons",
    loss: LossFn | str | None = None,
    distributor: str = "svod",
    candidates: Candidates | None = None,
    round_to: int = 1,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    inner: Sequence[str] = (),
    seed: int = 0,
    example_inputs: Any = None,
    emit: str | None = None,
    progress: Progress | None = None,
    process_group: ProcessGroup | Team | None = None,
    rules: Iterable[Declaration] = (),
) -> tuple[Inspection, Votes, Plan]:
    """Decide where a budget goes, without growing anything.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed.
    data : re-iterable of (inputs, targets), or None
        E.g. a DataLoader. ``None``: only for distributors that need no data.
    budget : float or str
        Most that the new units may cost, in ``unit``; or a text, as for :func:`vote`.
    unit : {"neurons", "params", "flops"}
    loss : callable, str or None
        ``None``: cross entropy for integer targets, MSE for float.
    distributor : {"svod", "gain", "uniform", "proportional", "random"}
    candidates : "auto", "paper" or int, optional
        Candidates per group of the vote (see :func:`vote`); 8 for ``"gain"``.
    round_to : int
        New widths are multiples of it where possible.
    include, exclude : sequence of str
        Shell patterns over group and layer names.
    inner : sequence of str
        Heads and convolution groups that become larger, not more (see :func:`fxgrow.inspect`).
    seed : int
    example_inputs : tensor, tuple or dict, optional
        Taken from the first batch by default.
    emit : {"graph", "module"}, optional
        What is to be made of the plan; what can't become that is refused or frozen now.
    progress : callable, optional
        Told ``(stage, done, total)``.
    process_group : torch.distributed.ProcessGroup, optional
        See :func:`fxgrow.expand`.
    rules : sequence of Declaration
        For custom operations and opaque modules, see :func:`fxgrow.inspect`.

    Returns
    -------
    inspection : Inspection
    votes : Votes
    plan : Plan
        Pass it to :func:`fxgrow.widen` to grow.

    Raises
    ------
    FxgrowError
        See :mod:`fxgrow.errors`.

    References
    ----------
    arXiv 2509.18842, section SVoD.
    """
    with together(model, process_group) as (team, model):
        budget, unit = asked(budget, unit)
        if data is not None:
            check_data(data)
        arguments = {"budget": budget, "unit": unit, "distributor": distributor, "seed": seed}
        team.agree({**arguments, "candidates": candidates}, "the arguments")
        example = shared_example(team, model, data, example_inputs)
        inspection = inspect_model(
            model, example, include=include, exclude=exclude, inner=inner, rules=rules
        )
        inspection = fit_for(model, inspection, emit)
        check_growable(inspection)
        budget = settled(budget, unit, inspection)
        cast: Votes | None = None
        if distributor in NEEDS_VOTE:
            if data is None:
                raise InputError(
                    f"distributor {distributor!r} needs data to vote on; pass data, or "
                    "distributor='uniform'"
                )
            cast = votes_on(
                model, inspection, data, loss, budget, unit, candidates, seed, progress, team.mean,
                distributor,
            )  # fmt: skip
        votes = distribute(
            distributor, inspection.groups, budget=budget, unit=unit, seed=seed, votes=cast
        )
        plan = make_plan(
            inspection.groups, votes, inspection.costs, budget=budget, unit=unit, round_to=round_to
        )
        return inspection, *team.share((votes, plan), "the plan")
