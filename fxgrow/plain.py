"""Models as they were before ``torch.compile``, and copies of models that can be copied.

A compiled module wraps a plain one, whose names have no ``_orig_mod.`` in front; that one
is analysed and grown. Hooks of the older ``torch.nn.utils`` (weight norm, spectral norm,
pruning) leave computed tensors on modules, which ``copy.deepcopy`` refuses; copies here
take their values, and the hooks compute them again at the next call.
"""

from __future__ import annotations

import copy
import gc
import sys
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .copying import computed, copy_module
from .walks import modules, parameters

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

__all__ = ["collector_paused", "duplicate", "eagerly", "modes_kept", "plain", "set_mode"]


def plain(model: nn.Module) -> nn.Module:
    """Return ``model`` without the wrappers of ``torch.compile``.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed.

    Returns
    -------
    torch.nn.Module
        The model itself where nothing in it is a compiled wrapper, the wrapped model where
        the wrapper is the outermost one, else a copy of the structure that shares all
        parameters and buffers.
    """
    model = _inner(model)
    if "torch._dynamo.eval_frame" not in sys.modules:
        return model
    wrappers = [m for m in modules(model) if _inner(m) is not m]
    if not wrappers:
        return model
    memo: dict[int, Any] = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    memo.update(computed(model))
    for wrapper in reversed(wrappers):  # inner ones first
        memo[id(wrapper)] = copy.deepcopy(_inner(wrapper), memo)
    return copy.deepcopy(model, memo)


def _inner(module: nn.Module) -> nn.Module:
    """Take off the wrapper of ``torch.compile``, which none has before dynamo is imported."""
    frames: Any = sys.modules.get("torch._dynamo.eval_frame")
    while frames is not None and isinstance(module, frames.OptimizedModule):
        module = module._modules["_orig_mod"]
    return module


def duplicate(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """Deep copy of ``model``; ``memo`` (by id) says what takes the place of its parts."""
    return copy_module(model, dict(memo or {}))


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the garbage collector off while many objects are made that all stay alive."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def modes_kept(root: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a module tree into train or eval mode for a while.

    A user's own ``train`` method decides what that means; it is asked only where a mode
    differs, since setting attributes of modules takes its time.
    """
    before = [(module, module.training) for module in modules(root)]
    if any(mode != training for _, mode in before):
        if all(type(module).train is torch.nn.Module.train for module, _ in before):
            for module, _ in before:
                set_mode(module, training)
        else:
            root.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            if module.training != mode:
                set_mode(module, mode)


def set_mode(module: nn.Module, training: bool) -> None:
    """Set the flag of one module, past all that setting an attribute looks at."""
    if type(module).__setattr__ is torch.nn.Module.__setattr__:
        module.__dict__["training"] = training
    else:
        module.training = training


@contextmanager
def eagerly(model: nn.Module | None = None) -> Iterator[None]:
    """Run compiled functions as they were written, and checkpoints without a word.

    A ``model`` on the meta device has no values: its code is told, as by ``torch.export``,
    not to look at them.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # Under no_grad nothing requires gradients; the user knows from training.
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad=True")
        dynamo: Any = sys.modules.get("torch._dynamo")
        if dynamo is not None:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(dynamo.config.patch(error_on_nested_fx_trace=False))
        if model is not None and any(p.is_meta for p in parameters(model)):
            stack.enter_context(_without_values())
        yield


@contextmanager
def _without_values() -> Iterator[None]:
    """Let ``torch.compiler.is_compiling()`` be true, which libraries ask before they look."""
    flags = vars(torch.compiler)
    before = flags.get("_is_compiling_flag", False)
    flags["_is_compiling_flag"] = True
    try:
        yield
    finally:
        flags["_is_compiling_flag"] = before
