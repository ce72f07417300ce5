"""The public functions: the stages in sequence."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from . import report as reports
from .data import check_data
from .distributors import distribute
from .errors import BudgetError, InputError, NothingToGrow, VerificationError
from .extenders import ExtendOptions, extender as extender_named
from .inspection import Inspection, inspect_model
from .ir import Growth, Plan, Unit, Votes
from .plan import make_plan
from .rewrite import rewrite
from .trace import Inputs
from .verify import verify as verify_models
from .vote import candidate_count, cast_votes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .data import LossFn, Progress

    Candidates = str | int

__all__ = ["expand", "inspect", "plan_for", "vote", "widen"]

inspect = inspect_model


def widen(
    model: torch.nn.Module,
    example_inputs: Any,
    additions: Mapping[str, int] | Plan | str | int,
    *,
    seed: int = 0,
    emit: str = "graph",
    verify: bool = True,
) -> Growth:
    """Insert units by hand; the function is kept and no data are needed.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed.
    example_inputs : tensor, tuple or dict
        One tensor, positional arguments, or keyword arguments of ``forward``.
    additions : dict of str to int, Plan, str or int
        Units per group name; a number (``8``) or share (``"+12.5%"``) for every group,
        rounded down to the group's ``multiple_of`` (a share to at least one step).
    seed : int
        Of the new rows. The caller's random state is untouched.
    emit : {"graph", "module"}
        A ``torch.fx.GraphModule``, or a resized copy of the user's own class.
    verify : bool
        Compare outputs of old and new module on the example inputs. The exact partition
        check is made in any case.

    Returns
    -------
    Growth

    Raises
    ------
    InputError
        Unknown groups or impossible additions.
    TraceError, UnsupportedError, VerificationError
        The model can't be traced, a size can't be made to fit, or the widened model
        would not compute the same function. Nothing is returned then.

    Examples
    --------
    >>> import torch, fxgrow
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> growth = fxgrow.widen(net, torch.zeros(1, 4), {"0": 3})
    >>> growth.module.get_submodule("0")
    Linear(in_features=4, out_features=11, bias=True)
    """
    inspection = inspect(model, example_inputs)
    return _grow(
        model, inspection, _as_plan(additions, inspection), seed=seed, emit=emit, verify=verify
    )


def _as_plan(additions: Mapping[str, int] | Plan | str | int, inspection: Inspection) -> Plan:
    if isinstance(additions, Plan):
        additions = additions.additions
    if isinstance(additions, (str, int)):
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
    spent = inspection.costs.neurons(inspection.groups, chosen)
    return Plan(chosen, budget=float(spent), unit="neurons", spent=spent)


def _share(amount: str | int, width: int, step: int) -> int:
    if isinstance(amount, str):
        text = amount.strip()
        try:
            share = float(text.removeprefix("+").removesuffix("%")) / 100
        except ValueError:
            share = math.nan
        if not text.endswith("%") or not 0 < share < math.inf:
            raise InputError(
                f"additions {amount!r} are not understood; write a share like '+12.5%' or a number of units"
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


def _grow(
    model: torch.nn.Module,
    inspection: Inspection,
    plan: Plan,
    *,
    seed: int,
    emit: str,
    verify: bool,
    votes: Votes | None = None,
) -> Growth:
    if emit not in {"graph", "module"}:
        raise InputError(f"emit is {emit!r}; take 'graph' or 'module'")
    rewritten = rewrite(model, inspection, plan.additions, seed=seed, emit=emit)
    inputs = inspection.analysis.traced.inputs
    checked = verify or emit == "module"  # own code may hold sizes that no graph shows
    verification = verify_models(model, rewritten.module, inputs) if checked else None
    if verification is not None and not verification.passed:
        raise VerificationError(
            f"the widened model computes another function (relative difference {verification.eval_error:.1e} in eval, "
            f"{verification.train_error:.1e} in train mode, allowed {verification.tolerance:.0e}); nothing was changed"
        )
    report = reports.growth_dict(
        inspection, plan, votes=votes, verification=verification, module=rewritten.module
    )
    report["seed"] = seed
    report["emit"] = emit
    report["edits"] = list(rewritten.edits)
    report["inputs"] = _input_spec(inputs)
    return Growth(
        rewritten.module, plan, votes, rewritten.index_map, verification, report, rewritten.groups
    )


def _input_spec(inputs: Inputs) -> dict[str, Any]:
    def spec(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        return {
            "value": value
            if isinstance(value, (int, float, str, bool, type(None)))
            else repr(value)
        }

    return {
        "args": [spec(a) for a in inputs.args],
        "kwargs": {k: spec(v) for k, v in inputs.kwargs.items()},
    }


def vote(
    model: torch.nn.Module,
    data: Iterable[Any],
    *,
    loss: LossFn | str | None = None,
    budget: float = 512,
    unit: Unit = "neurons",
    candidates: Candidates = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
    example_inputs: Any = None,
    progress: Progress | None = None,
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
    budget : float
        K, in ``unit``.
    unit : {"neurons", "params", "flops"}
    candidates : "auto", "paper" or int
        Candidates per group: 2K, by default at most the group's width.
    include, exclude : sequence of str
        Shell patterns over group and layer names.
    seed : int
    example_inputs : tensor, tuple or dict, optional
        Taken from the first batch by default.
    progress : callable, optional
        Told ``(stage, done, total)``.

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
    _check_budget(budget, unit)
    check_data(data)
    inspection = inspect(
        model, _example(model, data, example_inputs), include=include, exclude=exclude
    )
    return _vote(model, inspection, data, loss, budget, unit, candidates, seed, progress)


def _vote(
    model: torch.nn.Module,
    inspection: Inspection,
    data: Iterable[Any],
    loss: LossFn | str | None,
    budget: float,
    unit: Unit,
    candidates: Candidates,
    seed: int,
    progress: Progress | None,
) -> Votes:
    _check_growable(inspection)
    counts = candidate_count(inspection.groups, budget, candidates, unit=unit)
    if not counts:
        raise BudgetError(f"a budget of {budget:g} {unit} buys no unit of any group")
    clone = rewrite(model, inspection, counts, seed=seed)
    # The clone is used up by the vote: all of it trains.
    for parameter in clone.module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return cast_votes(
        clone.module,
        clone.groups,
        inspection.groups,
        data,
        loss,
        budget=budget,
        unit=unit,
        seed=seed,
        progress=progress,
    )


def _check_budget(budget: float, unit: str) -> None:
    if not math.isfinite(budget) or budget <= 0:
        raise BudgetError(f"the budget is {budget} {unit}; it must be a positive number")


def _check_growable(inspection: Inspection) -> None:
    if not inspection.groups:
        reasons = {g.reason.message for g in inspection.frozen if g.reason is not None}
        raise NothingToGrow(
            f"no group can grow: {'; '.join(sorted(reasons)) or 'the model has no labelled weights'}"
        )


def _example(model: torch.nn.Module, data: Iterable[Any] | None, given: Any) -> Any:
    """Example inputs: given ones, or those of the first batch (two samples will do)."""
    from .data import batches

    if given is not None:
        return given
    if data is None:
        raise InputError(
            "without data, example_inputs are needed: pass a tensor of the model's input shape"
        )
    inputs, _ = next(iter(batches(data, model)))
    return _few(inputs)


def _few(inputs: Any, count: int = 2) -> Any:
    if isinstance(inputs, torch.Tensor):
        return inputs[:count]
    if isinstance(inputs, dict):
        return {k: _few(v, count) for k, v in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_few(v, count) for v in inputs)
    return inputs


def plan_for(
    model: torch.nn.Module,
    data: Iterable[Any] | None,
    *,
    budget: float = 512,
    unit: Unit = "neurons",
    loss: LossFn | str | None = None,
    distributor: str = "svod",
    candidates: Candidates | None = None,
    round_to: int = 1,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
    example_inputs: Any = None,
    progress: Progress | None = None,
) -> tuple[Inspection, Votes, Plan]:
    """Decide where a budget goes without growing anything (see :func:`expand`)."""
    _check_budget(budget, unit)
    if data is not None:
        check_data(data)
    example = _example(model, data, example_inputs)
    inspection = inspect(model, example, include=include, exclude=exclude)
    _check_growable(inspection)
    cast = None
    if distributor == "svod":
        if data is None:
            raise InputError(
                "distributor 'svod' needs data to vote on; pass data, or distributor='uniform'"
            )
        cast = _vote(
            model, inspection, data, loss, budget, unit, candidates or "auto", seed, progress
        )
    votes = distribute(
        distributor, inspection.groups, budget=budget, unit=unit, seed=seed, votes=cast
    )
    plan = make_plan(
        inspection.groups, votes, inspection.costs, budget=budget, unit=unit, round_to=round_to
    )
    return inspection, votes, plan


def expand(
    model: torch.nn.Module,
    data: Iterable[Any] | None,
    *,
    budget: float = 512,
    unit: Unit = "neurons",
    loss: LossFn | str | None = None,
    distributor: str = "svod",
    extender: str = "swe",
    coupling: str = "laplacian",
    paper: bool = False,
    candidates: Candidates | None = None,
    adjust_epochs: int = 1,
    round_to: int = 1,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
    device: str | torch.device | None = None,
    emit: str = "graph",
    example_inputs: Any = None,
    progress: Progress | None = None,
) -> Growth:
    """Widen a trained model where gradients ask for it (SVoD), and settle new units in (SWE).

    Parameters
    ----------
    model : torch.nn.Module
        Never changed.
    data : re-iterable of (inputs, targets), or None
        E.g. a DataLoader. ``None``: pure insertion by a distributor that needs no data.
    budget : float
        Most that the new units may cost, in ``unit``.
    unit : {"neurons", "params", "flops"}
    loss : callable, str or None
        ``None``: cross entropy for integer targets, MSE for float.
    distributor : {"svod", "uniform", "proportional", "random"}
    extender : {"swe", "zero"}
    coupling : {"laplacian", "pairwise", "dense"}
    paper : bool
        The adjusting phase as published, with its decay of the frozen rows.
    candidates : "auto", "paper" or int, optional
    adjust_epochs : int
        Epochs of the adjusting phase; 0 is pure insertion, which keeps the function.
    round_to : int
        New widths are multiples of it where possible.
    include, exclude : sequence of str
        Shell patterns over group and layer names.
    seed : int
    device : str or torch.device, optional
        Where to compute (the result stays there); the model's own by default.
    emit : {"graph", "module"}
    example_inputs : tensor, tuple or dict, optional
        Taken from the first batch by default.
    progress : callable, optional
        Told ``(stage, done, total)``.

    Returns
    -------
    Growth
        ``verification`` holds the check made right after insertion, before adjusting.

    Raises
    ------
    FxgrowError
        See :mod:`fxgrow.errors`.

    References
    ----------
    arXiv 2509.18842.
    """
    if adjust_epochs < 0:
        raise InputError(f"adjust_epochs is {adjust_epochs}; it must be 0 or more")
    extend = extender_named(extender)
    if device is not None:
        model = copy.deepcopy(model).to(device)
        example_inputs = _to(example_inputs, device)
    inspection, votes, plan = plan_for(
        model,
        data,
        budget=budget,
        unit=unit,
        loss=loss,
        distributor=distributor,
        candidates=candidates,
        round_to=round_to,
        include=include,
        exclude=exclude,
        seed=seed,
        example_inputs=example_inputs,
        progress=progress,
    )
    growth = _grow(model, inspection, plan, seed=seed, emit=emit, verify=True, votes=votes)
    options = ExtendOptions(coupling=coupling, paper=paper, epochs=adjust_epochs, seed=seed)
    training = growth.module.training
    fresh = [g for g in growth.groups if g.recipe == "fresh"]  # copies are settled already
    adjusted = extend(
        growth.module, fresh, data if adjust_epochs else None, loss, options, progress
    )
    growth.module.train(training)
    report = dict(growth.report)
    report["adjusting"] = None if adjusted is None else asdict(adjusted)
    return replace(growth, report=report)


def _to(value: Any, device: str | torch.device) -> Any:
    move: Callable[[Any], Any] = lambda v: v.to(device) if isinstance(v, torch.Tensor) else v  # noqa: E731  # one line
    if isinstance(value, dict):
        return {k: move(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(move(v) for v in value)
    return move(value)
