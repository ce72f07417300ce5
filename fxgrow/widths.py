"""Sizes after growth, of whatever a graph computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .planes import slabs

if TYPE_CHECKING:
    from .labels import LabelBook
    from .planes import Labels
    from .propagate import Noted

__all__ = ["Sizes"]


@dataclass(frozen=True, eq=False)
class Sizes:
    """Sizes after growth, read off the labels of the analysis before it."""

    book: LabelBook
    gain: np.ndarray
    _known: dict[int, tuple[Labels, dict[int, np.ndarray]]] = field(default_factory=dict)

    def _lines(self, labels: Labels) -> dict[int, np.ndarray]:
        """Clones of every position along each dimension that grows (none: empty).

        Kept by the identity of ``labels``: pointwise operations hand them on.
        """
        known = self._known.get(id(labels))
        if known is None:
            gain = self.gain[labels]
            lines = {}
            if gain.any():
                alone = [d for d in range(labels.ndim) if labels.shape[d] > 1]
                # Where all positions are one unit, they lie along the only dimension.
                vary = self.book.varying(labels) or alone * (len(alone) == 1)
                if len(vary) > 1:  # beside others, that vary along other dimensions
                    vary = slabs(self.book.find(labels), gain > 0) or vary
                for dim in vary:
                    rest = tuple(d for d in range(gain.ndim) if d != dim)
                    lines[dim] = np.asarray(gain.max(axis=rest))
            known = self._known[id(labels)] = (labels, lines)  # keeps the identity taken
        return known[1]

    def touches(self, noted: Noted) -> bool:
        """Whether any of a value's dimensions grows."""
        return any(self._lines(plane.labels) for plane in noted.planes)

    def shape(self, noted: Noted) -> tuple[int, ...]:
        """Shape that a value has after growth."""
        result = list(noted.shape)
        for plane in noted.planes:
            for dim, line in self._lines(plane.labels).items():
                result[dim] = max(result[dim], noted.shape[dim] + int(line.sum()))
        return tuple(result)

    def gains(self, noted: Noted, dim: int) -> np.ndarray:
        """Clones of every position along ``dim``, shape ``(size,)``; zeros if none."""
        for plane in noted.planes:
            lines = self._lines(plane.labels)
            if dim in lines:
                return lines[dim]
        return np.zeros(noted.shape[dim], dtype=np.int64)
