"""The front end for models that are no graph: one node that calls the user's own module.

Labels are read below it, so the analysis is the same; sizes that its Python code holds are
found by :mod:`fxgrow.witness` and changed on the widened copy.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from .held import makers_seen
from .patterns import read_anew
from .propagate import LABELS_KEY
from .rules.recurrent import is_recurrent
from .tracked import tracked_attributes
from .walks import holds_inside
from .witness import Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from .propagate import Propagation
    from .trace import Inputs

__all__ = [
    "hooked",
    "is_own",
    "opaque_leaves",
    "replaced",
    "tidy",
    "untouched",
    "watching",
    "whole_graph",
]


def whole_graph(inputs: Inputs) -> fx.Graph:
    """Graph whose only operation calls the root, with the arguments that ``inputs`` have."""
    graph = fx.Graph()
    args = [graph.placeholder(f"argument_{i}") for i in range(len(inputs.args))]
    kwargs: dict[str, Any] = {name: graph.placeholder(name) for name in inputs.kwargs}
    called = graph.create_node("call_module", "", tuple(args), kwargs, name="root")
    called.meta["source"] = ""
    graph.output(called)
    return graph


def is_own(module: nn.Module) -> bool:
    """Whether a leaf's sizes are in Python code that can be watched, module by module."""
    if not type(module).__module__.startswith("torch.nn"):
        return True
    if is_recurrent(module):  # with weights that are computed
        return False
    return holds_inside(module)


def opaque_leaves(
    modules: Mapping[str, nn.Module], graph: fx.Graph, hides: Callable[[nn.Module], bool]
) -> list[str]:
    """Names of the modules that a graph calls as they are, with sizes of their own."""
    names = dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "call_module")
    found = []
    for name in names:
        module = modules[name]
        if hides(module) and is_own(module):
            found.append(name)
    return found


@contextmanager
def watching(
    modules: Mapping[str, nn.Module],
    graph: fx.Graph,
    state: Propagation,
    hides: Callable[[nn.Module], bool],
) -> Iterator[None]:
    """Track the sizes that a graph's opaque leaves hold, while it runs.

    ``modules`` are the root and all inside it, by all their names.
    """
    leaves = opaque_leaves(modules, graph, hides)
    if not leaves:
        yield
        return
    state.computed = True
    root = modules[""]
    witness = state.witness = Witness(state, root)
    with tracked_attributes(root, leaves, witness.tell), read_anew(), makers_seen():
        try:
            yield
        finally:
            state.equations += witness.equations
            state.blanks.update(witness.blanks)
            state.witness = None


@contextmanager
def hooked(
    module: nn.Module, chosen: Callable[[nn.Module], bool], after: Callable[..., None]
) -> Iterator[None]:
    """Run ``after(name, part, inputs, output)`` whenever a chosen part of a module has run."""

    def hook(name: str) -> Any:
        return lambda part, args, kwargs, out: after(name, part, (args, kwargs), out)

    handles = [
        part.register_forward_hook(hook(name), with_kwargs=True)
        for name, part in module.named_modules()
        if chosen(part)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(
    module: nn.Module, chosen: Callable[[nn.Module], bool], run: Callable[..., Any]
) -> Iterator[None]:
    """Let ``run(name, part, forward, args, kwargs)`` stand for ``forward`` of chosen parts."""

    def forward(name: str, part: nn.Module, old: Any) -> Any:
        return lambda *args, **kwargs: run(name, part, old, args, kwargs)

    parts = [(name, part) for name, part in module.named_modules() if chosen(part)]
    own = [part.__dict__.get("forward") for _, part in parts]
    for name, part in parts:
        part.__dict__["forward"] = forward(name, part, part.forward)
    try:
        yield
    finally:
        for (_, part), old in zip(parts, own, strict=True):
            if old is None:
                del part.__dict__["forward"]
            else:
                part.__dict__["forward"] = old


def tidy(module: nn.Module) -> None:
    """Take labels off the tensors that modules keep (caches)."""
    for part in module.modules():
        for value in part.__dict__.values():
            if isinstance(value, torch.Tensor):
                value.__dict__.pop(LABELS_KEY, None)


@contextmanager
def untouched(modules: Collection[nn.Module]) -> Iterator[None]:
    """Restore buffers (a run in train mode updates running statistics)."""
    found = (b for module in modules for b in module._buffers.values() if b is not None)
    buffers = [(b, b._version, b.clone()) for b in found]
    try:
        yield
    finally:
        hooked = [module for module in modules if module._forward_pre_hooks]
        for tensor in (value for module in hooked for value in module.__dict__.values()):
            if isinstance(tensor, torch.Tensor):  # computed by hooks
                tensor.__dict__.pop(LABELS_KEY, None)
        for buffer, version, value in buffers:
            buffer.__dict__.pop(LABELS_KEY, None)
            # Where norms are computed they write without a new version.
            changed = buffer._version != version
            if changed or not (buffer.is_meta or torch.equal(buffer, value)):
                buffer.copy_(value)
