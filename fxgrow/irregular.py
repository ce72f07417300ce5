"""Units whose entries lie where no further unit fits in between: they are frozen."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from .messages import reason_for
from .planes import slabs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .events import Seam, Where
    from .ir import Reason
    from .labels import LabelBook
    from .planes import Labels

__all__ = ["freeze_irregular"]


def freeze_irregular(
    book: LabelBook,
    roots: Labels,
    frozen_by: Labels,
    reasons: list[Reason],
    explicit: set[int],
) -> None:
    """Freeze units that a reshape splits over several dimensions, or that lie across a seam.

    Parameters
    ----------
    book : LabelBook
        Settled.
    roots : numpy.ndarray of int64, shape ``(labels,)``
        The unit of every label.
    frozen_by : numpy.ndarray of int64, shape ``(labels,)``
        Index into ``reasons`` for every unit, -1 where it can grow. Changed.
    reasons : list of Reason
        Reasons are added.
    explicit : set of int
        Ids of the nodes of shuffles, which grow as an index.
    """
    # One after the other: what is frozen already is not open to the next.
    for code, where, units in chain(
        _reshaped(book, roots, frozen_by, explicit), _across(book, roots)
    ):
        hit = units[frozen_by[units] < 0]
        if len(hit):
            frozen_by[hit] = len(reasons)
            reasons.append(reason_for(code, where))


def _reshaped(
    book: LabelBook, roots: Labels, frozen_by: Labels, explicit: set[int]
) -> Iterator[tuple[str, Where, Labels]]:
    for before, after, where in book.reshapes:
        if id(where.site) in explicit:
            continue
        for labels in (before, after):
            own = roots[labels]
            is_open = frozen_by[own] < 0
            if own.size <= 1 or not is_open.any():
                continue
            vary, sizes = len(book.varying(labels)), sum(n > 1 for n in labels.shape)
            split = vary > 1 and not slabs(own, is_open)
            if split or (sizes > 1 and not vary):
                yield "reshape" if vary else "inner_mixed", where, own.reshape(-1)


def _across(book: LabelBook, roots: Labels) -> Iterator[tuple[str, Where, Labels]]:
    """Find units that end on one side of a seam and go on on the other.

    A group of GroupNorm, or of a convolution, that has channels of both parts of a
    concatenation: behind it there is no place where a unit would lie in both parts.
    """
    for seam in book.seams:
        units = _neighbours(seam, roots)
        if len(units):
            yield "seam", seam.where, units


def _neighbours(seam: Seam, roots: Labels) -> Labels:
    labels, dim, cuts, _ = seam
    places = [cut for cut in cuts if 0 < cut < labels.shape[dim]]
    if not places:
        return np.zeros(0, dtype=np.int64)
    before, after = (roots[labels.take(np.array(places) - back, axis=dim)] for back in (1, 0))
    units: Labels = before[before == after]
    # What does not vary along the dimension is cut inside: heads, by their size.
    own = roots[labels] if len(units) else labels
    varies = len(units) and (own != own.take([0], axis=dim)).any()
    return units if varies else units[:0]
