"""The symbolic tracer: records what a module's Python code does with traced values.

Built on ``torch.fx.Tracer``, with three additions. Where Python asks for the truth of a
traced value (``if h % 2``), or for a number (``int(h)``), the value is computed from the
example inputs and guarded in the graph. Composite ``torch.nn`` modules that hold parameters
in children, and wrapped functions that are given parameters, are opened, because
their sizes may have to grow. A submodule that still can't be traced becomes a leaf.
"""

from __future__ import annotations

import inspect
import operator
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.nn.utils import rnn

from .compose import DECOMPOSITIONS, MODULE_DECOMPOSITIONS
from .errors import TraceError
from .kept import Keeper
from .patterns import layer_as_function, pattern_functions, read_anew, taken_for_tensors
from .proxies import Attribute, Proxy
from .recorder import Flag, Recorder, gives_parameter, is_user_function
from .sizes import holds_batch
from .unused import drop_unused
from .walks import holds_inside, is_parametrised_by_user

if TYPE_CHECKING:
    from collections.abc import Callable

    from .execute import Executor
    from .rules.own import Rules
    from .trace import Inputs

__all__ = ["FAILURES", "KEPT_WHOLE", "Flag", "Tracer", "graph_of", "guard"]

FAILURES = (
    *(TypeError, ValueError, RuntimeError, AttributeError),
    *(NotImplementedError, AssertionError, IndexError, KeyError),
)
_REFUSALS = (*FAILURES, fx.proxy.TraceError)


# Functions whose nodes stand for themselves: their Python code can't take traced values.
KEPT_WHOLE = (
    *(torch.zeros, rnn.pack_padded_sequence, rnn.pack_sequence),
    *(rnn.pad_packed_sequence, rnn.pad_sequence),
)
# Functions of sizes, types and devices, which do not take traced ones (in torch 2.6, the most).
_FACTORIES = (
    *(torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones),
    *(torch.finfo, torch.iinfo),
)


