"""Results without computing: labels depend on shapes, not on values.

Each function takes the arguments of one operation and returns a tensor (or tensors) of
the right shape, dtype and device, or ``NotImplemented`` where torch had better compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


def skip_mm(args: Any, kwargs: Any) -> Any:
    """Shape of ``mm``."""
    a: torch.Tensor = args[0]
    if a.shape[1] != args[1].shape[0]:
        return NotImplemented  # an error that torch should word
    return a.new_empty((a.shape[0], args[1].shape[1]))


def skip_addmm(args: Any, kwargs: Any) -> Any:
    """Shape of ``addmm``."""
    a: torch.Tensor = args[1]
    if a.shape[1] != args[2].shape[0]:
        return NotImplemented
    return a.new_empty((a.shape[0], args[2].shape[1]))


def skip_bmm(args: Any, kwargs: Any) -> Any:
    """Shape of ``bmm``."""
    a: torch.Tensor = args[0]
    if a.shape[0] != args[1].shape[0] or a.shape[2] != args[1].shape[1]:
        return NotImplemented
    return a.new_empty((*a.shape[:2], args[1].shape[2]))


def skip_convolution(args: Any, kwargs: Any) -> Any:
    """Shape of ``convolution``, or ``NotImplemented`` where it must be computed."""
    x, w, _, stride, padding, dilation, transposed, _, groups = args[:9]
    if transposed or x.shape[1] != w.shape[1] * groups:
        return NotImplemented  # rare, or an error that torch should word
    spatial = []
    for i, size in enumerate(x.shape[2:]):
        # ATen repeats single values.
        step, edge, gap = (v[i] if len(v) > 1 else v[0] for v in (stride, padding, dilation))
        reach = gap * (w.shape[2 + i] - 1) + 1
        spatial.append((size + 2 * edge - reach) // step + 1)
    if min(spatial) < 1:
        return NotImplemented
    return x.new_empty((x.shape[0], w.shape[0], *spatial))


def skip_norm(args: Any, kwargs: Any) -> Any:
    """Shape of a normalisation (running statistics stay as they are, own ones are not told)."""
    x = args[0]
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


def skip_softmax(args: Any, kwargs: Any) -> Any:
    """Shape of a softmax that keeps the dtype."""
    return NotImplemented if args[2] else torch.empty_like(args[0])


def skip_max_pool(args: Any, kwargs: Any) -> Any:
    """Shapes of 2d max pooling; the indices are valid ones."""
    x = args[0]
    out, indices = torch.ops.aten.max_pool2d_with_indices(x.to("meta"), *args[1:], **kwargs)
    return x.new_empty(out.shape), x.new_zeros(indices.shape, dtype=indices.dtype)


def skip_avg_pool(args: Any, kwargs: Any) -> Any:
    """Shape of 2d average pooling."""
    x = args[0]
    return x.new_empty(torch.ops.aten.avg_pool2d(x.to("meta"), *args[1:], **kwargs).shape)


def skip_attention(args: Any, kwargs: Any) -> Any:
    """Shape and strides of fused attention on the CPU."""
    q, v = args[0], args[2]
    if q.ndim != 4 or q.shape[1] != v.shape[1] or q.shape[3] != v.shape[3]:
        return NotImplemented
    batch, heads, length, width = q.shape
    out = q.new_empty((batch, length, heads, width)).transpose(1, 2)
    return out, q.new_empty((batch, length, heads)).transpose(1, 2)


def skip_unary(args: Any, kwargs: Any) -> Any:
    """Shape of a pointwise function of one tensor."""
    return torch.empty_like(args[0]) if args[0].is_floating_point() else NotImplemented


def skip_in_place(args: Any, kwargs: Any) -> Any:
    """In-place pointwise function of one tensor."""
    return args[0]


def skip_binary(args: Any, kwargs: Any) -> Any:
    """Shape of a pointwise function of two tensors of one dtype, or of one and a number."""
    a, b = args[:2]
    if type(b) in _NUMBERS:
        return skip_unary(args, kwargs)
    if not fit(a, b):
        return NotImplemented
    if a.shape == b.shape:
        return torch.empty_like(a)
    if not (a.is_contiguous() and b.is_contiguous()) or kwargs.keys() & {"rounding_mode"}:
        return NotImplemented
    shape = broadcast(a.shape, b.shape)
    return NotImplemented if shape is None else a.new_empty(shape)


def skip_binary_in_place(args: Any, kwargs: Any) -> Any:
    """In-place pointwise function of two tensors of one dtype, or of one and a number."""
    a, b = args[:2]
    if type(b) in _NUMBERS:
        return a if a.is_floating_point() else NotImplemented
    return a if fit(a, b) and broadcast(a.shape, b.shape) == tuple(a.shape) else NotImplemented


_NUMBERS: frozenset[type] = frozenset({int, float})


def fit(a: Any, b: Any) -> bool:
    """Whether two operands are tensors of the same floating point type."""
    both = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    return both and a.dtype == b.dtype and a.is_floating_point()


def broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...] | None:
    """Shape of what two shapes broadcast to, None where they don't."""
    short, long = sorted((a, b), key=len)
    gap = len(long) - len(short)
    pairs = list(zip(long[gap:], short, strict=True))
    if any(m != n and m != 1 and n != 1 for m, n in pairs):
        return None
    return (*long[:gap], *(n if m == 1 else m for m, n in pairs))


