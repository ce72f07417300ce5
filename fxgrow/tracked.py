"""Sizes that remember where they come from: attributes of modules and tensors' shapes.

In a shadow of the model, every int that a module keeps in its ``__dict__`` (or in that of a
plain object it holds, such as a config) is replaced by a :class:`TrackedInt`. Arithmetic
on it gives tracked ints again, with the expression they were computed by, so that an
argument of ``view`` tells which attributes it was made of.
"""

from __future__ import annotations

import operator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .attributes import ATTRIBUTES
from .patterns import is_pattern_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .propagate import Noted
    from .widths import Sizes

__all__ = [
    "Attribute",
    "Bound",
    "Dim",
    "Expr",
    "Operation",
    "TrackedInt",
    "attributes_of",
    "dims_of",
    "divides",
    "evaluate",
    "expression",
    "is_position",
    "text",
    "tracked_attributes",
]


@dataclass(frozen=True)
class Attribute:
    """An int that a module holds: ``index`` tells which of a list, tuple or dict."""

    path: str
    name: str
    index: int | str | None = None


@dataclass(frozen=True, eq=False)
class Dim:
    """Size of a dimension of a labelled tensor."""

    noted: Noted
    dim: int


@dataclass(frozen=True, eq=False)
class Bound:
    """Where the position ``index`` of a dimension lies."""

    noted: Noted
    dim: int
    index: int


@dataclass(frozen=True, eq=False)
class Operation:
    """Arithmetic of two expressions."""

    function: Callable[[Any, Any], Any]
    left: Expr
    right: Expr


Expr = int | Attribute | Dim | Bound | Operation
_SYMBOLS = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.mod: "%",
}


def evaluate(expr: Expr, values: Mapping[Attribute, int], sizes: Sizes) -> int:
    """Value of an expression after growth.

    Raises
    ------
    ZeroDivisionError
        When an attribute's new value is no divisor.
    """
    if isinstance(expr, Operation):
        left = evaluate(expr.left, values, sizes)
        return int(expr.function(left, evaluate(expr.right, values, sizes)))
    if isinstance(expr, Attribute):
        return values[expr]
    if isinstance(expr, int):
        return expr
    gains = sizes.gains(expr.noted, expr.dim)
    if isinstance(expr, Bound):
        return expr.index + int(gains[: expr.index].sum())
    return int(expr.noted.shape[expr.dim]) + int(gains.sum())


def _leaves(expr: Expr) -> Iterator[Attribute | Dim | Bound]:
    if isinstance(expr, Operation):
        yield from _leaves(expr.left)
        yield from _leaves(expr.right)
    elif not isinstance(expr, int):
        yield expr


def attributes_of(expr: Expr) -> set[Attribute]:
    """Attributes that an expression reads."""
    return {leaf for leaf in _leaves(expr) if isinstance(leaf, Attribute)}


def dims_of(expr: Expr) -> list[Dim | Bound]:
    """Dimensions of tensors that an expression reads."""
    return [leaf for leaf in _leaves(expr) if not isinstance(leaf, Attribute)]


def divides(expr: Expr) -> bool:
    """Whether an expression has a remainder in it, which many values may leave."""
    if not isinstance(expr, Operation):
        return False
    return expr.function is operator.mod or divides(expr.left) or divides(expr.right)


def text(expr: Expr) -> str:
    """Write an expression as the model's code may have it.

    Examples
    --------
    >>> text(Operation(operator.mul, Attribute("block.attn", "heads"), 8))
    'block.attn.heads * 8'
    """
    if isinstance(expr, Operation):
        symbol = _SYMBOLS.get(expr.function, "?")
        return f"{text(expr.left)} {symbol} {text(expr.right)}"
    if isinstance(expr, Attribute):
        name = f"{expr.path}.{expr.name}" if expr.path else expr.name
        return name if expr.index is None else f"{name}[{expr.index!r}]"
    if isinstance(expr, int):
        return str(expr)
    return f"shape[{expr.dim}]" if isinstance(expr, Dim) else str(expr.index)


HELD = "_fxgrow_sizes"
"""Attribute of tensors made of sizes, see :mod:`fxgrow.held`."""


def expression(value: Any) -> Expr:
    """How ``value``, an int or a tensor of one, was computed (a plain int: by itself)."""
    known = value if isinstance(value, int) else getattr(value, HELD, None)
    return known.expr if isinstance(known, TrackedInt) else int(value)


def is_position(value: Any) -> bool:
    """Whether code may index by a value as by an int; what a tensor holds follows no width."""
    if isinstance(value, torch.Tensor):
        return not (value.ndim or value.is_floating_point())
    return isinstance(value, int)


