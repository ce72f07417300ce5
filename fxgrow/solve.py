"""New values of the sizes that modules hold, from the equations that growth must keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UnsupportedError
from .inner import join
from .patterns import hold_lengths, is_pattern_layer
from .tracked import Attribute, attributes_of, dims_of, divides, evaluate, text
from .widths import Sizes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from .ir import Group
    from .labels import LabelBook
    from .propagate import Propagation
    from .tracked import Expr
    from .witness import Equation

__all__ = ["apply_sizes", "freeze_hidden", "join_hidden", "read", "solve"]

_FARTHEST = 4096  # a new value is searched so far above the old one


@dataclass(frozen=True, eq=False)
class Conflict(Exception):
    """No attributes' values satisfy this equation."""

    equation: Equation
    found: int
    needed: int


def read(root: nn.Module, attribute: Attribute) -> int:
    """Value of an attribute now."""
    value: Any = _owner(root, attribute).__dict__[attribute.name]
    return int(value if attribute.index is None else value[attribute.index])


def _owner(root: nn.Module, attribute: Attribute) -> Any:
    owner: Any = root
    for part in attribute.path.split(".") if attribute.path else ():
        owner = getattr(owner, part)
    return owner


def solve(
    equations: Sequence[Equation], old: Mapping[Attribute, int], sizes: Sizes
) -> dict[Attribute, int]:
    """Values of all attributes after growth.

    Equations with one open attribute settle it; then those with several that have one
    left; what no equation asks for stays. A remainder settles nothing while others can:
    many values leave none.

    Raises
    ------
    Conflict
        With the first equation that can't hold.
    """
    known: dict[Attribute, int] = {}
    vague = {id(e) for e in equations if any(divides(side) for side in e[:2])}
    waiting = list(equations)
    while waiting:
        left = []
        for equation in waiting:
            unknown = _unknown(equation, known)
            if len(unknown) > 1 or (unknown and id(equation) in vague):
                left.append(equation)
            elif unknown:
                _settle(equation, unknown.pop(), old, known, sizes)
        if len(left) == len(waiting) and vague:
            vague = set()
        elif len(left) == len(waiting):  # nothing moved: take one attribute to be as it was
            first = min(_unknown(left[0], known), key=lambda a: (a.path, a.name))
            known[first] = old[first]
        waiting = left
    values = {**old, **known}
    for equation in equations:
        found, needed = (_value(side, values, sizes) for side in equation[:2])
        if found != needed:
            raise Conflict(equation, found, needed)
    return known


def _unknown(equation: Equation, known: Mapping[Attribute, int]) -> set[Attribute]:
    return (attributes_of(equation.given) | attributes_of(equation.wanted)) - known.keys()


def _value(expr: Expr, values: Mapping[Attribute, int], sizes: Sizes) -> int:
    try:
        return evaluate(expr, values, sizes)
    except ZeroDivisionError:
        return -1


def _settle(
    equation: Equation,
    attribute: Attribute,
    old: Mapping[Attribute, int],
    known: dict[Attribute, int],
    sizes: Sizes,
) -> None:
    """Find the value of the one open attribute; where there is none, it stays open."""

    def gap(value: int) -> int:
        values = {**known, attribute: value}
        given, wanted = (_value(side, values, sizes) for side in equation[:2])
        return given - wanted

    start = old[attribute]
    here, step = gap(start), gap(start + 1) - gap(start)
    if not here:
        guess = start
    elif step and here % step == 0:
        guess = start - here // step
    else:
        guess = next((v for v in range(1, start + _FARTHEST) if not gap(v)), start)
    if not gap(guess):
        known[attribute] = guess


def join_hidden(root: nn.Module, state: Propagation, groups: Sequence[Group]) -> bool:
    """Unite groups of one width that only together fit a size in Python code; say if any.

    The size of heads is such a size, where queries, keys and values come from several layers.
    """
    if not state.equations:
        return False
    old, equations = _valid(root, state.equations, state.book)
    touching, linked = _index(state, equations)
    roots = state.book.find(np.arange(state.book.size))

    def fits(together: Sequence[Group]) -> bool:
        units = np.concatenate([_units(state, group)[:1] for group in together])
        chosen = _reached(units, touching, linked, equations)
        try:
            solve(chosen, old, Sizes(state.book, np.isin(roots, units).astype(np.int64)))
        except Conflict:
            return False
        return True

    alone = [group for group in groups if not fits([group])]
    reach = [
        {id(e) for e in _reached(_units(state, group)[:1], touching, linked, equations)}
        for group in alone
    ]
    joined = False
    while alone:
        first, seen = alone.pop(0), reach.pop(0)
        others = [i for i, own in enumerate(reach) if own & seen and alone[i].width == first.width]
        if others and fits([first, *(alone[i] for i in others)]):
            joined = True
            for i in others:
                join(state, first.slots[0], alone[i].slots[0])
            alone = [group for i, group in enumerate(alone) if i not in others]
            reach = [own for i, own in enumerate(reach) if i not in others]
    return joined


