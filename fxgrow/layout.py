"""Where new units go: positions along every axis that grows. Pure, without torch."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .ir import AxisMap, Group, GrownGroup, GrownSlot, IndexMap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .labels import Axis, LabelBook, Labels


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
    owner: int  # index of the group
    slot: int
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
    blocks: dict[Axis, list[_Block]] = defaultdict(list)
    for owner, group in enumerate(growing):
        copies = group.recipe == "copies"
        added = additions[group.name] // (group.width if copies else 1)
        for index, slot in enumerate(group.slots):
            axis = (slot.tensor, slot.dim)
            for unit in range(group.width) if copies else (group.width - 1,):
                template = np.sort(slot.positions[unit])
                gain[axes[axis][template]] = added
                for run in _runs(template):
                    blocks[axis].append(
                        _Block(int(run[0]), int(run[-1]), added, owner, index, unit)
                    )
    sources: dict[Axis, np.ndarray] = {}
    fresh: dict[tuple[int, int, int], list[np.ndarray]] = defaultdict(list)
    for axis, own in blocks.items():
        sources[axis] = _insert(len(axes[axis]), sorted(own), fresh)
    slots: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
    for (owner, index, _), parts in sorted(fresh.items()):
        slots[owner, index].append(np.concatenate(parts, axis=1))
    maps: dict[str, dict[int, AxisMap]] = defaultdict(dict)
    for (tensor, dim), source in sources.items():
        maps[tensor][dim] = AxisMap(
            len(source), _old_positions(len(axes[tensor, dim]), blocks[tensor, dim])
        )
    index_map = IndexMap(maps)
    grown = []
    for owner, group in enumerate(growing):
        own_slots = tuple(
            GrownSlot(
                s.tensor,
                s.dim,
                s.role,
                maps[s.tensor][s.dim].old[s.positions],
                np.concatenate(slots[owner, i]),
            )
            for i, s in enumerate(group.slots)
        )
        grown.append(
            GrownGroup(group.name, group.width, additions[group.name], own_slots, group.recipe)
        )
    return Layout(index_map, tuple(grown), sources, gain, _units(book, axes, sources, grown))


def _runs(positions: np.ndarray) -> list[np.ndarray]:
    """Split ascending positions into contiguous runs."""
    if len(positions) == 1 or positions[-1] - positions[0] == len(positions) - 1:
        return [positions]
    return np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)


def _insert(
    size: int, blocks: list[_Block], fresh: dict[tuple[int, int, int], list[np.ndarray]]
) -> np.ndarray:
    parts, start, shift = [], 0, 0
    for block in blocks:
        length = block.last - block.first + 1
        parts.append(np.arange(start, block.last + 1))
        parts.append(np.tile(np.arange(block.first, block.last + 1), block.added))
        begin = block.last + 1 + shift
        new = np.arange(begin, begin + length * block.added).reshape(block.added, length)
        fresh[block.owner, block.slot, block.unit].append(new)
        start, shift = block.last + 1, shift + length * block.added
    parts.append(np.arange(start, size))
    return np.concatenate(parts)


def _old_positions(size: int, blocks: list[_Block]) -> np.ndarray:
    shift = np.zeros(size + 1, dtype=np.int64)
    for block in blocks:
        shift[block.last + 1] += (block.last - block.first + 1) * block.added
    return np.arange(size, dtype=np.int64) + np.cumsum(shift)[:size]


def _units(
    book: LabelBook,
    axes: Mapping[Axis, Labels],
    sources: Mapping[Axis, np.ndarray],
    grown: Sequence[GrownGroup],
) -> dict[Axis, np.ndarray]:
    """Identity of the unit at every new position: a root, or a number for a new unit."""
    units = {}
    for axis, labels in axes.items():
        roots = book.find(labels)
        units[axis] = roots[sources[axis]] if axis in sources else roots
    start = book.size
    for group in grown:
        for slot in group.slots:
            units[slot.tensor, slot.dim][slot.new] = start + np.arange(group.added)[:, None]
        start += group.added
    return units
