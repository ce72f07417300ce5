"""Growths repeated as a file describes them, on the model that they began with."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import torch

from ..errors import BudgetError, FileError, FxgrowError, InputError
from ..ir import Plan, Verification, Votes
from ..plan import MAX_ADDED
from ..printable import quoted
from .digest import other_shapes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ..ir import Growth

__all__ = [
    "check_base",
    "example_inputs",
    "foreign",
    "growth_step",
    "mismatches",
    "plan_of",
    "recorded_inputs",
    "replayed",
    "verification_of",
    "votes_of",
    "widen_again",
]

_MOST_INPUT = 2**26
"""Elements of the example inputs that a file may ask for."""


def growth_step(growth: Growth) -> dict[str, Any]:
    """Describe one growth so that it can be repeated: plan, votes, seed, kind, base."""
    from ..report import plan_dict, votes_dict

    votes, inner = growth.votes, list(growth.report.get("inner", ()))
    return {
        "plan": plan_dict(growth.plan),
        "votes": None if votes is None else votes_dict(votes),
        "seed": int(growth.report.get("seed", 0)),
        "transfer": bool(growth.report.get("transfer")),
        "base": dict(growth.base) or None,
        **({"inner": inner} if inner else {}),
    }


def widen_again(
    module: torch.nn.Module,
    inputs: Any,
    step: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    most: int | None = None,
    widths: Mapping[str, int] | None = None,
    verify: bool = False,
) -> Growth:
    """Repeat a growth described by :func:`growth_step`: its shapes, not its training.

    Parameters
    ----------
    module : torch.nn.Module
        What grew. Never changed.
    inputs : tensor, tuple or dict
        Example inputs.
    step : dict
        The description.
    options : dict
        ``emit`` and ``rules`` of :func:`fxgrow.widen`.
    most : int, optional
        Parameter elements that the result may have; known where its weights are at hand.
    widths : dict of str to int, optional
        Units that groups had when the description was made.
    verify : bool
        Compare outputs before and after.

    Raises
    ------
    FxgrowError
        When the description does not fit the module.
    """
    # here, because these offer save and load themselves
    from ..api import inspect, transferred_again
    from ..stages import as_plan, grow

    if step.get("transfer"):  # its base is the wide model
        return transferred_again(module, inputs, step, options["emit"])
    inner, rules = step.get("inner", ()), options.get("rules", ())
    inspection = inspect(module, inputs, inner=inner, rules=rules)
    for group in inspection.groups:
        if (known := (widths or {}).get(group.name, group.width)) != group.width:
            raise InputError(
                f"group {quoted(group.name)} has {known} units there and {group.width} here"
            )
    plan = as_plan(step["plan"]["additions"], inspection)
    if most is not None:
        added = inspection.costs.params(inspection.groups, plan.additions)
        if inspection.params + added > most:
            raise BudgetError(
                f"the plan makes {inspection.params + added} parameter elements, the file has "
                f"{most}"
            )
    return grow(module, inspection, plan, seed=step["seed"], emit=options["emit"], verify=verify)


def replayed(
    path: Path,
    steps: Sequence[Mapping[str, Any]],
    base: torch.nn.Module,
    inputs: Any,
    options: Mapping[str, Any],
    *,
    most: int | None = None,
    widths: Mapping[str, int] | None = None,
    verify: bool = False,
) -> tuple[Growth, list[Mapping[str, Any]]]:
    """Repeat all growths that a file describes, and describe them anew.

    Parameters
    ----------
    path : Path
        The file, for messages.
    steps : sequence of dict
        The descriptions, oldest first.
    base, inputs, options, most, widths, verify
        See :func:`widen_again`.

    Returns
    -------
    growth : Growth
        The last one.
    steps : list of dict
        What was done; the base's checksums are those of ``base``.

    Raises
    ------
    FileError
        When a description does not fit.
    """
    limit = min(most or room(), room())
    done: list[Mapping[str, Any]] = []
    module, growth = base, None
    for step in steps:
        try:
            growth = widen_again(
                module, inputs, step, options, most=limit, widths=widths, verify=verify
            )
        except FxgrowError as error:
            raise foreign(path, [str(error)]) from error
        module, widths = growth.module, None
        done.append({**growth_step(growth), "votes": step["votes"]})
    assert growth is not None  # a file describes a growth at least
    return growth, done


def check_base(path: Path, steps: Sequence[Mapping[str, Any]], base: torch.nn.Module) -> None:
    """Refuse a base whose tensors are not those of the model that grew.

    Raises
    ------
    FileError
        Naming the first tensor that differs.
    """
    known = steps[0]["base"]
    if known and (problems := other_shapes(known, base)):
        raise foreign(path, problems)


def foreign(path: Path, problems: Sequence[str]) -> FileError:
    """Make the error that says why a file does not belong to a base."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return FileError(f"{path}: does not belong to this base model: {problems[0]}{more}")


