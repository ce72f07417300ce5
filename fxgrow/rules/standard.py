"""Weight standardisation: rows of weights that are centred, and divided by their deviation.

What is computed from weights alone has its values here, so that a mean is told by them:
however it was computed, rows from which it is subtracted have none left.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..centring import centre, common_axes
from ..epsilon import can_be_scaled
from ..events import Statistic
from ..makeup import find_numbers
from ..planes import lift

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..planes import Axis, Plane
    from ..propagate import Call, Propagation

__all__ = ["centred", "standardised", "statistic"]

_KINDS = {"mean", "var", "std", "var_mean", "std_mean"}
_ULPS = 64  # rounding errors of a sum, in units of the largest entry


def statistic(state: Propagation, call: Call, dims: Sequence[int]) -> list[Plane] | None:
    """Reduce a weight to a mean or a variance of its rows; ``None`` for all other calls."""
    x = call.args[0]
    if call.name not in _KINDS or not isinstance(x, torch.Tensor) or not state.is_weight(x):
        return None
    where = state.where(call.name)
    return state.book.reduce_weight(
        state.planes(x),
        dims,
        call.name,
        where,
        count=math.prod(x.shape[d] for d in dims),
        correction=_correction(call),
        scalable=call.name == "mean" or can_be_scaled(where.site, call.name),
    )


def _correction(call: Call) -> float:
    """Read what a variance divides by less than its count (of a mean: nothing)."""
    if call.name == "mean":
        return 0.0
    given = call.kwargs.get("correction", next((a for a in call.args[2:3]), True))
    return 1.0 if given is None else float(given)


def standardised(state: Propagation, call: Call) -> list[Plane]:
    """Planes of a weight's columns after a batch norm that takes its rows for channels."""
    x, where = call.args[0], state.where(call.name)
    statistics = [t for t in call.args[3:5] if isinstance(t, torch.Tensor)]
    if statistics or x.shape[0] != 1 or not state.is_weight(x):
        return []
    if not (can_be_scaled(where.site, "norm") or find_numbers(where.site, call.args)):
        return []
    columns = [p for p in state.planes(x) if p.dims and 1 not in p.dims]
    axes = common_axes(columns)
    if axes:
        count = x.numel() // x.shape[1]
        state.book.statistics.append(Statistic((), axes, "norm", where, count, 0.0, True))
    _name_rows(state, state.planes(x), axes)
    return centre(state.book, columns, where)


def _name_rows(state: Propagation, planes: Sequence[Plane], columns: Sequence[Axis]) -> None:
    """Write down which axes make the rows of a weight that is centred, and which scale them."""
    for axis in {a for plane in planes for a in plane.zero} - set(columns):
        mine = columns and axis[0] == columns[0][0]
        state.roles.setdefault(axis, set()).add("producer" if mine else "norm")


def centred(
    state: Propagation, tensors: Sequence[torch.Tensor], out: torch.Tensor, planes: list[Plane]
) -> list[Plane]:
    """Find out whether a sum of two weights is one of them without the mean of its rows."""
    if out.is_meta or not all(state.is_weight(t) and not state.value(t).live for t in tensors):
        return planes
    for own, other in (tensors, reversed(tensors)):
        gone = _without_mean(state, own, other, out)
        if gone:
            _name_rows(state, state.planes(own), common_axes(gone))
            return _replaced(planes, centre(state.book, gone, state.where("sub")))
    return planes


def _without_mean(
    state: Propagation, own: torch.Tensor, other: torch.Tensor, out: torch.Tensor
) -> list[Plane]:
    """Planes of ``own`` that lie along dimensions over which its mean has been removed."""
    columns = [p for p in state.planes(own) if p.dims]
    if own.shape != out.shape or not columns:
        return []
    full = other.expand(out.shape)
    dims = [d for d in range(out.ndim) if _constant(full, d)]
    gone = [lift(p, out.ndim, keep_zero=True) for p in columns if set(p.dims) <= set(dims)]
    if not common_axes(gone):
        return []
    size = max(float(out.abs().max()), float(other.abs().max()))
    rest = float(out.double().mean(dims).abs().max())
    return gone if rest <= _ULPS * torch.finfo(out.dtype).eps * size else []


def _constant(tensor: torch.Tensor, dim: int) -> bool:
    if tensor.stride(dim) == 0 or tensor.shape[dim] == 1:
        return True
    return bool((tensor == tensor.narrow(dim, 0, 1)).all())


def _replaced(planes: list[Plane], news: Sequence[Plane]) -> list[Plane]:
    """Let planes that are along the columns know what makes them zero."""
    result: list[Any] = list(planes)
    for new in news:
        for i, plane in enumerate(result):
            same = plane.labels.shape == new.labels.shape
            if same and np.array_equal(plane.labels, new.labels):
                result[i] = new
    return result
