"""The rule table: ATen operation → rule.

Looked up by overload packet (``relu_`` resolves to ``relu``): the caller's rules
(:mod:`fxgrow.rules.own`), exact entry, the pointwise tag, then ``decompose()``, then
:func:`unknown`. An unknown operation is never guessed: what it touches is frozen.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from ..blanks import is_blank
from ..echoes import without
from ..flows import Flow, fixed, masked, noise, nothing, product, same, total
from ..placing import place
from ..planes import Plane
from ..walks import tensors_of
from . import contract, convolve, join, recurrent, reduce, shape
from .means import without_mean
from .own import Rules, resizable, rule
from .recurrent import BLANKS, blank, fill_blank
from .skip import SHORTCUTS
from .standard import centred, square

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..flows import Combine
    from ..propagate import Call, Propagation

    Rule = Callable[[Propagation, Call], Any]
    Operands = list[tuple[Sequence[Plane], Any]]

_PRODUCTS = {"mul", "div"}
_SUMS = {"add", "sub"}
# How pointwise operations combine flows. Not among them: functions without slope at zero,
# behind which new units would never move (relu).
_FLOWS: dict[str, Combine] = {
    **dict.fromkeys(("mul", "div"), product),
    **dict.fromkeys(("add", "sub"), total),
    "bernoulli": noise,
    **dict.fromkeys(("zeros_like", "zero"), nothing),
    **dict.fromkeys(
        ["clone", "detach", "alias", "_to_copy", "neg", "lift_fresh", "contiguous"], same
    ),
    **dict.fromkeys(["native_dropout", "dropout"], same),
    **dict.fromkeys(
        ["gelu", "silu", "mish", "tanh", "elu", "hardswish", "leaky_relu", "erf", "sin", "pow"],
        fixed,
    ),
}
_ZERO_KEEPING = {
    "clone",
    "detach",
    "alias",
    "_to_copy",
    "neg",
    "lift_fresh",
    "contiguous",
    "mul",
    "div",
    "_conj",
}


def pointwise(state: Propagation, call: Call) -> Any:
    """Operands broadcast and meet; several outputs (dropout and mask) look alike."""
    name = call.name.rstrip("_")
    tensors = tensors_of((*call.args, *call.kwargs.values()))
    operands: Operands = [(state.planes(t), t.shape) for t in tensors]
    if name == "pow" and _is_square(call) and all(map(state.is_weight, tensors)):
        name = "square"
    elif _breaks(name, call):
        operands = [(_bare(planes), shape) for planes, shape in operands]
    first = call.out if isinstance(call.out, torch.Tensor) else call.out[0]
    if name in _SUMS and len(tensors) == 2 and first is call.out:
        placed = place(state, call, tensors, operands)
        if placed is not operands:
            return state.book.meet(placed, first.ndim, state.where(name), flow=total)
    planes = _combined(state, name, first.ndim, tensors, operands)
    if name in _SUMS and len(tensors) == 2 and first is call.out:
        planes = centred(state, tensors, call.out, without_mean(state, call, tensors, planes))
    return planes if first is call.out else [planes] * len(call.out)


def drawn(state: Propagation, call: Call) -> Any:
    """Random numbers, of which a blank has one for every unit, and after growth others."""
    return () if is_blank(call.args[0]) else pointwise(state, call)


def addcmul(state: Propagation, call: Call) -> list[Plane]:
    """Follow ``a + value * b * c``: a product, then a sum."""
    a, b, c = call.args[:3]
    factors: Operands = [(state.planes(t), t.shape) for t in (b, c)]
    met = _combined(state, "mul", call.out.ndim, [b, c], factors)
    shape = torch.broadcast_shapes(b.shape, c.shape)
    inner = b if state.value(b).live else c
    summands: Operands = [(state.planes(a), a.shape), (met, shape)]
    return _combined(state, "add", call.out.ndim, [a, inner], summands)


def _combined(
    state: Propagation, name: str, ndim: int, tensors: Sequence[torch.Tensor], operands: Operands
) -> list[Plane]:
    """Planes of a pointwise operation that is called ``name``."""
    if name == "mul":
        _factors(state, operands)
    keep = name in _PRODUCTS if len(operands) > 1 else name in _ZERO_KEEPING
    flow = square if name == "square" else _FLOWS.get(name)
    if name == "mul" and not any(map(state.is_weight, tensors)):
        flow = masked
    if flow is not None and any(planes for planes, _ in operands):
        operands = _uses(state, name, tensors, operands)
    return state.book.meet(operands, ndim, state.where(name), flow=flow, product=keep)


def _uses(
    state: Propagation, name: str, tensors: Sequence[torch.Tensor], operands: Operands
) -> Operands:
    """Write down what weights are used for; drop the flows that the operation breaks.

    A weight added to what a norm keeps at zero must be zero itself (an offset).
    """
    if name == "div" and len(operands) > 1:
        return [operands[0], (_bare(operands[1][0]), operands[1][1])]
    weights = [state.is_weight(t) for t in tensors]
    if len(operands) == 1 or all(weights) or not any(weights):
        return operands
    own = [t for t, weight in zip(tensors, weights, strict=True) if weight]
    if name in _PRODUCTS:
        state.entries(own, "scale")
        return operands
    flows = [p.flow for (ps, _), w in zip(operands, weights, strict=True) if not w for p in ps]
    if any(f is not None and f.terms is None and (f.calm or f.still) for f in flows):
        state.entries(own, "offset")
        return [
            ([p._replace(flow=p.flow and _OFFSET) for p in ps] if w else ps, shape)
            for (ps, shape), w in zip(operands, weights, strict=True)
        ]
    state.entries(own, "adder")
    return operands


_OFFSET = Flow(None, calm=True, still=True)


def _breaks(name: str, call: Call) -> bool:
    """Whether numbers among the arguments move zero away from zero."""
    number = call.arg(1, "other")
    if name in _SUMS:
        return not isinstance(number, torch.Tensor)
    return name == "pow" and not (isinstance(number, (int, float)) and number >= 1)


def _is_square(call: Call) -> bool:
    exponent = call.arg(1, "exponent")
    return isinstance(exponent, (int, float)) and exponent == 2


def _bare(planes: Iterable[Plane]) -> list[Plane]:
    return [p._replace(flow=None) for p in planes]


def _factors(state: Propagation, operands: Iterable[tuple[Iterable[Plane], Any]]) -> None:
    """Write down which buffers multiply: masks of zeros and ones are among them."""
    for planes, _ in operands:
        for axis in (a for plane in planes for a in plane.zero):
            if not state.book.weights.rank[axis]:
                state.roles.setdefault(axis, set()).add("factor")


def copy_(state: Propagation, call: Call) -> Any:
    """In-place copy: the target takes the source's labels on top of its own."""
    tensors = call.args[:2]
    if fill_blank(state, call):
        return ()
    return state.book.meet(
        [(state.planes(t), t.shape) for t in tensors], call.out.ndim, state.where(call.name)
    )


