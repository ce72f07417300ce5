"""Deep copies of module trees, quicker than :func:`copy.deepcopy` and equal to it.

A module's dictionary holds dozens of empty hook tables, numbers and strings;
``copy.deepcopy`` asks each of them how it wants to be copied. Here plain values are told
apart by their exact type, and everything else is left to ``copy.deepcopy``.
"""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from functools import cache
from typing import Any

import torch
from torch import nn

__all__ = ["copy_module"]

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
    kind = type(value)
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
    return copy.deepcopy(value, memo)


def _entries(target: Any, source: Any, memo: dict[int, Any]) -> Any:
    for key, item in source.items():
        target[_copy(key, memo)] = _copy(item, memo)
    return target


@cache
def _is_ordinary(kind: type) -> bool:
    """Whether a class leaves copying to ``object`` and keeps its state in ``__dict__``."""
    return (
        not hasattr(kind, "__deepcopy__")
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__new__ is object.__new__
        and getattr(kind, "__getstate__", None) is getattr(nn.Module, "__getstate__", None)
        and kind not in copyreg.dispatch_table
        and not copyreg._slotnames(kind)  # type: ignore[attr-defined]  # as copy.deepcopy asks
    )
