"""Measuring on a widened clone where a budget should go, for the distributors that need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .ballot import FEWEST, candidate_count
from .errors import BudgetError, NothingToGrow
from .gain import cast_gains
from .rewrite import rewrite
from .stages import check_growable
from .vote import cast_votes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import torch

    from .ballot import Candidates
    from .data import LossFn, Progress
    from .inspection import Inspection
    from .ir import Unit, Votes
    from .reduce import Mean

__all__ = ["votes_on"]

MEASURES: Mapping[str, Callable[..., Votes]] = {"svod": cast_votes, "gain": cast_gains}
"""What becomes of the clone, by the name of the distributor that needs it."""

USUAL_CANDIDATES: Mapping[str, Candidates] = {"svod": "auto", "gain": FEWEST}


def votes_on(
    model: torch.nn.Module,
    inspection: Inspection,
    data: Iterable[Any],
    loss: LossFn | str | None,
    budget: float,
    unit: Unit,
    candidates: Candidates | None,
    seed: int,
    progress: Progress | None,
    mean: Mean,
    distributor: str = "svod",
) -> Votes:
    """Let candidates in a widened clone vote on a budget (see :func:`fxgrow.vote`).

    Raises
    ------
    BudgetError
        When the budget buys no unit of any group.
    DataError
        When data or loss are of no use.
    NothingToGrow
        When every group is frozen.

    References
    ----------
    arXiv 2509.18842, section SVoD.
    """
    check_growable(inspection)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise NothingToGrow(
            "no parameter requires gradients, so no candidate could ever train; call "
            "model.requires_grad_(True), or grow by hand with widen()"
        )
    chosen = candidates or USUAL_CANDIDATES[distributor]
    counts = candidate_count(inspection.groups, budget, chosen, unit=unit)
    if not counts:
        raise BudgetError(f"a budget of {budget:g} {unit} buys no unit of any group")
    emit = "module" if inspection.analysis.traced.obstacle else "graph"
    clone = rewrite(model, inspection, counts, seed=seed, emit=emit)
    published = {"own_pass": True} if chosen == "paper" and distributor == "svod" else {}
    return MEASURES[distributor](
        clone.module,
        clone.groups,
        inspection.groups,
        data,
        loss,
        budget=budget,
        unit=unit,
        seed=seed,
        progress=progress,
        mean=mean,
        **published,
    )
