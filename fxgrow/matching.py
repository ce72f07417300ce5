"""Which unit of a wide model is which unit of a narrow one: by signature, pure numpy.

Units that have slices in the same multiset of (tensor, dim) are alike, and any of them can
take any other's part. So a narrow unit may become any wide unit with the same signature; in
both models units and their slices are taken in order. Where a concatenation, a flattening or
a channel shuffle puts them is read off the labels of each model.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .alike import listed
from .errors import UnsupportedError
from .ir import PLAIN, AxisMap, GrownGroup, GrownSlot, IndexMap

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .inspection import Inspection
    from .ir import Group
    from .planes import Axis

__all__ = ["Matching", "match_units"]

Shapes = dict[str, tuple[int, ...]]
_SHOWN = 3  # problems that a message tells of

# Reasons that keep a unit from being *inserted*; in a model that is wide already they are none.
HARMLESS = frozenset({"reshape", "opaque", "unread", "constant", "requires_grad", "excluded"})


class Signature(NamedTuple):
    """Multiset of (tensor, dim): each axis with the number of slices on it."""

    slices: tuple[tuple[str, int, int], ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes, without counts."""
        return tuple((tensor, dim) for tensor, dim, _ in self.slices)


@dataclass(frozen=True, eq=False)
class Units:
    """All units of one signature, in order.

    ``groups`` are those that they come from; ``positions`` hold one array for each axis of
    the signature, shape ``(units, slices)``.
    """

    groups: tuple[Group, ...]
    positions: tuple[np.ndarray, ...]

    @property
    def count(self) -> int:
        """How many units there are."""
        return len(self.positions[0])

    @property
    def name(self) -> str:
        """Name of the first group, a growable one if there is any."""
        return min(self.groups, key=lambda g: not g.growable).name

    @property
    def copies(self) -> bool:
        """Whether a normalisation over the channels wants whole copies."""
        return any(group.recipe != "fresh" for group in self.groups)

    @property
    def obstacle(self) -> str:
        """Why there can't be more of these units, ``""`` if nothing speaks against it."""
        reasons = [g.reason for g in self.groups if g.reason is not None]
        hard = [r for r in reasons if r.code not in HARMLESS]
        return f"{hard[0].message} {hard[0].source}".rstrip() if hard else ""


@dataclass(frozen=True, eq=False)
class Matching:
    """Where everything of the narrow model lies in the wide one.

    Attributes
    ----------
    index_map : IndexMap
        Axes that grew, or whose entries change their order.
    groups : tuple of GrownGroup
    rows : tuple of Group
        One for each of ``groups``: the group before growth.
    """

    index_map: IndexMap
    groups: tuple[GrownGroup, ...]
    rows: tuple[Group, ...]


def match_units(source: Inspection, target: Inspection, old: Shapes, new: Shapes) -> Matching:
    """Map every unit of the source to a unit of the target.

    Parameters
    ----------
    source, target : Inspection
    old, new : dict of str to tuple of int
        Shapes of their tensors, by the same names.

    Returns
    -------
    Matching

    Raises
    ------
    UnsupportedError
        Where units have no counterpart, or more of them can't be kept out of the function.
        Names all of them.
    """
    narrow, wide = _by_signature(source), _by_signature(target)
    _add_single_units(narrow, wide, old)
    problems = [*_unmatched(narrow, wide), *_blocked(narrow, wide)]
    if not problems:
        problems = list(_unlabelled(narrow, wide, old, new))
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        text = "; ".join(problems[:_SHOWN]) + more + _single_axes(narrow, wide, old)
        raise UnsupportedError(f"the target can't take over {text}")
    grown, rows = [], []
    taken = {g.name for g in (*source.groups, *source.frozen)}
    for signature, units in wide.items():
        before = narrow.get(signature)
        if before is None:
            name = units.name if units.name not in taken else f"{units.name}#new"
            row = replace(units.groups[0], name=name, width=0, reason=None)
        else:
            row = _named(before)
        if units.count > row.width:
            rows.append(row)
            grown.append(_grown(row, signature, units, copies=before is not None and units.copies))
    return Matching(_index_map(narrow, wide, old, new), tuple(grown), tuple(rows))


