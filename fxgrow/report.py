"""Inspections and growths as plain data (:mod:`fxgrow.pages` shows them)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .inspection import Inspection
    from .ir import Group, Plan, Verification, Votes

INSPECTION_SCHEMA = "fxgrow.inspection/1"
GROWTH_SCHEMA = "fxgrow.growth/1"


def count_params(module: torch.nn.Module) -> int:
    """Count the parameter elements of ``module``, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def inspection_dict(inspection: Inspection) -> dict[str, Any]:
    """Turn an inspection into JSON types (schema ``fxgrow.inspection/1``).

    Parameters
    ----------
    inspection : Inspection
        What :func:`fxgrow.inspect` returned.

    Returns
    -------
    dict
        ``groups`` and ``frozen`` (see :func:`group_dict`), ``coverage`` (0 to 1),
        ``params`` (elements), ``flops`` (on the example inputs) and ``unsupported``.
    """
    return {
        "schema": INSPECTION_SCHEMA,
        "params": int(inspection.params),
        "flops": int(inspection.flops),
        "coverage": float(inspection.coverage),
        "groups": [group_dict(group) for group in inspection.groups],
        "frozen": [group_dict(group) for group in inspection.frozen],
        "unsupported": [
            {"op": u.op, "count": u.count, "node": u.node, "source": u.source}
            for u in inspection.unsupported
        ],
    }


def group_dict(group: Group) -> dict[str, Any]:
    """Turn one group into JSON types; slots without their positions."""
    reason = group.reason
    return {
        "name": group.name,
        "width": int(group.width),
        "multiple_of": int(group.multiple_of),
        "rows_per_unit": int(group.rows_per_unit),
        "params_per_unit": int(group.params_per_unit),
        "flops_per_unit": int(group.flops_per_unit),
        "layers": list(group.layers),
        "slots": [{"tensor": s.tensor, "dim": s.dim, "role": s.role} for s in group.slots],
        "reason": None
        if reason is None
        else {
            "code": reason.code,
            "message": reason.message,
            "node": reason.node,
            "source": reason.source,
        },
    }


def growth_dict(
    inspection: Inspection,
    plan: Plan,
    *,
    votes: Votes | None = None,
    verification: Verification | None = None,
    module: torch.nn.Module | None = None,
) -> dict[str, Any]:
    """Describe a growth, done or only planned, in JSON types (schema ``fxgrow.growth/1``).

    Parameters
    ----------
    inspection : Inspection
        Of the model before growth.
    plan : Plan
        How many units each group gains.
    votes : Votes, optional
        What the plan was made from.
    verification : Verification, optional
        Whether the function was kept.
    module : torch.nn.Module, optional
        The grown module, if there is one already: its parameters are counted. Without
        it the new number of parameters is the plan's price.

    Returns
    -------
    dict
        ``plan``; ``votes`` (or None); ``groups``: one row per growable group with
        ``name``, ``width``, ``added`` and ``new_width`` (units), ``votes`` (or None) and
        ``params_per_unit``; ``totals``: groups, units and parameters before and after;
        ``verification`` (or None).
    """
    rows = [_growth_row(group, plan, votes) for group in inspection.groups]
    return {
        "schema": GROWTH_SCHEMA,
        "plan": plan_dict(plan),
        "votes": None if votes is None else votes_dict(votes),
        "groups": rows,
        "totals": {
            "groups_grown": sum(1 for row in rows if row["added"]),
            "groups": len(rows),
            "units": sum(row["width"] for row in rows),
            "new_units": sum(row["new_width"] for row in rows),
            "params": int(inspection.params),
            "new_params": _new_params(inspection, plan, module),
        },
        "verification": None if verification is None else verification_dict(verification),
    }


def _new_params(inspection: Inspection, plan: Plan, module: torch.nn.Module | None) -> int:
    if module is not None:
        return count_params(module)
    return int(inspection.params) + inspection.costs.params(inspection.groups, plan.additions)


def _growth_row(group: Group, plan: Plan, votes: Votes | None) -> dict[str, Any]:
    added = int(plan.additions.get(group.name, 0))
    return {
        "name": group.name,
        "width": int(group.width),
        "added": added,
        "new_width": int(group.width) + added,
        "votes": None if votes is None else int(votes.counts.get(group.name, 0)),
        "params_per_unit": int(group.params_per_unit),
    }


def plan_dict(plan: Plan) -> dict[str, Any]:
    """Turn a plan into JSON types."""
    return {
        "additions": {name: int(units) for name, units in plan.additions.items()},
        "budget": float(plan.budget),
        "unit": plan.unit,
        "spent": int(plan.spent),
        "unspent_reason": plan.unspent_reason,
    }


def votes_dict(votes: Votes) -> dict[str, Any]:
    """Turn votes into JSON types: counts and noise, without the values per candidate."""
    return {
        "distributor": votes.distributor,
        "budget": float(votes.budget),
        "unit": votes.unit,
        "seed": int(votes.seed),
        "counts": {name: int(count) for name, count in votes.counts.items()},
        "noise": {name: float(value) for name, value in votes.noise.items()},
    }


def verification_dict(verification: Verification) -> dict[str, Any]:
    """Turn a verification into JSON types."""
    return {
        "passed": bool(verification.passed),
        "eval_error": float(verification.eval_error),
        "train_error": float(verification.train_error),
        "partition": bool(verification.partition),
        "tolerance": float(verification.tolerance),
        "dtype": verification.dtype,
    }