class TrackedInt(int):
    """An int with the expression it was computed by.

    ``tell(left, right)`` is called where the model's code asks whether two sizes are equal
    and finds them so, and where a number computed from the size (a scale) must stay.
    """

    expr: Expr
    tell: Callable[[Expr, Expr], None]

    @classmethod
    def of(cls, value: int, expr: Expr, tell: Callable[[Expr, Expr], None]) -> TrackedInt:
        """Make one."""
        made = cls(value)
        made.expr = expr
        made.tell = tell
        return made

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __eq__(self, other: object) -> bool:
        same = int.__eq__(self, other) if isinstance(other, int) else NotImplemented
        if same is True and isinstance(other, int):
            self.tell(self.expr, expression(other))
        return same

    def __ne__(self, other: object) -> bool:
        same = self.__eq__(other)
        return same if same is NotImplemented else not same

    def kept(self) -> int:
        """Plain value, of which something is computed that must not change."""
        value = int.__int__(self)
        self.tell(self.expr, value)
        return value

    def __float__(self) -> float:
        return float(self.kept())

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(self.kept(), other, modulo)

    def __truediv__(self, other: Any) -> Any:
        return self.kept() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.kept()

    def __neg__(self) -> Any:
        return self._with(operator.sub, 0, self)

    def _with(self, function: Any, left: int, right: int) -> TrackedInt:
        value = function(int.__int__(left), int.__int__(right))
        expr = Operation(function, expression(left), expression(right))
        return TrackedInt.of(value, expr, self.tell)

    def __copy__(self) -> TrackedInt:
        return self

    def __deepcopy__(self, memo: Any) -> TrackedInt:
        return self

    def __reduce__(self) -> Any:
        return int, (int.__int__(self),)


def _arithmetic(function: Any, *, swapped: bool) -> Any:
    def method(self: TrackedInt, other: Any) -> Any:
        if isinstance(other, int):
            return self._with(function, *((other, self) if swapped else (self, other)))
        if isinstance(other, float):
            own = self.kept()
            return function(other, own) if swapped else function(own, other)
        return NotImplemented

    return method


for _name, _function in {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}.items():
    setattr(TrackedInt, f"__{_name}__", _arithmetic(_function, swapped=False))
    setattr(TrackedInt, f"__r{_name}__", _arithmetic(_function, swapped=True))


# -- putting them into modules --------------------------------------------------------


@contextmanager
def tracked_attributes(
    root: nn.Module, prefixes: list[str], tell: Callable[[Expr, Expr], None]
) -> Iterator[None]:
    """Let the modules below ``prefixes`` hold tracked ints for a while.

    Of torch's own modules those attributes are tracked that growth knows how to change.
    """
    undo: list[tuple[dict[str, Any], str, Any]] = []
    seen: set[int] = set()
    for prefix in prefixes:
        for name, module in root.get_submodule(prefix).named_modules(prefix=prefix):
            _track(module, name, tell, undo, seen)
    try:
        yield
    finally:
        for table, key, value in reversed(undo):
            if isinstance(
                table.get(key), (int, tuple, list, dict)
            ):  # the code may have set it anew
                table[key] = value


def _track(
    owner: Any,
    path: str,
    tell: Callable[[Expr, Expr], None],
    undo: list[tuple[dict[str, Any], str, Any]],
    seen: set[int],
) -> None:
    if id(owner) in seen:
        return
    seen.add(id(owner))
    own = type(owner).__module__.partition(".")[0] != "torch"
    table = owner.__dict__
    for key, value in list(table.items()):
        if key == "training" or not (own or key in ATTRIBUTES):
            continue
        made = _tracked(value, path, key, tell)
        if made is not value:
            undo.append((table, key, value))
            table[key] = made
        elif isinstance(owner, nn.Module) and _holds_sizes(value):
            _track(value, f"{path}.{key}" if path else key, tell, undo, seen)
    if is_pattern_layer(owner):  # computes with what it keeps beside the lengths that it shows
        made = _tracked(owner.axes_lengths, path, "axes_lengths", tell)
        undo.append((table, "_axes_lengths", table["_axes_lengths"]))
        table["_axes_lengths"] = tuple(made.items())


def _holds_sizes(value: Any) -> bool:
    """Whether a module's attribute is a plain object of the user's, e.g. a config."""
    package = type(value).__module__.partition(".")[0]
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, (nn.Module, type, np.ndarray))
        and not callable(value)
        and package not in {"torch", "builtins", "collections", "numpy"}
    )


def _tracked(value: Any, path: str, key: str, tell: Callable[[Expr, Expr], None]) -> Any:
    if type(value) is int:
        return TrackedInt.of(value, Attribute(path, key), tell)
    if type(value) in {tuple, list} and value and all(type(v) is int for v in value):
        return type(value)(
            TrackedInt.of(v, Attribute(path, key, i), tell) for i, v in enumerate(value)
        )
    if type(value) is dict and any(type(v) is int for v in value.values()):
        return {
            k: TrackedInt.of(v, Attribute(path, key, k), tell)
            if type(v) is int and type(k) is str
            else v
            for k, v in value.items()
        }
    return value
