"""Analysis: run a traced graph once under label propagation."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from .errors import DataError, TraceError
from .execute import Executor
from .inner import freeze_inner
from .kept import kept
from .patterns import is_pattern
from .placing import settle as settle_placements
from .plain import eagerly, modes_kept
from .planes import Plane
from .preserve import weight_of
from .propagate import LABELS_KEY, Call, LabelMode, Noted, Propagation, Value
from .recorder import is_user_function
from .rules.layers import aten_call, aten_function
from .rules.own import Rules, name_of
from .rules.recurrent import couple, is_recurrent, unroll
from .second import Recording, Second
from .trace import Inputs, Traced, no_fast_path
from .tracer import FAILURES, KEPT_WHOLE
from .walks import holds_inside, parameters, tensor_names
from .whole import hooked, is_own, replaced, watching

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .planes import Axis, Labels


@dataclass(frozen=True, eq=False)
class Analysis:
    """A traced model and what label propagation learned of it.

    ``planes`` maps every graph node to the planes of its output (nested as the
    output is), for patching sizes.
    """

    traced: Traced
    state: Propagation
    planes: dict[fx.Node, Any]

    @cached_property
    def trains(self) -> bool:
        """Whether anything requires gradients; where nothing does, no part of it rests."""
        return any(p.requires_grad for p in parameters(self.traced.root))

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters, buffers and tables by their first names."""
        return tensor_names(self.traced.root)


# Functions that make blank tensors, of sizes that are patched or follow their inputs.
_BLANK = {*KEPT_WHOLE, "new_zeros"}


