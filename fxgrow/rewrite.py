"""Rewriting: insert new units, patch constants, check the partition into units."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from .analyse import Analysis, LabelExecutor
from .attributes import patch_declared, patch_module, patch_opened, patch_owner, patching_inside
from .blanks import Blanks
from .epsilon import EPSILONS, follow_shape, scale_epsilon, scale_smallest
from .errors import FxgrowError, UnsupportedError
from .execute import Executor
from .inner import join_again, widened_units
from .ir import Rewritten
from .kept import kept
from .layout import Layout, lay_out
from .locator import Locator
from .makeup import changes, factor_of, insert_factor, scale_numbers, scale_standard
from .module import GrownModule, copy_graph
from .multihead import free_attention
from .nested import noted_in, pairs_in
from .partition import check_partition
from .patch import Site, patch_of
from .placed import Placer
from .plain import collector_paused, duplicate, eagerly, modes_kept, plain
from .preserve import new_tensors
from .propagate import LABELS_KEY, Noted, Propagation
from .restoring import differs, is_told, makes_fixed, restore
from .shuffle import make_explicit
from .solve import apply_sizes
from .tables import add_constants, register_tables
from .trace import no_fast_path
from .unused import drop_unused
from .walks import parameters, tensor_names
from .whole import tidy, untouched
from .widths import Sizes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .inspection import Inspection
    from .makeup import Change


@dataclass(frozen=True, eq=False)
class _Widened:
    """A widened module tree with its graphs, before they become one module."""

    root: nn.Module
    graphs: dict[str, fx.Graph]
    origins: dict[fx.Node, fx.Node]
    edits: list[str]
    changes: dict[fx.Node, Change]  # by nodes of the analysis
    scaled: set[str]  # modules whose eps has been scaled
    inlined: list[str]  # nodes whose numbers were changed
    by_hand: list[str]  # nodes whose results are multiplied, which is not in the model's code
    placed: list[str]  # nodes that are given a value of fixed width


@collector_paused()
def rewrite(
    model: nn.Module,
    inspection: Inspection,
    additions: Mapping[str, int],
    *,
    seed: int = 0,
    emit: str = "graph",
) -> Rewritten:
    """Return a widened copy of ``model``: ``additions`` units per group, function kept.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed.
    inspection : Inspection
        Of this model.
    additions : dict of str to int
        Group name to units.
    seed : int
        Of the new rows.
    emit : {"graph", "module"}
        A :class:`~fxgrow.module.GrownModule`, or a resized copy of the user's class.

    Returns
    -------
    Rewritten

    Raises
    ------
    UnsupportedError
        When a size can't be made to fit.
    VerificationError
        When the widened model's units are not those of the original (partition check).
    """
    model = plain(model)
    analysis = inspection.analysis
    layout = lay_out(analysis.state.book, analysis.state.axes, inspection.groups, additions)
    factors = factors_of(analysis)
    # The shadow of the analysis has run in train mode: take the model's own buffers.
    named = tensor_names(model)
    tensors = new_tensors(layout, named, seed, factors)
    sizes = Sizes(analysis.state.book, layout.gain)
    memo = {id(named[name]): _like(named[name], tensor) for name, tensor in tensors.items()}
    widened = _copy(model, inspection, memo, sizes)
    register_tables(widened.root, tensors)
    standards = analysis.state.book.standards
    widened.changes.update(changes(inspection.groups, additions, standards, layout.index_map))
    if emit == "module" and any("index_select" in edit for edit in widened.edits):
        raise UnsupportedError(
            "a channel shuffle grows by an index in the graph; use emit='graph', "
            "or exclude its groups"
        )
    placer = Placer.of(widened.root, analysis, inspection.groups, sizes, widened.origins)
    _patch_and_check(analysis, layout, widened, placer)
    if emit == "module" and widened.placed:
        raise UnsupportedError(
            "values of a fixed width, computed in the model's own code, are put beside its units "
            f"in the graph ({widened.placed[0]}); use emit='graph', or exclude their groups"
        )
    if emit == "module" and widened.by_hand:
        raise UnsupportedError(
            f"means, sums, norms or variances over units are made up for in the graph "
            f"({widened.by_hand[0]}); use emit='graph', or exclude their groups"
        )
    for layer in widened.root.modules():
        if hasattr(type(layer), "flatten_parameters"):  # one block of memory, as cuDNN wants it
            flatten: Any = layer.flatten_parameters
            flatten()
    if emit == "graph":
        module: nn.Module = GrownModule(
            widened.root, widened.graphs["eval"], widened.graphs["train"], type(model).__name__
        )
    else:
        module = widened.root
        widened.edits.extend(free_attention(module, widened.graphs["eval"]))
    edits, inlined = tuple(widened.edits), bool(widened.inlined)
    return Rewritten(module, layout.index_map, layout.groups, edits, inlined)


def factors_of(analysis: Analysis) -> set[str]:
    """Buffers that multiply (see :func:`fxgrow.preserve.new_tensors`)."""
    return {name for (name, _), roles in analysis.state.roles.items() if "factor" in roles}


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Make ``new`` a parameter where ``old`` is one."""
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=old.requires_grad)
    return new


