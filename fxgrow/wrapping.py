"""Wrappers around a model, taken off before growth and put on again after it.

To support another wrapper, add one line to :data:`WRAPPERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .errors import UnsupportedError

__all__ = ["WRAPPERS", "Wrapper", "peel"]

Wrap = Callable[[torch.nn.Module], torch.nn.Module]


@dataclass(frozen=True)
class Wrapper:
    """One kind of wrapper.

    Attributes
    ----------
    path : str
        ``module.Class`` of the wrapper; named, not imported, so that it costs nothing
        where it is not used.
    inner : callable
        Wrapper → what is inside.
    again : callable
        ``(old wrapper, new inside) -> new wrapper`` with the same arguments.
    """

    path: str
    inner: Wrap
    again: Callable[[torch.nn.Module, torch.nn.Module], torch.nn.Module]


def _compiled_again(old: torch.nn.Module, new: torch.nn.Module) -> torch.nn.Module:
    # the context holds backend, mode, fullgraph and dynamic, and is what compile() calls
    context: Wrap = old.dynamo_ctx  # type: ignore[assignment]  # declared as a Tensor or Module
    return context(new)


WRAPPERS: tuple[Wrapper, ...] = (
    Wrapper(
        "torch._dynamo.eval_frame.OptimizedModule",
        lambda wrapper: wrapper.get_submodule("_orig_mod"),
        _compiled_again,
    ),
)
"""Wrappers that are known, innermost and outermost alike."""


def peel(model: torch.nn.Module) -> tuple[torch.nn.Module, Wrap]:
    """Take all known wrappers off.

    Parameters
    ----------
    model : torch.nn.Module
        Wrapped any number of times, or not at all.

    Returns
    -------
    module : torch.nn.Module
        What is inside.
    wrap : callable
        Puts the same wrappers around another module.

    Raises
    ------
    UnsupportedError
        For modules compiled in place, whose arguments are not to be had.
    """
    layers: list[tuple[Wrapper, torch.nn.Module]] = []
    while (wrapper := _wrapper_of(model)) is not None:
        layers.append((wrapper, model))
        model = wrapper.inner(model)
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise UnsupportedError(
            f"{type(model).__name__}.compile() was called in place, and with which arguments "
            "can't be read back; use model = torch.compile(model, ...), or pass unwrap= and "
            "wrap= that do what is needed"
        )

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        for kind, old in reversed(layers):
            module = kind.again(old, module)
        return module

    return model, wrap


def _wrapper_of(model: torch.nn.Module) -> Wrapper | None:
    paths = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__}
    return next((wrapper for wrapper in WRAPPERS if wrapper.path in paths), None)
