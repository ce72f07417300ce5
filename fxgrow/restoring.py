"""Sizes that values of a fixed width are computed from: a grown graph reads the old ones.

``torch.arange(x.shape[-1])`` would be longer at the new width. What no unit lies in is as it
was before growth, so a step that makes such a value gets the numbers that it had. Sizes that do
not grow (batch, tokens, pixels) stay what the input's are.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .propagate import Noted
from .tracer import guard

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["differs", "makes_fixed", "restore"]


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
            return tuple(
                old if old != now else self._call(operator.getitem, (node, dim))
                for dim, (now, old) in enumerate(zip(value, before, strict=True))
            )
        if _is_size(node) or _is_entry(node):
            return before  # of a dimension that weights decide about
        if node.op == "call_function" and node.all_input_nodes:
            args = fx.node.map_arg(node.args, self.of)
            kwargs = fx.node.map_arg(node.kwargs, self.of)
            found: list[fx.Node] = []
            fx.node.map_arg((args, kwargs), found.append)
            if found:  # sizes of the input
                return self._call(node.target, args, kwargs)
        return before

    def _call(self, target: Any, args: Any, kwargs: Any = None) -> fx.Node:
        with self.user.graph.inserting_before(self.user):
            return self.user.graph.call_function(target, args, kwargs or {})


def _is_size(node: fx.Node) -> bool:
    """Whether a node asks a tensor for its shape, or for one size."""
    if node.op == "call_method":
        return node.target == "size"
    asked = node.op == "call_function" and node.target is getattr
    return asked and str(node.args[1]) == "shape"


def _is_entry(node: fx.Node) -> bool:
    """Whether a node is one size out of a shape."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return False
    source, place = node.args
    return isinstance(source, fx.Node) and _is_size(source) and isinstance(place, int)
