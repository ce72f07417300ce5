"""Analysis: run a traced graph once under label propagation."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from . import rules
from .errors import DataError, TraceError
from .plain import eagerly, modes_kept
from .propagate import LABELS_KEY, LabelMode, Noted, Propagation, Value
from .trace import Inputs, Traced, no_fast_path
from .tracer import FAILURES, is_user_function
from .whole import hooked, is_own, watching

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn


class Executor:
    """Runs graph nodes one by one; ``values`` holds what has been computed."""

    def __init__(
        self, root: nn.Module, inputs: Inputs, values: dict[fx.Node, Any] | None = None
    ) -> None:
        self.root = root
        self.inputs = inputs
        self.values: dict[fx.Node, Any] = {} if values is None else values
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self._position = 0

    def run(self, nodes: Iterable[fx.Node]) -> None:
        """Compute ``nodes`` in order (their inputs must be known)."""
        for node in nodes:
            self.values[node] = self.compute(node)

    def load(self, args: Any) -> Any:
        """Replace nodes in ``args`` by their values."""
        return fx.node.map_arg(args, self.values.__getitem__)

    def compute(self, node: fx.Node) -> Any:
        """Compute the value of one node."""
        return getattr(self, node.op)(node)

    def placeholder(self, node: fx.Node) -> Any:
        """Return the example input, or the argument's default."""
        places = [n for n in node.graph.nodes if n.op == "placeholder"]
        position = places.index(node)
        name = str(node.target)
        if name.startswith("*"):
            raise DataError(
                f"the model's forward takes {name}; wrap it in a module with named arguments"
            )
        if position < len(self.inputs.args):
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
        return self.modules[str(node.target)](*self.load(node.args), **self.load(node.kwargs))

    def call_function(self, node: fx.Node) -> Any:
        """Run a function."""
        target: Any = node.target  # a callable, here
        return target(*self.load(node.args), **self.load(node.kwargs))

    def call_method(self, node: fx.Node) -> Any:
        """Run a tensor method."""
        head, *rest = self.load(node.args)
        return getattr(head, str(node.target))(*rest, **self.load(node.kwargs))

    def output(self, node: fx.Node) -> Any:
        """Return the graph's output."""
        return self.load(node.args[0])


@dataclass(frozen=True, eq=False)
class Analysis:
    """A traced model and what label propagation learned of it.

    ``planes`` maps every graph node to the planes of its output (nested as the
    output is), for patching sizes.
    """

    traced: Traced
    state: Propagation
    planes: dict[fx.Node, Any]