def _copy(model: nn.Module, inspection: Inspection, memo: dict[int, Any], sizes: Sizes) -> _Widened:
    """Copy the model; tensors that grow (``memo``) are replaced on the way, not copied twice."""
    analysis = inspection.analysis
    root = duplicate(model, memo)
    add_constants(root, analysis.traced)
    origins: dict[fx.Node, fx.Node] = {}
    graphs, edits = {}, []
    for mode, graph in analysis.traced.distinct:
        nodes: dict[fx.Node, fx.Node] = {}
        graphs[mode] = copy_graph(graph, nodes)
        origins.update({new: old for old, new in nodes.items()})
        explicit = make_explicit(inspection.shuffles, nodes, analysis.planes, sizes, root)
        origins.update(explicit)
        edits += [
            f"{old.name}: channel order made explicit by index_select" for old in explicit.values()
        ]
    graphs.setdefault("train", graphs["eval"])
    return _Widened(root, graphs, origins, edits, {}, set(), [], [], [])


class _Widener(LabelExecutor):
    """Runs the widened graph under label propagation, patching it on the way."""

    def __init__(
        self, widened: _Widened, analysis: Analysis, placer: Placer, state: Propagation
    ) -> None:
        super().__init__(widened.root, analysis.traced.inputs, state, analysis.traced.rules)
        self.widened = widened
        self.placer, self.sizes = placer, placer.sizes
        self.before = analysis.traced.root
        self.blanks, self.locate = analysis.state.blanks, Locator(widened.root)
        self.calls: Counter[Any] = Counter()  # of what makes blanks, by place
        self.known = {new: analysis.planes.get(old) for new, old in widened.origins.items()}
        self._grows: dict[fx.Node, bool] = {}
        self._factors: dict[fx.Node, float] = {}
        origins = widened.origins
        self.changes = {n: widened.changes[o] for n, o in origins.items() if o in widened.changes}

    def compute(self, node: fx.Node) -> Any:
        """Patch a node, run it, and hold its shape against what labels ask for."""
        inputs = node.all_input_nodes
        if (touched := any(map(self._touched, (node, *inputs)))) or any(map(self._changed, inputs)):
            self._patch(node, inputs)
        if touched and node in self.placer.sites:
            self._put(node)
        try:
            value = super().compute(node)
        except FxgrowError as error:
            where = f"{_place(node)} does not run at the new width"
            raise UnsupportedError(f"{where}: {error}") from error
        if touched:
            self._compare(node, self.known.get(node), value)
        change = self.changes.get(node)
        if change is not None and isinstance(value, tuple):  # a variance with its mean
            self.changes.update({n: change for n in node.users if n.args[1] == 0})
        elif change is not None:
            given = self.values[node.all_input_nodes[0]]
            self._make_up(node, value, factor_of(change, node, given, value))
        return value

    def _make_up(self, node: fx.Node, value: torch.Tensor, factor: float) -> None:
        """Multiply the result of a mean, wherever it is used."""
        factor *= self._factors.pop(node, 1.0)
        if factor == 1:
            return
        scaled = insert_factor(node, factor)
        self.values[scaled] = value * factor
        self.known[scaled] = self.known.get(node)
        self.widened.edits.append(f"{node.name}: times {factor:g}, for a larger count")
        self.widened.by_hand.append(_place(node))

    def call_module(self, node: fx.Node) -> Any:
        """Run a leaf module; layers inside one that is kept whole are patched on the way."""
        name = str(node.target)
        if self.rules.declared(self.modules[name]) is None:
            return super().call_module(node)
        with patching_inside(self.modules[name], name, self.widened.edits):
            return super().call_module(node)

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """While a leaf runs, bring the attributes of the layers in it in line."""
        module, edits = self.modules[name], self.widened.edits
        patching = patching_inside(module, name, edits, self.rules.declared)
        blanks = Blanks(self.state, self.locate, self.blanks, self.calls)
        with patching, blanks, super().inside(name):
            yield
        tidy(module)

    def _touched(self, node: fx.Node) -> bool:
        """Whether the value of a node grows."""
        known = self._grows.get(node)
        if known is None:
            known = self._grows[node] = any(
                self.sizes.touches(noted) for noted in noted_in(self.known.get(node))
            )
        return known

    def _changed(self, node: fx.Node) -> bool:
        """Whether a number computed from sizes is another one than before growth."""
        return differs(self.values[node], self.known.get(node))

    def _restored(self, node: fx.Node, inputs: Sequence[fx.Node]) -> bool:
        """Give what makes a value of fixed width the numbers that it had."""
        last, given = node.prev, inputs[is_told(node) :]
        fixed = makes_fixed(node, self.known) and not any(map(self._touched, (node, *given)))
        if not fixed or not restore(node, self.values, self.known):
            return False
        self._run_new(node, last)
        self.widened.edits.append(f"{node.name}: sizes as they were")
        self.widened.inlined.append(node.name)
        return True

    def _put(self, node: fx.Node) -> None:
        """Widen what a node adds to units that grow."""
        last, edits = node.prev, self.placer.widen(node, self.values)
        if edits:
            self._run_new(node, last)
            self.widened.edits.extend(edits)
            self.widened.placed.append(_place(node))

    def _patch(self, node: fx.Node, inputs: Sequence[fx.Node]) -> None:
        if self._restored(node, inputs):
            return
        change, root, done = self.changes.get(node), self.widened.root, self.widened.scaled
        if change is not None and change.kind == "eps":
            self.widened.edits.extend(scale_epsilon(node, root, change.ratio, done))
        elif change is not None and change.kind == "standard":
            made = scale_standard(node, change, root, done)
            self.widened.edits.extend(made.edits)
            self.widened.by_hand.extend([] if made.own else [_place(node)])
            self._factors[node] = made.factor
        elif change is not None and change.kind == "normalize":  # a norm of copies is larger
            self.widened.edits.extend(scale_smallest(node, change.ratio**-0.5))
        if node.op == "call_module":
            name = str(node.target)
            x = self.load(node.args[0] if node.args else node.kwargs.get("input"))
            self._resize_computed(name)
            module = self.modules[name]
            declared = self.rules.declared(module)
            self.widened.edits.extend(
                patch_module(module, name, x)
                if declared is None
                else patch_declared(module, name, declared.sizes)
            )
            return
        if node.op == "call_function" and isinstance(node.args[0] if node.args else 0, fx.Node):
            x = self.load(node.args[0])
            self.widened.edits.extend(patch_owner(self.widened.root, node, x))
        patch = patch_of(node.target)
        if patch is None:
            return
        old, last = (node.args, node.kwargs, node.target), node.prev
        patch(Site(node, self.sizes, self.known, self.values))
        if node.target in EPSILONS:
            self.widened.edits.extend(follow_shape(node, self.widened.root))
        self._run_new(node, last)
        if (node.args, node.kwargs, node.target) != old:
            self.widened.edits.append(f"{node.name}: {old[0][1:]} → {node.args[1:]}")
            self.widened.inlined.append(node.name)

    def _resize_computed(self, name: str) -> None:
        """Resize what a module's hooks will compute: attributes are read off it before."""
        if not self.modules[name]._forward_pre_hooks:
            return
        for key, old in self.before.get_submodule(name).__dict__.items():
            if isinstance(old, torch.Tensor) and LABELS_KEY in old.__dict__:
                noted = Noted(tuple(old.shape), old.__dict__[LABELS_KEY].planes)
                empty = torch.empty(self.sizes.shape(noted), dtype=old.dtype, device=old.device)
                setattr(self.modules[name], key, empty)

    def _run_new(self, node: fx.Node, last: fx.Node) -> None:
        """Run what was put between ``last`` and a node."""
        added, current = [], node.prev
        while current is not last:
            added.append(current)
            current = current.prev
        Executor.run(self, reversed(added))

    def _compare(self, node: fx.Node, before: Any, value: Any) -> None:
        for noted, tensor in pairs_in(before, value):
            wanted = self.sizes.shape(noted)
            if wanted != tuple(tensor.shape):
                raise UnsupportedError(
                    f"{_place(node)} gives shape {tuple(tensor.shape)} at the new width where "
                    f"{wanted} is needed; exclude the group, or register how its sizes follow "
                    "the width"
                )


