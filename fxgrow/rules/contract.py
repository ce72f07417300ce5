"""Contractions: an input position meets a weight column; outputs descend from rows.

Matrix products and attention are all :func:`contraction` on a virtual
product tensor.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from ..flows import product, total
from ..inner import closing, is_gone
from ..planes import Plane

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..propagate import Call, Propagation


def spread(planes: Iterable[Plane], dims: Sequence[int], ndim: int) -> list[Plane]:
    """Move planes to the dimensions ``dims`` of a virtual tensor of ``ndim``."""
    order = _order(tuple(dims))
    result = []
    for labels, zero, flow in planes:
        shape = [1] * ndim
        for new, size in zip(dims, labels.shape, strict=True):
            shape[new] = size
        result.append(Plane(labels.transpose(order).reshape(shape), zero, flow))
    return result


@cache
def _order(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(dims)), key=dims.__getitem__))


def squeeze_to(planes: Iterable[Plane], dims: Sequence[int]) -> list[Plane]:
    """Keep only the dimensions ``dims``, in this order (the others have size 1)."""
    result = []
    for labels, zero, flow in planes:
        labels = labels.transpose(_first(tuple(dims), labels.ndim))
        result.append(Plane(labels.reshape(labels.shape[: len(dims)]), zero, flow))
    return result


@cache
def _first(dims: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return (*dims, *(d for d in range(ndim) if d not in dims))


def contraction(
    state: Propagation,
    op: str,
    a: tuple[Sequence[Plane], Sequence[int], bool],
    b: tuple[Sequence[Plane], Sequence[int], bool],
    over: Sequence[int],
) -> list[Plane]:
    """Multiply two operands on a virtual product tensor and sum over ``over``.

    Each operand is (planes in virtual shape, virtual shape, is it a weight).
    """
    (pa, shape_a, weight_a), (pb, shape_b, weight_b) = a, b
    where = state.where(op)
    two = None if weight_a or weight_b else closing(state, (pa, pb), over)
    weight = (pb if weight_b else pa) if weight_a != weight_b else None
    if weight is not None:
        state.writes([p for p in weight if not set(p.dims) & set(over)], weight)
    first, second = (
        ((pa, shape_a), (pb, shape_b)) if not weight_a else ((pb, shape_b), (pa, shape_a))
    )
    met = state.book.meet([first, second], len(shape_a), where, flow=product, product=True)
    flops = 2
    for sa, sb in zip(shape_a, shape_b, strict=True):
        flops *= max(sa, sb)
    state.count_flops(flops, weight, met)
    return state.book.contract(met, over, where, closing=two)


def _matmul(
    state: Propagation, call: Call, a: Any, b: Any, dims_a: Sequence[int], dims_b: Sequence[int]
) -> list[Plane]:
    ndim = max(*dims_a, *dims_b) + 1
    shapes = []
    for tensor, dims in ((a, dims_a), (b, dims_b)):
        shape = [1] * ndim
        for old, new in enumerate(dims):
            shape[new] = tensor.shape[old]
        shapes.append(shape)
    over = [ndim - 1]
    left = (spread(state.planes(a), dims_a, ndim), shapes[0], state.is_weight(a))
    right = (spread(state.planes(b), dims_b, ndim), shapes[1], state.is_weight(b))
    if left[2] and right[2]:
        _hold(state, call.name, [p for p in (*left[0], *right[0]) if p.dims == (ndim - 1,)])
    return squeeze_to(contraction(state, call.name, left, right, over), range(ndim - 1))


def _hold(state: Propagation, op: str, planes: Iterable[Plane]) -> None:
    """Only what adds nothing may be added where weights are multiplied with weights.

    Where a factor is a buffer, or it isn't known what it is made of, the product may be the
    size of a weight (spectral norms): zeros are all that can be added then.
    """
    planes, weights = list(planes), state.book.weights
    made = [a for p in planes for term in (p.flow and p.flow.terms) or () for a in term]
    plain = all(p.flow for p in planes) and all(weights.rank.get(a, 2) for a in made)
    for plane in planes:
        axis = weights.closer(plane.zero)
        if axis is not None:
            (weights.factors if plain else weights.rigid)[axis] = state.where(op)


def mm(state: Propagation, call: Call) -> list[Plane]:
    """``(M, K) @ (K, N)``."""
    return _matmul(state, call, call.args[0], call.args[1], (0, 2), (2, 1))


def bmm(state: Propagation, call: Call) -> list[Plane]:
    """``(B, M, K) @ (B, K, N)``."""
    return _matmul(state, call, call.args[0], call.args[1], (0, 1, 3), (0, 3, 2))


def grouped_mm(state: Propagation, call: Call) -> list[Plane]:
    """``(T, K) @ (E, K, N)``: data decide which of E matrices each row meets."""
    x, w = call.args[:2]
    if x.ndim != 2 or w.ndim != 3:
        for tensor in (x, w):
            state.freeze(state.planes(tensor), "unknown_op", call.name)
        return []
    rows, columns = state.planes(x), state.planes(w)
    block = 16 // math.gcd(16, w.element_size())  # of memory, that rows are made of
    state.aligned += [(p.labels, block) for p in (*rows, *columns) if p.dims in {(1,), (2,)}]
    state.freeze([p for p in columns if 0 in p.dims], "data_dependent", call.name)
    columns = tuple(p for p in columns if 0 not in p.dims)
    left = (spread(rows, (0, 2), 3), [x.shape[0], 1, x.shape[1]], state.is_weight(x))
    flat = [p._replace(labels=p.labels[0]) for p in columns]
    right = (spread(flat, (2, 1), 3), [1, w.shape[2], w.shape[1]], state.is_weight(w))
    planes = squeeze_to(contraction(state, call.name, left, right, [2]), (0, 1))
    return _add_bias(state, call, planes, call.arg(3, "bias"))


def mv(state: Propagation, call: Call) -> list[Plane]:
    """``(M, K) @ (K,)``."""
    return _matmul(state, call, call.args[0], call.args[1], (0, 1), (1,))


def dot(state: Propagation, call: Call) -> tuple[()]:
    """``(K,) @ (K,)``: a number that every unit has a part in."""
    for tensor in call.args[:2]:
        state.freeze(state.planes(tensor), "dot", call.name)
    return ()


def linear(state: Propagation, call: Call) -> list[Plane]:
    """``(*, K) @ (N, K).T + bias``, where a backend does not decompose it."""
    x, w = call.args[:2]
    n = x.ndim
    planes = _matmul(state, call, x, w, (*range(n - 1), n), (n - 1, n))
    return _add_bias(state, call, planes, call.arg(2, "bias"))


def addmm(state: Propagation, call: Call) -> list[Plane]:
    """``bias + (M, K) @ (K, N)``."""
    planes = _matmul(state, call, call.args[1], call.args[2], (0, 2), (2, 1))
    return _add_bias(state, call, planes, call.args[0])


def baddbmm(state: Propagation, call: Call) -> list[Plane]:
    """``bias + (B, M, K) @ (B, K, N)``."""
    planes = _matmul(state, call, call.args[1], call.args[2], (0, 1, 3), (0, 3, 2))
    return _add_bias(state, call, planes, call.args[0])


def trilinear(state: Propagation, call: Call) -> list[Plane]:
    """Sum of the product of three tensors, each with dimensions put in (``nn.Bilinear``)."""
    over = list(call.arg(6, "sumdim"))
    operands, ndim = [], call.out.ndim + len(over)
    sizes = [1] * ndim
    for tensor, expanded in zip(call.args[:3], call.args[3:6], strict=True):
        dims = [d for d in range(ndim) if d not in expanded]
        planes = spread(state.planes(tensor), dims, ndim)
        shape = [1] * ndim
        for old, new in enumerate(dims):
            shape[new] = tensor.shape[old]
        sizes = [max(a, b) for a, b in zip(sizes, shape, strict=True)]
        operands.append((planes, shape, state.is_weight(tensor)))
    weight = [p for planes, _, own in operands if own for p in planes]
    state.role((p for p in weight if not set(p.dims) & set(over)), "producer")
    where = state.where(call.name)
    ordered = sorted(operands, key=lambda operand: operand[2])  # weights last
    met = state.book.meet([(p, s) for p, s, _ in ordered], ndim, where, product=True)
    state.count_flops(2 * math.prod(sizes), weight, met)
    kept = state.book.contract(met, over, where)
    return squeeze_to(kept, [d for d in range(ndim) if d not in over])


def _add_bias(state: Propagation, call: Call, planes: Sequence[Plane], bias: Any) -> list[Plane]:
    if bias is None:
        return list(planes)
    own = state.planes(bias)
    if state.is_weight(bias):
        state.role(own, "producer")
    operands = [(planes, call.out.shape), (own, bias.shape)]
    return state.book.meet(operands, call.out.ndim, state.where(call.name), flow=total)


def attention(state: Propagation, call: Call) -> Any:
    """Scaled dot-product attention ``(B, H, L, E), (B, H, S, E), (B, H, S, V)``.

    The product over E makes the head the unit. Where several heads of queries share one of
    keys and values (GQA), the latter's labels are repeated, which makes them all one unit.
    """
    q, k, v = call.args[:3]
    out = call.out if isinstance(call.out, torch.Tensor) else call.out[0]
    if q.ndim != 4 or q.shape[1] % k.shape[1]:
        for tensor in (q, k, v):
            state.freeze(state.planes(tensor), "unknown_op", call.name)
        return [()] * 16 if out is not call.out else ()
    b, h, length, e = q.shape
    s, width = v.shape[2], v.shape[3]
    left = (spread(state.planes(q), (0, 1, 2, 4), 5), [b, h, length, 1, e], state.is_weight(q))
    shared = [_repeated(state.planes(x), h // x.shape[1]) for x in (k, v)]
    of_k, of_v = (h if x.shape[1] > 1 else 1 for x in (k, v))  # one head goes with any number
    right = (spread(shared[0], (0, 1, 3, 4), 5), [b, of_k, 1, s, e], state.is_weight(k))
    scores = squeeze_to(contraction(state, call.name, left, right, [4]), range(4))
    where = state.where(call.name)
    if call.kwargs.get("scale") is None and not _in_the_graph(state):
        for plane in state.planes(q):
            if is_gone(state.book, plane, [3]):
                state.book.freeze(plane.labels, "inner_scale", where)
    mask = call.kwargs.get("attn_mask", call.args[3] if len(call.args) > 3 else None)
    if isinstance(mask, torch.Tensor):
        scores = state.book.meet(
            [(scores, (b, h, length, s)), (state.planes(mask), mask.shape)], 4, where
        )
    weights = [Plane(p.labels[..., None], ()) for p in scores]
    values = spread(shared[1], (0, 1, 3, 4), 5)
    # S is both the softmax' dimension and the one summed over: one mixing reduction.
    weights = state.book.mix(weights, [3], "softmax", where)
    met = contraction(
        state,
        call.name,
        (weights, [b, h, length, s, 1], False),
        (values, [b, of_v, 1, s, width], state.is_weight(v)),
        [3],
    )
    planes = squeeze_to(met, (0, 1, 2, 4))
    return planes if out is call.out else [planes] + [()] * 16


def _in_the_graph(state: Propagation) -> bool:
    """Whether the scale of a kernel can be written down: its call is a node of the graph."""
    return getattr(state.site, "target", None) is F.scaled_dot_product_attention


def _repeated(planes: Iterable[Plane], times: int) -> list[Plane]:
    """Planes of heads that are each read ``times`` times in a row."""
    if times == 1:
        return list(planes)
    return [
        Plane(np.repeat(p.labels, times, axis=1) if p.labels.shape[1] > 1 else p.labels, p.zero)
        for p in planes
    ]


def embedding(state: Propagation, call: Call) -> list[Plane]:
    """Rows of a table: the vocabulary is the user's, the width descends from columns."""
    table, indices = call.args[:2]
    planes = state.planes(table)
    state.freeze([p for p in planes if p.dims == (0,)], "vocabulary", call.name)
    columns = [p for p in planes if p.dims == (1,)]
    state.role(columns, "producer")
    state.role(columns, "lookup")
    shape = (1,) * indices.ndim + (-1,)
    return [p._replace(labels=p.labels.reshape(shape)) for p in columns]
