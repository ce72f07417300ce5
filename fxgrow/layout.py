"""Where new units go: positions along every axis that grows. Pure, without torch."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
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
        apart = [growing[owner].slots[index].positions for owner, index in own]
        positions, parts = _together([owner for owner, _ in own], apart)
        # Axes that share their positions (a norm's tensors) are laid out once.
        key = (len(axes[axis]), *(owner for owner, _ in own), *map(id, apart))
        if key not in known:
            takers = [
                _Taker(growing[owner], additions[growing[owner].name], int(starts[owner]))
                for owner in dict.fromkeys(owner for owner, _ in own)
            ]
            place = _place(len(axes[axis]), takers, positions)
            known[key] = place if parts is None else _apart(place, parts)
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
            group.tied,
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


_Parts = list[tuple[int, np.ndarray, np.ndarray]]


def _together(
    owners: Sequence[int], apart: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], _Parts | None]:
    """Join the positions of slots that one group has along one axis: a unit is laid out whole.

    Returns the positions for each group and, where there was something to join, of every slot
    its group's number, and its columns among the group's old and new positions.
    """
    if len(set(owners)) == len(owners):
        return list(apart), None
    names = list(dict.fromkeys(owners))
    joined, parts = [], {}
    for number, owner in enumerate(names):
        mine = [i for i, other in enumerate(owners) if other == owner]
        whole = np.concatenate([apart[i] for i in mine], axis=1)
        joined.append(whole)
        slot = np.repeat(mine, [apart[i].shape[1] for i in mine])
        order = slot[np.argsort(whole[-1])]  # new positions are in the order of the template's
        for i in mine:
            parts[i] = (number, np.flatnonzero(slot == i), np.flatnonzero(order == i))
    return joined, [parts[i] for i in range(len(owners))]


def _apart(place: _Placed, parts: _Parts) -> _Placed:
    """Give each slot its own columns again."""
    return replace(
        place,
        old=[place.old[number][:, columns] for number, columns, _ in parts],
        new=[place.new[number][:, columns] for number, _, columns in parts],
    )


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
            template = own[unit] if own.shape[1] == 1 else np.sort(own[unit])
            templates.append(template)
            added += [per_unit] * len(template)
            blocks += [_Block(a, b, per_unit, number, unit) for a, b in _runs(template)]
    blocks.sort()
    old, source, pieces = _insert(size, blocks)
    fresh: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
    for block, piece in zip(blocks, pieces, strict=True):
        fresh[block.owner, block.unit].append(piece.reshape(block.added, -1))
    new: list[list[np.ndarray]] = [[] for _ in positions]
    for (number, _), parts in sorted(fresh.items()):
        new[number].append(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))
    joined = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in new]
    units = np.concatenate(
        [np.arange(t.first, t.first + len(rows)) for t, rows in zip(takers, joined, strict=True)]
    )
    slices = [rows.shape[1] for rows in joined for _ in range(len(rows))]
    return _Placed(
        source,
        AxisMap(len(source), old),
        [old[own] for own in positions],
        joined,
        np.concatenate(templates),
        np.array(added),
        np.concatenate([rows.reshape(-1) for rows in joined]),
        np.repeat(units, slices),
    )


def _runs(positions: np.ndarray) -> list[tuple[int, int]]:
    """First and last of the contiguous runs of ascending positions."""
    if len(positions) == 1 or positions[-1] - positions[0] == len(positions) - 1:
        return [(int(positions[0]), int(positions[-1]))]
    cuts = np.flatnonzero(np.diff(positions) > 1)
    firsts = positions[np.concatenate([[0], cuts + 1])]
    lasts = positions[np.concatenate([cuts, [-1]])]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def _insert(size: int, blocks: list[_Block]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Where old entries go; which entry every new position is a clone of; each block's clones."""
    first, last, added = np.array([block[:3] for block in blocks]).T
    length = last - first + 1
    count = length * added
    ends = np.cumsum(count)
    shift = np.zeros(size + 1, dtype=np.int64)
    np.add.at(shift, last + 1, count)
    old = np.arange(size) + np.cumsum(shift)[:size]
    offset = np.arange(ends[-1]) - np.repeat(ends - count, count)
    clones = np.repeat(last + 1 + ends - count, count) + offset
    source = np.empty(size + ends[-1], dtype=np.int64)
    source[old] = np.arange(size)
    source[clones] = np.repeat(first, count) + offset % np.repeat(length, count)
    bounds = [0, *ends.tolist()]
    return old, source, [clones[a:b] for a, b in pairwise(bounds)]
