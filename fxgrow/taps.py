"""Seeing what a shadow's modules do while it is traced.

``torch.fx`` puts functions of its own in the place of two methods of ``torch.nn.Module``. Every
class derived from it, of which there are a thousand, then loses what Python had cached of it,
and every attribute that a module is asked for takes a detour. A shadow is nobody else's, so its
modules can tell by themselves: of calls by the attribute that ``Module.__call__`` looks at
first, of parameters and buffers by the dictionaries that they lie in.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.nn.utils import rnn

from .walks import DULL, modules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import nn

__all__ = ["Wrapped", "constants", "flagged", "tapped", "wrapping"]

_SYMBOLIC: Any = fx._symbolic_trace
_CONSTANTS: tuple[type, ...] = getattr(
    _SYMBOLIC, "_constant_attribute_types", (torch.Tensor, torch.ScriptObject)
)
_CALL = "_compiled_call_impl"


class _Tensors(dict[str, Any]):
    """Parameters or buffers of one module; ``read`` says what their reader gets."""

    __slots__ = ("read",)

    def __init__(self, own: dict[str, Any], read: Callable[[str, Any], Any]) -> None:
        super().__init__(own)
        self.read = read

    def __getitem__(self, name: str) -> Any:
        return self.read(name, super().__getitem__(name))


@contextmanager
def tapped(
    root: nn.Module, called: Callable[..., Any], read: Callable[[str, Any], Any]
) -> Iterator[None]:
    """Let ``called(module, *args, **kwargs)`` and ``read(name, tensor)`` answer for a while.

    Parameters
    ----------
    root : torch.nn.Module
        A module that belongs to the caller, with all inside it.
    called : callable
        Stands for the modules' calls; ``module._call_impl`` is what they would have done.
    read : callable
        Says what somebody gets who asks a module for a parameter or buffer.
    """
    parts = modules(root)
    before: list[tuple[dict[str, Any], str, dict[str, Any]]] = []
    for module in parts:
        own = module.__dict__
        own[_CALL] = partial(called, module)
        for kind in ("_parameters", "_buffers"):
            tensors = own.get(kind)
            if tensors and type(tensors) in {dict, OrderedDict}:
                before.append((own, kind, tensors))
                own[kind] = _Tensors(tensors, read)
    try:
        yield
    finally:
        for module in parts:
            module.__dict__.pop(_CALL, None)
        for own, kind, tensors in before:
            now = list(own[kind].items())  # the model's code may have put others there
            tensors.clear()
            tensors.update(now)
            own[kind] = tensors


@contextmanager
def flagged() -> Iterator[None]:
    """Tell code that asks ``torch.fx`` that it is being traced."""
    context = getattr(_SYMBOLIC, "_is_fx_tracing_context", None)
    if context is not None:
        with context(True):
            yield
        return
    before = _SYMBOLIC._is_fx_tracing_flag  # of older torches
    _SYMBOLIC._is_fx_tracing_flag = True
    try:
        yield
    finally:
        _SYMBOLIC._is_fx_tracing_flag = before


def constants(named: Mapping[str, nn.Module]) -> dict[Any, str]:
    """Return the names of what modules hold as plain attributes, and graphs take for constants."""
    return {
        value: f"{prefix}.{key}" if prefix else key
        for prefix, module in named.items()
        for key, value in module.__dict__.items()
        if type(value) not in DULL and isinstance(value, _CONSTANTS)
    }


class Wrapped:
    """Functions that become nodes wherever they are called with traced values.

    Those that ``torch.fx.wrap`` has been told of, and ``functions`` by any name that the code
    of a module, or one of ``homes``, has for them. Questions of that code for types are answered
    as for the values, of which ``concrete`` gives one of the same type.
    """

    def __init__(
        self,
        patcher: Any,
        functions: Iterable[Any],
        homes: Iterable[Any],
        concrete: Callable[[fx.Node], Any],
    ) -> None:
        self.patcher = patcher
        self.concrete = concrete
        for home, name in ((torch, "is_tensor"), (torch.jit, "isinstance")):
            patcher.patch(vars(home), name, self._answered(getattr(home, name)))
        self.known = {id(function) for function in functions}
        _SYMBOLIC._patch_wrapped_functions(patcher)
        for function in functions:
            name = getattr(function, "__name__", "")
            for home in (torch, rnn):  # whose thousand names are not searched
                if vars(home).get(name) is function:
                    wrapped = _SYMBOLIC._create_wrapped_func(function)
                    patcher.patch(vars(home), name, wrapped)
        for home in homes:
            self.look(vars(home))

    def look(self, names: dict[str, Any]) -> None:
        """Look for the functions among the names of a module."""
        if "isinstance" not in names:  # else its own, or there already
            self.patcher.patch(names, "isinstance", self._answered(isinstance))
        _SYMBOLIC._autowrap_check(self.patcher, names, self.known)

    def _answered(self, question: Callable[..., bool]) -> Callable[..., bool]:
        """Let a traced value be what it stands for, besides what it is."""

        def answer(value: Any, *kinds: Any, **named: Any) -> bool:
            if question(value, *kinds, **named):
                return True
            traced = isinstance(value, fx.Proxy)
            return traced and question(self.concrete(value.node), *kinds, **named)

        return answer


def wrapping() -> Any:
    """Return a context that gives what :class:`Wrapped` writes its changes into."""
    return _SYMBOLIC._new_patcher()