def _named(units: Units) -> Group:
    group = next(g for g in units.groups if g.name == units.name)
    return replace(group, width=units.count, reason=None)


def _by_signature(inspection: Inspection) -> dict[Signature, Units]:
    found: dict[Signature, list[Group]] = defaultdict(list)
    for group in (*inspection.groups, *inspection.frozen):
        group = replace(group, slots=tuple(sorted(group.slots, key=lambda s: (s.tensor, s.dim))))
        slices = tuple((s.tensor, s.dim, s.positions.shape[1]) for s in group.slots)
        found[Signature(slices)].append(group)
    return {signature: _joined(groups) for signature, groups in found.items()}


def _joined(groups: list[Group]) -> Units:
    """Join groups that only differ in why they are frozen; one axis gives the order."""
    positions = [
        np.concatenate([g.slots[i].positions for g in groups]) for i in range(len(groups[0].slots))
    ]
    order = np.argsort(positions[0][:, 0], kind="stable")
    return Units(tuple(groups), tuple(p[order] for p in positions))


def _add_single_units(
    narrow: dict[Signature, Units], wide: Mapping[Signature, Units], old: Shapes
) -> None:
    """Add the units of axes of size 1, which carry no labels, in the narrow model."""
    labelled = {axis for signature in narrow for axis in signature.axes}
    for signature, units in wide.items():
        alone = all(
            count == 1 and (tensor, dim) not in labelled and old[tensor][dim] == 1
            for tensor, dim, count in signature.slices
        )
        if signature not in narrow and alone:
            narrow[signature] = Units(
                units.groups, tuple(np.zeros((1, 1), dtype=np.int64) for _ in units.positions)
            )


def _single_axes(
    narrow: Mapping[Signature, Units], wide: Mapping[Signature, Units], old: Shapes
) -> str:
    labelled = {axis for signature in narrow for axis in signature.axes}
    axes = (axis for signature in wide for axis in signature.axes)
    single = sorted({(t, d) for t, d in axes if old[t][d] == 1} - labelled)
    if not single:
        return ""
    where = listed(f"{tensor} dim {dim}" for tensor, dim in single)
    return f"; a width of 1 in the source ({where}) is not told from no width at all"


# ---------------------------------------------------------------- what does not fit


def _unmatched(narrow: Mapping[Signature, Units], wide: Mapping[Signature, Units]) -> Iterator[str]:
    """Units without a counterpart."""
    by_axes = {frozenset(s.axes): s for s in wide}
    for signature, units in narrow.items():
        if signature in wide:
            if wide[signature].count < units.count:
                yield (
                    f"{units.count} units of {units.name!r}, for the target has only "
                    f"{wide[signature].count} that are coupled alike ({_where(signature)})"
                )
            continue
        other = by_axes.get(frozenset(signature.axes))
        if other is None:
            yield (
                f"{units.count} units of {units.name!r}, since no unit of the target has slices "
                f"in the same tensors ({_where(signature)}): at its width a shuffle or "
                "concatenation couples them otherwise; choose other widths"
            )
            continue
        counts = dict(zip(other.axes, (c for *_, c in other.slices), strict=True))
        tensor, dim, count = next(s for s in signature.slices if s[2] != counts[s[:2]])
        yield (
            f"units of {units.name!r}, which have {count} entries each along dim {dim} of "
            f"{tensor} and {counts[tensor, dim]} in the target"
            + (f" ({units.obstacle})" if units.obstacle else "")
            + "; keep the size of heads, convolution groups, norm groups and images, and change "
            "their number"
        )


def _blocked(narrow: Mapping[Signature, Units], wide: Mapping[Signature, Units]) -> Iterator[str]:
    """Units that become more, though their number can't change without the function."""
    lost = {frozenset(s.axes) for s in narrow if s not in wide}
    for signature, units in wide.items():
        before = narrow.get(signature)
        count = 0 if before is None else before.count
        if units.count <= count or frozenset(signature.axes) in lost:
            continue
        name = units.name if before is None else before.name
        obstacle = units.obstacle or (before.obstacle if before is not None else "")
        grows = f"{name!r} growing from {count} to {units.count} units ({_where(signature)})"
        if obstacle:
            yield f"{grows}: {obstacle}; give the target the source's size there"
        elif units.copies and (count == 0 or units.count % count):
            low = units.count // count * count if count else 0
            yield (
                f"{grows}: a normalisation over the channels mixes all units, so only whole "
                f"multiples are exact; take {low} or {low + count}"
            )


