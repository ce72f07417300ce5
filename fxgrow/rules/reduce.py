"""Reductions, normalisations and softmax: they merge or mix units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from ..echoes import without
from ..events import Statistic
from ..flows import VARIES, Flow, fixed, is_linear, known, same, scaled
from ..gates import gate
from ..inner import is_inner
from ..planes import Plane
from ..weights import is_shifted
from .means import note_mean
from .standard import standardised, standardised_rows, statistic, summed_squares

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..propagate import Call, Propagation


def _dims(call: Call, position: int) -> list[int]:
    ndim = call.args[0].ndim
    dims = call.arg(position, "dim", None)
    if dims is None or dims == []:
        return list(range(ndim))
    return [d % ndim for d in ([dims] if isinstance(dims, int) else dims)]


def _dropped(planes: Iterable[Plane], dims: Sequence[int], ndim_out: int) -> list[Plane]:
    """Remove reduced dimensions (all of size 1 by now) unless they were kept."""
    result = []
    for p in planes:
        shape = p.labels.shape
        if len(shape) != ndim_out:
            shape = tuple(n for d, n in enumerate(shape) if d not in dims)
        result.append(p._replace(labels=p.labels.reshape(shape)))
    return result


def sum_(state: Propagation, call: Call) -> list[Plane]:
    """Sum over dimensions: whole planes must be closed by a zeroable factor."""
    dims = _dims(call, 1)
    kept = summed_squares(state, call, dims)
    if kept is None:
        kept = _summed(state, call, dims)
    return _dropped(kept, dims, call.out.ndim)


def _summed(state: Propagation, call: Call, dims: Sequence[int]) -> list[Plane]:
    """Sum what no zeroable factor closes as it is: squares of zeros, or of copies, are known."""
    book, planes, where = state.book, state.planes(call.args[0]), state.where(call.name)
    gone = [p for p in planes if p.dims and set(p.dims) <= set(dims)]
    closed = any(book.weights.closer(p.zero) is not None for p in gone)
    if len(gone) != 1 or closed or state.is_weight(call.args[0]) or is_inner(book, gone[0].labels):
        return book.contract(planes, dims, where)
    return book.mix(planes, dims, "sum", where)


# What reductions make of the flows of planes that they do not reduce.
_KEPT = {
    "mean": same,
    **dict.fromkeys(("linalg_vector_norm", "norm", "amax", "amin", "max", "min"), fixed),
}
_NORMS = frozenset({"linalg_vector_norm", "norm"})
_CODES = {2: "norm", 1: "sum", math.inf: "amax"}  # by order: as sums of squares, or of sizes
_UNKNOWN = "p_norm"


def _code(call: Call) -> str:
    """Name a reduction: maxima of all that there is have no positions, norms have an order."""
    if call.name in _NORMS:
        order = call.arg(1, "p" if call.name == "norm" else "ord", 2)
        return _CODES.get(2 if order is None else order, _UNKNOWN)
    plain = call.name in {"max", "min"} and isinstance(call.out, torch.Tensor)
    return f"a{call.name}" if plain else call.name


def _of_weight(
    state: Propagation, call: Call, code: str, dims: Sequence[int]
) -> list[Plane] | None:
    """Reduce a weight by a norm, to which zeros add nothing (None: other reductions)."""
    x = call.args[0]
    if not state.is_weight(x):
        return None
    planes, book, where = state.planes(x), state.book, state.where(code)
    gone = [p for p in planes if p.dims and set(p.dims) <= set(dims)]
    axes = tuple(axis for p in gone for axis in p.zero)
    book.weights.split.update(dict.fromkeys(axes, where))
    known = call.name in _NORMS and code != _UNKNOWN
    if not known or any(not p.zero for p in gone) or any(map(is_shifted, axes)):
        return None
    return book.reduce_weight(planes, dims, Statistic((), axes, "zeros", where, 1, 0.0, False))


def reducer(dim_position: int) -> Callable[[Propagation, Call], Any]:
    """Make a rule for an operation that mixes what it reduces (mean, max, norm ...)."""

    def rule(state: Propagation, call: Call) -> Any:
        dims = _dims(call, dim_position)
        code = _code(call)
        kept = statistic(state, call, dims)
        if kept is None:
            kept = _of_weight(state, call, code, dims)
        if kept is None:
            planes = state.planes(call.args[0])
            kept = state.book.mix(planes, dims, code, state.where(code))
            if code == "mean":
                note_mean(state, call, planes, dims)
        kept = [p._replace(flow=state.book.flow(_KEPT.get(call.name), [p.flow])) for p in kept]
        if isinstance(call.out, torch.Tensor):
            return _dropped(kept, dims, call.out.ndim)
        return [_dropped(kept, dims, out.ndim) for out in call.out]

    return rule


def scan(state: Propagation, call: Call) -> Any:
    """Operations along one dimension that keep its size (softmax, cumsum, sort), or cut it."""
    dims = _dims(call, 2 if call.name == "topk" else 1)
    planes = state.planes(call.args[0])
    book, where = state.book, state.where(call.name)
    result = []
    for plane in planes:
        hit = [d for d in plane.dims if d in dims]
        if hit and len(hit) == len(plane.dims):
            book.mix([plane], dims, call.name, where)
            first = call.out if isinstance(call.out, torch.Tensor) else call.out[0]
            if first.shape == call.args[0].shape:  # topk takes some: who they are, data decide
                result.append(Plane(plane.labels))
        else:
            result.append(Plane((book.merge_along(plane, hit) if hit else plane).labels))
    return result if isinstance(call.out, torch.Tensor) else [result] * len(call.out)


def batch_norm(state: Propagation, call: Call) -> list[list[Plane]]:
    """Batch normalisation: per-channel entries, no mixing; or weights are standardised."""
    x = call.args[0]
    column = (1, -1) + (1,) * (x.ndim - 2)
    shape = (1, x.shape[1]) + (1,) * (x.ndim - 2)
    centred = standardised(state, call)
    own_labels = {id(p.labels) for p in centred}
    rows = [p for p in _per_channel(state, x) if id(p.labels) not in own_labels]
    if state.value(x).live:  # tokens as channels: statistics are taken over the units
        mixed = [p for p in without(state.book, rows) if p.dims and 1 not in p.dims]
        state.freeze(mixed, "batch_norm", call.name)
    operands: list[tuple[list[Plane], Sequence[int]]] = [(rows, x.shape)]
    flows: list[Flow | None] = []
    for place, entry in enumerate(call.args[1:5]):
        if isinstance(entry, torch.Tensor):
            own = state.planes(entry)
            state.role(own, "norm")
            operands.append(([Plane(p.labels.reshape(column), p.zero) for p in own], shape))
            flows += [p.flow for p in own] if place < 2 else []
    met = state.book.meet(operands, x.ndim, state.where(call.name))
    # Zero where both weight and bias are.
    flow = scaled(flows, True) if isinstance(call.args[1], torch.Tensor) else None
    _write_behind(state, flow, rows)
    rests = [Plane(p.labels, (), flow if p.dims == (1,) else None) for p in met]
    return [[*rests, *centred], [], [], []]


def _write_behind(state: Propagation, flow: Flow | None, rows: Iterable[Plane]) -> None:
    """Write down which axes' entries a batch norm takes out where its own are zero."""
    given = {axis for p in rows for axis in p.zero}
    given |= {a for p in rows for term in (p.flow and p.flow.terms) or () for a in term}
    for axis in {axis for term in (flow.terms or () if flow else ()) for axis in term} - {VARIES}:
        state.book.weights.behind.setdefault(axis, set()).update(given)


