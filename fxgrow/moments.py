"""Optimizer state of a grown parameter: which entries it has, and what new ones hold."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .errors import UnsupportedError
from .fills import fill_streams
from .spread import spread, spread_average
from .walks import tensor_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .ir import Growth
    from .spread import Place

__all__ = ["Moving", "fill_averages", "grown_state", "moved_state"]


@dataclass(frozen=True, eq=False)
class Moving:
    """A parameter of the old model and the grown one that takes its place.

    ``place`` is ``None`` where the shape stayed.
    """

    name: str
    old: torch.Tensor
    new: torch.Tensor
    place: Place | None


# What an entry holds that has never seen a gradient, where that is not 0:
# (state key, an option that tells the optimizer by) → value from the options.
_NEUTRAL: dict[tuple[str, str], Callable[[Mapping[str, Any]], float]] = {
    ("sum", "initial_accumulator_value"): lambda group: group["initial_accumulator_value"],
    ("step_size", "etas"): lambda group: float(group["lr"]),  # Rprop
    ("exp_inf", "eps"): lambda group: group["eps"],  # Adamax
}

# Averages of the weights themselves.
_AVERAGES = {("ax", "lambd"): True}  # ASGD

# Scales of gradients and steps: what fill="mean" takes from the old units.
_SCALES = frozenset(
    {
        "acc_delta",
        "col_var",
        "exp_avg_sq",
        "exp_inf",
        "max_exp_avg_sq",
        "row_var",
        "square_avg",
        "step_size",
        "sum",
        "variance",
    }
)

# Factored states, as means over one dimension: (state key, option) → that dimension.
_MEANS_OVER = {("row_var", "beta2_decay"): -1, ("col_var", "beta2_decay"): -2}  # Adafactor


def grown_state(
    moving: Moving, state: Mapping[str, Any], group: Mapping[str, Any], *, mean: bool, owner: str
) -> dict[str, Any]:
    """State of a grown parameter; ``state`` is not changed.

    Tensors of the parameter's shape are spread over the new one, those that do not vary
    along some dimensions (size 1) along the others; numbers are kept.

    Parameters
    ----------
    moving : Moving
        With a place.
    state : dict
        What the optimizer holds for the old parameter.
    group : dict
        Options of its param group.
    mean : bool
        Whether scales of fresh units get the mean over the old ones.
    owner : str
        Class of the optimizer, for messages.

    Returns
    -------
    dict

    Raises
    ------
    UnsupportedError
        For a tensor of any other shape, or tensors inside other containers.
    """
    return {
        key: _grown(moving, key, value, group, mean=mean, owner=owner)
        for key, value in state.items()
    }


def _grown(
    moving: Moving, key: str, value: Any, group: Mapping[str, Any], *, mean: bool, owner: str
) -> Any:
    place, old = moving.place, moving.old
    assert place is not None  # callers ask for grown parameters only
    if not isinstance(value, torch.Tensor):
        if _holds_tensors(value):
            raise _odd(moving, key, f"a {type(value).__name__} of tensors", owner)
        return value
    dims = _varying(value.shape, old.shape)
    if dims is None:
        if value.numel() == 1:
            return _moved(moving, key, value, group)
        raise _odd(moving, key, f"of shape {tuple(value.shape)}", owner)
    part = place.along(dims)
    new = _blank(value, moving, part.shape(value.shape))
    if _look_up(_AVERAGES, key, group):
        spread_average(part, value, new, moving.new)
        return new
    neutral = _look_up(_NEUTRAL, key, group)
    new.fill_(0 if neutral is None else neutral(group))
    spread(part, value, new, mean=mean and key in _SCALES)
    over = _look_up(_MEANS_OVER, key, group)
    if over is not None and not mean:  # the mean now covers fresh entries without a gradient
        new.mul_(1 - place.fresh(over % old.ndim) / moving.new.shape[over])
    return new


def fill_averages(
    growth: Growth,
    moves: Iterable[Moving],
    state: Mapping[Any, Mapping[str, Any]],
    owners: Mapping[int, Mapping[str, Any]],
) -> None:
    """Make new entries of streams in averages of weights, in place: those span tensors.

    Parameters
    ----------
    growth : Growth
    moves : iterable of Moving
    state : dict
        Of the grown parameters.
    owners : dict of int to dict
        Options by the identity of the old parameter.
    """
    averages: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for moving in moves:
        for key, value in state.get(moving.new, {}).items():
            if _look_up(_AVERAGES, key, owners.get(id(moving.old), {})):
                averages[key][moving.name] = value
    for own in averages.values():
        rest = {n: t.detach().clone() for n, t in tensor_names(growth.module).items()}
        fill_streams(growth.groups, {**rest, **own}, None)


def _look_up(table: Mapping[tuple[str, str], Any], key: str, group: Mapping[str, Any]) -> Any:
    return next((v for (name, option), v in table.items() if name == key and option in group), None)


def _varying(state: torch.Size, old: torch.Size) -> frozenset[int] | None:
    """Dimensions along which a state varies with the parameter; ``None``: it is not alike.

    An axis of size 1 never grows, so it does not matter on which side it is counted.
    """
    if len(state) != len(old) or not len(old):
        return None
    sizes = list(enumerate(zip(state, old, strict=True)))
    if any(s not in (1, n) for _, (s, n) in sizes):
        return None
    return frozenset(dim for dim, (s, n) in sizes if s == n)


def _blank(value: torch.Tensor, moving: Moving, shape: tuple[int, ...]) -> torch.Tensor:
    """Make a state tensor of a new shape, laid out in memory as its parameter is."""
    old, new = moving.old, moving.new
    device = new.device if value.device == old.device else value.device
    if value.shape == old.shape and value.stride() == old.stride():  # fused kernels ask for it
        return torch.empty_like(new, dtype=value.dtype, device=device, requires_grad=False)
    return torch.empty(shape, dtype=value.dtype, device=device)


def moved_state(
    moving: Moving, state: Mapping[str, Any], group: Mapping[str, Any]
) -> Mapping[str, Any]:
    """State of a parameter that did not grow: the same object, unless its device is another."""
    if moving.old.device == moving.new.device:
        return state
    return {
        key: _moved(moving, key, value, group) if isinstance(value, torch.Tensor) else value
        for key, value in state.items()
    }


def _moved(moving: Moving, key: str, value: torch.Tensor, group: Mapping[str, Any]) -> torch.Tensor:
    """Follow the parameter to its device; step counts stay on the CPU, as torch has them."""
    stays = key == "step" and not (group.get("capturable") or group.get("fused"))
    if stays or value.device != moving.old.device:
        return value
    return value.to(moving.new.device)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        return _holds_tensors(list(value.values()))
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, torch.Tensor) or _holds_tensors(item) for item in value)
    return False


def _odd(moving: Moving, key: str, what: str, owner: str) -> UnsupportedError:
    return UnsupportedError(
        f"{owner} keeps {key!r} for parameter {moving.name!r} as {what}, the parameter has shape "
        f"{tuple(moving.old.shape)}: it can't be carried over; use fill='reset' to drop the "
        "state of grown parameters, or build a new optimizer"
    )
