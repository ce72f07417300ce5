"""Sizes that values of a fixed width are computed from: a grown graph reads the old ones.

``torch.arange(x.shape[-1])`` would be longer at the new width. What no unit lies in is as it
was before growth, so a step that makes such a value gets the numbers that it had. Sizes that do
not grow (batch, tokens, pixels) stay what the input's are.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from .propagate import Noted
from .tracer import guard

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["differs", "is_told", "makes_fixed", "restore"]


def differs(value: Any, before: Any) -> bool:
    """Whether a number, or a shape, is another one than before growth."""
    if isinstance(value, torch.Size):
        return isinstance(before, tuple) and tuple(value) != before
    numbers = isinstance(value, (int, float)) and isinstance(before, (int, float))
    return numbers and value != before


def makes_fixed(node: fx.Node, known: Mapping[fx.Node, Any]) -> bool:
    """Whether a node makes a tensor, writes into one, or guards a truth.

    Parameters
    ----------
    node : torch.fx.Node
    known : dict of torch.fx.Node to value
        Before growth.
    """
    if node.op not in {"call_function", "call_method", "call_module"}:
        return False
    if node.target is guard:
        return isinstance(node.args[1], bool)
    written = node.args[0] if node.target is operator.setitem else node
    return isinstance(written, fx.Node) and isinstance(known.get(written), Noted)


def is_told(node: fx.Node) -> bool:
    """Whether the first input of a node only tells it a type and device: ``x.new_zeros(3)``."""
    return node.op == "call_method" and str(node.target).startswith("new_")


def restore(node: fx.Node, values: Mapping[fx.Node, Any], known: Mapping[fx.Node, Any]) -> bool:
    """Give a node the numbers that it had before growth; say whether it had others.

    Parameters
    ----------
    node : torch.fx.Node
        Changed in place; expressions that it needs are put before it.
    values, known : dict of torch.fx.Node to value
        After growth and before it.
    """
    made = _Restored(node, values, known)
    changed = [n for n in node.all_input_nodes if differs(values[n], known.get(n))]
    old = {given: made.of(given) for given in changed}
    node.args = fx.node.map_arg(node.args, lambda n: old.get(n, n))
    node.kwargs = fx.node.map_arg(node.kwargs, lambda n: old.get(n, n))
    return bool(changed)


class _Restored:
    """Expressions of old sizes, each made once for a node that needs them."""

    def __init__(
        self, user: fx.Node, values: Mapping[fx.Node, Any], known: Mapping[fx.Node, Any]
    ) -> None:
        self.user, self.values, self.known = user, values, known
        self._made: dict[fx.Node, Any] = {}

    def of(self, node: fx.Node) -> Any:
        """Return what stands for a node: itself, a number, or a new expression."""
        value, before = self.values.get(node), self.known.get(node)
        if isinstance(value, torch.Tensor) or not differs(value, before):
            return node
        if node not in self._made:
            self._made[node] = self._old(node, value, before)
        return self._made[node]

    def _old(self, node: fx.Node, value: Any, before: Any) -> Any:
        if isinstance(value, torch.Size) and _is_size(node):
            entries = enumerate(zip(value, before, strict=True))
            return tuple(self._entry(node, dim, now, old) for dim, (now, old) in entries)
        place = _place_of(node)
        if place is not None:
            source, dim = place
            whole = self._all_units(source, dim, before)
            return before if whole else self._ratio(node, value, before)
        if node.op == "call_function" and node.all_input_nodes:
            args = fx.node.map_arg(node.args, self.of)
            kwargs = fx.node.map_arg(node.kwargs, self.of)
            found: list[fx.Node] = []
            fx.node.map_arg((args, kwargs), found.append)
            if found:  # sizes of the input
                return self._call(node.target, args, kwargs)
        return before

    def _entry(self, shape: fx.Node, dim: int, now: int, old: int) -> Any:
        if now != old and self._all_units(shape.all_input_nodes[0], dim, old):
            return old
        size = self._call(operator.getitem, (shape, dim))
        return size if now == old else self._ratio(size, now, old)

    def _ratio(self, node: fx.Node, now: int, old: int) -> fx.Node:
        """Follow the sizes of the input that a size may be made of beside the units."""
        return self._call(operator.floordiv, (self._call(operator.mul, (node, old)), now))

    def _all_units(self, source: fx.Node, dim: int, size: int) -> bool:
        """Whether every position along a dimension is a unit of its own, so that its size is."""
        noted = self.known.get(source)
        if not isinstance(noted, Noted):
            return False
        own = [p.labels for p in noted.planes if p.dims == (dim % len(noted.shape),)]
        return any(len(np.unique(labels)) == size for labels in own)

    def _call(self, target: Any, args: Any, kwargs: Any = None) -> fx.Node:
        with self.user.graph.inserting_before(self.user):
            return self.user.graph.call_function(target, args, kwargs or {})


def _is_size(node: fx.Node) -> bool:
    """Whether a node asks a tensor for its shape, or for one size."""
    if node.op == "call_method":
        return node.target == "size"
    asked = node.op == "call_function" and node.target is getattr
    return asked and str(node.args[1]) == "shape"


def _place_of(node: fx.Node) -> tuple[fx.Node, int] | None:
    """Tensor and dimension that a node asks for the size of."""
    if node.op == "call_method" and node.target == "size":
        dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return (node.all_input_nodes[0], dim) if isinstance(dim, int) else None
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    source, place = node.args
    if not (isinstance(source, fx.Node) and _is_size(source) and isinstance(place, int)):
        return None
    return source.all_input_nodes[0], place
