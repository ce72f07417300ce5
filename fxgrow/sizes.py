"""Sizes in a traced graph: which ones a number is made of."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

__all__ = ["holds_batch"]


def holds_batch(node: fx.Node) -> bool:
    """Say whether a number may be made of a first dimension: that of the batch, as a rule.

    A number that Python has taken is fixed in the graph; the batch must stay free.
    """
    seen: set[fx.Node] = set()
    queue = [node]
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        if _is_shape(current):
            return True  # of all dimensions
        if current.op == "call_function" and current.target is operator.getitem:
            source, place = current.args
            if isinstance(source, fx.Node) and _is_shape(source):
                if not isinstance(place, int) or place == 0:
                    return True
                continue
        if current.op == "call_method" and current.target in {"size", "stride"}:
            if _dim(current) == 0:
                return True
            continue
        queue.extend(current.all_input_nodes)
    return False


def _dim(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")


def _is_shape(node: fx.Node) -> bool:
    """Whether a node is the shape of a tensor as a whole, or counts all of its entries."""
    if node.op == "call_function" and node.target in {getattr, len}:
        return node.target is len or str(node.args[1]) == "shape"
    if node.op == "call_method" and node.target in {"size", "stride"}:
        return _dim(node) is None
    return node.op == "call_method" and node.target == "numel"
