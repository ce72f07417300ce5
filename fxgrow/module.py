"""The emitted GraphModule: one graph per mode where train and eval differ."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from .copying import computed
from .recompute import KEY, checkpointed_forward
from .walks import CONSTANT

_TREE = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
# What runs around the outermost forward; the others run with the modules they are on.
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)


class GrownModule(fx.GraphModule):
    """A GraphModule that keeps the original's module tree and both of its modes.

    ``graph`` is the eval graph; ``train_graph`` is the same object unless the model
    does something else in training (auxiliary heads, functional dropout).
    """

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        train_graph: fx.Graph | None = None,
        class_name: str = "GrownModule",
    ) -> None:
        super().__init__(root, graph, class_name)
        # fx copies only what the graph names, into bare modules; keep the real tree.
        for table in _TREE + _HOOKS:
            object.__setattr__(self, table, copy.copy(root.__dict__[table]))
        self._keep_constants(root, [graph] if train_graph is None else [graph, train_graph])
        self.training = root.training
        object.__setattr__(self, "_eval_forward", type(self).forward)
        object.__setattr__(self, "_train_module", None)
        if train_graph is not None and train_graph is not graph:
            self._add_train_graph(root, train_graph)

    def _keep_constants(self, root: nn.Module, graphs: list[fx.Graph]) -> None:
        """Hold the tensors that the outermost module has as plain attributes."""
        for node in (node for graph in graphs for node in graph.nodes if node.op == "get_attr"):
            name = str(node.target)
            value = root.__dict__.get(name)
            if isinstance(value, torch.Tensor) and not hasattr(self, name):
                self.register_buffer(name, value, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move parameters and buffers; constants of the code have no memory format.

        ``to(memory_format=...)`` takes what has as many axes as an image for one, and refuses
        others: what the original's forward computes would be in its way.
        """
        shapes = {
            name: buffer.shape
            for name, buffer in self._buffers.items()
            if name.startswith(CONSTANT) and buffer is not None and buffer.ndim in {4, 5}
        }
        for name in shapes:
            self._buffers[name] = self._buffers[name].flatten()  # type: ignore[union-attr]  # not None, see above
        try:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch does not annotate it
        finally:
            for name, shape in shapes.items():
                self._buffers[name] = self._buffers[name].reshape(shape)  # type: ignore[union-attr]  # as above

    def _add_train_graph(self, root: nn.Module, graph: fx.Graph) -> None:
        twin = fx.GraphModule(root, graph, "TrainGraph")
        object.__setattr__(self, "_train_module", twin)
        checkpointed = checkpointed_forward(graph, "train", type(self))
        object.__setattr__(self, "_train_forward", checkpointed or type(twin).forward)

        def forward(self: GrownModule, *args: Any, **kwargs: Any) -> Any:
            chosen: Any = self._train_forward if self.training else self._eval_forward
            return chosen(self, *args, **kwargs)

        forward.__signature__ = _signature(type(self).forward)  # type: ignore[attr-defined]  # functions may have any attribute
        type(self).forward = forward

    @property
    def train_graph(self) -> fx.Graph:
        """Graph of the training mode."""
        twin = self.__dict__["_train_module"]
        return self.graph if twin is None else twin.graph

    def recompile(self) -> Any:
        """Recompile the eval graph (after an edit); the training graph is kept."""
        code = super().recompile()
        checkpointed = checkpointed_forward(self.graph, "eval", type(self))
        if checkpointed is not None:
            type(self).forward = checkpointed
        if self.__dict__.get("_train_module") is not None:
            object.__setattr__(self, "_eval_forward", type(self).forward)
            self._add_train_graph(self.__dict__["_train_module"], self.train_graph)
        return code

    def _holder(self, memo: dict[int, Any] | None = None) -> nn.Module:
        """Bare module with (copies of) all children, parameters and buffers."""
        holder = nn.Module()
        for table in _TREE if memo is not None else _TREE + _HOOKS:
            own = self.__dict__[table]
            holder.__dict__[table] = own if memo is None else copy.deepcopy(own, memo)
        holder.training = self.training
        return holder

    def __deepcopy__(self, memo: dict[int, Any]) -> GrownModule:
        for key, value in computed(self).items():
            memo.setdefault(key, value)
        holder = self._holder(memo)
        train = None if self.__dict__["_train_module"] is None else copy_graph(self.train_graph)
        clone = GrownModule(holder, copy_graph(self.graph), train, type(self).__name__)
        memo[id(self)] = clone
        for table in _HOOKS:  # they may refer to the module itself
            object.__setattr__(clone, table, copy.deepcopy(self.__dict__[table], memo))
        return clone

    def __reduce__(self) -> Any:
        train = None if self.__dict__["_train_module"] is None else _encode(self.train_graph)
        return _rebuild, (self._holder(), _encode(self.graph), train, type(self).__name__)


def _signature(function: Any) -> Any:
    import inspect

    return inspect.signature(function)


class _Ref(NamedTuple):
    """Stands for a node in a pickled graph."""

    name: str


def _encode(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """Return a graph's nodes as plain tuples, so that a pickle holds no source code."""
    refs = {node: _Ref(node.name) for node in graph.nodes}

    def plain(args: Any) -> Any:
        return fx.node.map_arg(args, refs.__getitem__)

    return [
        (n.name, n.op, n.target, plain(n.args), plain(n.kwargs), n.type, n.meta.get(KEY))
        for n in graph.nodes
    ]


def _decode(records: list[tuple[Any, ...]]) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def real(value: Any) -> Any:
        if isinstance(value, _Ref):
            return nodes[value.name]
        if isinstance(value, slice):
            return slice(real(value.start), real(value.stop), real(value.step))
        if isinstance(value, (tuple, list)):
            return type(value)(real(v) for v in value)
        if isinstance(value, dict):
            return {k: real(v) for k, v in value.items()}
        return value

    for name, op, target, args, kwargs, kind, region in records:
        nodes[name] = graph.create_node(
            op, target, real(_lists(args)), real(_lists(kwargs)), name, kind
        )
        if region is not None:
            nodes[name].meta[KEY] = region
    return graph


def _lists(value: Any) -> Any:
    """Turn fx's immutable containers into plain ones (references stay)."""
    if isinstance(value, _Ref):
        return value
    if isinstance(value, list):
        return [_lists(v) for v in value]
    if isinstance(value, tuple):
        return tuple(_lists(v) for v in value)
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return value


def _rebuild(
    holder: nn.Module, graph: list[tuple[Any, ...]], train: list[tuple[Any, ...]] | None, name: str
) -> GrownModule:
    return GrownModule(holder, _decode(graph), None if train is None else _decode(train), name)


def copy_graph(graph: fx.Graph, nodes: dict[fx.Node, fx.Node] | None = None) -> fx.Graph:
    """Copy a graph; ``nodes`` receives old node → new node."""
    table: dict[fx.Node, fx.Node] = {} if nodes is None else nodes
    new = fx.Graph()
    output = new.graph_copy(graph, table)
    end = next(n for n in reversed(graph.nodes) if n.op == "output")
    table[end] = new.output(output)
    return new


__all__ = ["GrownModule", "copy_graph"]