def unlabelled(state: Propagation, call: Call) -> Any:
    """Results that carry no labels (scalars, shapes, fresh tensors)."""
    return [()] * len(call.out) if isinstance(call.out, (tuple, list)) else ()


def unknown(state: Propagation, call: Call) -> Any:
    """No rule: freeze everything in reach, never guess."""
    planes = [p for t in tensors_of((*call.args, *call.kwargs.values())) for p in state.planes(t)]
    if without(state.book, planes):
        state.unknown.setdefault(call.name, []).append(state.site)
    state.freeze(planes, "unknown_op", call.name)
    return unlabelled(state, call) if isinstance(call.out, (torch.Tensor, list, tuple)) else ()


def _family(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_FAMILIES: tuple[dict[str, Rule], ...] = (
    _family(contract.mm, "mm"),
    _family(contract.addmm, "addmm"),
    _family(contract.bmm, "bmm"),
    _family(contract.baddbmm, "baddbmm"),
    _family(contract.grouped_mm, "_grouped_mm"),
    _family(contract.mv, "mv"),
    _family(contract.dot, "dot vdot"),
    _family(contract.linear, "linear"),
    _family(convolve.convolution, "convolution"),
    _family(contract.embedding, "embedding"),
    _family(contract.trilinear, "_trilinear"),
    _family(recurrent.fused_cell(4), "_thnn_fused_lstm_cell"),
    _family(recurrent.fused_cell(3), "_thnn_fused_gru_cell"),
    _family(recurrent.pack, "_pack_padded_sequence"),
    _family(
        contract.attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable "
        "_scaled_dot_product_attention_math_for_mps",
    ),
    _family(shape.view, "view _unsafe_view _reshape_alias reshape"),
    _family(shape.permute, "permute"),
    _family(shape.transpose, "transpose"),
    _family(shape.t, "t"),
    _family(shape.unsqueeze, "unsqueeze"),
    _family(shape.squeeze, "squeeze"),
    _family(shape.expand, "expand"),
    _family(shape.select, "select"),
    _family(shape.slice_, "slice"),
    _family(shape.split, "split split_with_sizes unsafe_split unsafe_split_with_sizes"),
    _family(shape.unbind, "unbind"),
    _family(join.cat, "cat"),
    _family(shape.stack, "stack"),
    _family(shape.glu, "glu"),
    _family(shape.repeat, "repeat"),
    _family(shape.roll, "roll flip"),
    _family(shape.pad, "constant_pad_nd"),
    _family(shape.index, "index index_select"),
    _family(shape.gather, "gather"),
    _family(shape.scatter, "index_add index_copy"),
    _family(shape.im2col, "im2col"),
    _family(
        shape.execute,
        "unfold pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle "
        "diagonal as_strided movedim rot90 narrow_copy",
    ),
    _family(reduce.sum_, "sum"),
    _family(reduce.reducer(1), "mean amax amin max min argmax argmin prod logsumexp any all"),
    _family(reduce.reducer(1), "var std var_mean std_mean"),
    _family(reduce.reducer(2), "linalg_vector_norm norm"),
    _family(reduce.scan, "_softmax _log_softmax _safe_softmax cumsum cumprod sort topk"),
    _family(
        reduce.batch_norm,
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
        "cudnn_batch_norm miopen_batch_norm _batch_norm_with_update",
    ),
    _family(reduce.layer_norm, "native_layer_norm rms_norm _fused_rms_norm"),
    _family(reduce.weight_norm, "_weight_norm_interface"),
    _family(reduce.group_norm, "native_group_norm"),
    _family(
        reduce.spatial,
        "max_pool1d max_pool2d_with_indices max_pool3d_with_indices "
        "avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
        "adaptive_max_pool2d adaptive_max_pool3d "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d "
        "upsample_bicubic2d upsample_linear1d upsample_trilinear3d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d "
        "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d "
        "grid_sampler_2d",
    ),
    _family(
        pointwise,
        "native_dropout dropout clone _to_copy detach alias lift_fresh contiguous zero_ fill "
        "zeros_like ones_like empty_like full_like rand_like randn_like hardswish hardsigmoid "
        "silu gelu mish elu leaky_relu softplus _prelu_kernel glu_jvp",
    ),
    _family(drawn, "bernoulli uniform normal random"),
    _family(copy_, "copy"),
    _family(addcmul, "addcmul"),
    _family(
        unlabelled,
        "sym_size sym_numel new_zeros new_ones new_empty new_full new_empty_strided "
        "_local_scalar_dense is_same_size _assert_async _has_compatible_shallow_copy_type "
        "equal scalar_tensor",
    ),
)


def _table(families: Iterable[dict[str, Rule]]) -> dict[str, Rule]:
    table: dict[str, Rule] = {}
    for family in families:
        twice = table.keys() & family.keys()
        if twice:
            raise ValueError(f"two rules for {sorted(twice)}")
        table.update(family)
    return table


TABLE = _table(_FAMILIES)
# Of tensors they only take type and device.
TOLD = frozenset(
    getattr(torch.ops.aten, f"new_{kind}") for kind in ("zeros", "ones", "empty", "full")
)
ECHOING = frozenset({torch.ops.aten.expand, torch.ops.aten.repeat})  # what has no labels, too


@cache
def lookup(func: Any) -> Rule | None:
    """Return the rule of an ATen overload, or ``None``."""
    namespace, _, name = func.overloadpacket._qualified_op_name.partition("::")
    if namespace != "aten":
        return pointwise if torch.Tag.pointwise in func.tags else None
    rule = TABLE.get(name) or TABLE.get(name.rstrip("_"))
    if rule is None and any(torch.Tag.pointwise in f.tags for f in (func, *_functional(name))):
        return pointwise
    return rule


def _functional(name: str) -> list[Any]:
    """Overloads of the out-of-place form of ``name`` (in-place forms lack tags)."""
    packet = getattr(torch.ops.aten, name.rstrip("_"), None)
    return [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]


__all__ = [
    "BLANKS",
    "ECHOING",
    "SHORTCUTS",
    "TABLE",
    "TOLD",
    "Plane",
    "Rules",
    "blank",
    "contract",
    "lookup",
    "pointwise",
    "reduce",
    "resizable",
    "rule",
    "shape",
    "unknown",
    "unlabelled",
]
