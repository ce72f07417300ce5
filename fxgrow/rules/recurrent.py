"""Recurrent layers: what their one width means, fused cells, packed sequences.

Step by step they run as products, splits and pointwise operations, which have rules of
their own. What these can't see, because it lies in the layer's sizes, is said here.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..planes import Plane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from ..planes import Labels
    from ..propagate import Call, Propagation

_WEIGHT = re.compile(r"weight_(ih|hh|hr)(_l\d+(_reverse)?)?")
_ATEN = torch.ops.aten
# Created to the size that a caller asks for, alike everywhere: they may grow with it.
BLANKS = frozenset({_ATEN.zeros, _ATEN.new_zeros, _ATEN.new_full, _ATEN.full})


def is_recurrent(module: nn.Module) -> bool:
    """Whether one attribute is the width of all hidden states, of a layer of ``torch.nn``."""
    return "hidden_size" in module.__dict__ and type(module).__module__.startswith("torch.nn")


def unroll(state: Propagation, module: Any, call: Any, args: Any, kwargs: Any) -> Any:
    """Run a recurrent layer by ``call``; two steps show what becomes of all labels."""
    x: Any = args[0] if args else None
    first = getattr(module, "batch_first", None)
    time = 1 if first else 0
    whole = first is None or state.computed or not isinstance(x, torch.Tensor) or x.ndim != 3
    if whole or x.shape[time] < 3 or any(time in p.dims for p in state.planes(x)):
        return call(*args, **kwargs)
    flops = Counter(state.tensor_flops)
    out, last = call(x.narrow(time, 0, 2), *args[1:], **kwargs)
    planes = state.planes(out)
    if any(time in p.dims for p in planes):
        state.tensor_flops = flops
        return call(*args, **kwargs)
    for name, count in state.tensor_flops.items():
        state.tensor_flops[name] += (count - flops[name]) * (x.shape[time] - 2) // 2
    shape = list(out.shape)
    shape[time] = x.shape[time]
    out = out.new_empty(shape)
    state.assign(out, planes, weight=False, live=True)
    return out, last


def blank(state: Propagation, out: torch.Tensor) -> torch.Tensor:
    """Label an initial state, or padding, along its last dimension: it is what it meets."""
    if out.ndim and out.shape[-1] > 1 and out.is_floating_point():
        labels = state.book.fresh(out.shape[-1]).reshape((1,) * (out.ndim - 1) + (-1,))
        state.hollow.update(labels.reshape(-1).tolist())
        state.assign(out, (Plane(labels),), weight=False, live=False)
    return out


def fill_blank(state: Propagation, call: Call) -> bool:
    """Take a blank's labels back where something of a fixed width is written into it.

    It is no initial state then, but a table that the code fills (sines of positions).
    """
    target, source = call.args[:2]
    base = target._base if target._is_view() else target
    planes, away = state.planes(base), target.ndim - source.ndim
    blanks = planes and all(state.hollow.issuperset(p.labels.reshape(-1).tolist()) for p in planes)
    if not blanks or state.is_weight(source) or state.value(source).live or state.planes(source):
        return False
    along = {d - away for p in state.planes(target) for d in p.dims}
    if not any(d >= 0 and source.shape[d] > 1 for d in along):  # one number for all
        return False
    state.freeze(planes, "unlabelled", call.name)  # what else knows of them
    state.assign(base, (), weight=False, live=False)
    return True


def couple(state: Propagation, module: nn.Module, prefix: str) -> None:
    """Unite what has one width: gates, hidden columns, all layers and directions.

    Execution shows most of it, but not where a sequence has one step only, or where the
    initial states of stacked layers come from different places.
    """
    widths: dict[str, list[Labels]] = {"hidden": [], "projected": []}
    projected = getattr(module, "proj_size", 0) > 0
    state_name = "projected" if projected else "hidden"
    for name in module._parameters:
        match = _WEIGHT.fullmatch(name)
        rows, columns = (state.axes.get((prefix + name, dim)) for dim in (0, 1))
        if match is None or rows is None:
            continue
        kind = match[1]
        if kind == "hr":
            widths["projected"].append(rows)
        else:
            size: Any = module.__dict__["hidden_size"]
            widths["hidden"].extend(rows.reshape(-1, size))
        if kind != "ih" and columns is not None:
            widths["hidden" if kind == "hr" else state_name].append(columns)
    for own in widths.values():
        if len(own) > 1:
            state.book.unite(own[0], np.stack(own[1:]))


def fused_cell(gates: int) -> Any:
    """Rule of a fused cell ``(inputs, hidden, state, bias, bias)``; ``gates`` blocks of rows."""

    def rule(state: Propagation, call: Call) -> list[Sequence[Plane]]:
        tensors = [t for t in call.args if t is not None]
        book, where = state.book, state.where(call.name)
        rows = [t for i, t in enumerate(tensors) if i != 2]
        for bias in rows[2:]:
            state.role(state.planes(bias), "producer")
        met = book.meet([(state.planes(t), t.shape) for t in rows], 2, where)
        before = tensors[2]
        operands: list[Any] = [(state.planes(before), before.shape)]
        for part in range(gates):
            cut = [Plane(np.split(p.labels, gates, axis=1)[part]) for p in met if 1 in p.dims]
            rest = [p for p in met if 1 not in p.dims]
            operands.append(([*cut, *rest], before.shape))
        planes = book.meet(operands, 2, where)
        return [planes] * (len(call.out) - 1) + [()]

    return rule


def pack(state: Propagation, call: Call) -> list[Sequence[Plane]]:
    """``pack_padded_sequence``: time and batch become one dimension, in the data's order."""
    result = []
    for plane in state.planes(call.args[0]):
        if set(plane.dims) & {0, 1}:
            state.freeze([plane], "data_dependent", call.name)
            continue
        result.append(Plane(plane.labels.reshape(plane.labels.shape[1:]), plane.zero))
    return [result, ()]
