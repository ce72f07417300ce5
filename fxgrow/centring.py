"""Weights whose mean is subtracted (weight standardisation): what is zero there, and what stays.

Where every row of a weight is centred, a new column is zero once it holds the mean of its row.
That mean stays then, and sums of squares do; what divides by a count is made up for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .flows import weight_flow
from .weights import is_shifted, shifted, unshifted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .events import Statistic, Where
    from .labels import LabelBook
    from .planes import Axis, Plane

__all__ = ["UNCHANGED", "centre", "common_axes", "settle_statistics", "squared_axes"]

UNCHANGED = frozenset({"mean", "linalg_vector_norm", "norm"})
"""Statistics that stay; norms are those of centred weights."""


def common_axes(planes: Iterable[Plane]) -> tuple[Axis, ...]:
    """Return the axes that planes descend from, one each, of one tensor (else none)."""
    zeros = [plane.zero for plane in planes]
    if any(len(zero) != 1 for zero in zeros) or len({zero[0][0] for zero in zeros}) != 1:
        return ()
    return tuple(sorted({unshifted(zero[0]) for zero in zeros}))


def centre(book: LabelBook, planes: Sequence[Plane], where: Where) -> list[Plane]:
    """Planes of a weight after the mean over all of them is subtracted (none: not one weight)."""
    axes = common_axes(planes)
    if not axes:
        return []
    book.weights.centre(axes, where)
    zeros = [shifted(unshifted(p.zero[0])) for p in planes]
    return [
        p._replace(zero=(zero,), flow=weight_flow(zero))
        for p, zero in zip(planes, zeros, strict=True)
    ]


def squared_axes(planes: Iterable[Plane]) -> tuple[Axis, ...]:
    """Return the axes of one weight whose centred entries planes are the squares of."""
    found = []
    for plane in planes:
        terms = plane.flow.terms if plane.flow is not None else None
        term = next(iter(terms)) if terms is not None and len(terms) == 1 else ()
        if len(term) != 2 or term[0] != term[1] or not is_shifted(term[0]):
            return ()
        found.append(unshifted(term[0]))
    return tuple(sorted(found)) if len({name for name, _ in found}) == 1 else ()


def settle_statistics(book: LabelBook) -> None:
    """Decide which means and variances of weights new columns leave as they are.

    The others mix what they reduce, as those of activations do.
    """
    book.weights.settle(book.closers)
    for axis in [a for a in book.closers if is_shifted(a)]:
        book.closers.setdefault(unshifted(axis), []).extend(book.closers.pop(axis))
    for axis in [a for a in book.reads if is_shifted(a)]:
        book.reads.setdefault(unshifted(axis), []).extend(book.reads.pop(axis))
    for event in book.statistics:
        if _stays(book, event):
            book.standards.append(event)
        elif event.kind == "zeros" and all(axis in book.closers for axis in event.axes):
            book.weights.rigid.update(dict.fromkeys(event.axes, event.where))
        else:
            book.mixings.extend(event.mixings)
            book.weights.split.update(dict.fromkeys(event.axes, event.where))


def _stays(book: LabelBook, event: Statistic) -> bool:
    """Whether columns at the mean leave a statistic as it is, or it can be made up for."""
    over = [book.weights.over(axis) for axis in event.axes]
    if not all(over):
        return False
    if event.kind in UNCHANGED:
        return True
    return event.scalable and all(axes == event.axes for axes in over)
