"""Rules of the caller: for custom operations, opaque modules and opaque functions.

They are values, handed to :func:`fxgrow.inspect` and the functions around it; nothing is
registered anywhere. ``docs/custom-operations.md`` says how to write one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from ..errors import FxgrowError, InputError

if TYPE_CHECKING:
    from ..propagate import Call, Propagation

Rule: TypeAlias = Callable[["Propagation", "Call"], Any]
SizeOf: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class Declaration:
    """What the caller says of one operation, module class or function.

    Made by :func:`rule` and :func:`resizable`.

    Attributes
    ----------
    target : str, type or callable
        ``"namespace::operation"``, a class of modules, or a function.
    rule : callable or None
        Planes of the outputs; ``None``: labels are read inside.
    sizes : dict of str to callable
        Attributes that are sizes: name to value, computed from the widened module.
    """

    target: Any
    rule: Rule | None = None
    sizes: Mapping[str, SizeOf] = field(default_factory=dict)


def rule(target: Any) -> Callable[[Rule], Declaration]:
    """Declare how labels pass through an operation, a module class or a function.

    Parameters
    ----------
    target : str, operation, type or callable
        ``"namespace::operation"`` or the operation itself; or a class of modules or a
        function, which then stays whole: nothing inside it is traced or labelled.

    Returns
    -------
    callable
        Decorator of a rule, a function of (state, call) that returns the planes of the
        output (of several outputs: a list of them); families such as
        ``fxgrow.rules.pointwise`` are such functions, too.

    Raises
    ------
    InputError
        When ``target`` is nothing that can have a rule.

    Examples
    --------
    >>> import fxgrow
    >>> swish = fxgrow.rule("mylib::swish")(fxgrow.rules.pointwise)
    >>> swish.target
    'mylib::swish'
    """
    key = _key(target)
    return lambda function: Declaration(key, function)


def resizable(target: Any, **sizes: SizeOf) -> Declaration:
    """Declare that an opaque module or function works at any width.

    Labels are read inside, from the operations that it runs. Without this declaration
    what passes through code that can't be traced is frozen, since sizes may hide in it.

    Parameters
    ----------
    target : type or callable
        A class of modules, or a function. It stays whole in graphs.
    **sizes : callable
        Attributes of the module that are sizes: name to a function of the widened module.

    Returns
    -------
    Declaration

    Raises
    ------
    InputError
        When ``target`` is an operation, or nothing that can be declared.

    Examples
    --------
    >>> import torch, fxgrow
    >>> class Scale(torch.nn.Module):
    ...     pass
    >>> fxgrow.resizable(Scale, width=lambda module: len(module.weight)).target.__name__
    'Scale'
    """
    key = _key(target)
    if isinstance(key, str):
        raise InputError(f"{key} is an operation: give it a rule, fxgrow.rule({key!r})")
    return Declaration(key, None, sizes)


def _key(target: Any) -> Any:
    """Name of an operation; module classes and functions are their own keys."""
    if isinstance(target, type):
        if issubclass(target, nn.Module):
            return target
    elif isinstance(target, str):
        if target.count("::") == 1:
            return target
    elif callable(target):
        for name in ("_qualified_op_name", "_qualname"):  # of torch.ops, of custom_op
            if isinstance(getattr(target, name, None), str):
                return str(getattr(target, name))
        packet = getattr(target, "overloadpacket", None)
        return target if packet is None else _key(packet)
    raise InputError(
        f"{target!r} can't have a rule; name an operation ('namespace::operation'), or pass a "
        "class of modules or a function"
    )


@dataclass(frozen=True, eq=False)
class Rules:
    """All rules of one call: the caller's first, then the table.

    Attributes
    ----------
    own : dict
        Target to its declarations, merged.
    """

    own: Mapping[Any, Declaration] = field(default_factory=dict)

    @classmethod
    def of(cls, declarations: Iterable[Declaration] | Rules) -> Rules:
        """Collect declarations.

        Raises
        ------
        InputError
            When a target has two rules, or an entry is no declaration.
        """
        if isinstance(declarations, Rules):
            return declarations
        own: dict[Any, Declaration] = {}
        for entry in declarations:
            if not isinstance(entry, Declaration):
                raise InputError(
                    f"rules hold {entry!r}; pass what fxgrow.rule(...) and fxgrow.resizable(...) "
                    "return, e.g. rules=[fxgrow.rule('mylib::swish')(fxgrow.rules.pointwise)]"
                )
            if entry.target in own:
                raise InputError(f"two rules for {name_of(entry.target)}; pass one")
            own[entry.target] = entry
        return cls(own)

    def lookup(self, func: Any) -> Rule | None:
        """Return the rule of an overload, or ``None``: the caller's, exact, by tag."""
        from . import lookup

        declared = self.own.get(func.overloadpacket._qualified_op_name) if self.own else None
        return lookup(func) if declared is None else _checked(declared)

    def declared(self, thing: Any) -> Declaration | None:
        """Return what is said of a module (or of a class that it is of) or a function."""
        if not self.own:
            return None
        if isinstance(thing, nn.Module):
            kinds = (self.own.get(kind) for kind in type(thing).__mro__)
            return next((found for found in kinds if found is not None), None)
        try:
            return self.own.get(thing) if callable(thing) else None
        except TypeError:  # not hashable
            return None

    def apply(self, declared: Declaration, state: Propagation, call: Call) -> Any:
        """Planes of the outputs by a declared rule."""
        return _checked(declared)(state, call)

    @property
    def functions(self) -> tuple[Any, ...]:
        """Functions that stay whole."""
        return tuple(t for t in self.own if not isinstance(t, (str, type)))


def name_of(target: Any) -> str:
    """Name of a target for messages."""
    return target if isinstance(target, str) else getattr(target, "__qualname__", repr(target))


_FAILURES = (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError)


def _checked(declared: Declaration) -> Rule:
    """Let errors and misshapen planes name the rule that they come from."""
    name, function = name_of(declared.target), declared.rule

    def checked(state: Propagation, call: Call) -> Any:
        try:
            planes = function(state, call) if function is not None else ()
            one = isinstance(call.out, torch.Tensor)
            pairs = [(call.out, planes)] if one else list(zip(call.out, planes, strict=True))
            fits = all(_fits(p.labels.shape, out.shape) for out, own in pairs for p in own)
        except FxgrowError:
            raise
        except _FAILURES as error:
            raise InputError(
                f"the rule for {name} failed: {type(error).__name__}: {error}; it must return "
                "the planes of each output, see docs/custom-operations.md"
            ) from error
        if not fits:
            raise InputError(
                f"the rule for {name} returns planes that are not of the output's shape "
                f"({[tuple(out.shape) for out, _ in pairs]}); every size must be the output's or 1"
            )
        return planes

    return checked


def _fits(labels: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(labels) == len(shape) and all(
        a in (1, b) for a, b in zip(labels, shape, strict=True)
    )
