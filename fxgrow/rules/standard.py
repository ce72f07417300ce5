"""Weight standardisation: rows of weights that are centred, and divided by their deviation.

What is computed from weights alone has its values here, so that a mean is told by them:
however it was computed, rows from which it is subtracted have none left.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..centring import centre, common_axes, squared_axes
from ..epsilon import can_be_scaled
from ..events import Mixing, Statistic
from ..flows import product
from ..makeup import find_numbers
from ..planes import lift
from ..weights import is_shifted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..events import Where
    from ..flows import Flow
    from ..planes import Axis, Plane
    from ..propagate import Call, Propagation

__all__ = [
    "centred",
    "square",
    "standardised",
    "standardised_rows",
    "statistic",
    "summed_squares",
]

_ULPS = 64  # rounding errors of a sum, in units of the largest entry


def statistic(state: Propagation, call: Call, dims: Sequence[int]) -> list[Plane] | None:
    """Reduce a weight to a statistic of its rows; ``None`` for all other calls."""
    x = call.args[0]
    if call.name not in _STATISTICS or not isinstance(x, torch.Tensor) or not state.is_weight(x):
        return None
    planes, where = state.planes(x), state.where(call.name)
    gone = [p for p in planes if p.dims and set(p.dims) <= set(dims)]
    kind, axes = call.name, common_axes(gone)
    if call.name == "mean" and not axes:
        kind, axes = "square", squared_axes(gone)
    centred = all(is_shifted(axis) for p in gone for axis in p.zero)
    if not axes or (call.name in _NORMS and not centred):
        return None
    count = math.prod(x.shape[d] for d in dims)
    scalable = kind in {"mean", *_NORMS} or can_be_scaled(where.site, kind)
    event = Statistic((), axes, kind, where, count, _correction(call), scalable)
    return state.book.reduce_weight(planes, dims, event)


_NORMS = {"linalg_vector_norm", "norm"}
_STATISTICS = {"mean", "var", "std", "var_mean", "std_mean", *_NORMS}


def _correction(call: Call) -> float:
    """Read what a variance divides by less than its count (of a mean: nothing)."""
    if call.name not in {"var", "std", "var_mean", "std_mean"}:
        return 0.0
    given = call.kwargs.get("correction", next((a for a in call.args[2:3]), True))
    return 1.0 if given is None else float(given)


def square(flows: Sequence[Flow | None], complete: bool) -> Flow | None:
    """Flow of the square of a weight."""
    return product([*flows, *flows], complete)


def summed_squares(state: Propagation, call: Call, dims: Sequence[int]) -> list[Plane] | None:
    """Planes of a weight's centred squares, summed: new ones add nothing (None: other sums)."""
    x = call.args[0]
    if not state.is_weight(x):
        return None
    planes = state.planes(x)
    if not squared_axes([p for p in planes if p.dims and set(p.dims) <= set(dims)]):
        return None
    return [p for p in planes if not set(p.dims) & set(dims)]


def standardised_rows(state: Propagation, call: Call, dims: Sequence[int]) -> list[Plane] | None:
    """Planes of a weight after layer normalisation of its rows (None: of anything else)."""
    x = call.args[0]
    affine = any(isinstance(t, torch.Tensor) for t in call.args[2:4])
    if affine or call.name != "native_layer_norm" or not state.is_weight(x):
        return None
    where = state.where("layer_norm")
    columns = [p for p in state.planes(x) if p.dims and set(p.dims) <= set(dims)]
    if not common_axes(columns) or not can_be_scaled(where.site, "standard"):
        return None
    count = math.prod(x.shape[d] for d in dims)
    rows = [p._replace(zero=(), flow=None) for p in state.planes(x) if not set(p.dims) & set(dims)]
    return [*rows, *_standard(state, state.planes(x), columns, where, count)]


def standardised(state: Propagation, call: Call) -> list[Plane]:
    """Planes of a weight's columns after a batch norm that takes its rows for channels."""
    x = call.args[0]
    statistics = [t for t in call.args[3:5] if isinstance(t, torch.Tensor)]
    if statistics or x.shape[0] != 1 or not state.is_weight(x):
        return []
    where = state.where(call.name)
    if not (can_be_scaled(where.site, "standard") or find_numbers(where.site, call.args)):
        return []
    columns = [p for p in state.planes(x) if p.dims and 1 not in p.dims]
    if not common_axes(columns):
        return []
    return _standard(state, state.planes(x), columns, where, x.numel() // x.shape[1])


def _standard(
    state: Propagation, planes: Sequence[Plane], columns: Sequence[Plane], where: Where, count: int
) -> list[Plane]:
    """Write down that rows of ``count`` entries are standardised; return their columns' planes."""
    axes = common_axes(columns)
    mixings = tuple(Mixing(p.labels, "weight_norm", where) for p in columns)
    state.book.statistics.append(Statistic(mixings, axes, "standard", where, count, 0.0, True))
    _name_rows(state, planes, axes)
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
    taken = float(other.abs().max())
    if not taken:  # zeros are the mean of anything that has not been trained
        return []
    size = max(float(out.abs().max()), taken)
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
