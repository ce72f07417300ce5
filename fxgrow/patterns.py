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

from .propagate import Noted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import ModuleType

    from torch import nn

    from .patch import Site

__all__ = [
    "hold_lengths",
    "is_pattern",
    "is_pattern_layer",
    "layer_as_function",
    "patch_pattern",
    "pattern_functions",
    "read_anew",
    "taken_for_tensors",
]

_GIVEN = ("tensor", "pattern", "reduction")
_TERMS = re.compile(r"\(([^()]*)\)|(\S+)")


def pattern_functions() -> tuple[tuple[Callable[..., Any], ...], list[ModuleType]]:
    """Functions of einops that stay whole, and the modules they are called from.

    Nothing is imported: who has not imported einops does not call it. Everything but its
    ``einsum`` goes through ``reduce``, or (``pack``, ``unpack``) is traced; see
    :func:`taken_for_tensors`.
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
def taken_for_tensors(kinds: Iterable[type]) -> Iterator[None]:
    """Let einops take values of these types for tensors of torch; it asks what a type is."""
    home = sys.modules.get("einops._backends")
    known: dict[type, Any] = {} if home is None else home.__dict__.get("_type2backend", {})
    if home is not None:
        known.update(dict.fromkeys(kinds, home.get_backend(torch.empty(0))))
    try:
        yield
    finally:
        for kind in kinds:
            known.pop(kind, None)


def layer_as_function(layer: nn.Module) -> Callable[..., Any] | None:
    """Return what a layer of einops (``Rearrange``, ``Reduce``) does, as a call of a function.

    A layer holds its lengths as numbers; in a call they can follow. None for other modules.
    Hooks need no care: copies of such a layer have none (einops copies the pattern alone).
    """
    if not is_pattern_layer(layer):
        return None

    def call(layer: Any, x: Any) -> Any:
        reduction = getattr(layer, "reduction", "rearrange")
        return sys.modules["einops.einops"].reduce(
            x, layer.pattern, reduction, **layer.axes_lengths
        )

    return call


def is_pattern_layer(module: Any) -> bool:
    """Whether a module is a layer of einops that holds lengths of axes."""
    home = sys.modules.get("einops.layers.torch")
    return home is not None and type(module) in {home.Rearrange, home.Reduce}


def hold_lengths(layer: Any, lengths: Mapping[str, int]) -> None:
    """Give such a layer other lengths: it keeps them twice, to show and to compute with."""
    layer.axes_lengths = dict(lengths)
    layer._axes_lengths = tuple(lengths.items())


@contextmanager
def read_anew() -> Iterator[None]:
    """Let einops compute the sizes of every call, where they are to remember their origin.

    It keeps what it computed by the sizes that it was given: numbers of another call.
    """
    home: Any = sys.modules.get("einops.einops")
    fresh = getattr(home, "_reconstruct_from_shape_uncached", None)
    if fresh is None:
        yield
        return
    kept = home._reconstruct_from_shape
    home._reconstruct_from_shape = fresh
    try:
        yield
    finally:
        home._reconstruct_from_shape = kept


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
