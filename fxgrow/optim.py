"""Optimizers and weight averages that outlive a growth."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch.optim.swa_utils import AveragedModel

from .errors import InputError, UnsupportedError
from .fills import fill_streams
from .ir import Fill
from .moments import Moving, fill_averages, grown_state, moved_state
from .regroup import Regrouping, bare, regroup, reschedule
from .spread import fits, places, spread_average
from .walks import tensor_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch.optim import Optimizer

    from .ir import Growth
    from .spread import Place

__all__ = ["migrate", "migrate_ema"]


def migrate(
    growth: Growth,
    optimizer: Optimizer,
    *,
    fill: Fill = "zero",
    new_options: Mapping[str, Any] | None = None,
    schedulers: Iterable[Any] = (),
    model: torch.nn.Module | None = None,
) -> Optimizer:
    """Hand an optimizer the grown parameters; what it knows of the old ones is kept.

    The optimizer is changed in place, so that schedulers, gradient scalers and hooks still
    point at it: the grown module's parameters take the places of the old model's, and state
    goes to where the old entries went. Parameters of other models stay; those that the
    optimizer did not hold stay out. Gradients are not carried: migrate after ``step()``.
    After an error the optimizer is as it was.

    Parameters
    ----------
    growth : Growth
    optimizer : torch.optim.Optimizer
        Of the model that was grown.
    fill : {"zero", "mean", "reset"}
        State of new entries. ``"zero"``: as if they had never seen a gradient (0, but the
        rate for Rprop's steps, the initial value for Adagrad's sums), so old entries go on
        as without growth. ``"mean"``: scales of gradients (second moments) are the mean over
        the old units of the group, else the first steps of new units are several times
        those of old ones. ``"reset"``: parameters that grew lose their state, others keep it.
        Copied units have the state of the units that they copy, unless it is reset.
    new_options : dict, optional
        Options, e.g. ``{"lr": 1e-4}``, for the parameters that grew: whole tensors, since
        torch has no options per entry. They leave their group for one of their own at the
        end of ``param_groups``; a group that grew as a whole is changed itself. Other
        rates of a schedule are scaled as ``lr`` is.
    schedulers : iterable, optional
        With ``new_options``: every scheduler of this optimizer, told of the new groups.
        Missing ones are refused, but for ``ReduceLROnPlateau``, which leaves no trace.
    model : torch.nn.Module, optional
        The model that was grown; needed where ``growth.sources`` is empty, after
        :func:`fxgrow.load`.

    Returns
    -------
    torch.optim.Optimizer
        The same object.

    Raises
    ------
    InputError
        If the optimizer holds no parameter of the old model, its model is not known or is
        another one, or for impossible options.
    UnsupportedError
        If state can't be carried over: a tensor that is not shaped like its parameter, or
        LBFGS's history, which spans all parameters (``fill="reset"`` drops it).

    Notes
    -----
    Linear in the size of parameters and state. Exactness of old entries holds for optimizers
    that treat each entry alone. Muon and Adafactor couple the entries of a tensor. The weights
    of norms over grown streams are smaller than before, as their input's scale is larger: their
    moments stay as they were.

    Examples
    --------
    >>> import torch, fxgrow
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> optimizer = torch.optim.Adam(net.parameters())
    >>> growth = fxgrow.widen(net, torch.zeros(1, 4), {"0": 3})
    >>> _ = growth.migrate(optimizer)
    >>> [tuple(p.shape) for p in optimizer.param_groups[0]["params"]]
    [(11, 4), (11,), (2, 11), (2,)]
    """
    if fill not in get_args(Fill):
        raise InputError(f"fill is {fill!r}; take 'zero', 'mean' or 'reset'")
    moves = _moves(growth, model)
    owners = _owners(optimizer, moves, growth.module)
    joint = _is_joint(optimizer)
    if joint and new_options:
        raise UnsupportedError("LBFGS takes one param group only; leave new_options out")
    with torch.no_grad():
        state = _new_state(optimizer, moves, owners, fill, joint)
        fill_averages(growth, moves.values(), state, owners)
    groups = [
        [moves[id(p)].new if id(p) in moves else p for p in group["params"]]
        for group in optimizer.param_groups
    ]
    grown = {id(m.new) for m in moves.values() if m.place is not None}
    plan = regroup(optimizer, groups, grown, new_options or {}, tuple(schedulers))
    # Nothing has been changed so far, and nothing below can fail.
    _apply(optimizer, state, groups, plan)
    if joint:
        bare(optimizer).__dict__["_numel_cache"] = None
    return optimizer


def _moves(growth: Growth, model: torch.nn.Module | None) -> dict[int, Moving]:
    """Which parameter becomes which, by the identity of the old one."""
    sources = growth.sources if model is None else dict(model.named_parameters())
    if not sources:
        raise InputError(
            "this growth was loaded from a file and does not know the old parameters; pass "
            "model=, the model that was grown and that the optimizer was built for"
        )
    new = dict(growth.module.named_parameters(remove_duplicate=False))
    grown = places(growth)
    moves = {}
    for name, old in sources.items():
        if name not in new or not fits(grown.get(name), old, new[name]):
            shape = tuple(new[name].shape) if name in new else "no counterpart"
            raise InputError(
                f"parameter {name!r} of shape {tuple(old.shape)} has {shape} in the grown module: "
                "this is not the model that was grown, or one of both was changed since"
            )
        moves[id(old)] = Moving(name, old, new[name], grown.get(name))
    return moves


def _owners(
    optimizer: Optimizer, moves: Mapping[int, Moving], module: torch.nn.Module
) -> dict[int, dict[str, Any]]:
    """Param group of every parameter that the optimizer holds."""
    owners = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    if owners.keys().isdisjoint(moves):
        done = not owners.keys().isdisjoint(id(p) for p in module.parameters())
        raise InputError(
            "the optimizer holds the grown module's parameters already: nothing to migrate"
            if done
            else "the optimizer holds no parameter of the model that was grown; migrate the "
            "optimizer that was built for it, or pass model=, whose parameters it holds"
        )
    return owners


def _is_joint(optimizer: Optimizer) -> bool:
    """Whether one state spans all parameters (it is filed under the first of them)."""
    return isinstance(bare(optimizer), torch.optim.LBFGS)


def _new_state(
    optimizer: Optimizer,
    moves: Mapping[int, Moving],
    owners: Mapping[int, Mapping[str, Any]],
    fill: str,
    joint: bool,
) -> dict[Any, Any]:
    """Compute the whole state, in its old order."""
    owner = type(bare(optimizer)).__name__
    if joint and fill == "reset":
        return {}
    if joint and any(optimizer.state.values()):
        raise UnsupportedError(
            f"{owner} has a history that spans all parameters and can't be carried over; use "
            "fill='reset' to drop it"
        )
    result: dict[Any, Any] = {}
    for key, state in optimizer.state.items():
        moving = moves.get(id(key))
        options = owners.get(id(key), optimizer.defaults)
        if moving is None:
            result[key] = state
        elif moving.place is None or not state:
            result[moving.new] = moved_state(moving, state, options)
        elif fill != "reset":
            result[moving.new] = grown_state(
                moving, state, options, mean=fill == "mean", owner=owner
            )
    return result


def _apply(
    optimizer: Optimizer,
    state: Mapping[Any, Any],
    groups: list[list[torch.Tensor]],
    plan: Regrouping | None,
) -> None:
    optimizer.state.clear()
    optimizer.state.update(state)
    for group, parameters in zip(optimizer.param_groups, groups, strict=True):
        group["params"][:] = parameters  # LBFGS holds the same list
    if plan is not None:
        reschedule(optimizer, plan)


# ------------------------------------------------------------------ averages


def migrate_ema(growth: Growth, averaged: AveragedModel) -> AveragedModel:
    """Grow an average of the old model's weights as the model was grown.

    The result computes what ``averaged`` did: old entries hold the old averages, new units
    the grown module's values, and what reads them is zero (copied units are split as the
    weights were; new units of streams are the means of the averaged old ones, or zero, and
    what reads them is the grown module's). It goes on averaging with
    ``update_parameters(growth.module)``.

    Parameters
    ----------
    growth : Growth
    averaged : torch.optim.swa_utils.AveragedModel
        Of the model that was grown, bare (not of a wrapper). It is not changed.

    Returns
    -------
    torch.optim.swa_utils.AveragedModel
        With the averaging functions, count, device, dtypes and modes of ``averaged``.

    Raises
    ------
    InputError
        If ``averaged`` is no AveragedModel, or averages another model.
    """
    if not isinstance(averaged, AveragedModel):
        raise InputError(f"averaged is a {type(averaged).__name__}, no AveragedModel")
    old = tensor_names(averaged.module)
    module = copy.deepcopy(growth.module)
    new = tensor_names(module)
    grown = places(growth)
    _check_averages(old, new, grown)
    with torch.no_grad():
        for name, tensor in new.items():
            if name in old:
                tensor.data = _average(old[name], tensor, grown.get(name))
                tensor.requires_grad_(old[name].requires_grad)
            else:  # a constant that tracing found
                tensor.data = tensor.data.to(averaged.n_averaged.device)
        fill_streams(growth.groups, {name: t.data for name, t in new.items()}, None)
    before = dict(averaged.module.named_modules())
    for name, part in module.named_modules():
        part.training = before[name].training if name in before else part.training
    kept = (averaged.avg_fn, averaged.multi_avg_fn)
    return copy.deepcopy(averaged, {id(averaged.module): module, **{id(k): k for k in kept}})


def _check_averages(
    old: Mapping[str, torch.Tensor],
    new: Mapping[str, torch.Tensor],
    grown: Mapping[str, Place],
) -> None:
    for name in (*old, *grown):
        if name in old and name in new and fits(grown.get(name), old[name], new[name]):
            continue
        shape = tuple(old[name].shape) if name in old else "nowhere"
        raise InputError(
            f"{name!r} is {shape} in the averaged model and does not fit the growth; pass the "
            "AveragedModel of the very model that was grown, not of a wrapper of it"
        )


def _average(old: torch.Tensor, own: torch.Tensor, place: Place | None) -> torch.Tensor:
    if place is None:
        return old.detach().clone()
    new = torch.empty_like(own, dtype=old.dtype, device=old.device, requires_grad=False)
    spread_average(place, old, new, own)
    return new