def recorded_inputs(path: Path, spec: Mapping[str, Any], *, seed: int | None = None) -> Any:
    """Build the inputs that a file records (see :func:`example_inputs`).

    Raises
    ------
    FileError
        When they can't be built.
    """
    try:
        return example_inputs(spec, seed=seed)
    except InputError as error:
        raise FileError(f"{path}: {error}") from error


def example_inputs(spec: Mapping[str, Any], *, seed: int | None = None) -> Any:
    """Build inputs of the shapes that a growth file records.

    Parameters
    ----------
    spec : dict
        ``{"args": [{"shape": [...], "dtype": "float32"}, ...], "kwargs": {name: ...}}``.
    seed : int, optional
        Floating point inputs are standard normal then, else zero.

    Returns
    -------
    tuple or dict of torch.Tensor
        Keyword arguments if the spec names any, else positional ones.

    Raises
    ------
    InputError
        When they would fill the memory, or are of no known type.
    """
    args, kwargs = spec.get("args", []), spec.get("kwargs", {})
    total = sum(_elements(entry) for entry in [*args, *kwargs.values()])
    if total > _MOST_INPUT:
        raise InputError(
            f"the file asks for example inputs of {total} elements; the most is {_MOST_INPUT}"
        )
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    named = {name: _input(entry, generator) for name, entry in kwargs.items()}
    return named or tuple(_input(entry, generator) for entry in args)


def _elements(entry: Mapping[str, Any]) -> int:
    if "shape" in entry:
        return math.prod(entry["shape"])
    inner = entry.get("list") or entry.get("tuple") or list(entry.get("dict", {}).values())
    return sum(_elements(each) for each in inner)


def _input(entry: Mapping[str, Any], generator: torch.Generator | None) -> Any:
    if "value" in entry:
        return entry["value"]  # a number or a flag
    for kind, make in (("list", list), ("tuple", tuple)):
        if kind in entry:
            return make(_input(each, generator) for each in entry[kind])
    if "dict" in entry:
        return {name: _input(each, generator) for name, each in entry["dict"].items()}
    dtype = getattr(torch, str(entry["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"the file asks for inputs of type {quoted(str(entry['dtype']))}")
    zeros = torch.zeros(tuple(entry["shape"]), dtype=dtype)
    if generator is None or not zeros.is_floating_point():
        return zeros
    return torch.randn(zeros.shape, generator=generator).to(dtype)


def mismatches(wanted: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Iterator[str]:
    """Say where a state dict does not fit the one that is wanted (shapes and types)."""
    for name, tensor in wanted.items():
        if name not in state:
            yield f"the file lacks {quoted(name, 200)}"
        elif tuple(state[name].shape) != tuple(tensor.shape):
            here, there = tuple(tensor.shape), tuple(state[name].shape)
            yield f"{quoted(name, 200)} is {there} in the file and {here} in the widened base"
        elif state[name].dtype != tensor.dtype:
            yield (
                f"{quoted(name, 200)} is {state[name].dtype} in the file and {tensor.dtype} in "
                f"the widened base; base.to({state[name].dtype}) makes them alike"
            )
    yield from (f"the base has no {quoted(name, 200)}" for name in state if name not in wanted)


def room() -> int:
    """Elements of float32 that this machine's memory could hold, at the most."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):  # not a system of this kind
        return MAX_ADDED


def plan_of(step: Mapping[str, Any]) -> Plan:
    """Return the plan that a step describes."""
    return Plan(**step["plan"])


def votes_of(step: Mapping[str, Any]) -> Votes | None:
    """Return the votes that a step describes, without the values of each candidate."""
    return None if step["votes"] is None else Votes(values={}, **step["votes"])


def verification_of(data: Mapping[str, Any] | None) -> Verification | None:
    """Return the verification that a file describes."""
    if data is None:
        return None
    return Verification(**{name: value for name, value in data.items() if name != "passed"})
