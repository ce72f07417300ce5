"""Sizes in patterns of einops: lengths of axes that a call names follow the new widths.

Such a call stays one node of the graph, which works for any size of batch and space.
"""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .propagate import Noted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from torch import nn

    from .patch import Site

__all__ = [
    "is_pattern",
    "layer_as_function",
    "packing_traced",
    "patch_pattern",
    "pattern_functions",
]

_GIVEN = ("tensor", "pattern", "reduction")
_TERMS = re.compile(r"\(([^()]*)\)|(\S+)")


def pattern_functions() -> tuple[tuple[Callable[..., Any], ...], list[ModuleType]]:
    """Functions of einops that stay whole, and the modules they are called from.

    Nothing is imported: who has not imported einops does not call it. Everything but its
    ``einsum`` goes through ``reduce``.
    """
    home = sys.modules.get("einops.einops")
    if home is None:
        return (), []
    summed = home.__dict__.get("einsum")
    callers = [
        module
        for module in list(sys.modules.values())
        if summed is not None and getattr(module, "__dict__", {}).get("einsum") is summed
    ]
    return tuple(f for f in (home.reduce, summed) if f is not None), [home, *callers]


@contextmanager
def packing_traced() -> Iterator[None]:
    """Let einops' ``pack`` and ``unpack`` take traced values: they only reshape, cut and join."""
    home = sys.modules.get("einops.packing")
    backend_of = None if home is None else home.__dict__.get("get_backend")
    if home is None or backend_of is None:
        yield
        return
    backend = backend_of(torch.empty(0))
    vars(home)["get_backend"] = lambda x: backend if isinstance(x, fx.Proxy) else backend_of(x)
    try:
        yield
    finally:
        vars(home)["get_backend"] = backend_of


def layer_as_function(layer: nn.Module) -> Callable[..., Any] | None:
    """Return what a layer of einops (``Rearrange``, ``Reduce``) does, as a call of a function.

    A layer holds its lengths as numbers; in a call they can follow. None for other modules.
    Hooks need no care: copies of such a layer have none (einops copies the pattern alone).
    """
    home = sys.modules.get("einops.layers.torch")
    if home is None or type(layer) not in {home.Rearrange, home.Reduce}:
        return None

    def call(layer: Any, x: Any) -> Any:
        reduction = getattr(layer, "reduction", "rearrange")
        return sys.modules["einops.einops"].reduce(
            x, layer.pattern, reduction, **layer.axes_lengths
        )

    return call


def is_pattern(target: Any) -> bool:
    """Whether a graph's function is one whose sizes :func:`patch_pattern` corrects."""
    return getattr(target, "__module__", "") == "einops.einops"


def patch_pattern(site: Site) -> None:
    """Correct the lengths of axes that a node gives as numbers."""
    noted, node = site.before(), site.node
    lengths = {k: v for k, v in node.kwargs.items() if k not in _GIVEN and isinstance(v, int)}
    pattern = node.args[1] if len(node.args) > 1 else node.kwargs.get("pattern")
    if not lengths or not isinstance(noted, Noted) or not isinstance(pattern, str):
        return
    if not isinstance(site.first(), Noted):
        return
    left, _, right = pattern.partition("->")
    known: dict[str, int] = {}
    sides = (_sizes(left, site.operand().shape), _sizes(right, site.sizes.shape(noted)))
    for _ in lengths:  # every round tells one more axis, at least
        for terms, size in (pair for side in sides for pair in side):
            rest = [t for t in terms if t not in known]
            if len(rest) == 1:
                known[rest[0]] = size // prod(known[t] for t in terms if t in known)
    for name, old in lengths.items():
        if known.get(name, old) != old:
            node.update_kwarg(name, known[name])


def _sizes(side: str, shape: Sequence[int]) -> list[tuple[list[str], int]]:
    """Axes of each dimension with its size; without those that an ellipsis stands for."""
    terms = [
        [t for t in (inside or one).split() if not t.isdigit()]
        for inside, one in _TERMS.findall(side)
    ]
    numbers = [
        prod(int(t) for t in (inside or one).split() if t.isdigit())
        for inside, one in _TERMS.findall(side)
    ]
    if ["..."] in terms:
        at = terms.index(["..."])
        behind = len(terms) - at - 1
        shape = [*shape[:at], 1, *(shape[len(shape) - behind :] if behind else ())]
    if len(terms) != len(shape):
        return []
    pairs = zip(terms, numbers, shape, strict=True)
    return [(axes, size // count) for axes, count, size in pairs if axes and axes != ["..."]]
