"""Dimensions along which a tensor only repeats itself: ``expand`` and ``repeat`` make them.

One head of keys that all heads of queries share is as long along the heads as they are, and will
be after growth. Such a dimension gets labels of its own, which belong to no weight: an *echo*.
Where it meets units it follows them, if they vary along no other dimension; nothing else is
asked of it. (Several heads of keys, each repeated, have labels along the heads, which count.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .events import Meeting
from .planes import Plane, lift

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .events import Where
    from .labels import LabelBook

    Operands = Sequence[tuple[Sequence[Plane], Sequence[int]]]

__all__ = ["Loose", "apart", "echoes_of", "is_echo", "join", "settle", "without"]


class Loose(NamedTuple):
    """Operands without echoes, and the echoes that nothing of their own operand covers.

    Along an echo the operand has size 1 here: it fits whatever it meets.
    """

    operands: list[tuple[list[Plane], list[int]]]
    echoes: list[list[Plane]]


def echoes_of(book: LabelBook, before: Sequence[int], after: Sequence[int]) -> list[Plane]:
    """Give labels to the dimensions that were of size 1, or not there, and are longer now."""
    shift, planes = len(after) - len(before), []
    for dim, size in enumerate(after):
        if size > 1 and (dim < shift or before[dim - shift] == 1):
            labels = book.fresh(size)
            book.echoes.update(labels.tolist())
            planes.append(
                Plane(labels.reshape([size if d == dim else 1 for d in range(len(after))]))
            )
    return planes


def is_echo(book: LabelBook, plane: Plane) -> bool:
    """Whether the labels of a plane are those of an echo."""
    labels = plane.labels.reshape(-1)
    return bool(book.echoes) and bool(labels.size) and int(labels[0]) in book.echoes


def without(book: LabelBook, planes: Iterable[Plane]) -> list[Plane]:
    """Leave out the echoes."""
    return [p for p in planes if not is_echo(book, p)]


def apart(book: LabelBook, operands: Operands, ndim: int) -> Loose | None:
    """Take the echoes out of operands that are going to meet (None: there are none)."""
    if not any(is_echo(book, p) for planes, _ in operands for p in planes):
        return None
    kept, echoes = [], []
    for planes, shape in operands:
        own = without(book, planes)
        covered = {d for p in own for d in p.dims}
        loose = [p for p in planes if is_echo(book, p) and not covered.issuperset(p.dims)]
        free = {d for p in loose for d in p.dims} - covered
        kept.append((own, [1 if d in free else size for d, size in enumerate(shape)]))
        echoes.append([lift(p, ndim, keep_zero=False) for p in loose])
    return Loose(kept, echoes)


def join(
    book: LabelBook,
    loose: Loose,
    open_dims: Sequence[set[int]],
    result: Sequence[Plane],
    ndim: int,
    where: Where,
) -> list[Plane]:
    """Write down what echoes meet; return ``result`` with those that stay visible.

    ``open_dims`` are the dimensions along which operands carry no labels.
    """
    whole = list(result)
    for i, own in enumerate(loose.echoes):
        for echo in own:
            dims = set(echo.dims)
            for j, (planes, _) in enumerate(loose.operands):
                if i == j:
                    continue
                if dims & open_dims[j]:
                    book.freeze(echo.labels, "unlabelled", where)
                others = [lift(p, ndim, keep_zero=False) for p in planes]
                others += loose.echoes[j] if i < j else []
                book.echoed += [
                    Meeting(p.labels, echo.labels, where) for p in others if dims & set(p.dims)
                ]
            if not any(dims <= set(p.dims) for p in whole):
                whole.append(echo)
    return whole


def settle(book: LabelBook) -> None:
    """Let echoes follow the units that they have met, or hold them."""
    known = sorted(book.echoed, key=lambda event: not is_echo(book, Plane(event.a)))
    for a, echo, where in known:
        if is_echo(book, Plane(a)):
            book.unite(a, echo)
            continue
        vary = set(book.varying(a))
        along = {d for d, size in enumerate(echo.shape) if size > 1}
        if vary and vary <= along:
            book.unite(a, echo)
            continue
        book.freeze(echo, "unlabelled", where)
        if vary & along:
            book.freeze(a, "unlabelled", where)
