"""Growing a grid by its inner axis: the size of heads instead of their number.

Where labels lie on a grid (heads x head size, convolution groups x channels), a reduction over
the inner axis merges them to outer units: a head is added whole. Here the other choice is made:
the outer units stay as many as they are, each becomes wider, and the unit is one index of the
inner axis over all of them. Which labels those are is taken from a first analysis by outer
units: a grid is a plane along some, but not all, of whose dimensions the outer units vary.

What is summed away over the inner axis (queries times keys) is kept by zeros in one of the
factors: :func:`closing` finds the entries that make it zero.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from .events import Frozen, Where
from .flows import VARIES
from .ir import PLAIN, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .ir import Group, Role
    from .labels import LabelBook
    from .layout import Layout
    from .planes import Axis, Labels, Plane
    from .propagate import Propagation

    Joined = tuple[tuple[Axis, Labels], ...]  # the two sides: an axis, a position for each unit

__all__ = [
    "SUFFIX",
    "closing",
    "closure",
    "freeze_inner",
    "is_gone",
    "is_inner",
    "is_one",
    "join",
    "join_again",
    "mark",
    "matches",
    "outer_units",
    "slots_of",
    "spans",
    "structural",
    "stuck",
    "widened_units",
]

SUFFIX = ":inner"
"""Ends the names of groups that grow by their inner axis: no outer group has such a name."""


def matches(group: Group, pattern: str) -> bool:
    """Whether a shell pattern matches a group's name or one of its layers."""
    return any(fnmatchcase(name, pattern) for name in (group.name, *group.layers))


def stuck(groups: Iterable[Group]) -> list[Group]:
    """Find groups that are one unit, to which none can be added: they can only grow inside."""
    return [g for g in groups if g.reason is not None and g.reason.code == "inner_mixed"]


def outer_units(groups: Iterable[Group]) -> dict[Axis, Labels]:
    """Give numbers to the units of groups, where a unit has several rows.

    Parameters
    ----------
    groups : iterable of Group
        Those that are to grow inside, of an analysis by outer units.

    Returns
    -------
    dict of (tensor, dim) to numpy.ndarray of int64
        Positions beyond the end are of no such unit.
    """
    found: dict[Axis, Labels] = {}
    for group in groups:
        grid = max(slot.positions.shape[1] for slot in group.slots) > 1
        if not grid:
            continue
        numbers = np.arange(1, group.width + 1)[:, None]  # of queries' heads as of values'
        for slot in group.slots:
            size = int(slot.positions.max()) + 1
            own = found.get((slot.tensor, slot.dim), np.zeros(0, dtype=np.int64))
            own = np.pad(own, (0, max(0, size - len(own))))
            own[slot.positions] = numbers
            found[slot.tensor, slot.dim] = own
    return found


def widened_units(outer: Mapping[Axis, Labels], layout: Layout) -> dict[Axis, Labels]:
    """Outer units at the new width: clones lie in the unit of their template."""
    result = dict(outer)
    for axis, own in outer.items():
        source = layout.sources.get(axis)
        if source is not None:
            own = np.pad(own, (0, max(0, int(source.max()) + 1 - len(own))))
            result[axis] = own[source]
    return result


# -- while labels propagate ------------------------------------------------------------


def mark(book: LabelBook, labels: Labels, units: Labels | None) -> None:
    """Write down the outer units of an axis that has just got its labels."""
    known = book.outer if book.outer is not None else np.zeros(0, dtype=np.int64)
    if len(known) < book.size:
        known = np.pad(known, (0, len(book.forest.parent) - len(known)))
    if units is not None:
        size = min(len(units), len(labels))
        known[labels[:size]] = units[:size]
    book.outer = known


def _units(book: LabelBook, labels: Labels) -> Labels:
    outer = book.outer
    if outer is None:
        return np.zeros_like(labels)
    return np.where(labels < len(outer), outer[np.minimum(labels, len(outer) - 1)], 0)


def is_inner(book: LabelBook, labels: Labels) -> bool:
    """Whether labels lie in outer units that are to stay as many as they are."""
    return book.outer is not None and bool(_units(book, labels).any())


def structural(book: LabelBook, planes: Iterable[Plane]) -> list[Plane]:
    """Merge planes along the dimensions that the outer units vary along, but not along others."""
    result = []
    for plane in planes:
        dims = plane.dims
        if len(dims) > 1:
            units = _units(book, plane.labels)
            vary = [d for d in dims if (units != units.take([0], axis=d)).any()]
            if vary and len(vary) < len(dims):
                plane = book.merge_along(plane, vary)._replace(flow=plane.flow)
        result.append(plane)
    return result


