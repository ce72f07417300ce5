"""Rules of convolutions: channels, convolution groups, and units that lie along space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..flows import product, total
from ..inner import is_inner
from ..planes import Plane
from ..resting import LOCAL
from .contract import spread, squeeze_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch

    from ..flows import Flow
    from ..propagate import Call, Propagation


def convolution(state: Propagation, call: Call) -> list[Plane]:
    """Convolution and its transpose; a grouped one makes the conv group the unit."""
    x, weight, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    planes = state.weight_planes(weight, (0, 1))
    state.freeze([p for p in planes if any(d > 1 for d in p.dims)], "kernel", call.name)
    rows = (1,) if transposed and groups == 1 else (0,)
    state.writes([p for p in planes if p.dims == rows], planes)
    planes = tuple(p for p in planes if all(d < 2 for d in p.dims))
    if groups == 1:
        kept = _dense_convolution(state, call, planes, (1, 0) if transposed else (0, 1))
    else:
        kept = _grouped_convolution(state, call, planes)
    if bias is None:
        return kept
    own = state.planes(bias)
    state.role(own, "producer")
    column = [1, -1] + [1] * (x.ndim - 2)
    lifted = [p._replace(labels=p.labels.reshape(column)) for p in own]
    operands = [(kept, call.out.shape), (lifted, (1, *bias.shape, *column[2:]))]
    return state.book.meet(operands, x.ndim, state.where(call.name), flow=total)


def _dense_convolution(
    state: Propagation,
    call: Call,
    planes: Sequence[Plane],
    axes: tuple[int, int],
    given: Sequence[Plane] | None = None,
) -> list[Plane]:
    """Virtual tensor: batch, out channel, in channel, space.

    A channel's units along space become one. Units along space alone, or of more kinds than
    there are channels, stay what they are under kernels of one; larger ones mix them.
    ``given``: planes of the input, where they are not its own.
    """
    x, weight = call.args[:2]
    spatial = x.ndim - 2
    out_axis, in_axis = axes
    ndim = 3 + spatial
    flat = [p._replace(labels=p.labels.reshape(p.labels.shape[:2])) for p in planes]
    columns = spread(flat, (1, 2) if out_axis == 0 else (2, 1), ndim)
    given = state.planes(x) if given is None else given
    rows = spread(_in_space(state, call, given), (0, 2, *range(3, ndim)), ndim)
    w_shape = [1, weight.shape[out_axis], weight.shape[in_axis], *[1] * spatial]
    x_shape = [x.shape[0], 1, weight.shape[in_axis], *x.shape[2:]]
    macs = weight.numel() * x.shape[0] * _positions(call)
    met = _conv_contract(state, call, (rows, x_shape), (columns, w_shape), [2], 2 * macs)
    return squeeze_to(met, (0, 1, *range(3, ndim)))


def _in_space(state: Propagation, call: Call, planes: Iterable[Plane]) -> list[Plane]:
    """Planes of a convolution's input, such that none varies along channels and space."""
    kept = []
    for plane in planes:
        if all(d < 2 for d in plane.dims) or (_pointwise(call) and _stacked(state, plane)):
            kept.append(plane)
        elif 1 in plane.dims:
            first = plane.labels[(slice(None), slice(None), *[slice(1)] * (plane.labels.ndim - 2))]
            state.book.unite(plane.labels, first)
            kept.append(plane._replace(labels=first))
        elif _pointwise(call):
            kept.append(plane)
        elif _beside(call, plane):
            state.book.mix([plane], plane.dims, LOCAL, state.where(LOCAL))
            kept.append(plane._replace(zero=(), flow=None))
        else:
            state.freeze([plane], "kernel", call.name)
    return kept


def _stacked(state: Propagation, plane: Plane) -> bool:
    """Whether all positions in space are units of their own, and more than there are channels.

    So they are where outputs lie in a stack, whose dimension is taken for that of channels.
    """
    if 1 not in plane.dims:
        return False
    roots = state.book.find(plane.labels[0]).reshape(plane.labels.shape[1], -1)
    return roots.shape[1] > roots.shape[0] and len(np.unique(roots[0])) == roots.shape[1]


def _pointwise(call: Call) -> bool:
    """Whether every position of a convolution's output is made of the same one of its input."""
    strides, paddings = call.args[3], call.args[4]
    kernel = call.args[1].shape[2:]
    return {*kernel, *strides} == {1} and not any(paddings) and not call.args[6]


