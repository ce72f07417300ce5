"""Planes: which label every position of a tensor descends from, and how they are reshaped.

A plane is stored in broadcast shape, with size 1 in every dimension along which it does
not vary.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from .flows import Flow

if TYPE_CHECKING:
    from collections.abc import Sequence

Labels = npt.NDArray[np.int64]
Axis = tuple[str, int]  # (tensor name, dim)


class Plane(NamedTuple):
    """Labels in broadcast shape.

    ``zero`` names the parameter axes whose entries, when zero at a position, make the
    value zero there: a contraction over such a plane is *closed* by them. ``flow`` says what
    new units would hold, where that is known.
    """

    labels: Labels
    zero: tuple[Axis, ...] = ()
    flow: Flow | None = None

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimensions along which the plane varies."""
        return _varying(self.labels.shape)


@lru_cache(maxsize=4096)
def _varying(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(d for d, size in enumerate(shape) if size > 1)


def compress(labels: Labels) -> Labels:
    """Drop (to size 1) every dimension along which ``labels`` does not vary."""
    for dim, size in enumerate(labels.shape):
        if size > 1:
            head = labels.take([0], axis=dim)
            if (labels == head).all():
                labels = head
    return labels


def reshape_blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split a reshape into blocks of old and new dimensions of equal product.

    Examples
    --------
    >>> reshape_blocks((2, 12, 5), (2, 3, 4, 5))
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        olds, news = [], []
        a = b = 1
        if i < len(old):
            a, olds, i = old[i], [i], i + 1
        if j < len(new):
            b, news, j = new[j], [j], j + 1
        while a != b:
            if (a < b and i < len(old)) or j >= len(new):
                a, i = a * old[i], i + 1
                olds.append(i - 1)
            else:
                b, j = b * new[j], j + 1
                news.append(j - 1)
        blocks.append((olds, news))
    return blocks


def reshape_plane(
    labels: Labels, old: Sequence[int], new: Sequence[int]
) -> tuple[Labels, list[tuple[Labels, Labels]]]:
    """Reshape a plane in broadcast shape; also return the blocks that changed it."""
    before, after = [1] * len(old), [1] * len(new)
    changed: list[tuple[list[int], list[int]]] = []
    for olds, news in reshape_blocks(old, new):
        if any(labels.shape[d] > 1 for d in olds):
            for d in olds:
                before[d] = old[d]
            for d in news:
                after[d] = new[d]
            if sum(old[d] > 1 for d in olds) > 1 or sum(new[d] > 1 for d in news) > 1:
                changed.append((olds, news))
    full = np.broadcast_to(labels, before)
    result = full.reshape(after)
    if not changed:
        return result, []
    return compress(result), [(full, result)]


def lift(plane: Plane, ndim: int, *, keep_zero: bool) -> Plane:
    """Put dimensions of size 1 in front; the factors that are zeros are kept on request."""
    labels = plane.labels
    if labels.ndim < ndim:
        labels = labels.reshape((1,) * (ndim - labels.ndim) + labels.shape)
    elif keep_zero or not plane.zero:
        return plane
    return Plane(labels, plane.zero if keep_zero else (), plane.flow)


def pattern(labels: Labels) -> Labels:
    """Write labels as numbers in order of first appearance: which positions share one."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def slabs(labels: Labels, chosen: npt.NDArray[np.bool_]) -> list[int]:
    """Dimensions along which the chosen positions lie in whole slabs of one label each.

    Heads do so along the heads, though shared keys beside them vary along the size of a head.
    """
    found = []
    for dim, size in enumerate(labels.shape):
        own = np.moveaxis(labels, dim, 0).reshape(size, -1)
        hit = np.moveaxis(chosen, dim, 0).reshape(size, -1)
        rows = hit.any(axis=1)
        if size > 1 and hit[rows].all() and (own[rows] == own[rows, :1]).all():
            found.append(dim)
    return found