def freeze_hidden(root: nn.Module, state: Propagation, groups: Sequence[Group]) -> bool:
    """Freeze the groups that can't grow without a size in Python code that can't; say if any.

    Each group is tried alone, with one step of its units.
    """
    if not state.equations:
        return False
    old, equations = _valid(root, state.equations, state.book)
    touching, linked = _index(state, equations)
    roots = state.book.find(np.arange(state.book.size))
    frozen = False
    for group in groups:
        units = _units(state, group)
        chosen = _reached(units, touching, linked, equations)
        # One step: of the first unit, or where all of them grow together one more of each.
        copies = group.recipe == "copies"
        step = 1 if copies else group.multiple_of
        gain = step * np.isin(roots, units if copies else units[:1]).astype(np.int64)
        try:
            solve(chosen, old, Sizes(state.book, gain))
        except Conflict as conflict:
            where = conflict.equation.where._replace(op=_words(conflict))
            state.book.freeze(units, "hidden_size", where)
            frozen = True
    return frozen


def _valid(
    root: nn.Module, equations: Iterable[Equation], book: LabelBook
) -> tuple[dict[Attribute, int], list[Equation]]:
    """Attributes' values now, and the equations that hold with them.

    An attribute that the code changes as it runs is no size that growth could set.
    """
    given = list(equations)
    old = {
        attribute: read(root, attribute)
        for equation in given
        for side in (equation.given, equation.wanted)
        for attribute in attributes_of(side)
    }
    as_it_is = Sizes(book, np.zeros(book.size, dtype=np.int64))
    valid = [e for e in given if _value(e.given, old, as_it_is) == _value(e.wanted, old, as_it_is)]
    return old, valid


def _words(conflict: Conflict) -> str:
    given, _, where = conflict.equation
    read_as = text(given) if not isinstance(given, int) else f"the number {given}"
    op = where.op or "comparison"
    return f"{op}: {read_as} would have to become {conflict.needed}, not {conflict.found}"


def _units(state: Propagation, group: Group) -> np.ndarray:
    slot = group.slots[0]
    return state.book.find(state.axes[slot.tensor, slot.dim][slot.positions[:, 0]])


def _index(
    state: Propagation, equations: Sequence[Equation]
) -> tuple[dict[int, set[int]], dict[Attribute, set[int]]]:
    """Equations by the units and by the attributes that they speak of."""
    touching: dict[int, set[int]] = {}
    linked: dict[Attribute, set[int]] = {}
    roots: dict[int, Any] = {}
    for number, equation in enumerate(equations):
        for side in equation[:2]:
            for dim in dims_of(side):
                for plane in dim.noted.planes:
                    key = id(plane.labels)
                    if key not in roots:
                        roots[key] = np.unique(state.book.find(plane.labels)).tolist()
                    for root in roots[key]:
                        touching.setdefault(root, set()).add(number)
            for attribute in attributes_of(side):
                linked.setdefault(attribute, set()).add(number)
    return touching, linked


def _reached(
    units: np.ndarray,
    touching: Mapping[int, set[int]],
    linked: Mapping[Attribute, set[int]],
    equations: Sequence[Equation],
) -> list[Equation]:
    """Equations that growing these units touches, directly or by a shared attribute."""
    found: set[int] = set()
    queue = {n for unit in units.tolist() for n in touching.get(unit, ())}
    seen: set[Attribute] = set()
    while queue:
        found |= queue
        sides = {a for n in queue for side in equations[n][:2] for a in attributes_of(side)} - seen
        seen |= sides
        queue = {n for a in sides for n in linked[a]} - found
    return [equations[n] for n in sorted(found)]


def _computed_later(owner: Any, name: str) -> bool:
    """Whether :mod:`fxgrow.patch` computes an attribute from what it was, when the module runs."""
    own = type(owner).__module__.partition(".")[0] == "torch"
    return own and (name in {"num_groups", "num_channels"} or getattr(owner, "transposed", False))


def _with(whole: Any, index: int | str | None, new: int) -> Any:
    """Return an attribute's new value: the number itself, or a container with it."""
    if index is None:
        return new
    if isinstance(index, str):
        return {**whole, index: new}
    changed = list(whole)
    changed[index] = new
    return type(whole)(changed)


def apply_sizes(
    root: nn.Module, shadow: nn.Module, equations: Sequence[Equation], sizes: Sizes
) -> list[str]:
    """Give the modules of ``root`` the sizes that growth asks for; return the edits.

    Raises
    ------
    UnsupportedError
        When no values fit.
    """
    old, valid = _valid(shadow, equations, sizes.book)
    try:
        values = solve(valid, old, sizes)
    except Conflict as conflict:
        site: Any = conflict.equation.where.site
        raise UnsupportedError(
            f"in {site.name} ({site.meta.get('source')}) the model's own code has a size that "
            f"can't follow: {_words(conflict)}; grow these groups together, or exclude one"
        ) from conflict
    edits = []
    for attribute, new in values.items():
        if new == old[attribute]:
            continue
        owner = _owner(root, attribute)
        if _computed_later(owner, attribute.name):
            continue
        setattr(owner, attribute.name, _with(owner.__dict__[attribute.name], attribute.index, new))
        if is_pattern_layer(owner):
            hold_lengths(owner, owner.axes_lengths)
        edits.append(f"{text(attribute)}: {old[attribute]} → {new}")
    return edits
