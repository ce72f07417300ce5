"""Parameters that stay as they are, whatever the code of a model that runs does to them.

Shadows and twins share the user's parameters. Some models convert parts of themselves as they
run (``self.router = self.router.float()``), or write into their weights; that is taken back.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import starmap
from typing import TYPE_CHECKING, Any

import torch

from .dispatch import EagerMode
from .propagate import LABELS_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import nn

__all__ = ["Keeper", "Keeping", "kept"]


class Keeper:
    """Remembers the data of parameters.

    Parameters
    ----------
    own : iterable of torch.nn.Parameter
        Those of other types than torch's own are left alone.
    """

    def __init__(self, own: Iterable[nn.Parameter]) -> None:
        self._own = [p for p in own if p.__class__ is torch.nn.Parameter]
        self._data = [p.data for p in self._own]
        self._kinds = [(p.dtype, p.device) for p in self._own]
        self._storages: set[int] | None = None
        self._before: dict[int, tuple[Any, Any]] = {}
        self.replaced = False  # whether a parameter was given other data of the same kind

    def before_write(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Keep what an operation that writes into its first argument (or ``out``) writes over."""
        if self._storages is None:
            self._storages = {data.untyped_storage()._cdata for data in self._data}
        targets = [args[0]] if args else []
        targets += [kwargs["out"]] if "out" in kwargs else []
        for target in targets:
            for tensor in target if target.__class__ is list else [target]:
                if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
                    continue
                storage = tensor.untyped_storage()
                place = storage._cdata
                if place in self._storages and place not in self._before:
                    self._before[place] = storage, storage.clone()

    def restore(self) -> bool:
        """Give the parameters what they had; say whether any has got other data instead."""
        for storage, values in self._before.values():
            storage.copy_(values)
        self._before.clear()
        for parameter in self._own:
            if LABELS_KEY in parameter.__dict__:
                del parameter.__dict__[LABELS_KEY]
        if not self._converted():
            return False
        for parameter, data, kind in zip(self._own, self._data, self._kinds, strict=True):
            if (parameter.dtype, parameter.device) == kind and not parameter.is_meta:
                self.replaced = self.replaced or not parameter.is_set_to(data)
            parameter.data = data
        return True

    def _converted(self) -> bool:
        if [(p.dtype, p.device) for p in self._own] != self._kinds:
            return True
        places = [(p, d) for p, d in zip(self._own, self._data, strict=True) if not p.is_meta]
        return not all(starmap(torch.Tensor.is_set_to, places))


class Keeping(EagerMode):
    """Dispatch mode that tells a keeper of all that is written."""

    def __init__(self, keeper: Keeper) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.keeper = keeper

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            self.keeper.before_write(args, kwargs)
        return func(*args, **kwargs)


@contextmanager
def kept(own: Iterable[nn.Parameter]) -> Iterator[Keeper]:
    """Restore parameters afterwards; of writes the keeper must be told."""
    keeper = Keeper(own)
    try:
        yield keeper
    finally:
        keeper.restore()