def closing(
    state: Propagation, operands: Sequence[Sequence[Plane]], over: Sequence[int]
) -> Callable[[], bool]:
    """Find entries of one operand that, when zero, keep a product summed ``over`` as it is.

    The first operand (queries) is preferred: a bias of keys has no gradient, for the softmax
    does not see it. What is a factor twice has no slope at zero, and is left open. To be
    called before the operands' labels meet; the result, called when the product is summed,
    plans the zeros and says whether there are any.
    """
    book = state.book
    gone = [[p for p in planes if is_gone(book, p, over)] for planes in operands]
    if not all(gone):
        return lambda: False
    if any(all(_is_zeroed(state, plane) for plane in own) for own in gone):
        return lambda: True
    first, second = ({r for p in own for r in book.find(p.labels).flat} for own in gone)
    choices = [[_entries(state, plane, rank) for plane in own] for rank in (2, 1) for own in gone]
    number = next((i for i, choice in enumerate(choices) if all(choice)), None)
    if number is None or first & second:
        return lambda: False
    found, planes = choices[number], gone[number % 2]

    def plan() -> bool:
        book.closed.update(map(_identity, planes))
        for axis, labels in (entry for entries in found for entry in entries):
            book.zeroed[axis] = np.union1d(book.zeroed.get(axis, labels), labels)
        return True

    return plan


def is_gone(book: LabelBook, plane: Plane, over: Sequence[int]) -> bool:
    """Whether a sum over these dimensions leaves nothing of a plane."""
    hit = set(plane.dims) & set(over)
    return bool(hit) and (len(hit) == len(plane.dims) or is_inner(book, plane.labels))


def _terms(state: Propagation, plane: Plane) -> list[tuple[Axis, ...]]:
    """Products of weights whose sum a plane is (none: not known).

    Flows are those of whole axes: what was concatenated elsewhere along them is left out.
    """
    terms = plane.flow.terms if plane.flow is not None else None
    if terms is None or () in terms:
        return []
    terms = frozenset(tuple(axis for axis in term if axis != VARIES) for term in terms)
    find, roots = state.book.find, np.unique(state.book.find(plane.labels))
    axes = {axis for term in terms for axis in term}
    here = {axis for axis in axes if np.isin(find(state.axes[axis]), roots).any()}
    return [term for term in terms if here.issuperset(term)]


def _identity(plane: Plane) -> object:
    """Return what a plane shares with the same one in the other mode's graph."""
    return plane.labels.tobytes(), plane.flow and plane.flow.terms


def _is_zeroed(state: Propagation, plane: Plane) -> bool:
    """Whether zeros that are planned already make a plane zero."""
    if _identity(plane) in state.book.closed:
        return True
    book, raw = state.book, np.unique(plane.labels)
    roots = book.find(raw)

    def covers(axis: Axis) -> bool:
        zeroed, own = book.zeroed.get(axis), state.axes[axis]
        if zeroed is None or not np.isin(roots, book.find(zeroed)).all():
            return False
        mine = raw[(raw >= own[0]) & (raw <= own[-1])]
        return bool(np.isin(mine, zeroed).all())

    terms = _terms(state, plane)
    return bool(terms) and all(any(covers(axis) for axis in term) for term in terms)


def _entries(state: Propagation, plane: Plane, rank: int) -> list[tuple[Axis, Labels]]:
    """Labels of the weights' entries that make a plane zero (none: not possible)."""
    book, found = state.book, []
    roots = np.unique(book.find(plane.labels))
    for term in _terms(state, plane):
        for axis in term:
            own = state.axes[axis]
            hit = np.isin(book.find(own), roots)
            trains = book.weights.rank.get(axis, 0) >= rank and axis not in book.weights.scales
            if trains and np.isin(roots, book.find(own[hit])).all():
                found.append((axis, own[hit]))
                break
        else:
            return []
    return found


def closure(book: LabelBook) -> None:
    """Unite what a view keeps rectangular: rows of one inner size, packed beside each other.

    A view splits one axis, e.g. into (queries, keys and values; heads; head size). Where it
    still varies along several dimensions, the largest is the inner axis, and units are united
    along the others: they grow together.
    """
    zeroed = _zeroed(book)
    for _, after, _ in book.reshapes:
        split = after.ndim > 1 and (
            is_inner(book, after) or np.isin(book.find(after), zeroed).any()
        )
        if split:
            vary = sorted(book.varying(after), key=lambda d: (after.shape[d], d))
            for dim in vary[:-1]:
                book.unite(after, after.take([0], axis=dim))


