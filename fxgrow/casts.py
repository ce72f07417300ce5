"""Casts in models' own code: two models that are exact differ only by their rounding."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["Exact"]


class Exact(TorchFunctionMode):
    """Leaves float64 tensors as they are where the code casts them to something narrower.

    ``ignored`` holds the types that were asked for.
    """

    _METHODS: ClassVar[dict[str, torch.dtype]] = {
        "float": torch.float32,
        "half": torch.float16,
        "bfloat16": torch.bfloat16,
    }

    def __init__(self) -> None:
        super().__init__()
        self.ignored: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.dtype == torch.float64:
            narrow = self._METHODS.get(getattr(func, "__name__", ""))
            if narrow is not None:
                self.ignored.add(narrow)
                return first
            args = tuple(self._widened(a) for a in args)
            kwargs = {k: self._widened(a) for k, a in kwargs.items()}
        return func(*args, **kwargs)

    def _widened(self, value: Any) -> Any:
        if not isinstance(value, torch.dtype) or value not in self._METHODS.values():
            return value
        self.ignored.add(value)
        return torch.float64