class Tracer(Recorder):
    """Symbolic tracer that knows the example inputs."""

    def __init__(self, inputs: Inputs, rules: Rules) -> None:
        patterns, callers = pattern_functions()
        super().__init__((), param_shapes_constant=False)
        self.whole = (*KEPT_WHOLE, *_FACTORIES, *patterns, *rules.functions)
        # Wherever they are called from, by whatever name.
        homes = (sys.modules.get(function.__module__) for function in rules.functions)
        self.homes = [*callers, *(home for home in homes if home)]
        self.inputs = inputs
        self.rules = rules
        self.values: dict[fx.Node, Any] = {}
        self._by_values: set[fx.Node] = set()  # whose sizes the values of tensors decide
        self._executor: Executor | None = None
        self._busy = False
        self._parameters: dict[str, Any] = {}
        self.keeper: Keeper | None = None

    # -- what is opened ---------------------------------------------------------

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Open torch.nn modules whose children hold parameters, keep the others.

        Modules of the caller's rules are kept.
        """
        if self.rules.declared(m) is not None:
            return True
        if super().is_leaf_module(m, module_qualified_name):
            return not (m._modules and (holds_inside(m) or is_parametrised_by_user(m)))
        return False

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace into ``m``; what can't be traced becomes a leaf."""
        if self._busy:  # computing an example value, not tracing
            for part in m.modules():
                part.training = bool(int(part.training))
            return forward(*args, **kwargs)
        body = MODULE_DECOMPOSITIONS.get(type(m)) or layer_as_function(m)
        if body is None:
            name = self.path_of_module(m)
            if self.is_leaf_module(m, name):
                return self.record(m, name, args, kwargs)
        self.wrapped.look(getattr(m.forward, "__globals__", {}))
        last = next(iter(reversed(self.graph.nodes)), None)
        if body is not None:
            try:
                return body(m, *args, **kwargs)
            except _REFUSALS:
                self._forget_after(last)
        return self._opened(m, last, forward, args, kwargs)

    def _opened(
        self, m: nn.Module, last: fx.Node | None, forward: Any, args: Any, kwargs: Any
    ) -> Any:
        name, stack = self.path_of_module(m), self.module_stack.copy()
        try:
            if self.is_leaf_module(m, name):
                return self.record(m, name, args, kwargs)
            return self.open(m, name, forward, args, kwargs)
        except _REFUSALS:
            self._forget_after(last)
            # It is left as it was when tracing failed.
            self.module_stack = stack
            if not self.proxy_buffer_attributes:
                # A buffer cut to the input's size can only be cut in the graph.
                return self._with_buffers(m, forward, args, kwargs)
            if m is self.root:
                raise
            leaf = self.create_proxy("call_module", name, args, kwargs)
            self._refuse_variants(leaf.node)
            return leaf

    def _refuse_variants(self, leaf: fx.Node) -> None:
        """Refuse a leaf that may return other things than now: values decide its sizes."""
        with suppress(*_REFUSALS):
            for node in leaf.all_input_nodes:
                self.concrete(node)
        decided = not self._by_values.isdisjoint(leaf.all_input_nodes)
        if decided and not isinstance(self.concrete(leaf), torch.Tensor):
            raise fx.proxy.TraceError("the values of tensors may decide what a module returns")

    def _with_buffers(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.proxy_buffer_attributes = True
        try:
            return self.call_module(m, forward, args, kwargs)
        finally:
            self.proxy_buffer_attributes = False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Attribute access of modules: parameters become graph nodes while tracing."""
        if self._busy:
            return attr_val
        self._parameters = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any
    ) -> Any:
        """Open functions that are given parameters and have constants inside."""
        if kind == "call_function" and not self._busy:
            body = DECOMPOSITIONS.get(target)
            opaque = self.rules.declared(target) is None and is_user_function(target)
            if body is None and opaque and gives_parameter((args, kwargs)):
                body = target
            if body is not None:
                last = next(iter(reversed(self.graph.nodes)), None)
                try:
                    return body(*args, **kwargs)
                except _REFUSALS:
                    self._forget_after(last)
        return super().create_proxy(kind, target, args, kwargs, *rest, **more)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wrap a node."""
        return Proxy(node, self)

    def _forget_after(self, last: fx.Node | None) -> None:
        for node in reversed(list(self.graph.nodes)):
            if node is last:
                return
            if not node.users:
                self.graph.erase_node(node)
                self.values.pop(node, None)
                if node.op == "get_attr":  # older torches would go on using it
                    self._parameters.pop(str(node.target), None)

    # -- concrete values ---------------------------------------------------------

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Compute the truth of a value; guard it where it depends on shapes."""
        if obj.node.target is getattr and obj.node.args[1] == "requires_grad":
            return self._requires_grad(obj.node.args[0])
        truth = bool(self.concrete(obj.node))
        origins = self._origins(obj.node)
        if "data" in origins:
            raise fx.proxy.TraceError("control flow depends on the values of tensors")
        if "size" in origins:
            self.create_node("call_function", guard, (obj.node, truth), {})
        return truth

    def number(self, node: fx.Node, kind: type[float]) -> float:
        """Compute a number that the code turns into one of Python's, and guard it."""
        value = self.concrete(node)
        if isinstance(value, bool):  # a decision, counted: ``sum(int(size == -1) ...)``
            return kind(self.to_bool(self.proxy(node)))
        sized = isinstance(value, (int, float)) and "data" not in self._origins(node)
        if not sized or holds_batch(node):
            raise fx.proxy.TraceError(f"{kind.__name__} of what is no size, or may be the batch's")
        self.create_node("call_function", guard, (node, kind(value)), {})
        return kind(value)

    def _requires_grad(self, node: Any) -> bool:
        """Answer for a run in the mode at hand: in training, what the model computes does."""
        training = bool(self.root.training)  # asks the flag, so that both modes are traced
        if node.op in {"placeholder", "get_attr"}:
            return bool(self.concrete(node).requires_grad)
        return training

    def iter(self, obj: Any) -> Any:
        """Unpack tensors' shapes and tuples: their length is known."""
        try:
            return super().iter(obj)
        except fx.proxy.TraceError:
            value = self.concrete(obj.node)
            if not isinstance(value, (tuple, list, torch.Tensor)):
                raise
            return iter([obj[i] for i in range(len(value))])

    def _origins(self, node: fx.Node) -> set[str]:
        """Say what a condition reads: sizes, data, or only ranks and types (nothing)."""
        found, seen, queue = set(), set(), [node]
        while queue:
            current = queue.pop()
            if current in seen:
                continue
            seen.add(current)
            method: Any = current.target if current.op == "call_method" else None
            if current.op == "call_function" and current.target is getattr:
                method = current.args[1]
            if method in _SIZES or (current.op == "call_function" and current.target is len):
                known = self._by_values.isdisjoint(current.all_input_nodes)
                found.add("size" if known else "data")
            elif method not in _STATIC:
                if isinstance(self.values.get(current), torch.Tensor):
                    found.add("data")
                queue.extend(current.all_input_nodes)
        return found

    def concrete(self, node: fx.Node) -> Any:
        """Value of ``node`` on the example inputs; tensors have shapes, not values."""
        from .dispatch import ShapeMode
        from .execute import ShapeExecutor

        if self._executor is None:
            self._executor = ShapeExecutor(self.root, self.inputs, self.values)

        needed, queue = set(), [node]
        while queue:
            current = queue.pop()
            if current not in needed and current not in self.values:
                needed.add(current)
                queue.extend(current.all_input_nodes)
        self._busy = True
        try:
            with ShapeMode() as mode:  # type: ignore[no-untyped-call]  # torch does not annotate it
                mode.keeper = self.keeper
                for one in sorted(needed, key=self.numbers.__getitem__):
                    mode.by_values = not self._by_values.isdisjoint(one.all_input_nodes)
                    self._executor.run([one])
                    if mode.by_values:
                        self._by_values.add(one)
        finally:
            self._busy = False
        return self.values[node]


_SIZES = {"shape", "size", "numel", "stride", "data_ptr"}
_STATIC = {
    *("dim", "is_floating_point", "is_complex", "is_contiguous", "is_nested"),
    *("ndim", "dtype", "device", "is_cuda", "requires_grad", "layout", "is_sparse"),
    "is_quantized",
}


def guard(value: Any, expected: float) -> None:
    """Refuse inputs for which the traced control flow would have gone another way.

    Raises
    ------
    RuntimeError
        When ``value``, or its truth, is not what it was for the example inputs.
    """
    if type(expected)(value) != expected:
        raise RuntimeError(
            "this input takes another path through the model's Python code than the example "
            "inputs did when the model was grown; grow it with example inputs of this shape"
        )


# Passes that drop unused nodes must keep both: they have effects but no readers.
fx.node._side_effectful_functions.update({guard, operator.setitem})


def graph_of(root: nn.Module, inputs: Inputs, rules: Rules, keeper: Keeper) -> fx.Graph:
    """Trace ``root`` in the mode it is in; ``keeper`` restores its parameters.

    Raises
    ------
    TraceError
        When its forward can't be a graph.
    """
    try:
        try:
            graph = _attempt(root, inputs, rules, keeper)
        except _REFUSALS:
            graph = _attempt(root, inputs, rules, keeper, buffers=True)
    except _REFUSALS as error:
        raise TraceError(
            f"no graph of {type(root).__name__} could be traced: {type(error).__name__}: {error}"
        ) from error
    drop_unused(graph)
    return graph


Recorder.last = graph_of.__code__


def _attempt(
    root: nn.Module, inputs: Inputs, rules: Rules, keeper: Keeper, *, buffers: bool = False
) -> fx.Graph:
    """Trace once; ``buffers`` records what is done with them, e.g. cutting to the input's size."""
    tracer = Tracer(inputs, rules)
    tracer.proxy_buffer_attributes = buffers
    tracer.keeper = keeper
    try:
        with torch.no_grad(), taken_for_tensors((Proxy, Attribute)), read_anew():
            graph = tracer.trace(root, concrete_args=_defaults(root, inputs))
    finally:
        converted = keeper.restore()
    if converted:  # in the graph it would not be
        raise fx.proxy.TraceError("the code converts its own parameters as it runs")
    for node in graph.nodes:
        if node.op == "call_function" and node.target in tracer.whole:
            # A graph's code would call fx.wrap on what it imports, for good.
            node.meta.pop("is_wrapped", None)
    return graph


def _defaults(root: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Arguments that the example inputs leave out take their defaults."""
    left_out = {}
    for position, parameter in enumerate(inspect.signature(root.forward).parameters.values()):
        given = position < len(inputs.args) or parameter.name in inputs.kwargs
        if not given and parameter.default is not inspect.Parameter.empty:
            left_out[parameter.name] = parameter.default
    return left_out