def join(state: Propagation, first: Slot, second: Slot) -> None:
    """Unite the units of two groups of one width, each given by a slot, one by one."""
    ends = tuple(((s.tensor, s.dim), s.positions[:, 0]) for s in (first, second))
    (one, here), (two, there) = ends
    state.book.unite(state.axes[one][here], state.axes[two][there])
    state.joined.append(ends)


def join_again(state: Propagation, joined: Sequence[Joined], layout: Layout) -> None:
    """Unite at the new width what was united before: clones with clones of the same unit."""
    for ends in joined:
        labels = []
        for axis, positions in ends:
            units = layout.units[axis]
            source = layout.sources.get(axis, np.arange(len(units)))
            mine = np.flatnonzero(np.isin(source, positions))
            labels.append(state.axes[axis][mine[np.argsort(units[mine])]])
        if len(labels[0]) == len(labels[1]):  # else the partition check will tell
            state.book.unite(labels[0], labels[1])


# -- groups ----------------------------------------------------------------------------


_TABLES = {"factor", "producer"}  # roles of buffers that are more than an offset


def freeze_inner(state: Propagation) -> None:
    """Freeze inner units that lie along a table, or that an operation mixes.

    Units that close a product by zeros can't be mixed either: a norm would see the rest.
    """
    book = state.book
    spanning, zeroed = _spanning(book), _zeroed(book)
    early = [
        Frozen(labels, "inner_table", Where("", None))
        for axis, labels in state.axes.items()
        if not book.weights.rank.get(axis, 2) and state.roles.get(axis, set()) & _TABLES
        if len(spanning) and np.isin(book.find(labels), spanning).any()
    ]
    held = np.concatenate([spanning, zeroed])
    early += [
        Frozen(mixing.labels, mixing.code, mixing.where)
        for mixing in book.mixings
        if len(held) and np.isin(book.find(mixing.labels), held).any()
    ]
    book.frozen[:0] = early


def _zeroed(book: LabelBook) -> Labels:
    """Roots of units with entries that are planned to be zero."""
    return book.find(np.concatenate([[0], *book.zeroed.values()]))[1:]


def _spanning(book: LabelBook) -> Labels:
    """Roots of units that lie in several outer units."""
    if book.outer is None:
        return np.zeros(0, dtype=np.int64)
    labels = np.flatnonzero(book.outer)
    pairs = np.unique(np.stack([book.find(labels), book.outer[labels]]), axis=1)
    roots, counts = np.unique(pairs[0], return_counts=True)
    return np.asarray(roots[counts > 1])


def spans(state: Propagation, slots: Iterable[Slot]) -> bool:
    """Whether units lie in several outer units each, or several of them in one."""
    if state.book.outer is None:
        return False
    for slot in slots:
        outer = _units(state.book, state.axes[slot.tensor, slot.dim][slot.positions])
        first = outer[:, :1]
        if (outer != first).any() or (first.all() and len(np.unique(first)) < len(first)):
            return True
    return False


def is_one(state: Propagation, slots: Sequence[Slot]) -> bool:
    """Whether operations have made one unit of what was to grow inside."""
    return len(slots[0].positions) == 1 and any(
        is_inner(state.book, state.axes[slot.tensor, slot.dim][slot.positions]) for slot in slots
    )


def slots_of(state: Propagation, axis: Axis, role: Role, at: Labels) -> list[Slot]:
    """Make the slots of one group along an axis: entries that close a product apart.

    Parameters
    ----------
    state : Propagation
    axis : (tensor, dim)
    role : str
        Of the other entries.
    at : numpy.ndarray of int64, shape ``(width, slices)``
        Positions.
    """
    zeroed = state.book.zeroed.get(axis)
    if zeroed is None:
        filling = state.book.weights.filling(axis) if role == "consumer" else PLAIN
        return [Slot(*axis, role, at, filling)]
    columns = np.isin(state.axes[axis][at], zeroed).any(axis=0)
    parts: list[tuple[Role, Labels]] = [
        (role, np.flatnonzero(~columns)),
        ("consumer", np.flatnonzero(columns)),
    ]
    return [Slot(*axis, own, at[:, take]) for own, take in parts if len(take)]
