"""Whether two layers are the same but for the values of their tensors."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

__all__ = ["alike", "plain_attributes"]

_TREE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Attributes that are neither torch's own bookkeeping nor tensors."""
    blank = nn.Module().__dict__
    own = ((k, v) for k, v in module.__dict__.items() if k not in blank and k not in _TREE)
    return {key: value for key, value in own if not _lists_weights(value)}


def _lists_weights(value: Any) -> bool:
    """Whether a layer keeps its parameters in a list, too (recurrent ones do)."""
    held = isinstance(value, list) and value
    return bool(held) and all(isinstance(v, (torch.Tensor, weakref.ref, type(None))) for v in value)


def alike(one: nn.Module, two: nn.Module) -> bool:
    """Whether two layers are the same but for the values of their tensors."""
    if len(list(one.modules())) != len(list(two.modules())):
        return False
    for a, b in zip(one.modules(), two.modules(), strict=True):
        same = type(a) is type(b) and plain_attributes(a) == plain_attributes(b)
        if not same or _described(a) != _described(b):
            return False
    return True


def _described(module: nn.Module) -> list[Any]:
    named = [*module._parameters.items(), *module._buffers.items()]
    return [(k, None if t is None else (t.shape, t.dtype)) for k, t in named] + [
        module._non_persistent_buffers_set
    ]