class LabelExecutor(Executor):
    """Executor that tells the propagation where it is and keeps the planes."""

    def __init__(self, root: nn.Module, inputs: Inputs, state: Propagation) -> None:
        super().__init__(root, inputs)
        self.state = state
        self.planes: dict[fx.Node, Any] = {}

    def compute(self, node: fx.Node) -> Any:
        """Compute one node and write its planes down."""
        self.state.site = node
        try:
            value = super().compute(node)
        except FAILURES as error:
            raise DataError(_failure(node, error)) from error
        self.planes[node] = fx.node.map_aggregate(value, self._note)
        return value

    def call_module(self, node: fx.Node) -> Any:
        """Run a leaf module; sizes hidden in Python code freeze what they touch."""
        module = self.modules[str(node.target)]
        if not hides_sizes(module):
            return super().call_module(node)
        if is_own(module):
            with self.inside(str(node.target)):
                return super().call_module(node)
        value = super().call_module(node)
        self._freeze(
            str(node.target), module, (self.load(node.args), self.load(node.kwargs)), value
        )
        return value

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Watch what the Python code of an opaque leaf does with sizes."""
        witness = self.state.witness
        module = self.modules[name]

        def hidden(part: nn.Module) -> bool:
            return part is not module and not is_own(part) and hides_sizes(part)

        def freeze(inner: str, part: nn.Module, args: Any, out: Any) -> None:
            self._freeze(f"{name}.{inner}" if name else inner, part, args, out)

        if witness is None:
            yield
            return
        with hooked(module, hidden, after=freeze), witness:
            witness.inside += 1
            try:
                yield
            finally:
                witness.inside -= 1

    def _freeze(self, name: str, module: nn.Module, inputs: Any, value: Any) -> None:
        """Freeze what a module touches whose sizes no table knows."""
        axes = self.state.axes.items()
        own = [labels for (tensor, _), labels in axes if tensor.startswith(f"{name}.")]
        tensors: list[torch.Tensor] = []
        _walk((inputs, value), tensors)
        own += [p.labels for t in tensors for p in self.state.planes(t)]
        where = self.state.where(type(module).__name__)
        for labels in own:
            self.state.book.freeze(labels, "opaque", where)

    def call_function(self, node: fx.Node) -> Any:
        """Run a function; reshapes hidden in the user's Python code freeze their labels."""
        known = len(self.state.book.reshapes)
        value = super().call_function(node)
        if is_user_function(node.target):
            for event in self.state.book.reshapes[known:]:
                self.state.book.freeze(event.before, "opaque", event.where)
        return value

    def placeholder(self, node: fx.Node) -> Any:
        """Mark inputs as live: they are the user's, and carry no labels."""
        return fx.node.map_aggregate(super().placeholder(node), _live)

    def output(self, node: fx.Node) -> Any:
        """Freeze what reaches the output: it is the user's interface."""
        value = super().output(node)
        flat: list[torch.Tensor] = []
        _walk(value, flat)
        for tensor in flat:
            self.state.freeze(self.state.planes(tensor), "output", "output")
        return value

    def _note(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        known = value.__dict__.get(LABELS_KEY)
        if known is None:
            known = Value()
        return Noted(tuple(value.shape), known.planes)


_HIDDEN_SIZES = {"input_size", "hidden_size", "in1_features", "in2_features"}


def hides_sizes(module: nn.Module) -> bool:
    """Whether a leaf holds sizes that no table knows: containers, the user's own, LSTMs."""
    if not type(module).__module__.startswith("torch.nn"):
        return True
    children = any(True for child in module.children() for _ in child.parameters())
    return children or bool(_HIDDEN_SIZES & module.__dict__.keys())


def _walk(value: Any, found: list[torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, dict):
        for item in value.values():
            _walk(item, found)
    elif isinstance(value, (tuple, list)):
        for item in value:
            _walk(item, found)


def _live(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        value.__dict__[LABELS_KEY] = Value(live=True)
    return value


def _failure(node: fx.Node, error: BaseException) -> str:
    where = node.meta.get("source") or "the graph"
    return (
        f"the model does not run on the example inputs: {error} (node {node.name}, {where}); "
        "check their shapes and types"
    )


def tensor_names(root: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by their first name."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def analyse(traced: Traced) -> Analysis:
    """Propagate labels through the graphs of both modes.

    Parameters
    ----------
    traced : Traced
        Where a norm can't train on the example inputs, every sample is taken twice.

    Returns
    -------
    Analysis

    Raises
    ------
    DataError
        When the model does not run on the example inputs.
    TraceError
        When its forward writes into its own parameters.
    """
    try:
        return _analyse(traced)
    except DataError:
        if len(traced.distinct) == 1:
            raise
    return _analyse(replace(traced, inputs=traced.inputs.doubled()))


def _analyse(traced: Traced) -> Analysis:
    state = Propagation({id(t): name for name, t in tensor_names(traced.root).items()})
    planes: dict[fx.Node, Any] = {}
    for mode, graph in traced.distinct:
        planes.update(propagate(traced, mode, graph, state))
    state.book.settle()
    return Analysis(traced, state, planes)


def propagate(traced: Traced, mode: str, graph: fx.Graph, state: Propagation) -> dict[fx.Node, Any]:
    """Run one graph in one mode; return the planes of its nodes."""
    root = traced.root
    versions = [(p, p._version) for p in root.parameters()]
    executor = LabelExecutor(root, traced.inputs, state)
    try:
        with (
            modes_kept(root, training=mode == "train"),
            no_fast_path(),
            eagerly(),
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            LabelMode(state, rules),
            watching(root, graph, state, hides_sizes),
        ):
            executor.run(graph.nodes)
    finally:
        executor.values.clear()
    if any(p._version != version for p, version in versions):
        raise TraceError(
            "the model's forward writes into its own parameters; it can't be analysed without "
            "changing it: compute on a copy of the parameter there"
        )
    return executor.planes