def _per_channel(state: Propagation, x: torch.Tensor) -> list[Plane]:
    """Planes of ``x`` after statistics over all but dimension 1."""
    result = []
    for plane in state.planes(x):
        extra = [d for d in plane.dims if d != 1]
        result.append(state.book.merge_along(plane, extra) if extra and 1 in plane.dims else plane)
    return result


def layer_norm(state: Propagation, call: Call) -> list[Plane] | list[list[Plane]]:
    """Layer and RMS normalisation over the last dimensions."""
    x, normalized = call.args[0], call.args[1]
    where = state.where(call.name)
    dims = list(range(x.ndim - len(normalized), x.ndim))
    weight = standardised_rows(state, call, dims)
    if weight is not None:
        return [weight, [], []]
    operands: list[tuple[Sequence[Plane], Sequence[int]]] = [(state.planes(x), x.shape)]
    for entry in call.args[2:4]:
        if isinstance(entry, torch.Tensor):
            own = state.planes(entry)
            state.role(own, "norm")
            operands.append((own, entry.shape))
    gains = state.entries(call.args[2:3], "gain")
    offsets = state.entries(call.args[3:4], "offset")
    given = [p.flow for p in state.planes(x) if p.dims == (x.ndim - 1,)]
    flow = given[0] if len(given) == 1 and len(dims) == 1 else None
    normalised = _normalised(flow, call.name)
    gated = gate(state.book, normalised, (*gains, *offsets) if gains else ())
    met = [
        Plane(p.labels, (), gated if p.dims == (x.ndim - 1,) and len(dims) == 1 else normalised)
        for p in state.book.meet(operands, x.ndim, where)
    ]
    result = []
    for plane in met:
        hit = [d for d in plane.dims if d in dims]
        if hit and len(hit) < len(plane.dims):
            plane = state.book.merge_along(plane, hit)
        elif hit:
            flow = flow or Flow()  # of what goes in, not of what comes out
            state.book.mix([plane], dims, "layer_norm", where, flow=flow, gains=gains)
        result.append(plane)
    return result if isinstance(call.out, torch.Tensor) else [result, [], []]