def _beside(call: Call, plane: Plane) -> bool:
    """Whether a kernel reads units along one spatial axis, each with as many on both sides."""
    if len(plane.dims) != 1 or plane.dims[0] < 2 or call.args[6]:
        return False
    along = plane.dims[0] - 2
    stride, padding, dilation = (v[along] if len(v) > 1 else v[0] for v in call.args[3:6])
    return bool(stride == 1 and 2 * padding == dilation * (call.args[1].shape[2 + along] - 1))


def _positions(call: Call) -> int:
    """Spatial positions at which the kernel is applied."""
    side = call.args[0] if call.args[6] else call.out
    count = 1
    for size in side.shape[2:]:
        count *= size
    return count


def _conv_contract(
    state: Propagation, call: Call, a: Any, b: Any, over: list[int], flops: int
) -> list[Plane]:
    where = state.where(call.name)
    met = state.book.meet([a, b], len(a[1]), where, flow=product, product=True)
    state.count_flops(flops, b[0], met)
    return state.book.contract(met, over, where)


def _grouped_convolution(state: Propagation, call: Call, planes: Sequence[Plane]) -> list[Plane]:
    """Unite each group's input channels with its output channels; freeze the inner axis."""
    x, weight = call.args[:2]
    groups, channels = call.args[8], call.out.shape[1]
    where = state.where(call.name)
    if weight.shape[1] > 1 and not call.args[6] and _inside(state, x, planes):
        return _inner_convolution(state, call, planes)
    for plane in planes:
        if plane.dims == (1,):
            state.book.freeze(plane.labels, "inner_axis", where)
    state.count_flops(2 * weight.numel() * x.shape[0] * _positions(call), planes, ())
    axis = 0 if weight.shape[0] > 1 else 1
    if call.args[6]:  # transposed: axis 0 is the input side, its groups make the output
        rows = np.repeat(planes[0].labels.reshape(groups, -1)[:, 0], channels // groups)
        inner = planes[0].labels.reshape(groups, -1)
        state.book.unite(inner, inner[:, :1])
    else:
        rows = next(p for p in planes if p.dims == (axis,)).labels.reshape(-1)
    grid = rows.reshape(groups, -1)
    if grid.shape[1] > 1:
        state.book.unite(grid, grid[:, :1])
    met, flows = False, []
    for plane in state.planes(x):
        if 1 in plane.dims:
            met = True
            flows.append(plane.flow)
            spatial = [1] * (x.ndim - 2)
            target = grid[:, :1].reshape(1, groups, 1, *spatial)
            shape = plane.labels.shape
            state.book.unite(plane.labels.reshape(shape[0], groups, -1, *shape[2:]), target)
        elif any(d > 1 for d in plane.dims):
            state.book.freeze(plane.labels, "kernel", where)
    if not met:
        state.book.freeze(rows, "unlabelled", where)
    labels = rows.reshape(1, channels, *[1] * (x.ndim - 2))
    kept = [p for p in state.planes(x) if p.dims == (0,)]
    zero = tuple(a for p in planes if p.dims == (0,) for a in p.zero)
    return [Plane(labels, zero, _depthwise(state, call, planes, flows)), *kept]


def _depthwise(
    state: Propagation, call: Call, planes: Sequence[Plane], flows: list[Flow | None]
) -> Flow | None:
    """Flow of channels that a kernel of their own each is multiplied with."""
    if call.args[1].shape[1] > 1 or call.args[6] or len(flows) != 1:
        return None
    own = [plane.flow for plane in planes if plane.dims == (0,)]
    return state.book.flow(product, [*flows, *own]) if len(own) == 1 else None


def _inside(state: Propagation, x: torch.Tensor, planes: Sequence[Plane]) -> bool:
    """Whether the groups of a convolution stay as many as they are, and become wider."""
    given = [p for p in state.planes(x) if 1 in p.dims]
    return any(is_inner(state.book, p.labels) for p in (*planes, *given))


def _inner_convolution(state: Propagation, call: Call, planes: Sequence[Plane]) -> list[Plane]:
    """Unite channels over all groups; each group is a dense convolution then."""
    groups, rows = call.args[8], []
    for plane in state.planes(call.args[0]):
        if 1 in plane.dims:
            shape = plane.labels.shape
            grid = plane.labels.reshape(shape[0], groups, -1, *shape[2:])
            state.book.unite(grid, grid[:, :1])
            plane = plane._replace(labels=grid[:, 0])
        rows.append(plane)
    for plane in planes:
        if plane.dims == (0,):
            grid = plane.labels.reshape(groups, -1)
            state.book.unite(grid, grid[:1])
    return _dense_convolution(state, call, planes, (0, 1), rows)
