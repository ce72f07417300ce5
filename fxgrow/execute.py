"""Running a graph node by node, with the example inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from .errors import DataError
from .walks import named_modules

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .trace import Inputs

__all__ = ["Executor", "ShapeExecutor"]


class Executor:
    """Runs graph nodes one by one; ``values`` holds what has been computed."""

    def __init__(
        self, root: nn.Module, inputs: Inputs, values: dict[fx.Node, Any] | None = None
    ) -> None:
        self.root = root
        self.inputs = inputs
        self.values: dict[fx.Node, Any] = {} if values is None else values
        self.modules = named_modules(root, repeated=True)
        self._position = 0

    def run(self, nodes: Iterable[fx.Node]) -> None:
        """Compute ``nodes`` in order (their inputs must be known)."""
        for node in nodes:
            self.values[node] = self.compute(node)

    def load(self, args: Any) -> Any:
        """Replace nodes in ``args`` by their values."""
        return thawed(fx.node.map_arg(args, self.values.__getitem__))

    def arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Values of a node's positional and keyword arguments."""
        args, kwargs = node.args, node.kwargs
        if len(args) == 1 and type(args[0]) is fx.Node:
            return (self.values[args[0]],), self.load(kwargs) if kwargs else {}
        return self.load(args), self.load(kwargs) if kwargs else {}

    def compute(self, node: fx.Node) -> Any:
        """Compute the value of one node."""
        return getattr(self, node.op)(node)

    def placeholder(self, node: fx.Node) -> Any:
        """Return the example input, or the argument's default."""
        places = [str(n.target) for n in node.graph.nodes if n.op == "placeholder"]
        name = str(node.target)
        position = places.index(name)
        if name.startswith("**"):
            return {k: v for k, v in self.inputs.kwargs.items() if k not in places}
        if name.startswith("*"):
            return self.inputs.args[position:]
        named_only = any(n.startswith("*") for n in places[:position])
        if position < len(self.inputs.args) and not named_only:
            return self.inputs.args[position]
        if name in self.inputs.kwargs:
            return self.inputs.kwargs[name]
        if node.args:
            return node.args[0]
        raise DataError(f"example_inputs lack the model's argument {name!r}")

    def get_attr(self, node: fx.Node) -> Any:
        """Return a parameter, buffer or constant of the root."""
        value: Any = self.root
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value

    def call_module(self, node: fx.Node) -> Any:
        """Run a leaf module."""
        args, kwargs = self.arguments(node)
        return self.modules[str(node.target)](*args, **kwargs)

    def call_function(self, node: fx.Node) -> Any:
        """Run a function."""
        target: Any = node.target  # a callable, here
        args, kwargs = self.arguments(node)
        return target(*args, **kwargs)

    def call_method(self, node: fx.Node) -> Any:
        """Run a tensor method."""
        (head, *rest), kwargs = self.arguments(node)
        return getattr(head, str(node.target))(*rest, **kwargs)

    def output(self, node: fx.Node) -> Any:
        """Return the graph's output."""
        return self.load(node.args[0])


class ShapeExecutor(Executor):
    """Executor whose results only have the right shapes: most plain layers are not run."""

    def call_module(self, node: fx.Node) -> Any:
        """Tell the shape of what a plain layer makes, or run it."""
        from .rules.layers import aten_call

        module = self.modules[str(node.target)]
        module.training = bool(int(module.training))  # not as if somebody asked for it
        args, kwargs = self.arguments(node)
        out = _shaped(None if kwargs else aten_call(module, args))
        return module(*args, **kwargs) if out is NotImplemented else out

    def call_function(self, node: fx.Node) -> Any:
        """Tell the shape of what a plain function makes, or run it."""
        from .rules.layers import aten_function

        target: Any = node.target
        args, kwargs = self.arguments(node)
        out = _shaped(aten_function(target, args, kwargs))
        return target(*args, **kwargs) if out is NotImplemented else out


def _shaped(told: Any) -> Any:
    """Return the shape of an ATen call's (first) result where there is a shortcut to it."""
    from .rules import SHORTCUTS

    shortcut = None if told is None else SHORTCUTS.get(told[0].overloadpacket)
    if shortcut is None:
        return NotImplemented
    with torch._C._DisableTorchDispatch():
        out = shortcut(told[1], {})
    return out[0] if isinstance(out, tuple) else out


def thawed(value: Any) -> Any:
    """Turn fx's immutable containers into plain ones, as the model's code has them.

    A function of the user's may change a list that it is given.
    """
    kind = type(value)
    if kind is tuple:
        return tuple(map(thawed, value))
    if kind is immutable_list:
        return [thawed(item) for item in value]
    if kind is immutable_dict:
        return {key: thawed(item) for key, item in value.items()}
    return value
