"""What :func:`fxgrow.inspect` returns."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import networkx as nx
from torch import fx, nn

from . import report
from .analyse import Analysis, analyse
from .errors import DataError, InputError, UnsupportedError
from .groups import group_units, layer_of
from .inner import SUFFIX, matches, outer_units, stuck
from .io import atomic_write
from .ir import Group, Reason, Unsupported
from .messages import MESSAGES
from .module import GrownModule
from .pages.show import Shown
from .pages.text import dot, graphml
from .pages.view import inspection_view
from .plain import collector_paused, plain
from .printable import quoted
from .solve import freeze_hidden, join_hidden
from .trace import trace
from .walks import parameters
from .wrapping import unwrap

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from .groups import Grouping
    from .pages.view import View
    from .plan import CostModel
    from .rules.own import Declaration
    from .shuffle import Shuffle
    from .trace import Traced

__all__ = ["Inspection", "coupling_graph", "inspect_model", "inspect_own"]


@dataclass(frozen=True, eq=False)
class Inspection(Shown):
    """Groups of a model, growable and frozen.

    Attributes
    ----------
    groups : tuple of Group
        Groups that can grow, in execution order.
    frozen : tuple of Group
        Groups that can't, each with its ``reason``.
    coverage : float
        Share of the parameter elements reached by the graph that lie in a growable
        group (0 to 1).
    unsupported : tuple of Unsupported
        Operations without a rule.
    params, flops : int
        Parameter elements (shared ones once); FLOPs on the example inputs.
    costs : CostModel
        Prices of additions.
    inner : tuple of str
        Patterns of the groups that grow by their inner axis.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Group, ...]
    coverage: float
    unsupported: tuple[Unsupported, ...]
    params: int
    flops: int
    costs: CostModel
    analysis: Analysis = field(repr=False)
    shuffles: tuple[Shuffle, ...] = field(default=(), repr=False)
    inner: tuple[str, ...] = ()

    @property
    def graph(self) -> nx.Graph[Any]:
        """Axes and layers, coupled; every edge names the node that caused it."""
        return coupling_graph(self)

    def group(self, name: str) -> Group:
        """Return the growable group called ``name``.

        Raises
        ------
        InputError
            When there is none, with the reason if it is frozen and near names if not.
        """
        for group in self.groups:
            if group.name == name:
                return group
        for group in self.frozen:
            if group.name == name and group.reason is not None:
                why = f"{group.reason.message} {group.reason.source}".rstrip()
                raise InputError(f"group {name!r} can't grow: {why}")
        hint = _meant(name, [g.name for g in self.groups])
        raise InputError(
            f"no group is called {quoted(name, 200)}{hint} (fxgrow.inspect(...).groups lists all)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as JSON types."""
        return report.inspection_dict(self)

    def to_graphml(self, path: str | Path) -> None:
        """Write :attr:`graph` as GraphML, for Gephi, yEd and Cytoscape.

        Raises
        ------
        FileError
            When the file can't be written; an older one is then as it was.
        """
        text = graphml(self)
        atomic_write(path, lambda file: file.write_text(text, encoding="utf-8"))

    def to_dot(self) -> str:
        """Return the groups and their layers in the DOT language."""
        return dot(self)

    def _view(self, **given: Any) -> View:
        return inspection_view(self, **given)

    def _data(self) -> Mapping[str, Any]:
        return self.to_dict()


@collector_paused()
def inspect_model(
    model: nn.Module,
    example_inputs: Any,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    inner: Sequence[str] = (),
    strict: bool = False,
    rules: Iterable[Declaration] = (),
) -> Inspection:
    """Find the groups of a model: which units must grow together, and which can't grow.

    The model is traced, labels are propagated through every ATen call of one run, and
    units that share their fate are collected into groups.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed. Wrappers come off (:func:`fxgrow.unwrap`).
    example_inputs : tensor, tuple or dict
        One tensor, positional arguments, or keyword arguments of ``forward``.
    include, exclude : sequence of str
        Shell patterns over group and layer names; groups left out count as frozen.
    inner : sequence of str
        Shell patterns over group and layer names. Heads (and convolution groups) that match
        become larger, not more: their units are the indices of the inner axis, and their
        groups have names that end in ``":inner"``.
    strict : bool
        Raise when an operation has no rule, instead of freezing what it touches.
    rules : sequence of Declaration
        What :func:`fxgrow.rule` and :func:`fxgrow.resizable` return: labels of custom
        operations, opaque modules and functions.

    Returns
    -------
    Inspection

    Raises
    ------
    InputError
        When a pattern matches nothing, or a rule is none, stands twice or fails.
    TraceError
        When no graph of the model can be had.
    DataError
        When the model does not run on the example inputs.
    UnsupportedError
        With ``strict``: names all operations without a rule.

    Examples
    --------
    >>> import torch, fxgrow
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> [(group.name, group.width) for group in fxgrow.inspect(net, torch.zeros(1, 4)).groups]
    [('0', 8)]
    """
    model = plain(unwrap(model))
    traced = trace(model, example_inputs, rules)
    chosen = (include, exclude, inner)
    try:
        return _inspected(model, traced, *chosen, strict=strict)
    except DataError as error:
        if traced.obstacle or isinstance(model, GrownModule):
            raise
        try:  # the graph may be at fault, not the inputs: a path that the code does not take
            own = trace(model, traced.inputs, traced.rules, whole=True)
            return _inspected(model, own, *chosen, strict=strict)
        except DataError:
            raise error from None


@collector_paused()
def inspect_own(model: nn.Module, inspection: Inspection) -> Inspection:
    """Inspect a model again as its own code: what that code can't follow is frozen.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed.
    inspection : Inspection
        Of this model.

    Returns
    -------
    Inspection
        Of all groups, with the sizes that the code holds.
    """
    traced = inspection.analysis.traced
    model = plain(unwrap(model))
    own = trace(model, traced.inputs, traced.rules, whole=True)
    return _inspected(model, own, inner=inspection.inner)


def _inspected(
    model: nn.Module,
    traced: Traced,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    inner: Sequence[str] = (),
    *,
    strict: bool = False,
) -> Inspection:
    analysis = analyse(traced)
    unsupported = _unsupported(analysis)
    if strict and unsupported:
        listing = "; ".join(
            f"{u.op} ×{u.count} (first at {u.source or u.node})" for u in unsupported
        )
        raise UnsupportedError(
            f"operations without a rule: {listing}; pass rules for them (fxgrow.rule), or "
            "drop strict=True to freeze what they touch"
        )
    grouping = _grouped(analysis)
    chosen = _chosen(grouping, inner)
    if inner or chosen:
        again = analyse(traced, outer_units(chosen))
        inside = _grouped(again)
        if inner:
            _check_inner(
                inside, inner, {layer for g in chosen for layer in g.layers if _asked(g, inner)}
            )
        if inner or inside.coverage > grouping.coverage:
            analysis, grouping = again, inside
    groups, frozen = _select(grouping.groups, grouping.frozen, include, exclude)
    state = analysis.state
    return Inspection(
        groups,
        frozen,
        grouping.coverage,
        unsupported,
        sum(p.numel() for p in parameters(model)),
        sum(state.tensor_flops.values()) + sum(p.flops for p in state.product_flops),
        grouping.costs,
        analysis,
        grouping.shuffles,
        tuple(inner),
    )


def _grouped(analysis: Analysis) -> Grouping:
    """Collect the groups; those that a size in Python code holds back are frozen."""
    root, state = analysis.traced.root, analysis.state
    grouping = group_units(analysis)
    if join_hidden(root, state, grouping.groups):
        grouping = group_units(analysis)
    if freeze_hidden(root, state, grouping.groups):
        return group_units(analysis)
    return grouping


def _chosen(grouping: Grouping, patterns: Sequence[str]) -> list[Group]:
    """Find the groups that are to grow inside; every pattern must match one.

    Besides those that match these are the ones that can't grow otherwise.
    """
    everything = (*grouping.groups, *grouping.frozen)
    _check_patterns(everything, patterns)
    matching = [g for g in everything if _asked(g, patterns)]
    return matching + [g for g in stuck(grouping.frozen) if g not in matching]


def _asked(group: Group, patterns: Sequence[str]) -> bool:
    return any(matches(group, pattern) for pattern in patterns)


def _check_inner(grouping: Grouping, patterns: Sequence[str], layers: Collection[str]) -> None:
    """Refuse patterns of which nothing comes, whatever grows inside by itself."""
    inside = [g for g in (*grouping.groups, *grouping.frozen) if SUFFIX in g.name]
    if not any(layer in layers for group in inside for layer in group.layers):
        raise InputError(
            f"inner={list(patterns)}: no group that matches has an inner axis to grow by instead; "
            "heads and convolution groups of several rows have one, a single head grows by it "
            "anyway (see rows_per_unit in fxgrow inspect)"
        )


def _unsupported(analysis: Analysis) -> tuple[Unsupported, ...]:
    result = []
    for op, sites in analysis.state.unknown.items():
        node = next((s for s in sites if isinstance(s, fx.Node)), None)
        name = node.name if node is not None else ""
        source = node.meta.get("source", "") if node is not None else ""
        result.append(Unsupported(op, len(sites), name, source))
    return tuple(result)


def _select(
    groups: tuple[Group, ...],
    frozen: tuple[Group, ...],
    include: Sequence[str],
    exclude: Sequence[str],
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Apply include and exclude: shell patterns over group names and layers."""
    from dataclasses import replace

    _check_patterns((*groups, *frozen), (*include, *exclude))
    kept, left = [], []
    for group in groups:
        wanted = not include or any(matches(group, p) for p in include)
        if wanted and not any(matches(group, p) for p in exclude):
            kept.append(group)
        else:
            left.append(replace(group, reason=Reason("excluded", MESSAGES["excluded"])))
    return tuple(kept), (*frozen, *left)


def _check_patterns(groups: Sequence[Group], patterns: Iterable[str]) -> None:
    """Refuse patterns that match nothing, with near names."""
    for pattern in patterns:
        if not any(matches(group, pattern) for group in groups):
            names = {name for group in groups for name in (group.name, *group.layers)}
            raise InputError(
                f"the pattern {pattern!r} matches no group{_meant(pattern, names)}; "
                "fxgrow inspect lists their names"
            )


def _meant(name: str, offers: Iterable[str]) -> str:
    """Write which of the offers a mistyped name may stand for."""
    near = difflib.get_close_matches(name, sorted(offers), n=3, cutoff=0.4)
    return f"; did you mean {', '.join(near)}?" if near else ""


def coupling_graph(inspection: Inspection) -> nx.Graph[Any]:
    """Frozen graph: nodes are (tensor, dim) axes and layers, edges are couplings."""
    state = inspection.analysis.state
    graph: nx.Graph[Any] = nx.Graph()
    by_label = sorted((int(own[0]), int(own[-1]), axis) for axis, own in state.axes.items())
    starts = [start for start, _, _ in by_label]
    for axis in state.axes:
        graph.add_node(axis, kind="axis")
        layer = layer_of(axis[0])
        graph.add_node(layer, kind="layer")
        graph.add_edge(axis, layer, kind="belongs")
    for a, b, where in state.book.couplings:
        node = where.site.name if isinstance(where.site, fx.Node) else ""
        source = where.site.meta.get("source", "") if isinstance(where.site, fx.Node) else ""
        for left in _axes_of(a, starts, by_label):
            for right in _axes_of(b, starts, by_label):
                if left != right:
                    graph.add_edge(
                        left, right, kind="coupling", op=where.op, node=node, source=source
                    )
    for group in (*inspection.groups, *inspection.frozen):
        for slot in group.slots:
            graph.nodes[slot.tensor, slot.dim].setdefault("groups", []).append(group.name)
    return nx.freeze(graph)


def _axes_of(labels: Any, starts: list[int], by_label: list[tuple[int, int, Any]]) -> set[Any]:
    import numpy as np

    flat = labels.reshape(-1)
    found = np.searchsorted(starts, flat, side="right") - 1
    # Labels between axes, of initial states, are nobody's.
    inside = flat <= np.array([last for _, last, _ in by_label])[found]
    return {by_label[i][2] for i in np.unique(found[inside & (found >= 0)])}