def skip_clone(args: Any, kwargs: Any) -> Any:
    """Shape and strides of a copy."""
    return torch.empty_like(args[0], **kwargs) if args[0].is_floating_point() else NotImplemented


def skip_cast(args: Any, kwargs: Any) -> Any:
    """Zeros for integers that are made of what may be anything: they are valid indices."""
    x, dtype = args[0], kwargs.get("dtype")
    if dtype is None or dtype.is_floating_point or dtype.is_complex or kwargs.get("device"):
        return NotImplemented
    plain = x.is_floating_point() and x.is_contiguous()
    return x.new_zeros(x.shape, dtype=dtype) if plain else NotImplemented


def skip_roll(args: Any, kwargs: Any) -> Any:
    """Shape of a rolled tensor."""
    plain = args[0].is_floating_point() and args[0].is_contiguous()
    return torch.empty_like(args[0]) if plain else NotImplemented


def skip_mean(args: Any, kwargs: Any) -> Any:
    """Shape of a mean over dimensions that are named."""
    x, dims = args[0], args[1] if len(args) > 1 else None
    if kwargs or not dims or not (x.is_floating_point() and x.is_contiguous()):
        return NotImplemented
    gone = {d % x.ndim for d in dims}
    if len(args) > 2 and args[2]:
        return x.new_empty([1 if d in gone else n for d, n in enumerate(x.shape)])
    return x.new_empty([n for d, n in enumerate(x.shape) if d not in gone])


def skip_pad(args: Any, kwargs: Any) -> Any:
    """Shape of a tensor with constants around it."""
    x, widths = args[0], args[1]
    if not (x.is_floating_point() and x.is_contiguous()) or any(type(n) is not int for n in widths):
        return NotImplemented
    shape = list(x.shape)
    for i, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True)):
        shape[-1 - i] += before + after
    return NotImplemented if min(shape) < 1 else x.new_empty(shape)


def skip_cat(args: Any, kwargs: Any) -> Any:
    """Shape of a concatenation of tensors of one rank and dtype."""
    tensors, dim = args[0], args[1] if len(args) > 1 else 0
    first = tensors[0]
    if not first.is_floating_point() or any(
        t.dtype != first.dtype or t.ndim != first.ndim for t in tensors
    ):
        return NotImplemented
    shape = list(first.shape)
    rest = [n for d, n in enumerate(shape) if d != dim % first.ndim]
    if any([n for d, n in enumerate(t.shape) if d != dim % first.ndim] != rest for t in tensors):
        return NotImplemented
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return first.new_empty(shape)


def _table() -> dict[Any, Any]:
    aten = torch.ops.aten
    unary = "relu silu gelu sigmoid tanh hardswish hardsigmoid hardtanh"
    table = {
        aten.mm: skip_mm,
        aten.addmm: skip_addmm,
        aten.bmm: skip_bmm,
        aten.convolution: skip_convolution,
        aten.native_batch_norm: skip_norm,
        aten.native_layer_norm: skip_norm,
        aten.native_group_norm: skip_norm,
        aten._softmax: skip_softmax,
        aten.max_pool2d_with_indices: skip_max_pool,
        aten.avg_pool2d: skip_avg_pool,
        aten._scaled_dot_product_flash_attention_for_cpu: skip_attention,
        aten.cat: skip_cat,
        aten.clone: skip_clone,
        aten._to_copy: skip_cast,
        aten.roll: skip_roll,
        aten.mean: skip_mean,
        aten.constant_pad_nd: skip_pad,
    }
    for name in ("add", "sub", "mul", "div"):
        table[getattr(aten, name)] = skip_binary
        table[getattr(aten, name + "_")] = skip_binary_in_place
    for name in unary.split():
        table[getattr(aten, name)] = skip_unary
        table[getattr(aten, name + "_")] = skip_in_place
    return table


SHORTCUTS = _table()
