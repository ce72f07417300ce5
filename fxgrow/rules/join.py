"""Concatenation: planes are put together piece by piece."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from ..echoes import is_echo, without
from ..flows import total
from ..labels import Meeting
from ..planes import Labels, Plane
from .shape import seams

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ..propagate import Call, Propagation


def cat(state: Propagation, call: Call) -> list[Plane]:
    """Concatenate the planes that vary along ``dim``; the others meet."""
    tensors = [x for x in call.args[0] if x.numel() > 0] or call.args[0]
    if len(tensors) == 1:
        return list(state.planes(tensors[0]))
    ndim = call.out.ndim
    dim = call.arg(1, "dim", 0) % ndim
    along, across = [], []
    for tensor in tensors:
        planes = state.planes(tensor)
        along.append(
            [
                p
                for p in without(state.book, planes)
                if p.labels.shape[dim] > 1 or (tensor.shape[dim] == 1 and not p.dims)
            ]
        )
        across.append([p for p in planes if p.labels.shape[dim] == 1])
    result = [_segments(state, call, tensors, side, dim) for side in _layers(along) if any(side)]
    seams(state, call, result, dim, list(accumulate(x.shape[dim] for x in tensors)))
    # Echoes beside what varies along them are part of it by now.
    seen = [set(p.dims) for p in result]
    across = [
        [p for p in ps if not (is_echo(state.book, p) and any(set(p.dims) <= d for d in seen))]
        for ps in across
    ]
    if any(across):
        flat = [tuple(1 if d == dim else n for d, n in enumerate(x.shape)) for x in tensors]
        operands = list(zip(across, flat, strict=True))
        result += state.book.meet(operands, ndim, state.where(call.name), flow=total)
    return result


def _layers(along: Sequence[list[Plane]]) -> list[list[list[Plane]]]:
    """Split what lies along the dimension into planes that continue each other.

    Several planes of one tensor (heads with their size, and a table of that size) stay apart
    where each has its like in all tensors.
    """
    if all(len(planes) < 2 for planes in along):
        return [list(along)]
    ordered = [sorted(planes, key=lambda p: p.dims, reverse=True) for planes in along]
    if len({tuple(p.dims for p in planes) for planes in ordered}) > 1:
        return [list(along)]
    return [[[p] for p in side] for side in zip(*ordered, strict=True)]


def _segments(
    state: Propagation, call: Call, tensors: list[torch.Tensor], along: list[list[Plane]], dim: int
) -> Plane:
    parts, leading = [], []
    for tensor, planes in zip(tensors, along, strict=True):
        if not planes:  # nothing of ours: the outside world
            shape = [1] * tensor.ndim
            shape[dim] = tensor.shape[dim]
            parts.append(np.zeros(shape, dtype=np.int64))
            continue
        first, *rest = sorted(planes, key=lambda p: len(p.dims), reverse=True)
        for extra in rest:
            if extra.dims == first.dims:
                state.book.unite(first.labels, extra.labels)
            else:
                where = state.where(call.name)
                state.book.meetings.append(Meeting(first.labels, extra.labels, where))
        parts.append(first.labels)
        leading.append(first)
    common = [max(p.shape[d] for p in parts) for d in range(call.out.ndim)]
    parts = [
        _shared_part(state, call, x, part, common, dim)
        for x, part in zip(tensors, parts, strict=True)
    ]
    spread = []
    for part in parts:
        common[dim] = part.shape[dim]
        spread.append(np.broadcast_to(part, common))
    whole = len(leading) == len(along)
    zeros = set.intersection(*(set(p.zero) for p in leading)) if whole else set()
    flow = state.book.flow(total, [p.flow for p in leading], whole)
    return Plane(np.concatenate(spread, axis=dim), tuple(zeros), flow)


def _shared_part(
    state: Propagation,
    call: Call,
    tensor: torch.Tensor,
    part: Labels,
    common: Sequence[int],
    dim: int,
) -> Labels:
    """Labels of a part that is repeated along what the others vary along: those of its echo.

    What all heads share of a key lies beside what each has of its own, and can't grow there.
    """
    lacking = [d for d, size in enumerate(common) if d != dim and size > part.shape[d]]
    echoes = [
        p for p in state.planes(tensor) if is_echo(state.book, p) and set(p.dims) == set(lacking)
    ]
    if not lacking or not echoes:
        return part
    state.book.freeze(part, "inner_axis", state.where(call.name))
    sizes = list(echoes[0].labels.shape)
    sizes[dim] = tensor.shape[dim]
    return np.broadcast_to(echoes[0].labels, sizes)
