"""The ATen calls that plain layers make, told from their attributes.

Convolutions, batch norms and activations make up most of a network, and the way from a layer to
its ATen call costs more than labelling that call. Where a layer is just what its class makes of
it, the call is written down here; any other layer runs, and is seen by the dispatcher.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from .skip import broadcast, fit

if TYPE_CHECKING:
    from collections.abc import Callable

    AtenCall = tuple[Any, tuple[Any, ...]]

_ATEN = torch.ops.aten


def aten_call(module: nn.Module, args: tuple[Any, ...]) -> AtenCall | None:
    """Return the ATen operation and the arguments that a call of a layer comes to.

    Parameters
    ----------
    module : torch.nn.Module
    args : tuple
        Positional arguments of the call, which has no others.

    Returns
    -------
    tuple of (torch._ops.OpOverload, tuple), or None
        None where the layer has to run.
    """
    told = _LAYERS.get(type(module))
    if told is None or len(args) != 1 or not isinstance(args[0], torch.Tensor):
        return None
    return None if _is_changed(module) else told(module, args[0])


def _is_changed(module: nn.Module) -> bool:
    """Whether more happens in a call than the class says (no gradients flow here)."""
    own = module.__dict__
    return bool(own["_forward_pre_hooks"] or own["_forward_hooks"] or "forward" in own)


def _convolution(layer: Any, x: torch.Tensor) -> AtenCall | None:
    own = layer._parameters
    weight = own.get("weight")
    if weight is None or "bias" not in own:  # computed
        return None
    plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if not plain or x.ndim != weight.ndim or x.dtype != weight.dtype:
        return None
    sizes = (layer.stride, layer.padding, layer.dilation, False, layer.output_padding)
    return _ATEN.convolution.default, (x, weight, own["bias"], *sizes, layer.groups)


def _batch_norm(layer: Any, x: torch.Tensor) -> AtenCall | None:
    running, own = layer._buffers, layer._parameters
    if not (own.keys() >= {"weight", "bias"} and running.keys() >= {"running_mean", "running_var"}):
        return None  # computed
    statistics = (running["running_mean"], running["running_var"])
    training = layer.training or statistics[0] is None
    if x.ndim != _DIMS[type(layer)] or (training and x.numel() == x.shape[1]):
        return None  # an error that torch should word
    if layer.training and not layer.track_running_stats:
        statistics = (None, None)
    entries = (own["weight"], own["bias"], *statistics)
    return _ATEN.native_batch_norm.default, (x, *entries, training, 0.0, layer.eps)


def _activation(name: str) -> Callable[[Any, torch.Tensor], AtenCall]:
    op, in_place = getattr(_ATEN, name).default, getattr(_ATEN, f"{name}_").default
    return lambda layer, x: (in_place if getattr(layer, "inplace", False) else op, (x,))


def _layer_norm(layer: Any, x: torch.Tensor) -> AtenCall | None:
    own, shape = layer._parameters, layer.normalized_shape
    if not own.keys() >= {"weight", "bias"} or tuple(x.shape[-len(shape) :]) != tuple(shape):
        return None
    return _ATEN.native_layer_norm.default, (x, list(shape), own["weight"], own["bias"], layer.eps)


def _gelu(layer: Any, x: torch.Tensor) -> AtenCall | None:
    return (_ATEN.gelu.default, (x,)) if layer.approximate == "none" else None


def _global_pool(layer: Any, x: torch.Tensor) -> AtenCall | None:
    plain = x.ndim == 4 and x.is_contiguous() and min(x.shape[1:]) > 1
    if not plain or layer.output_size not in (1, (1, 1)):  # may be a list
        return None
    return _ATEN.mean.dim, (x, [-1, -2], True)


_DIMS: dict[type, int] = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}
_LAYERS: dict[type, Callable[[Any, torch.Tensor], AtenCall | None]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys(_DIMS, _batch_norm),
    nn.ReLU: _activation("relu"),
    nn.SiLU: _activation("silu"),
    nn.Hardswish: _activation("hardswish"),
    nn.Hardsigmoid: _activation("hardsigmoid"),
    nn.Sigmoid: _activation("sigmoid"),
    nn.GELU: _gelu,
    nn.LayerNorm: _layer_norm,
    nn.AdaptiveAvgPool2d: _global_pool,
}


def aten_function(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AtenCall | None:
    """Return the ATen operation and the arguments that a call of a function comes to.

    None where the function has to run.
    """
    told = _FUNCTIONS.get(function)
    return None if told is None else told(*args, **kwargs)


def _binary(name: str) -> Callable[..., AtenCall | None]:
    op = getattr(_ATEN, name).Tensor

    def told(a: Any, b: Any = None, **more: Any) -> AtenCall | None:
        if more or not fit(a, b):
            return None
        shape = broadcast(a.shape, b.shape)
        wrong = shape is None or (name.endswith("_") and shape != tuple(a.shape))
        return None if wrong else (op, (a, b))

    return told


def _cat(tensors: Any, dim: Any = 0, **more: Any) -> AtenCall | None:
    plain = isinstance(dim, int) and all(isinstance(t, torch.Tensor) for t in tensors)
    if more or not plain or len({(t.ndim, t.dtype) for t in tensors}) != 1:
        return None
    return _ATEN.cat.default, (list(tensors), dim)


def _normalised(
    x: Any,
    mean: Any = None,
    var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: Any = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> AtenCall | None:
    plain = isinstance(x, torch.Tensor) and x.ndim in {4, 5} and isinstance(training, bool)
    if not plain or (training and x.numel() == x.shape[1]) or (mean is None and not training):
        return None  # an error that torch should word
    return _ATEN.native_batch_norm.default, (x, weight, bias, mean, var, training, 0.0, eps)


_FUNCTIONS: dict[Any, Callable[..., AtenCall | None]] = {
    **dict.fromkeys((operator.add, torch.add), _binary("add")),
    **dict.fromkeys((operator.mul, torch.mul), _binary("mul")),
    operator.iadd: _binary("add_"),
    operator.imul: _binary("mul_"),
    torch.cat: _cat,
    F.batch_norm: _normalised,
}
