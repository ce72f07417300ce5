"""Deep copies of module trees, quicker than :func:`copy.deepcopy` and equal to it.

A module's dictionary holds dozens of empty hook tables, numbers and strings;
``copy.deepcopy`` asks each of them how it wants to be copied. Here plain values are told
apart by their exact type, and everything else is left to ``copy.deepcopy``. Computed tensors
that modules hold (older hooks leave them), which ``copy.deepcopy`` refuses, give their values.
"""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from functools import cache
from typing import Any

import torch
from torch import nn

__all__ = ["computed", "copy_module"]

_PLAIN = frozenset(
    {int, float, bool, str, bytes, complex, type(None), type, type(...), torch.dtype, torch.device}
)
_MAPPINGS = frozenset({dict, OrderedDict})


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
        return _entries(twin, value, memo)
    if isinstance(value, nn.Module) and _is_ordinary(kind):
        twin = memo[id(value)] = kind.__new__(kind)
        get_state = getattr(value, "__getstate__", None)  # Python 3.10 has none by default
        twin.__setstate__(_entries({}, get_state() if get_state else value.__dict__, memo))
        return twin
    if isinstance(value, torch.Tensor) and not value.is_leaf:
        twin = memo[id(value)] = value.detach().clone()
        return twin
    if isinstance(value, nn.Module):  # copies itself, or keeps state elsewhere
        memo.update({key: own for key, own in computed(value).items() if key not in memo})
    return copy.deepcopy(value, memo)


def _entries(target: Any, source: Any, memo: dict[int, Any]) -> Any:
    for key, item in source.items():
        target[_copy(key, memo)] = _copy(item, memo)
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
