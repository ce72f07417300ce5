"""Modes that see every ATen call: the one that is never compiled, and one for shapes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from .kept import Keeper

__all__ = ["EagerMode", "ShapeMode"]


class EagerMode(TorchDispatchMode):
    """Dispatch mode that is not wrapped against compilation: what runs below it is eager."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class ShapeMode(EagerMode):
    """Skips heavy computations: results have the right shapes, but any values.

    ``by_values`` says whether a size was met that the values of a tensor decide, not its shape.
    """

    by_values = False
    keeper: Keeper | None = None  # of the parameters of what is traced

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from .rules import SHORTCUTS

        if torch.Tag.dynamic_output_shape in func.tags:
            of_integers = func.overloadpacket is torch.ops.aten.index and not any(
                index is not None and index.dtype in {torch.bool, torch.uint8} for index in args[1]
            )
            self.by_values = self.by_values or not of_integers
        if self.keeper is not None and func._schema.is_mutable:
            self.keeper.before_write(args, kwargs or {})
        skip = SHORTCUTS.get(func.overloadpacket)
        out = skip(args, kwargs or {}) if skip is not None else NotImplemented
        return func(*args, **(kwargs or {})) if out is NotImplemented else out
