"""The front end for models that are no graph: one node that calls the user's own module.

Labels are read below it, so the analysis is the same; sizes that its Python code holds are
found by :mod:`fxgrow.witness` and changed on the widened copy.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from .patch import patch_module
from .propagate import LABELS_KEY
from .tracked import tracked_attributes
from .witness import Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .propagate import Propagation
    from .trace import Inputs

__all__ = ["hooked", "is_own", "opaque_leaves", "patching", "tidy", "watching", "whole_graph"]


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
    children = any(True for child in module.children() for _ in child.parameters())
    return children or not type(module).__module__.startswith("torch.nn")


def opaque_leaves(
    root: nn.Module, graph: fx.Graph, hides: Callable[[nn.Module], bool]
) -> list[str]:
    """Names of the modules that a graph calls as they are, with sizes of their own."""
    names = dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "call_module")
    found = []
    for name in names:
        module = root.get_submodule(name)
        if hides(module) and is_own(module):
            found.append(name)
    return found


@contextmanager
def watching(
    root: nn.Module, graph: fx.Graph, state: Propagation, hides: Callable[[nn.Module], bool]
) -> Iterator[None]:
    """Track the sizes that a graph's opaque leaves hold, while it runs."""
    leaves = opaque_leaves(root, graph, hides)
    if not leaves:
        yield
        return
    state.real = True
    witness = state.witness = Witness(state, root)
    with tracked_attributes(root, leaves, witness.tell):
        try:
            yield
        finally:
            state.equations += witness.equations
            state.witness = None


@contextmanager
def hooked(
    module: nn.Module, chosen: Callable[[nn.Module], bool], before: Any = None, after: Any = None
) -> Iterator[None]:
    """Run ``before(name, module, inputs)`` and ``after(..., output)`` around parts of a module."""
    handles = []
    for name, part in module.named_modules():
        if not chosen(part):
            continue
        if before is not None:
            handles.append(part.register_forward_pre_hook(_before(before, name)))
        if after is not None:
            handles.append(part.register_forward_hook(_after(after, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(call: Any, name: str) -> Any:
    def hook(module: nn.Module, args: Any) -> None:
        call(name, module, args)

    return hook


def _after(call: Any, name: str) -> Any:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        call(name, module, args, out)

    return hook


@contextmanager
def patching(module: nn.Module, prefix: str, edits: list[str]) -> Iterator[None]:
    """While a widened leaf runs, bring the attributes of torch's modules in line."""

    def patch(name: str, part: nn.Module, args: Any) -> None:
        full = f"{prefix}.{name}" if prefix and name else prefix or name
        edits.extend(patch_module(part, full, args[0] if args else None))

    def ours(part: nn.Module) -> bool:
        return type(part).__module__.startswith("torch.nn")

    with ExitStack() as stack:
        stack.enter_context(hooked(module, ours, before=patch))
        yield
    tidy(module)


def tidy(module: nn.Module) -> None:
    """Take labels off the tensors that modules keep (caches)."""
    for part in module.modules():
        for value in part.__dict__.values():
            if isinstance(value, torch.Tensor):
                value.__dict__.pop(LABELS_KEY, None)
