"""Slots of all groups at once: one sort of the labels of all axes."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .ir import Role, Slot
    from .planes import Axis, Labels

__all__ = ["Census", "slots_by_group"]


class Census(Protocol):
    """Labels laid out axis by axis.

    ``labels`` are those of all axes, one after the other; ``axis_of`` and ``places`` go with
    them. ``frozen_by`` is -1 for roots that nothing freezes.
    """

    @property
    def axes(self) -> list[Axis]:
        """Axes in order."""
        ...

    @property
    def labels(self) -> Labels:
        """Labels of all axes."""
        ...

    @property
    def axis_of(self) -> Labels:
        """Index of each label's axis."""
        ...

    @property
    def places(self) -> Labels:
        """Position of each label."""
        ...

    @property
    def roots(self) -> Labels:
        """Root of every label."""
        ...

    @property
    def frozen_by(self) -> Labels:
        """Index of what freezes a root."""
        ...


def slots_by_group(
    census: Census,
    roles: Sequence[Role],
    groups: Labels,
    widths: Labels,
    make: Callable[[Axis, Role, Labels], list[Slot]],
    *,
    ordered: bool,
) -> tuple[dict[int, list[Slot]], dict[int, int]]:
    """Return the slots of every group, and the index of what freezes it.

    Parameters
    ----------
    census : Census
    roles : sequence of str
        Of every axis.
    groups, widths : numpy.ndarray
        The group of every label, and the number of units of every group.
    make : callable
        Slots of an axis with a role, from positions of shape ``(width, slices_per_unit)``.
    ordered : bool
        Groups of one axis in the order of their first positions, not of their numbers.
    """
    own, roots = groups[census.labels], census.roots[census.labels]
    # Stable within a group: units in order of their roots, slices in order of position.
    rank = (census.axis_of * len(widths) + own) * (int(census.roots.max()) + 1) + roots
    order = np.argsort(rank, kind="stable")
    own, places = own[order], census.places[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (own[1:] != own[:-1]) | (census.axis_of[1:] != census.axis_of[:-1])
    cuts = np.flatnonzero(new)
    axes, keys = census.axis_of[cuts].tolist(), own[cuts].tolist()
    frozen_by = census.frozen_by[roots[order[cuts]]].tolist()
    starts, counts = [*cuts.tolist(), len(order)], widths.tolist()
    members: dict[int, list[Slot]] = defaultdict(list)
    turns = range(len(cuts))
    if ordered:
        first = np.minimum.reduceat(places, cuts)
        turns = np.lexsort((first, census.axis_of[cuts])).tolist()
    for i in turns:
        axis, key = axes[i], keys[i]
        positions = places[starts[i] : starts[i + 1]].reshape(counts[key], -1)
        members[key] += make(census.axes[axis], roles[axis], positions)
    return members, dict(zip(keys, frozen_by, strict=True))