def _unlabelled(
    narrow: Mapping[Signature, Units], wide: Mapping[Signature, Units], old: Shapes, new: Shapes
) -> Iterator[str]:
    """Axes of other sizes that no unit covers: kernels, tensors that nothing uses."""
    theirs, mine = _covered(narrow), _covered(wide)
    for name, shape in old.items():
        for dim, size in enumerate(shape):
            rest = size - theirs.get((name, dim), 0)
            if rest == new[name][dim] - mine.get((name, dim), 0):
                continue
            used = any(name == tensor for tensor, _ in (*theirs, *mine))
            yield f"{name}, which has {size} entries along dim {dim} and {new[name][dim]} in " + (
                "the target: a kernel, a grid of positions or another size that is no width; "
                "give the target the same"
                if used
                else "the target: nothing uses it on the example inputs, so nothing tells which "
                "is which; pass inputs that reach it, or keep its size"
            )


def _covered(found: Mapping[Signature, Units]) -> dict[Axis, int]:
    covered: dict[Axis, int] = defaultdict(int)
    for signature, units in found.items():
        for axis, positions in zip(signature.axes, units.positions, strict=True):
            covered[axis] += positions.size
    return dict(covered)


def _where(signature: Signature) -> str:
    return listed(f"{tensor} dim {dim}" for tensor, dim in signature.axes)


# ----------------------------------------------------------------------------- maps


def _grown(row: Group, signature: Signature, units: Units, *, copies: bool) -> GrownGroup:
    """Tell the first units, which are the old ones, from the rest."""
    width, added = row.width, units.count - row.width
    rest = np.arange(width, units.count)
    if copies:  # listed unit by unit: unit i has copies i + width, i + 2 · width ...
        rest = rest.reshape(-1, width).T.reshape(-1)
    like = {(s.tensor, s.dim): s for s in units.groups[0].slots}
    # Fillings of streams are for other widths than what the wide model's norms count.
    fillings = {a: s.filling if s.filling.kind == "centre" else PLAIN for a, s in like.items()}
    slots = tuple(
        GrownSlot(*axis, like[axis].role, positions[:width], positions[rest], fillings[axis])
        for axis, positions in zip(signature.axes, units.positions, strict=True)
    )
    return GrownGroup(row.name, width, added, slots, "copies" if copies else "fresh")


def _index_map(
    narrow: Mapping[Signature, Units], wide: Mapping[Signature, Units], old: Shapes, new: Shapes
) -> IndexMap:
    moves: dict[Axis, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for signature, units in narrow.items():
        for axis, before, after in zip(
            signature.axes, units.positions, wide[signature].positions, strict=True
        ):
            moves[axis].append((before.reshape(-1), after[: units.count].reshape(-1)))
    taken: dict[Axis, list[np.ndarray]] = defaultdict(list)
    for signature, units in wide.items():
        for axis, positions in zip(signature.axes, units.positions, strict=True):
            taken[axis].append(positions.reshape(-1))
    maps: dict[str, dict[int, AxisMap]] = defaultdict(dict)
    for (name, dim), parts in moves.items():
        size, new_size = old[name][dim], new[name][dim]
        place = np.full(size, -1, dtype=np.int64)
        for before, after in parts:
            place[before] = after
        # What no unit covers keeps its order.
        place[place < 0] = _left(new_size, taken[name, dim])
        if size != new_size or (place != np.arange(size)).any():
            maps[name][dim] = AxisMap(new_size, place)
    return IndexMap(dict(maps))


def _left(size: int, taken: Sequence[np.ndarray]) -> np.ndarray:
    free = np.ones(size, dtype=bool)
    free[np.concatenate(list(taken))] = False
    return np.flatnonzero(free)
