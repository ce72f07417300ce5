"""Data movement: the operation itself runs on the labels."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..echoes import echoes_of, without
from ..events import Seam
from ..flows import alone, total
from ..labels import Reshape
from ..planes import Labels, Plane, compress, reshape_plane
from ..walks import tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..propagate import Call, Planes, Propagation

# A plane run through a generic operation may be expanded to so many labels.
_LIMIT = 1 << 24


def _each(planes: Sequence[Plane], move: Callable[[Labels], Labels]) -> list[Plane]:
    return [p._replace(labels=move(p.labels)) for p in planes]


def _cut(planes: Sequence[Plane], dim: int, piece: slice) -> list[Plane]:
    """Slice where a plane varies along ``dim``; nothing still has other dimensions."""
    index = (slice(None),) * dim + (piece,)

    def cut(a: Labels) -> Labels:
        taken = a[index] if a.shape[dim] > 1 else a
        return taken if taken.size else a.take([0], axis=dim)

    return _each(planes, cut)


def _taken(planes: Planes, dim: int, position: int) -> list[Plane]:
    """Drop dimension ``dim``: what lies at ``position`` of it."""

    def take(a: Labels) -> Labels:
        return np.asarray(a.take(position if a.shape[dim] > 1 else 0, axis=dim))

    return _each(planes, take)


def view(state: Propagation, call: Call) -> list[Plane]:
    """``view`` and ``reshape``; remembers what a later check must find rectangular."""
    x, out = call.args[0], call.out
    if not x.numel():  # which dimensions became which can't be seen (no detections)
        state.freeze(state.planes(x), "data_dependent", call.name)
        return []
    result = []
    for plane in state.planes(x):
        labels, changed = reshape_plane(plane.labels, x.shape, out.shape)
        for before, after in changed:
            state.book.reshapes.append(Reshape(before, after, state.where(call.name)))
        result.append(plane._replace(labels=labels))
    return result


def permute(state: Propagation, call: Call) -> list[Plane]:
    """``permute(dims)``."""
    return _each(
        state.planes(call.args[0]), lambda a: a.transpose([d % a.ndim for d in call.args[1]])
    )


def transpose(state: Propagation, call: Call) -> list[Plane]:
    """``transpose(dim0, dim1)``."""
    return _each(state.planes(call.args[0]), lambda a: a.swapaxes(call.args[1], call.args[2]))


def t(state: Propagation, call: Call) -> list[Plane]:
    """Matrix transpose."""
    return _each(state.planes(call.args[0]), lambda a: a.T)


def unsqueeze(state: Propagation, call: Call) -> list[Plane]:
    """``unsqueeze(dim)``."""
    return _each(state.planes(call.args[0]), lambda a: np.expand_dims(a, call.args[1]))


def squeeze(state: Propagation, call: Call) -> list[Plane]:
    """All forms of ``squeeze``: dimensions of size 1 carry no labels."""
    return _each(
        state.planes(call.args[0]), lambda a: _squeezed(a, call.args[0].shape, call.args[1:])
    )


def _squeezed(labels: Labels, shape: torch.Size, args: tuple[Any, ...]) -> Labels:
    dims = range(len(shape)) if not args else [args[0]] if isinstance(args[0], int) else args[0]
    gone = {d % len(shape) for d in dims}
    return labels.reshape(
        [n for d, n in enumerate(labels.shape) if not (d in gone and shape[d] == 1)]
    )


def expand(state: Propagation, call: Call) -> list[Plane]:
    """``expand``: planes stay in broadcast shape, what was of size 1 is an echo."""
    x, ndim = call.args[0], call.out.ndim
    moved = _each(state.planes(x), lambda a: a.reshape((1,) * (ndim - a.ndim) + a.shape))
    return moved + echoes_of(state.book, x.shape, call.out.shape)


def select(state: Propagation, call: Call) -> list[Plane]:
    """``select(dim, index)``."""
    taken = _taken(state.planes(call.args[0]), call.args[1], call.args[2])
    return [p._replace(labels=compress(p.labels)) for p in taken]


def slice_(state: Propagation, call: Call) -> list[Plane]:
    """``slice(dim, start, end, step)``."""
    x = call.args[0]
    dim = call.arg(1, "dim", 0) % x.ndim
    cut = slice(call.arg(2, "start"), call.arg(3, "end"), call.arg(4, "step", 1))
    planes = state.planes(x)
    seams(state, call, planes, dim, cut.indices(x.shape[dim])[:2])
    return _cut(planes, dim, cut)


def split(state: Propagation, call: Call) -> list[list[Plane]]:
    """``split`` and ``split_with_sizes``: sizes are read off the results."""
    dim = call.arg(2, "dim", 0) % call.args[0].ndim
    planes, result = state.planes(call.args[0]), []
    stops = [0, *accumulate(piece.shape[dim] for piece in call.out)]
    seams(state, call, planes, dim, stops)
    for start, stop in pairwise(stops):
        result.append(_cut(planes, dim, slice(start, stop)))
    return result


def seams(
    state: Propagation, call: Call, planes: Iterable[Plane], dim: int, cuts: Iterable[int]
) -> None:
    """Remember where something is cut or put together, for units that lie on both sides."""
    where = state.where(call.name)
    state.book.seams += [
        Seam(plane.labels, dim, tuple(cuts), where)
        for plane in planes
        if plane.labels.shape[dim] > 1
    ]


def unbind(state: Propagation, call: Call) -> list[list[Plane]]:
    """``unbind(dim)``."""
    dim = call.arg(1, "dim", 0)
    planes = state.planes(call.args[0])
    return [_taken(planes, dim, i) for i in range(len(call.out))]


def glu(state: Propagation, call: Call) -> list[Plane]:
    """``glu``: the two halves of one dimension meet."""
    x, dim = call.args[0], call.arg(1, "dim", -1) % call.out.ndim
    sides: list[list[Plane]] = [[], []]
    for plane in state.planes(x):
        labels = plane.labels
        parts = np.split(labels, 2, axis=dim) if labels.shape[dim] > 1 else [labels, labels]
        for side, part in zip(sides, parts, strict=True):
            side.append(Plane(part))
    operands = [(side, call.out.shape) for side in sides]
    return state.book.meet(operands, call.out.ndim, state.where(call.name))


def stack(state: Propagation, call: Call) -> list[Plane]:
    """``stack``: operands meet, or lie side by side along the new dimension.

    Side by side they must stay as long as each other: what grows grows in all of them.
    """
    dim = call.arg(1, "dim", 0) % call.out.ndim
    tensors = call.args[0]
    own = [without(state.book, state.planes(x)) for x in tensors]
    if len({len(planes) for planes in own}) > 1:
        operands = [
            (_each(state.planes(x), lambda a: np.expand_dims(a, dim)), x.unsqueeze(dim).shape)
            for x in tensors
        ]
        return state.book.meet(operands, call.out.ndim, state.where(call.name))
    result = []
    for together in zip(*own, strict=True):
        common = np.broadcast_shapes(*(p.labels.shape for p in together))
        first, *others = together
        for other in others:
            if other.dims == first.dims:
                state.book.unite(first.labels, other.labels)
        labels = np.stack([np.broadcast_to(p.labels, common) for p in together], axis=dim)
        result.append(Plane(compress(labels)))
    return result


def repeat(state: Propagation, call: Call) -> list[Plane]:
    """``repeat``: tile where a plane varies; what was of size 1 is an echo."""
    x = call.args[0]

    def tile(a: Labels) -> Labels:
        times = call.args[1]
        a = a.reshape((1,) * (len(times) - a.ndim) + a.shape)
        return np.tile(a, [n if size > 1 else 1 for n, size in zip(times, a.shape, strict=True)])

    return _each(state.planes(x), tile) + echoes_of(state.book, x.shape, call.out.shape)


def roll(state: Propagation, call: Call) -> list[Plane]:
    """``roll`` and ``flip`` along dimensions that may carry labels."""
    x = call.args[0]
    dims = call.arg(1 if call.name == "flip" else 2, "dims", ()) or range(x.ndim)
    touched = {d % x.ndim for d in ([dims] if isinstance(dims, int) else dims)}
    if not any(touched & set(p.dims) for p in state.planes(x)):
        return list(state.planes(x))
    return execute(state, call)


def pad(state: Propagation, call: Call) -> list[Plane]:
    """``constant_pad_nd``: padding of a labelled dimension is the outside world."""
    widths = call.args[1]

    def padded(a: Labels) -> Labels:
        amounts = [(0, 0)] * a.ndim
        for i in range(len(widths) // 2):
            d = a.ndim - 1 - i
            if a.shape[d] > 1:
                amounts[d] = (max(widths[2 * i], 0), max(widths[2 * i + 1], 0))
                keep = slice(max(-widths[2 * i], 0), a.shape[d] - max(-widths[2 * i + 1], 0))
                a = a[(slice(None),) * d + (keep,)]
        return np.pad(a, amounts)

    moved = _each(state.planes(call.args[0]), padded)
    return moved if not call.arg(2, "value", 0) else [Plane(p.labels, p.zero) for p in moved]


def execute(state: Propagation, call: Call) -> list[Plane]:
    """Any other movement of one tensor by constants: run it on the labels."""
    x = call.args[0]
    result: list[Plane] = []
    if any(t.is_meta for t in tensors_of(call.args[1:])):  # without values nobody knows where to
        state.freeze(without(state.book, state.planes(x)), "data_dependent", call.name)
        return result
    for plane in state.planes(x):
        if x.numel() > _LIMIT:
            state.freeze([plane], "too_large", call.name)
            continue
        labels = torch.from_numpy(np.broadcast_to(plane.labels, x.shape).copy())
        labels = labels if x.is_meta else labels.to(x.device)
        moved = getattr(torch.ops.aten, call.name)(labels, *call.args[1:], **call.kwargs)
        result.append(plane._replace(labels=compress(moved.cpu().numpy())))
    return result


def index(state: Propagation, call: Call) -> list[Plane]:
    """Indexing by constants moves labels; by data along labels it freezes them."""
    x = call.args[0]
    indices = [i for i in call.args[1:] for i in (i if isinstance(i, (list, tuple)) else [i])]
    indices = [i for i in indices if isinstance(i, torch.Tensor)]
    if any(state.value(i).live for i in indices):
        positions = call.args[1] if isinstance(call.args[1], (list, tuple)) else None
        touched = (
            {d for d, i in enumerate(positions) if i is not None}
            if positions is not None
            else {call.args[1] % x.ndim}
        )
        for plane in state.planes(x):
            if touched & set(plane.dims):
                state.freeze([plane], "data_dependent", call.name)
    return execute(state, call)


def gather(state: Propagation, call: Call) -> list[Plane]:
    """Entries of one dimension, chosen by data; an index repeated for all units follows them."""
    x, dim, chosen = call.args[0], call.args[1] % max(call.args[0].ndim, 1), call.args[2]
    planes = state.planes(x)
    state.freeze([p for p in planes if dim in p.dims], "data_dependent", call.name)
    rest, shape = [p for p in planes if dim not in p.dims], list(x.shape)
    for d, size in enumerate(chosen.shape):
        if d == dim:
            shape[d] = size
        elif size < x.shape[d]:  # the first ones
            rest, shape[d] = _cut(rest, d, slice(size)), size
    operands = [(rest, shape), (state.planes(chosen), chosen.shape)]
    where = state.where(call.name)
    return state.book.meet(operands, call.out.ndim, where, flow=alone, product=True)


def scatter(state: Propagation, call: Call) -> list[Plane]:
    """Entries of one dimension are added to, or replaced, where data say so."""
    target, dim = call.args[0], call.args[1] % max(call.args[0].ndim, 1)
    source = call.args[3] if len(call.args) > 3 else call.kwargs.get("source")
    operands: list[tuple[list[Plane], Sequence[int]]] = []
    for tensor in (target, source):
        if not isinstance(tensor, torch.Tensor):
            continue
        planes = state.planes(tensor)
        state.freeze([p for p in planes if dim in p.dims], "data_dependent", call.name)
        operands.append(([p for p in planes if dim not in p.dims], tensor.shape))
    return state.book.meet(operands, target.ndim, state.where(call.name), flow=total)


def im2col(state: Propagation, call: Call) -> list[Plane]:
    """``unfold`` of an image: every channel becomes a block of columns."""
    taps = call.args[1][0] * call.args[1][1]
    result = []
    for plane in state.planes(call.args[0]):
        if any(d > 1 for d in plane.dims):
            state.freeze([plane], "kernel", call.name)
        elif 1 in plane.dims:
            result.append(Plane(np.repeat(plane.labels[:, :, :, 0], taps, axis=1)))
    return result
