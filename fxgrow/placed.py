"""Values of a fixed width in a grown graph: beside the old units, with entries for new ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from .messages import reason_for
from .shuffle import add_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import fx, nn

    from .analyse import Analysis
    from .inspection import Inspection
    from .ir import Group
    from .placing import Placement
    from .widths import Sizes

__all__ = ["Placer", "held"]


@dataclass(frozen=True, eq=False)
class _Owners:
    """To which group the units belong, and how its new ones are made.

    Attributes
    ----------
    roots : numpy.ndarray of int64
        Of every label.
    group : numpy.ndarray of int64
        Index of the group of every root, -1 for none.
    recipes : tuple of str
    """

    roots: np.ndarray
    group: np.ndarray
    recipes: tuple[str, ...]

    def of(self, labels: np.ndarray) -> np.ndarray:
        """Index of the group of every label."""
        found: np.ndarray = self.group[self.roots[labels]]
        return found


def _owners_of(analysis: Analysis, groups: Sequence[Group]) -> _Owners:
    """Find the group of every unit."""
    book = analysis.state.book
    roots = book.find(np.arange(book.size, dtype=np.int64))
    owner = np.full(book.size, -1, dtype=np.int64)
    for number, group in enumerate(groups if analysis.state.placements else ()):
        slot = group.slots[0]
        owner[roots[analysis.state.axes[slot.tensor, slot.dim][slot.positions[:, 0]]]] = number
    return _Owners(roots, owner, tuple(group.recipe for group in groups))


@dataclass(frozen=True, eq=False)
class Placer:
    """Widens values of a fixed width where a graph adds them to units that grow."""

    root: nn.Module
    sizes: Sizes
    owners: _Owners
    sites: Mapping[fx.Node, Sequence[Placement]]

    @classmethod
    def of(
        cls,
        root: nn.Module,
        analysis: Analysis,
        groups: Sequence[Group],
        sizes: Sizes,
        origins: Mapping[fx.Node, fx.Node],
    ) -> Placer:
        """Find what has to be widened.

        Parameters
        ----------
        root : torch.nn.Module
            Gets the order of entries as a buffer, where new ones are not all at the end.
        analysis : Analysis
        groups : sequence of Group
        sizes : Sizes
            After growth.
        origins : dict of torch.fx.Node to torch.fx.Node
            Nodes of the graphs that are widened to those of the analysis.
        """
        found: dict[Any, list[Placement]] = {}
        for event in analysis.state.placements:
            found.setdefault(event.where.site, []).append(event)
        sites = {new: found[old] for new, old in origins.items() if old in found}
        return cls(root, sizes, _owners_of(analysis, groups), sites)

    def widen(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> list[str]:
        """Widen what a node is given, by nodes before it; return what was done.

        New units get zeros, or the mean over the old ones where a normalisation takes the mean.

        Parameters
        ----------
        node : torch.fx.Node
            Changed in place.
        values : dict of torch.fx.Node to value
            Of what it reads.
        """
        edits, inputs = [], list(node.all_input_nodes)
        current = {given: given for given in inputs}  # what one dimension was widened in
        for event in self.sites.get(node, ()):
            gains = self.sizes.gain[event.labels]
            if not gains.any():
                continue
            given, other = inputs[event.given], inputs[event.other]
            build = _Build(node, current[given], event.dim, self.root)
            if values[given].dtype != values[other].dtype:
                build.value = build.method("type_as", build.value, other)
            kinds = self._widened(build, event, gains, values[given].ndim)
            node.replace_input_with(current[given], build.value)
            current[given] = build.value
            edits.append(f"{node.name}: {given.name} stays with the old units, new: {kinds}")
        return edits

    def _widened(self, build: _Build, event: Placement, gains: np.ndarray, ndim: int) -> str:
        """Add the entries of new units to a value; say what they are."""
        group, old = self.owners.of(event.labels), len(gains)
        order = np.repeat(np.arange(old), 1 + gains)
        fresh = np.diff(order, prepend=-1) == 0
        taker, kinds = group[order], []
        extras: list[fx.Node | None] = []
        for number in dict.fromkeys(taker[fresh].tolist()):
            recipe = self.owners.recipes[number]
            kinds.append({"mean": "their mean", "copies": "copies"}.get(recipe, "zero"))
            if recipe != "copies":
                order[fresh & (taker == number)] = old + len(extras)
                mean = recipe == "mean"
                extras.append(build.mean(np.flatnonzero(group == number), old) if mean else None)
        build.wide(extras, order, old, ndim)
        return ", ".join(dict.fromkeys(kinds))


def held(inspection: Inspection) -> Inspection:
    """Freeze the groups that only grow beside values of a fixed width.

    Two models of different widths each compute their own positions.

    Parameters
    ----------
    inspection : Inspection
    """
    analysis, groups = inspection.analysis, inspection.groups
    owners = _owners_of(analysis, groups)
    reasons = {
        number: reason_for("unlabelled", event.where)
        for event in analysis.state.placements
        for number in owners.of(event.labels).tolist()
    }
    lost = [replace(g, reason=reasons[i]) for i, g in enumerate(groups) if i in reasons]
    kept = tuple(g for i, g in enumerate(groups) if i not in reasons)
    return replace(inspection, groups=kept, frozen=(*inspection.frozen, *lost))


class _Build:
    """Puts nodes that widen a value before the one that reads it."""

    def __init__(self, user: fx.Node, value: fx.Node, dim: int, root: nn.Module) -> None:
        self.user, self.value, self.dim, self.root = user, value, dim, root

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        return self._node("call_method", name, args, kwargs)

    def function(self, target: Any, *args: Any) -> fx.Node:
        return self._node("call_function", target, args, {})

    def _node(self, kind: str, target: Any, args: Any, kwargs: Any) -> fx.Node:
        with self.user.graph.inserting_before(self.user):
            made = self.user.graph.create_node(kind, target, args, kwargs)
        made.meta["source"] = self.user.meta.get("source", "")
        return made

    def mean(self, members: np.ndarray, width: int) -> fx.Node:
        """Mean over the entries of one group."""
        value = self.value if len(members) == width else self._picked(self.value, members)
        return self.method("mean", value, self.dim, keepdim=True)

    def wide(
        self, extras: Sequence[fx.Node | None], order: np.ndarray, old: int, ndim: int
    ) -> None:
        """Take entries of the value and, behind its ``old`` ones, of extras (None: zeros)."""
        more = len(order) - old
        behind = np.array_equal(order, np.minimum(np.arange(len(order)), old))
        if not behind or len(extras) != 1:
            parts = [self._zero() if extra is None else extra for extra in extras]
            whole = (
                self.function(torch.cat, [self.value, *parts], self.dim) if parts else self.value
            )
            self.value = self._picked(whole, order)
        elif extras[0] is None:
            self.value = self.function(
                F.pad, self.value, [0, 0] * (ndim - 1 - self.dim) + [0, more]
            )
        else:
            sizes = [more if d == self.dim else -1 for d in range(ndim)]
            parts = [self.value, self.method("expand", extras[0], *sizes)]
            self.value = self.function(torch.cat, parts, self.dim)

    def _zero(self) -> fx.Node:
        return self.function(torch.zeros_like, self.method("narrow", self.value, self.dim, 0, 1))

    def _picked(self, value: fx.Node, order: np.ndarray) -> fx.Node:
        name = add_order(self.root, order)
        return self.function(
            torch.index_select, value, self.dim, self._node("get_attr", name, (), {})
        )
