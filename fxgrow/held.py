"""Sizes that tensors of integers hold: ``torch.IntTensor([self.channels])``, to cut by them.

While a module's code is watched, such a tensor remembers the sizes that it was made of, and so
does a number that is taken from it. What is done with it besides keeps the numbers as they are.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .tracked import HELD, TrackedInt
from .walks import tensors_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .tracked import Expr

__all__ = ["hold", "kept_numbers", "makers_seen", "take"]

_CUTTING = {"__getitem__", "__setitem__", "narrow", "select"}
_MAKERS = {"ShortTensor": torch.int16, "IntTensor": torch.int32, "LongTensor": torch.int64}


def hold(given: Any, out: torch.Tensor) -> bool:
    """Let a tensor that was just made of sizes remember them; say if it can."""
    can = out.ndim < 2 and not out.is_floating_point()
    if can and not isinstance(given, torch.Tensor):
        out.__dict__[HELD] = given
    return can


def take(name: str, args: Any, out: Any) -> Any:
    """Return what is taken out of a tensor, with the size that it was; else ``out``."""
    if name == "item" and isinstance(getattr(args[0], HELD, None), TrackedInt):
        return getattr(args[0], HELD)
    if name == "__getitem__" and isinstance(out, torch.Tensor) and _picks(args):
        out.__dict__[HELD] = getattr(args[0], HELD)[args[1]]
    return out


def _picks(args: Any) -> bool:
    held = getattr(args[0], HELD, None)
    return isinstance(held, (list, tuple)) and isinstance(args[1], int)


def kept_numbers(name: str, args: Any, kwargs: Any) -> list[tuple[Expr, Expr]]:
    """Numbers that must stay: with the tensors that hold them a call does more than cut."""
    pairs: list[tuple[Expr, Expr]] = []
    if name == "item" or (name == "__getitem__" and _picks(args)):
        return pairs
    for tensor in tensors_of((*args, *kwargs.values())):
        held = getattr(tensor, HELD, None)
        cuts = name in _CUTTING and tensor.ndim == 0 and tensor is not args[0]
        if held is None or cuts:
            continue
        sizes = held if isinstance(held, (list, tuple)) else [held]
        pairs += [(v.expr, int(v)) for v in sizes if isinstance(v, TrackedInt)]
        del tensor.__dict__[HELD]
    return pairs


@contextmanager
def makers_seen() -> Iterator[None]:
    """Let the oldest makers of tensors be seen, which function modes do not see."""
    before = {name: getattr(torch, name) for name in _MAKERS}
    for name, dtype in _MAKERS.items():
        setattr(torch, name, _maker(before[name], dtype))
    try:
        yield
    finally:
        for name, old in before.items():
            setattr(torch, name, old)


def _maker(old: Any, dtype: torch.dtype) -> Any:
    """Stand for a type of tensors, whose instances it also knows."""

    class Maker(type):
        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, old)

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if len(args) == 1 and isinstance(args[0], (list, tuple)):
                return torch.tensor(args[0], dtype=dtype, **kwargs)
            return old(*args, **kwargs)

    return Maker(old.__name__, (), {})
