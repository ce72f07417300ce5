"""Where new units go: positions along every axis that grows. Pure, without torch."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .ir import AxisMap, Group, GrownGroup, GrownSlot, IndexMap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .labels import LabelBook
    from .planes import Axis, Labels


@dataclass(frozen=True, eq=False)
class Layout:
    """Positions of old and new entries, and the partition into units to expect.

    Attributes
    ----------
    index_map : IndexMap
        Old position → new position for every axis that grows.
    groups : tuple of GrownGroup
    sources : dict of (tensor, dim) to numpy.ndarray
        For every new position, the old position it is, or is a clone of.
    gain : numpy.ndarray
        Per label, how many clones it gets.
    units : dict of (tensor, dim) to numpy.ndarray
        For every new position of every axis, the identity of its unit.
    """

    index_map: IndexMap
    groups: tuple[GrownGroup, ...]
    sources: Mapping[Axis, np.ndarray]
    gain: np.ndarray
    units: Mapping[Axis, np.ndarray]


class _Block(NamedTuple):
    """A contiguous run of a template unit, cloned ``added`` times after itself."""

    first: int
    last: int
    added: int
    owner: int  # which of the slots on this axis
    unit: int


def lay_out(
    book: LabelBook,
    axes: Mapping[Axis, Labels],
    groups: Sequence[Group],
    additions: Mapping[str, int],
) -> Layout:
    """Insert new units after each contiguous block of their template.

    The template of fresh units is the last unit; copies have each unit as a template.

    Parameters
    ----------
    book : LabelBook
        Settled labels of the analysis.
    axes : dict of (tensor, dim) to numpy.ndarray of int64, shape ``(size,)``
        Label of every entry along every axis.
    groups : sequence of Group
    additions : dict of str to int
        Group name to units; groups not named keep their width.

    Returns
    -------
    Layout
    """
    growing = [g for g in groups if additions.get(g.name, 0) > 0]
    gain = np.zeros(book.size, dtype=np.int64)
    starts = book.size + np.cumsum([0, *(additions[g.name] for g in growing)])
    entries: dict[Axis, list[tuple[int, int]]] = defaultdict(list)
    for owner, group in enumerate(growing):
        for index, slot in enumerate(group.slots):
            entries[slot.tensor, slot.dim].append((owner, index))
    placed: dict[Axis, _Placed] = {}
    known: dict[tuple[int, ...], _Placed] = {}
    for axis, own in entries.items():
        positions = [growing[owner].slots[index].positions for owner, index in own]
        # Axes that share their positions (a norm's tensors) are laid out once.
        key = (len(axes[axis]), *(owner for owner, _ in own), *map(id, positions))
        if key not in known:
            takers = [
                _Taker(growing[owner], additions[growing[owner].name], int(starts[owner]))
                for owner, _ in own
            ]
            known[key] = _place(len(axes[axis]), takers, positions)
        placed[axis] = known[key]
        gain[axes[axis][known[key].templates]] = known[key].added
    maps: dict[str, dict[int, AxisMap]] = defaultdict(dict)
    slots: dict[tuple[int, int], GrownSlot] = {}
    for (tensor, dim), place in placed.items():
        maps[tensor][dim] = place.axis
        for (owner, index), old, new in zip(
            entries[tensor, dim], place.old, place.new, strict=True
        ):
            slot = growing[owner].slots[index]
            slots[owner, index] = GrownSlot(tensor, dim, slot.role, old, new, slot.filling)
    grown = tuple(
        GrownGroup(
            group.name,
            group.width,
            additions[group.name],
            tuple(slots[owner, index] for index in range(len(group.slots))),
            group.recipe,
        )
        for owner, group in enumerate(growing)
    )
    roots = book.find(np.arange(book.size))
    # Labels of no axis (initial states, padding) grow with the unit that they belong to.
    hit = np.flatnonzero(gain)
    by_root = np.zeros_like(gain)
    by_root[roots[hit]] = gain[hit]
    gain = by_root[roots]
    units = {}
    for axis, labels in axes.items():
        unit = roots[labels]
        if axis in placed:
            unit = unit[placed[axis].source]
            unit[placed[axis].fresh] = placed[axis].fresh_units
        units[axis] = unit
    sources = {axis: place.source for axis, place in placed.items()}
    return Layout(IndexMap(maps), grown, sources, gain, units)


class _Taker(NamedTuple):
    """A group that grows along an axis: ``added`` new units, numbered from ``first``."""

    group: Group
    added: int
    first: int


@dataclass(frozen=True, eq=False)
class _Placed:
    """One axis laid out; ``old`` and ``new`` hold a slot's positions each.

    ``fresh`` are all new positions, ``fresh_units`` the units that they belong to.
    """

    source: np.ndarray
    axis: AxisMap
    old: list[np.ndarray]
    new: list[np.ndarray]
    templates: np.ndarray
    added: np.ndarray
    fresh: np.ndarray
    fresh_units: np.ndarray


def _place(size: int, takers: Sequence[_Taker], positions: Sequence[np.ndarray]) -> _Placed:
    """Insert the clones of all groups that share an axis."""
    blocks: list[_Block] = []
    templates, added = [], []
    for number, ((group, count, _), own) in enumerate(zip(takers, positions, strict=True)):
        copies = group.recipe == "copies"
        per_unit = count // (group.width if copies else 1)
        for unit in range(group.width) if copies else (group.width - 1,):
            template = np.sort(own[unit])
            templates.append(template)
            added.append(np.full(len(template), per_unit))
            blocks += [
                _Block(int(run[0]), int(run[-1]), per_unit, number, unit) for run in _runs(template)
            ]
    fresh: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
    source = _insert(size, sorted(blocks), fresh)
    old = _old_positions(size, blocks)
    new: list[list[np.ndarray]] = [[] for _ in positions]
    for (number, _), parts in sorted(fresh.items()):
        new[number].append(np.concatenate(parts, axis=1))
    joined = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in new]
    return _Placed(
        source,
        AxisMap(len(source), old),
        [old[own] for own in positions],
        joined,
        np.concatenate(templates),
        np.concatenate(added),
        np.concatenate([rows.reshape(-1) for rows in joined]),
        np.concatenate(
            [
                np.repeat(np.arange(taker.first, taker.first + len(rows)), rows.shape[1])
                for taker, rows in zip(takers, joined, strict=True)
            ]
        ),
    )


def _runs(positions: np.ndarray) -> list[np.ndarray]:
    """Split ascending positions into contiguous runs."""
    if len(positions) == 1 or positions[-1] - positions[0] == len(positions) - 1:
        return [positions]
    return np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)


def _insert(
    size: int, blocks: list[_Block], fresh: dict[tuple[int, int], list[np.ndarray]]
) -> np.ndarray:
    parts, start, shift = [], 0, 0
    for block in blocks:
        length = block.last - block.first + 1
        parts.append(np.arange(start, block.last + 1))
        if length == 1:
            parts.append(np.full(block.added, block.first))
        else:
            parts.append(np.tile(np.arange(block.first, block.last + 1), block.added))
        begin = block.last + 1 + shift
        new = np.arange(begin, begin + length * block.added).reshape(block.added, length)
        fresh[block.owner, block.unit].append(new)
        start, shift = block.last + 1, shift + length * block.added
    parts.append(np.arange(start, size))
    return np.concatenate(parts)


def _old_positions(size: int, blocks: list[_Block]) -> np.ndarray:
    shift = np.zeros(size + 1, dtype=np.int64)
    for block in blocks:
        shift[block.last + 1] += (block.last - block.first + 1) * block.added
    return np.arange(size, dtype=np.int64) + np.cumsum(shift)[:size]
