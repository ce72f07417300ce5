"""Param groups of their own for parameters that grew, and the schedulers' share in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch.optim import Optimizer

__all__ = ["Regrouping", "bare", "regroup", "reschedule"]

# Keys of param groups, and lists of schedulers (one entry a group), that are rates: they
# are scaled as the group's rate is, so that its schedule is the old one times a factor.
_GROUP_RATES = ("initial_lr", "max_lr", "min_lr", "swa_lr")
_RATES = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")
_OTHERS = ("lr_lambdas", "base_momentums", "max_momentums")


@dataclass(frozen=True, eq=False)
class Regrouping:
    """Param groups after growth.

    Attributes
    ----------
    groups : list of dict
        Complete new groups, the old ones (in their order) first.
    lists : list of (scheduler, attribute, list)
        What the schedulers hold then.
    """

    groups: list[dict[str, Any]]
    lists: list[tuple[Any, str, list[Any]]]


def bare(optimizer: Any) -> Any:
    """Unwrap optimizers that only pass calls on (Accelerate)."""
    return getattr(optimizer, "optimizer", optimizer)


def regroup(
    optimizer: Optimizer,
    parameters: Sequence[Sequence[torch.Tensor]],
    grown: set[int],
    options: Mapping[str, Any],
    schedulers: Sequence[Any],
) -> Regrouping | None:
    """Plan the param groups; nothing is changed.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    parameters : sequence of lists of torch.Tensor
        Of every group, after growth.
    grown : set of int
        Identities of the parameters that grew.
    options : dict
        For them; empty: no group changes.
    schedulers : sequence
        Learning-rate schedulers of this optimizer.

    Returns
    -------
    Regrouping or None

    Raises
    ------
    InputError
        For options that the optimizer does not have, rates that are no positive numbers or
        can't be related to a schedule, and schedulers that are missing or not the optimizer's.
    """
    if not options:
        return None
    _check(optimizer, options, schedulers)
    groups: list[dict[str, Any]] = []
    moved: list[tuple[int, dict[str, Any]]] = []
    for number, (old, now) in enumerate(zip(optimizer.param_groups, parameters, strict=True)):
        inside = [i for i, p in enumerate(now) if id(p) in grown]
        outside = [i for i, p in enumerate(now) if id(p) not in grown]
        if inside and not outside:
            groups.append(_group(old, now, inside, options))
        else:
            groups.append(_group(old, now, outside, {}))
            if inside:
                moved.append((number, _group(old, now, inside, options)))
    origin = [*range(len(groups)), *(number for number, _ in moved)]
    groups += [group for _, group in moved]
    olds = [optimizer.param_groups[i] for i in origin]
    factor = [1.0] * len(groups)
    if schedulers:
        factor = [_factor(old["lr"], new["lr"]) for old, new in zip(olds, groups, strict=True)]
    lists = [
        (part, name, _entries(values, name, origin, factor))
        for scheduler in schedulers
        for part in _parts(scheduler)
        for name, values in vars(part).items()
        if name in _RATES + _OTHERS and len(values) == len(optimizer.param_groups)
    ]
    return Regrouping(groups, lists)


def reschedule(optimizer: Optimizer, plan: Regrouping) -> None:
    """Give the optimizer its new groups, and its schedulers their new lists."""
    for old, new in zip(optimizer.param_groups, plan.groups, strict=False):
        old["params"][:] = new["params"]
        old.update({key: value for key, value in new.items() if key != "params"})
    optimizer.param_groups.extend(plan.groups[len(optimizer.param_groups) :])
    for scheduler, name, values in plan.lists:
        setattr(scheduler, name, values)


def _check(optimizer: Optimizer, options: Mapping[str, Any], schedulers: Sequence[Any]) -> None:
    group = optimizer.param_groups[0]
    known = sorted(key for key in group if key not in {"params", "param_names"})
    odd = sorted(key for key in options if key not in known)
    if odd:
        raise InputError(f"new_options: {odd[0]!r} is no option of this optimizer; it has {known}")
    if "lr" in options:
        rate = options["lr"]
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise InputError(f"new_options: lr is {rate!r}; it must be a positive number")
    for scheduler in schedulers:
        if bare(getattr(scheduler, "optimizer", None)) is not bare(optimizer):
            raise InputError(f"the {type(scheduler).__name__} belongs to another optimizer")
    scheduled = any("initial_lr" in g for g in optimizer.param_groups)
    if scheduled and not schedulers:
        raise InputError(
            "new_options make param groups that the optimizer's learning-rate scheduler does not "
            "know of; pass schedulers=[scheduler, ...], all that were made for this optimizer"
        )


def _group(
    old: Mapping[str, Any],
    now: Sequence[torch.Tensor],
    chosen: list[int],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Part of a param group, with options of its own."""
    group = dict(old)
    if options:  # rates that are tensors are changed in place by schedulers
        group = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in old.items()}
    group["params"] = [now[i] for i in chosen]
    if "param_names" in old:
        group["param_names"] = [old["param_names"][i] for i in chosen]
    for key, value in options.items():
        before = group[key]
        group[key] = torch.full_like(before, value) if isinstance(before, torch.Tensor) else value
    if "lr" in options and any(key in group for key in _GROUP_RATES):
        factor = _factor(old["lr"], options["lr"])
        rates = [key for key in _GROUP_RATES if key in group and key not in options]
        group.update({key: group[key] * factor for key in rates})
    return group


def _factor(old: Any, new: Any) -> float:
    before, after = float(old), float(new)
    if before == after:
        return 1.0
    if before == 0:
        raise InputError(
            "new_options: a group's rate is 0 now, so its schedule can't be scaled to another "
            "rate; grow one step later"
        )
    return after / before


def _parts(scheduler: Any) -> Iterator[Any]:
    """Yield a scheduler and, of sequences and chains, those inside."""
    yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _parts(part)


def _entries(
    values: Sequence[Any], name: str, origin: Sequence[int], factor: Sequence[float]
) -> list[Any]:
    if name in _OTHERS:
        return [values[i] for i in origin]
    return [values[i] * f for i, f in zip(origin, factor, strict=True)]
