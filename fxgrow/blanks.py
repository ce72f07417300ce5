"""Blank tensors (zeros and their like) that Python code makes at a width that it holds.

Their entries are all alike, or written later, so they may grow with whatever they meet.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from .planes import Plane

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .locator import Locator
    from .propagate import Propagation

__all__ = ["MAKERS", "Blanks", "is_blank", "label_blank", "site_of"]

MAKERS = frozenset(
    f"{prefix}{name}" for prefix in ("", "new_") for name in ("zeros", "ones", "full", "empty")
)
"""Functions that make them."""

_BLANK = "_fxgrow_blank"

Site = tuple[str, str, str]
Made = list[tuple[int, ...]]  # dimensions, call by call: a method may serve several tensors


def site_of(name: str, node: Any) -> Site:
    """Name of a function, and the module and line that call it."""
    return name, node.name, node.meta["source"]


def dims_of_call(known: Mapping[Site, Made], site: Site, number: int) -> tuple[int, ...]:
    """Dimensions along which one call at a place, counted from 0, makes a blank.

    Where all calls made the same, there may be more of them at another width.
    """
    made = known.get(site, [])
    if len(set(made)) == 1:
        return made[0]
    return made[number] if number < len(made) else ()


def label_blank(state: Propagation, out: torch.Tensor, dims: Iterable[int]) -> None:
    """Give a blank labels of its own along ``dims``."""
    planes = []
    for dim in dims:
        shape = [1] * out.ndim
        shape[dim] = out.shape[dim]
        planes.append(Plane(state.book.fresh(out.shape[dim]).reshape(shape)))
    state.assign(out, planes, weight=False, live=False)
    out.__dict__[_BLANK] = True


def is_blank(tensor: Any) -> bool:
    """Whether a tensor was made as a blank that may grow."""
    return isinstance(tensor, torch.Tensor) and _BLANK in tensor.__dict__


class Blanks(TorchFunctionMode):
    """Labels blanks along the dimensions that an earlier run of the same code has found.

    Parameters
    ----------
    state : Propagation
        Of this run.
    locate : Locator
        Of its modules.
    known : dict
        Site to dimensions, call by call.
    calls : Counter
        How often this run has come by each site.
    """

    def __init__(
        self,
        state: Propagation,
        locate: Locator,
        known: Mapping[Site, Made],
        calls: Counter[Site],
    ) -> None:
        super().__init__()
        self.state, self.locate, self.known, self.calls = state, locate, known, calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if self.known and name in MAKERS:
            site = site_of(name, self.locate())
            dims = dims_of_call(self.known, site, self.calls[site])
            self.calls[site] += 1
            if dims:
                label_blank(self.state, out, dims)
        return out
