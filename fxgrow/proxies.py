"""Traced values: what Python code gets in place of tensors and sizes.

What a leaf leaves out is None to the code, too: ``state is not None`` asks no traced value
anything, and a graph would go a way that the model itself does not go.
"""

from __future__ import annotations

import operator
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .recorder import unpacked

if TYPE_CHECKING:
    from .tracer import Tracer

__all__ = ["Attribute", "Proxy"]


class Proxy(fx.Proxy):
    """A traced value that can also be written into."""

    tracer: Tracer

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __getitem__(self, index: Any) -> Any:
        """Take a part; of what a leaf returns, None is None to the code, too."""
        part = super().__getitem__(index)  # type: ignore[misc]  # fx gives it its operators later
        asked = _asked_of_leaf(self.tracer, self.node, index)
        return None if asked and _is_absent(self.tracer, part.node) else part

    def __iter__(self) -> Any:
        """Unpack into as many values as the calling code takes, else as there are."""
        caller = sys._getframe(1)
        count = unpacked(caller.f_code.co_code, caller.f_lasti)
        if count is None:
            return self.tracer.iter(self)
        return iter([self[i] for i in range(count)])

    def __len__(self) -> int:
        """Length of a tuple or shape; that of a tensor is the data's and stays unknown."""
        value = self.tracer.concrete(self.node)
        if isinstance(value, torch.Tensor):
            raise TypeError("'len' of a traced tensor")  # list() goes on without it
        return len(value)

    def __int__(self) -> int:
        return int(self.tracer.number(self.node, int))

    def __float__(self) -> float:
        return float(self.tracer.number(self.node, float))

    def __index__(self) -> int:
        """Rank of a tensor, as in ``range(1, weight.ndim)``: the same at any width."""
        if self.tracer._origins(self.node):
            raise TypeError("a traced value can't be interpreted as an integer")
        return int(self.tracer.concrete(self.node))

    def __getattr__(self, name: str) -> Any:
        part = Attribute(self, name)
        asked = _asked_of_leaf(self.tracer, self.node, name)
        return None if asked and _is_absent(self.tracer, part.node) else part

    @property
    def data(self) -> Any:
        """A tensor's data, which no graph can replace."""
        return self.__getattr__("data")

    @data.setter
    def data(self, value: Any) -> None:
        raise TypeError("a traced tensor is given other data")


class Attribute(Proxy, fx.proxy.Attribute):
    """An attribute of a traced value, such as its shape, or a method."""


def _asked_of_leaf(tracer: Tracer, node: fx.Node, key: Any) -> bool:
    """Whether ``key`` is asked of what a module that is called as a whole has returned.

    What all tensors have is no part of such a result, and needs no look at it.
    """
    if not isinstance(key, (int, str)) or hasattr(torch.Tensor, str(key)):
        return False
    if node.op == "call_function" and node.target in _PARTS:
        whole, of_whole = node.args[:2]
        return isinstance(whole, fx.Node) and _asked_of_leaf(tracer, whole, of_whole)
    if node.op != "call_module":
        return False
    module = tracer.root.get_submodule(str(node.target))
    return not type(module).__module__.startswith("torch.")


def _is_absent(tracer: Tracer, part: fx.Node) -> bool:
    """Whether a part of a leaf's result is None on the example inputs; the graph guards it."""
    from .tracer import FAILURES, guard

    try:
        absent = tracer.concrete(part) is None
    except FAILURES:  # nothing is known of it without its values
        return False
    if absent:
        asked = tracer.create_node("call_function", operator.is_, (part, None), {})
        tracer.create_node("call_function", guard, (asked, True), {})
    return absent


_PARTS = (operator.getitem, getattr)
