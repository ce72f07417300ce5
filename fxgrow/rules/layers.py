"""The ATen calls that plain layers make, told from their attributes.

Convolutions, batch norms and activations make up most of a network, and the way from a layer to
its ATen call costs more than labelling that call. Where a layer is just what its class makes of
it, the call is written down here; any other layer runs, and is seen by the dispatcher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

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


_DIMS: dict[type, int] = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}
_LAYERS: dict[type, Callable[[Any, torch.Tensor], AtenCall | None]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys(_DIMS, _batch_norm),
    nn.ReLU: _activation("relu"),
    nn.SiLU: _activation("silu"),
    nn.Hardswish: _activation("hardswish"),
    nn.Hardsigmoid: _activation("hardsigmoid"),
    nn.Sigmoid: _activation("sigmoid"),
}
