"""Union-find over labels, in arrays.

What is united during a run is only looked at after it. So pairs are collected, and united all
at once when somebody asks: a handful of array operations for a whole network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .planes import Labels

__all__ = ["Forest"]


_STEPS = 8  # that are walked one by one: streams of deep networks make chains of hundreds


def _first() -> Labels:
    return np.zeros(1, dtype=np.int64)


@dataclass
class Forest:
    """Labels ``0 ... size - 1``; the root of a class is its lowest label.

    Attributes
    ----------
    parent : numpy.ndarray
        A lower label of the same class, the label itself at roots.
    numbers : numpy.ndarray
        0, 1, 2 ...: axes are slices of it.
    size : int
        Labels given out so far.
    waiting : list of (numpy.ndarray, numpy.ndarray)
        Labels still to be united, position by position.
    """

    parent: Labels = field(default_factory=_first)
    numbers: Labels = field(default_factory=_first)
    size: int = 1
    waiting: list[tuple[Labels, Labels]] = field(default_factory=list)

    def fresh(self, count: int) -> Labels:
        """Return ``count`` labels that nothing is united with."""
        start, self.size = self.size, self.size + count
        if self.size > len(self.parent):
            self.reserve(max(self.size, 4 * len(self.parent)))
        return self.numbers[start : self.size]

    def reserve(self, size: int) -> None:
        """Make room for ``size`` labels at once."""
        self.numbers = np.arange(size, dtype=np.int64)
        parent = self.numbers.copy()
        parent[: len(self.parent)] = self.parent
        self.parent = parent

    def unite(self, a: Labels, b: Labels) -> None:
        """Unite ``a`` and ``b`` position by position (they broadcast)."""
        if a is not b:
            self.waiting.append((a, b))

    def find(self, labels: Labels) -> Labels:
        """Roots of ``labels``, same shape."""
        if self.waiting:
            self._unite_all()
        return self._roots(labels)

    def _roots(self, labels: Labels) -> Labels:
        """Walk upwards, and let the labels that began it point to where it ends."""
        parent = self.parent
        root = parent[labels]
        above = parent[root]
        if not np.count_nonzero(above != root):
            return root
        for _ in range(_STEPS):
            root, above = above, parent[above]
            if not np.count_nonzero(above != root):
                parent[labels] = root
                return root
        self._flatten()
        return parent[labels]

    def _flatten(self) -> None:
        """Let all labels point to their roots; long chains are halved again and again."""
        parent = self.parent
        above = parent[parent]
        while np.count_nonzero(above != parent):
            parent[:] = above
            above = parent[parent]

    def _unite_all(self) -> None:
        """Put higher roots under the lowest that they meet, until none meets another."""
        pairs = [_aligned(a, b) for a, b in self.waiting]
        self.waiting = []
        a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
        while len(a):
            a, b = self._roots(a), self._roots(b)
            differ = a != b
            a, b = a[differ], b[differ]
            np.minimum.at(self.parent, np.maximum(a, b), np.minimum(a, b))


def _aligned(a: Labels, b: Labels) -> tuple[Labels, Labels]:
    if a.shape != b.shape:
        a, b = np.broadcast_arrays(a, b)
    return a.reshape(-1), b.reshape(-1)
