"""The stages behind the public functions: checks, voting, growing."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch

from . import report as reports
from .budgets import Size, parse_budget
from .configure import follow_config
from .data import batches
from .errors import BudgetError, InputError, NothingToGrow, VerificationError
from .files.digest import fingerprint
from .ir import Growth, Plan, Unit, Votes
from .ownclass import followed, rewrite_own
from .plan import MAX_ADDED
from .rewrite import rewrite
from .told import Told, follow_told
from .verify import verify as verify_models

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .configure import Configured
    from .distributed import Team
    from .inspection import Inspection
    from .ir import Rewritten, Verification
    from .trace import Inputs

__all__ = [
    "as_plan",
    "asked",
    "check_growable",
    "example_of",
    "fit_for",
    "form_of",
    "grow",
    "input_spec",
    "settled",
    "shared_example",
    "to_device",
]


def as_plan(
    additions: Mapping[str, int] | Plan | str | int,
    inspection: Inspection,
    model: torch.nn.Module | None = None,
    emit: str = "graph",
) -> Plan:
    """Turn what the caller asks for into a plan (see :func:`fxgrow.widen`).

    What is said of all groups is meant of those that can grow, as ``model``, in that form.

    Raises
    ------
    InputError
        For unknown groups and amounts that are no units.
    NothingToGrow
        When every group is frozen.
    """
    if isinstance(additions, Plan):
        additions = additions.additions
    if isinstance(additions, (str, int)):
        if model is not None:
            inspection = fit_for(model, inspection, emit)
        if not inspection.groups:
            raise NothingToGrow(
                "no group can grow; inspect() names the reason of every frozen group"
            )
        chosen = {g.name: _share(additions, g.width, g.multiple_of) for g in inspection.groups}
    else:
        chosen = {name: _checked(inspection, name, count) for name, count in additions.items()}
    chosen = {name: count for name, count in chosen.items() if count}
    if not chosen:
        raise InputError(
            "additions name no group; pass {group name: units}, see inspect(...).groups"
        )
    added = inspection.costs.params(inspection.groups, chosen)
    if added > MAX_ADDED:
        raise BudgetError(
            f"the additions would make {added:,} parameter elements, more than the limit of "
            f"{MAX_ADDED:,}; add fewer units"
        )
    spent = inspection.costs.neurons(inspection.groups, chosen)
    return Plan(chosen, budget=float(spent), unit="neurons", spent=spent)


def _share(amount: str | int, width: int, step: int) -> int:
    if isinstance(amount, str):
        text = amount.strip()
        try:  # in fractions: 29 % of 100 is 29, not 28.999...
            share = Fraction(text.removeprefix("+").removesuffix("%")) / 100
        except (ValueError, ZeroDivisionError):
            share = Fraction(0)
        if not text.endswith("%") or share <= 0 or "/" in text:
            raise InputError(
                f"additions {amount!r} are not understood; "
                "write a share like '+12.5%' or a number of units"
            )
        return max(int(share * width) // step, 1) * step
    if amount < 1:
        raise InputError(f"additions must be 1 or more units, not {amount}")
    return amount // step * step


def _checked(inspection: Inspection, name: str, count: int) -> int:
    group = inspection.group(name)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise InputError(
            f"additions[{name!r}] is {count!r}; give a whole number of units, 0 or more"
        )
    if count % group.multiple_of:
        raise InputError(
            f"group {name!r} grows by multiples of {group.multiple_of} units, not by {count}"
        )
    return count


def _followed(
    model: torch.nn.Module, rewritten: Rewritten, inputs: Inputs, emit: str, *, checked: bool
) -> tuple[Verification | None, Told, Configured | None]:
    """Let what only tells a width follow, and compare; take it back where that breaks something."""
    configured, told = None, Told()
    if emit == "module":
        configured = follow_config(model, rewritten.module)
        told = follow_told(model, rewritten.module, inputs)
    if not checked:
        return None, told, configured
    try:
        verification = verify_models(model, rewritten.module, inputs)
        if verification.passed:
            return verification, told, configured
    except VerificationError:  # it does not run
        if not told.edits:
            raise
    told.undo()
    configured = configured and configured.refused()
    return verify_models(model, rewritten.module, inputs), Told(), configured


def grow(
    model: torch.nn.Module,
    inspection: Inspection,
    plan: Plan,
    *,
    seed: int,
    emit: str,
    verify: bool,
    votes: Votes | None = None,
) -> Growth:
    """Rewrite ``model`` as planned, check the result and report on it.

    Raises
    ------
    InputError
        See :func:`form_of`; or the model has no values to compare.
    UnsupportedError
        When a size can't be made to fit.
    VerificationError
        When the widened model computes another function.
    """
    emit = form_of(inspection, emit)
    checked = verify or emit == "module"  # own code may hold sizes that no graph shows
    if checked and any(p.is_meta for p in model.parameters()):
        raise InputError(
            "the model is on the meta device, where outputs can't be compared; plan there "
            "(fxgrow.plan_for) and grow the model that has weights, or pass verify=False for a "
            "graph without weights"
        )
    build = rewrite if emit == "graph" else rewrite_own
    rewritten = build(model, inspection, plan.additions, seed=seed)
    inputs = inspection.analysis.traced.inputs
    verification, told, configured = _followed(model, rewritten, inputs, emit, checked=checked)
    if verification is not None and not verification.passed:
        raise VerificationError(
            "the widened model computes another function (relative difference "
            f"{verification.eval_error:.1e} in eval, {verification.train_error:.1e} in train "
            f"mode, allowed {verification.tolerance:.0e}); nothing was changed"
        )
    report = reports.growth_dict(
        inspection, plan, votes=votes, verification=verification, module=rewritten.module
    )
    report["seed"] = seed
    report["inner"] = list(inspection.inner)
    report["emit"], report["obstacle"] = emit, inspection.analysis.traced.obstacle
    report["edits"] = [*rewritten.edits, *told.edits]
    report["config"] = None if configured is None else configured.to_dict()
    report["inputs"] = input_spec(inputs)
    return Growth(
        rewritten.module,
        plan,
        votes,
        rewritten.index_map,
        verification,
        report,
        rewritten.groups,
        sources=dict(model.named_parameters()),
        inspection=inspection,
        base=fingerprint(model) if checked else {},  # it reads every tensor: time, as checks take
    )


def input_spec(inputs: Inputs) -> dict[str, Any]:
    """Describe example inputs in JSON types: shapes and dtypes, no values of tensors."""

    def spec(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if type(value) in {list, tuple}:
            return {type(value).__name__: [spec(item) for item in value]}
        if type(value) is dict:
            return {"dict": {str(key): spec(item) for key, item in value.items()}}
        plain = isinstance(value, (int, float, str, bool, type(None)))
        return {"value": value if plain else repr(value)}

    return {
        "args": [spec(a) for a in inputs.args],
        "kwargs": {k: spec(v) for k, v in inputs.kwargs.items()},
    }


def asked(budget: float | str, unit: Unit) -> tuple[float | str, Unit]:
    """Refuse budgets that are not positive numbers; a text's own unit replaces the default.

    Raises
    ------
    BudgetError
        When ``budget`` is zero, negative, not finite or not understood.
    InputError
        When it is a text in another unit than the one asked for.
    """
    if isinstance(budget, str):
        amount = parse_budget(budget)
        amount.of(1)
        return budget, amount.in_unit(None if unit == "neurons" else unit)
    if not math.isfinite(budget) or budget <= 0:
        raise BudgetError(f"the budget is {budget} {unit}; it must be a positive number")
    return budget, unit


def settled(budget: float | str, unit: Unit, inspection: Inspection) -> float:
    """Turn a budget into a number, given the size of the model."""
    if not isinstance(budget, str):
        return budget
    size = Size.measured(inspection.groups, inspection.params, inspection.flops)
    return parse_budget(budget).of(size.in_unit(unit))


def form_of(inspection: Inspection, emit: str) -> str:
    """Say what the model will become: its own class where no graph of it can be had.

    Raises
    ------
    InputError
        When ``emit`` is neither ``"graph"`` nor ``"module"``.
    """
    if emit not in {"graph", "module"}:
        raise InputError(f"emit is {emit!r}; take 'graph' or 'module'")
    return "module" if inspection.analysis.traced.obstacle else emit


def fit_for(model: torch.nn.Module, inspection: Inspection, emit: str | None) -> Inspection:
    """Freeze what can't grow in the form that is asked for (None: either).

    Raises
    ------
    InputError
        See :func:`form_of`.
    """
    if emit is None or form_of(inspection, emit) == "graph":
        return inspection
    return followed(model, inspection)


def check_growable(inspection: Inspection) -> None:
    """Refuse models without any growable group.

    Raises
    ------
    NothingToGrow
        With the reasons of all frozen groups.
    """
    if not inspection.groups:
        reasons = {g.reason.message for g in inspection.frozen if g.reason is not None}
        why = "; ".join(sorted(reasons)) or "the model has no labelled weights"
        raise NothingToGrow(f"no group can grow: {why}")


def example_of(model: torch.nn.Module, data: Iterable[Any] | None, given: Any) -> Any:
    """Return the given example inputs, or those of the first batch (two samples will do).

    Raises
    ------
    InputError
        When neither is there.
    """
    if given is not None:
        return given
    if data is None:
        raise InputError(
            "without data, example_inputs are needed: pass a tensor of the model's input shape"
        )
    inputs, _ = next(iter(batches(data, model)))
    return _few(inputs)


def shared_example(
    team: Team, model: torch.nn.Module, data: Iterable[Any] | None, given: Any
) -> Any:
    """Return the example inputs of rank 0, on the model's device (see :func:`example_of`)."""
    example = example_of(model, data, given)
    if team.size == 1:
        return example
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return to_device(team.share(to_device(example, "cpu"), "the example inputs"), device)


def _few(inputs: Any, count: int = 2) -> Any:
    if isinstance(inputs, torch.Tensor):
        return inputs[:count]
    if isinstance(inputs, dict):
        return {k: _few(v, count) for k, v in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_few(v, count) for v in inputs)
    return inputs


def to_device(value: Any, device: str | torch.device) -> Any:
    """Move every tensor of example inputs, at any depth."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: to_device(v, device) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(to_device(v, device) for v in value)
    return value