def _place(node: fx.Node) -> str:
    source = node.meta.get("source", "")
    return f"node {node.name}" + (f" ({source})" if source else "")


def _patch_and_check(analysis: Analysis, layout: Layout, widened: _Widened, placer: Placer) -> None:
    """Run the widened graphs under labels; compare their partition with the expected one."""
    root = widened.root
    # Constants of the code have become buffers, which have no units.
    known = set(analysis.state.names.values())
    names = {name: t for name, t in tensor_names(root).items() if name in known}
    outer = widened_units(analysis.state.outer, layout)
    state = Propagation({id(t): name for name, t in names.items()}, outer)
    state.book.forest.reserve(analysis.state.book.size + int(layout.gain.sum()))
    state.computed = analysis.state.computed
    equations = analysis.state.equations
    widened.edits.extend(apply_sizes(root, analysis.traced.root, equations, placer.sizes))
    for node, change in widened.changes.items():
        if change.kind in {"eps", "standard"} and node not in analysis.planes:  # in no graph
            widened.edits.extend(scale_numbers(node, change, root, widened.scaled))
    modules = dict(root.named_modules())
    with untouched(modules.values()):
        for mode, graph in list(widened.graphs.items()):
            if mode == "train" and graph is widened.graphs["eval"]:
                continue
            run = _Widener(widened, analysis, placer, state)
            with (
                kept(parameters(root)) as state.keeper,
                modes_kept(root, training=mode == "train"),
                no_fast_path(),
                eagerly(root),
                torch.no_grad(),
                torch.random.fork_rng(devices=[]),
                run.mode,
            ):
                run.run(list(graph.nodes))
        for name, module in modules.items():
            widened.edits.extend(patch_opened(module, name))
    for graph in widened.graphs.values() if widened.placed else ():
        drop_unused(graph)  # sizes that are read no more
    join_again(state, analysis.state.joined, layout)
    state.book.settle()
    check_partition(state, layout)