def _normalised(flow: Flow | None, op: str) -> Flow | None:
    """Flow after a norm: means become zero once they are subtracted."""
    if flow is None:
        return None
    if op == "native_layer_norm":
        return known(Flow(None, calm=is_linear(flow)))
    return known(Flow(None, flow.calm, flow.rests))


def group_norm(state: Propagation, call: Call) -> list[list[Plane]]:
    """Group normalisation: the norm group is the unit; one group mixes all."""
    x, weight, bias, groups = call.args[0], call.args[1], call.args[2], call.args[6]
    where = state.where(call.name)
    column = (1, -1) + (1,) * (x.ndim - 2)
    operands: list[tuple[Sequence[Plane], Sequence[int]]] = [(_per_channel(state, x), x.shape)]
    for entry in (weight, bias):
        if isinstance(entry, torch.Tensor):
            own = state.planes(entry)
            state.role(own, "norm")
            operands.append(
                (
                    [Plane(p.labels.reshape(column), p.zero) for p in own],
                    column[:1] + entry.shape + column[2:],
                )
            )
    met = [Plane(p.labels) for p in state.book.meet(operands, x.ndim, where)]
    for plane in met:
        if 1 not in plane.dims:
            continue
        if groups == 1:
            state.book.mix([plane], plane.dims, "group_norm", where)
        else:
            grid = plane.labels.reshape(plane.labels.shape[0], groups, -1)
            state.book.unite(grid, grid[:, :, :1])
    return [met, [], []]


def spatial(state: Propagation, call: Call) -> Any:
    """Pooling and resampling: positions mix, channels do not."""
    digits = [c for c in call.name if c.isdigit()]
    x, book = call.args[0], state.book
    dims = range(x.ndim - int(digits[-1] if digits else 2), x.ndim)
    first = call.out if isinstance(call.out, torch.Tensor) else call.out[0]
    result = []
    for plane in state.planes(x):
        hit = [d for d in plane.dims if d in dims]
        if hit and len(hit) == len(plane.dims):
            whole = "adaptive" in call.name and all(first.shape[d] == 1 for d in hit)
            code = ("max" if "max" in call.name else "mean") if whole else "spatial"
            book.mix([plane], plane.dims, code, state.where(code if whole else call.name))
        else:
            result.append(Plane((book.merge_along(plane, hit) if hit else plane).labels))
    return result if isinstance(call.out, torch.Tensor) else [result] * len(call.out)


def weight_norm(state: Propagation, call: Call) -> list[list[Plane]]:
    """``g * v / |v|`` with one norm for each position along ``dim``.

    Positions along ``dim`` descend from both tensors, and only ``g`` may be zero. Along the
    other dimensions zeros keep the norms, and nothing else does.
    """
    v, g = call.args[:2]
    dim, where = call.arg(2, "dim", 0) % v.ndim, state.where("weight_norm")
    magnitudes = [axis for p in state.planes(g) for axis in p.zero]
    kept = []
    for plane in state.planes(v):
        if plane.dims != (dim,) and (dim in plane.dims or not plane.zero):
            state.book.mix([plane], plane.dims, "weight_norm", where)
            continue
        kept.append(plane)
        for axis in plane.zero:
            if plane.dims != (dim,):
                state.book.weights.rigid[axis] = where
            elif magnitudes:
                state.book.weights.scales[axis] = magnitudes[-1]
    operands = [(kept, v.shape), (state.planes(g), g.shape)]
    return [state.book.meet(operands, v.ndim, where, product=True), []]
