"""Deep copies of module trees, quicker than :func:`copy.deepcopy` and equal to it.

A module's dictionary holds dozens of empty hook tables, numbers and strings;
``copy.deepcopy`` asks each of them how it wants to be copied. Here plain values are told
apart by their exact type, and everything else is left to ``copy.deepcopy``. Computed tensors
that modules hold (older hooks leave them), which ``copy.deepcopy`` refuses, give their values.
"""

from __future__ import annotations

import copy
import copyreg
import types
from collections import OrderedDict
from functools import cache
from typing import Any

import torch
from torch import nn

__all__ = ["computed", "copy_module"]

_PLAIN: frozenset[Any] = frozenset(
    {
        *(int, float, bool, str, bytes, complex, type(None), type, type(...)),
        *(types.FunctionType, types.BuiltinFunctionType, torch.dtype, torch.device),
    }
)
_MAPPINGS: frozenset[Any] = frozenset({dict, OrderedDict})
_NUMBERS = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.bool),
    }
)
_DEVICES = frozenset({"cpu", "cuda"})
_SEQUENCES: frozenset[Any] = frozenset({tuple, list, set})
# The dozen tables that every module has, most of them empty; nobody shares them.
_TABLES = frozenset(key for key, value in vars(nn.Module()).items() if type(value) in _MAPPINGS)


def copy_module(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Copy a module tree as ``copy.deepcopy(module, memo)`` does.

    Parameters
    ----------
    module : torch.nn.Module
        Never changed.
    memo : dict of int to object, optional
        Objects (by ``id``) that are replaced instead of copied, e.g. shared parameters.

    Returns
    -------
    torch.nn.Module
    """
    copied: nn.Module = _copy(module, {} if memo is None else memo)
    return copied


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    kind: Any = type(value)
    if kind in _PLAIN:
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if kind in _MAPPINGS:
        twin = memo[id(value)] = kind()
        return _entries(twin, value, memo) if value else twin
    if kind in _SEQUENCES and _PLAIN.issuperset(map(type, value)):
        if kind is tuple:
            return value
        twin = memo[id(value)] = kind(value)
        return twin
    if isinstance(value, nn.Module) and _is_ordinary(kind):
        return _module(value, kind, memo)
    if isinstance(value, torch.Tensor):
        twin = _tensor(value, memo)
        if twin is not None:
            memo[id(value)] = twin
            return twin
    if isinstance(value, nn.Module):  # copies itself, or keeps state elsewhere
        memo.update({key: own for key, own in computed(value).items() if key not in memo})
    return copy.deepcopy(value, memo)


def _module(module: nn.Module, kind: Any, memo: dict[int, Any]) -> nn.Module:
    twin: nn.Module
    twin = memo[id(module)] = kind.__new__(kind)
    ordinary = kind.__setstate__ is nn.Module.__setstate__  # which fills in what old files lack
    if ordinary and "_compiled_call_impl" not in module.__dict__:
        _entries(twin.__dict__, module.__dict__, memo)
    else:
        get_state = getattr(module, "__getstate__", None)  # Python 3.10 has none by default
        state = get_state() if get_state else module.__dict__
        twin.__setstate__(_entries({}, state, memo))
    return twin


def _tensor(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor | None:
    """Copy a computed tensor, or a plain buffer that has its memory to itself."""
    if not tensor.is_leaf:
        return tensor.detach().clone()
    plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided
    if not plain or tensor.requires_grad or tensor.__dict__ or tensor.grad is not None:
        return None
    if tensor.dtype not in _NUMBERS or tensor.device.type not in _DEVICES:
        return None
    storage = tensor.untyped_storage()
    known = memo.setdefault("torch", {})  # type: ignore[call-overload]  # where torch has it
    if storage._cdata in known or storage.nbytes() != tensor.nbytes or not tensor.is_contiguous():
        return None
    twin = tensor.clone()
    known[storage._cdata] = twin.untyped_storage()
    return twin


def _entries(target: Any, source: Any, memo: dict[int, Any]) -> Any:
    for key, item in source.items():
        if type(key) is not str:
            key = _copy(key, memo)
        kind: Any = type(item)
        if kind in _PLAIN:
            target[key] = item
        elif key in _TABLES and kind in _MAPPINGS and not item:
            target[key] = kind()
        else:
            target[key] = _copy(item, memo)
    return target


def computed(model: nn.Module) -> dict[int, Any]:
    """Return values of the tensors that modules hold as results of a computation, by id."""
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for entry in module.__dict__.values()
        for value in (entry if isinstance(entry, list) else (entry,))  # lists of recurrent layers
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }


_INHERITED: tuple[tuple[str, Any], ...] = (
    ("__reduce_ex__", object),
    ("__reduce__", object),
    ("__new__", object),
    ("__getstate__", nn.Module),
    ("__deepcopy__", object),
)


@cache
def _is_ordinary(kind: Any) -> bool:
    """Whether a class leaves copying to its bases and keeps its state in ``__dict__``."""
    inherits = all(
        getattr(kind, name, None) is getattr(base, name, None) for name, base in _INHERITED
    )
    slots: Any = copyreg
    return inherits and kind not in copyreg.dispatch_table and not slots._slotnames(kind)