class LabelExecutor(Executor):
    """Executor that tells the propagation where it is and keeps the planes."""

    def __init__(self, root: nn.Module, inputs: Inputs, state: Propagation, rules: Rules) -> None:
        super().__init__(root, inputs)
        self.state = state
        self.rules = rules
        self.mode = LabelMode(state, rules)
        state.run = self
        self.planes: dict[fx.Node, Any] = {}
        self.record: Recording | None = None
        self.second: Second | None = None

    def run(self, nodes: Iterable[fx.Node]) -> None:
        """Compute ``nodes``; with true values where Python code may look at them."""
        nodes = list(nodes)
        self.state.computed = self.state.computed or any(map(self._may_look, nodes))
        super().run(nodes)

    def _may_look(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            own = not type(module).__module__.startswith("torch.")
            return own or self.rules.declared(module) is not None
        return node.op == "call_function" and self.rules.declared(node.target) is not None

    def compute(self, node: fx.Node) -> Any:
        """Compute one node and write its planes down."""
        kept = None if self.second is None else self.second.of(node)
        if kept is not None:
            self.planes[node] = kept.planes
            return kept.value
        self.state.site = node
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        self.state.resized = node.target in _BLANK or (module is not None and is_recurrent(module))
        if self.record is not None:
            self.record.begin()
        try:
            value = super().compute(node)
        except FAILURES as error:
            raise DataError(_failure(node, error)) from error
        planes = self.planes[node] = self._noted(value)
        if self.record is not None:
            self.record.end(node, value, planes)
        return value if self.second is None else self.second.stands_for(node, value, planes)

    def call_module(self, node: fx.Node) -> Any:
        """Run a leaf module; sizes hidden in Python code freeze what they touch."""
        name = str(node.target)
        module = self.modules[name]
        args, kwargs = self.arguments(node)
        told = None if self.state.computed or kwargs else aten_call(module, args)
        if told is not None and self.rules.declared(module) is None:
            out = self.mode.told(*told)
            self._note_leaf(module, f"{name}.")
            return out if isinstance(out, torch.Tensor) else out[0]
        hidden = self.rules.declared(module) is None and hides_sizes(module)
        with self.inside(name) if hidden and is_own(module) else nullcontext():
            value = self._leaf(name, module, module, args, kwargs)
        if hidden and not is_own(module):
            self._freeze(name, module, (args, kwargs), value)
        return value

    def _leaf(self, name: str, module: nn.Module, call: Any, args: Any, kwargs: Any) -> Any:
        """Run a module by ``call``; its class may have a rule."""
        if is_recurrent(module):  # only its own weights are weights to it
            kwargs = fx.node.map_aggregate(kwargs, self._as_activation)
            args = (*args[:1], *fx.node.map_aggregate(args[1:], self._as_activation))
            value = unroll(self.state, module, call, args, kwargs)
        else:
            value = self._run(module, call, args, kwargs)
        self._note_leaf(module, f"{name}.")
        return value

    def _run(self, called: Any, call: Any, args: Any, kwargs: Any) -> Any:
        """Call a leaf; where the caller has a rule for it, nothing inside is labelled."""
        declared = self.rules.declared(called)
        if declared is None or declared.rule is None:
            return call(*args, **kwargs)
        self.state.paused = True
        try:
            value = call(*args, **kwargs)
        finally:
            self.state.paused = False
        owner = called if isinstance(called, nn.Module) else None
        noted = Call(name_of(declared.target), args, kwargs, value, owner)
        planes = self.rules.apply(declared, self.state, noted)
        self.state.assign(value, planes, weight=False, live=True)
        return value

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Watch what the Python code of an opaque leaf does with sizes."""
        module, witness = self.modules[name], self.state.witness
        prefix = f"{name}." if name else ""

        def ruled(part: nn.Module) -> bool:
            return part is not module and (
                is_recurrent(part) or self.rules.declared(part) is not None
            )

        def hidden(part: nn.Module) -> bool:
            return part is not module and not is_own(part) and hides_sizes(part)

        def run(inner: str, part: nn.Module, call: Any, args: Any, kwargs: Any) -> Any:
            before, self.state.resized = self.state.resized, is_recurrent(part)
            declared = self.rules.declared(part) is not None
            try:
                with witness.muted() if witness is not None and declared else nullcontext():
                    return self._leaf(prefix + inner, part, call, args, kwargs)
            finally:
                self.state.resized = before

        def freeze(inner: str, part: nn.Module, inputs: Any, out: Any) -> None:
            if self.rules.declared(part) is None:
                self._freeze(prefix + inner, part, inputs, out)

        watch = nullcontext() if witness is None else witness.watch()
        with replaced(module, ruled, run), hooked(module, hidden, freeze), watch:
            yield

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

    def _as_activation(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        planes = tuple(Plane(p.labels) for p in self.state.planes(value))
        value = value.detach()
        value.__dict__[LABELS_KEY] = Value(planes, live=True)
        return value

    def _note_leaf(self, module: nn.Module, prefix: str) -> None:
        """Add what a leaf's own names say: which weight a bias belongs to, one hidden width."""
        roles = self.state.roles
        for name in module._parameters:
            if not name.startswith("bias"):
                continue
            axis = (prefix + name, 0)
            # Where torch adds a bias by itself it looks like any addition.
            if axis in self.state.axes and "producer" in roles.get((weight_of(axis[0]), 0), ()):
                roles.setdefault(axis, set()).add("producer")
        if is_recurrent(module):
            couple(self.state, module, prefix)

    def call_function(self, node: fx.Node) -> Any:
        """Run a function; reshapes hidden in the user's Python code freeze their labels."""
        known = len(self.state.book.reshapes)
        target: Any = node.target
        args, kwargs = self.arguments(node)
        plain = not (self.state.computed or self.rules.own)
        told = aten_function(target, args, kwargs) if plain else None
        if told is not None:
            out = self.mode.told(*told)
            return out if isinstance(out, torch.Tensor) else out[0]
        value = self._run(target, target, args, kwargs)
        known_sizes = is_pattern(target) or self.rules.declared(target) is not None
        if is_user_function(target) and not known_sizes:
            for event in self.state.book.reshapes[known:]:
                self.state.book.freeze(event.before, "opaque", event.where)
        return value

    def call_method(self, node: fx.Node) -> Any:
        """Run a method; what is expanded as another tensor is, is as long at any width."""
        value = super().call_method(node)
        if node.target == "expand_as":
            self.state.align(
                value, self.load(node.args[1] if node.args[1:] else node.kwargs["other"])
            )
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

    def _noted(self, value: Any) -> Any:
        """Write planes down in plain containers (packed sequences take nothing but tensors)."""
        if isinstance(value, torch.Tensor):
            known = value.__dict__.get(LABELS_KEY)
            return Noted(tuple(value.shape), () if known is None else known.planes)
        if isinstance(value, dict):
            return {key: self._noted(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return tuple(self._noted(item) for item in value)
        return value


def hides_sizes(module: nn.Module) -> bool:
    """Whether a leaf holds sizes that no table knows: containers, the user's own."""
    if not type(module).__module__.startswith("torch.nn"):
        return True
    if is_recurrent(module) and (module._forward_pre_hooks or module._modules):
        return True  # computed weights, of which recurrent layers keep lists
    return holds_inside(module)


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


def analyse(traced: Traced, outer: Mapping[Axis, Labels] | None = None) -> Analysis:
    """Propagate labels through the graphs of both modes.

    Parameters
    ----------
    traced : Traced
        Where a norm can't train on the example inputs, every sample is taken twice.
    outer : dict of (tensor, dim) to numpy.ndarray of int64, optional
        Units that stay as many as they are, while their inner axis grows (:mod:`fxgrow.inner`).

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
        return _analyse(traced, outer)
    except DataError as error:
        if len(traced.distinct) == 1:
            raise
        try:
            return _analyse(replace(traced, inputs=traced.inputs.doubled()), outer)
        except DataError:
            raise error from None  # what is wrong with the inputs as they were given


def _analyse(traced: Traced, outer: Mapping[Axis, Labels] | None) -> Analysis:
    names = {id(t): name for name, t in tensor_names(traced.root).items()}
    state = Propagation(names, outer or {})
    (mode, graph), *others = traced.distinct
    record = Recording(state) if others and not traced.rules.own else None
    planes = propagate(traced, mode, graph, state, record=record)
    for mode, graph in others:
        tensors, products = state.tensor_flops, state.product_flops
        state.tensor_flops, state.product_flops = Counter(), []
        second = Second(record) if record is not None and record.nodes else None
        planes.update(propagate(traced, mode, graph, state, second=second))
        # Once per weight and product, though both modes use it.
        state.tensor_flops |= tensors
        known = sum(p.flops for p in products)
        if second is not None or known >= sum(p.flops for p in state.product_flops):
            state.product_flops = [*products, *(state.product_flops if second is not None else ())]
    state.book.settle()
    settle_placements(state)
    freeze_inner(state)
    return Analysis(traced, state, planes)


def propagate(
    traced: Traced,
    mode: str,
    graph: fx.Graph,
    state: Propagation,
    *,
    record: Recording | None = None,
    second: Second | None = None,
) -> dict[fx.Node, Any]:
    """Run one graph in one mode, of which ``record`` takes notes; return its nodes' planes."""
    root = traced.root
    own = parameters(root)
    versions = [p._version for p in own]
    executor = LabelExecutor(root, traced.inputs, state, traced.rules)
    executor.record, executor.second = record, second
    try:
        with (
            kept(own) as keeper,
            modes_kept(root, training=mode == "train"),
            no_fast_path(),
            eagerly(root),
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            executor.mode,
            watching(executor.modules, graph, state, hides_sizes),
        ):
            state.keeper = keeper
            executor.run(graph.nodes)
    finally:
        executor.values.clear()
        state.run = state.keeper = None
    if keeper.replaced or [p._version for p in own] != versions:
        raise TraceError(
            "the model's forward writes into its own parameters; it can't be analysed without "
            "changing it: compute on a copy of the parameter there"
        )
    return executor.planes
