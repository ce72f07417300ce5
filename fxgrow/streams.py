"""Streams: groups that a normalisation mixes, and how single units are added to them.

Layer normalisation over C + k channels computes what it did over C when the k new ones hold
the mean over the old: the mean stays, and the variance is C / (C + k) of what it was, which
the weights (times the root) and eps undo. RMS normalisation, and any mean over channels, do
so when the new ones are zero. Whether the weights that write a stream can bring that about
is read off the flows of label propagation. What reads a normalised stream then reads zeros
from new units, so it may hold anything: random columns, through which gradients come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import fx

from .epsilon import OWN_EPSILON, holds_epsilon
from .flows import VARIES, is_linear
from .ir import Filling, Norm
from .ownnorm import as_norm
from .placing import PLACED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .analyse import Analysis
    from .flows import Flow, Term
    from .ir import Slot
    from .labels import Mixing
    from .planes import Axis

__all__ = ["Mixed", "Stream", "judge"]

Recipe = Literal["mean", "zero"]


@dataclass(frozen=True, eq=False)
class Mixed:
    """A reduction over all (``units``) units of a group, each met ``count`` times."""

    mixing: Mixing
    count: int
    units: int


@dataclass(frozen=True, eq=False)
class Stream:
    """How a group of this kind grows; ``fillings`` has an entry for each of its slots."""

    recipe: Recipe
    fillings: tuple[Filling, ...]
    norms: tuple[Norm, ...]


def _means(mixed: Mixed) -> bool:
    return mixed.count == 1 and is_linear(mixed.mixing.flow)


def _calm(mixed: Mixed) -> bool:
    return mixed.mixing.flow is not None and mixed.mixing.flow.calm


def _still(mixed: Mixed) -> bool:
    return mixed.mixing.flow is not None and mixed.mixing.flow.rests


# Recipe and operation → what has to hold of its operand, and whether the count that the
# operation divides by has to be undone. The first that holds counts.
_REQUIREMENTS: dict[tuple[str, str], tuple[tuple[Callable[[Mixed], bool], bool], ...]] = {
    ("mean", "native_layer_norm"): ((_means, True),),
    ("mean", "mean"): ((_means, False), (_calm, True)),
    **{("mean", op): ((_means, False),) for op in ("amax", "amin", "max", "min")},
    ("mean", "sum"): ((_calm, False),),
    ("mean", "norm"): ((_calm, False),),
    ("zero", "mean"): ((_still, True),),
    ("zero", "sum"): ((_still, False),),
    ("zero", "norm"): ((_still, False),),
    ("zero", "local"): ((_still, False),),
    **{("mean", op): ((_calm, True),) for op in ("rms_norm", "_fused_rms_norm")},
    **{("zero", op): ((_still, True),) for op in ("rms_norm", "_fused_rms_norm")},
}


def judge(analysis: Analysis, slots: Sequence[Slot], mixed: Sequence[Mixed]) -> Stream | None:
    """Find an exact recipe by which single units can be added to a group.

    Parameters
    ----------
    analysis : Analysis
        Settled.
    slots : sequence of Slot
        Of the group.
    mixed : sequence of Mixed
        All operations that reduce over its units.

    Returns
    -------
    Stream or None
        None where there is no such recipe.
    """
    for recipe in ("mean", "zero"):
        stream = _Judge(analysis, slots, mixed, recipe).stream()
        if stream is not None:
            return stream
    return None


@dataclass(frozen=True, eq=False)
class _Judge:
    analysis: Analysis
    slots: Sequence[Slot]
    mixed: Sequence[Mixed]
    recipe: Recipe

    def stream(self) -> Stream | None:
        if any(m.units != len(self.slots[0].positions) for m in self.mixed):
            return None  # some of them are frozen
        norms = [self._norm(m) for m in self.mixed]
        if any(norm is None for norm in norms):
            return None
        kept = tuple(norm for norm in norms if norm is not None)
        gains = {axis for norm in kept for axis in norm.gains}
        terms = self._terms()
        partners = _partners(terms, self._scales() - gains, gains, self.recipe)
        if partners is None:
            return None
        fillings = [self._filling((s.tensor, s.dim), gains, partners) for s in self.slots]
        found = tuple(f for f in fillings if f is not None)
        if len(found) < len(fillings) or not self._moves(found) or self._coarse(found):
            return None
        return Stream(self.recipe, found, tuple(norm for norm in kept if norm.kind))

    def _norm(self, mixed: Mixed) -> Norm | None:
        """Find out what has to be done at a reduction; None where that can't be."""
        where = mixed.mixing.where
        for holds, counted in _REQUIREMENTS.get((self.recipe, where.op), ()):
            if holds(mixed):
                return self._undo(mixed.mixing, where.site) if counted else Norm(where.site, "", ())
        return None

    def _undo(self, mixing: Mixing, node: Any) -> Norm | None:
        if not isinstance(node, fx.Node):
            return None
        if holds_epsilon(node, self.analysis.traced.root):
            gains = mixing.gains or self._gains(node)
            return Norm(node, "eps", gains) if gains else None
        if mixing.where.op == "mean" and node.target in {"mean", torch.mean}:
            return Norm(node, "mean", ())
        return self._own(node) if node.op == "call_module" else None

    def _own(self, node: fx.Node) -> Norm | None:
        """Find out whether a module of the user's is a norm: by how it behaves."""
        module = self.analysis.traced.root.get_submodule(str(node.target))
        width = len(self.slots[0].positions)
        found = as_norm(module, width, self.recipe)
        if found is None:
            return None
        node.meta[OWN_EPSILON] = found.epsilon
        name = self.analysis.state.names.get(id(getattr(module, found.gain)))
        return None if name is None else Norm(node, "eps", ((name, 0),))

    def _gains(self, node: fx.Node) -> tuple[Axis, ...]:
        """Find the weight of a norm that ATen takes apart."""
        root, weight = self.analysis.traced.root, None
        if node.op == "call_module":
            weight = root.get_submodule(str(node.target)).__dict__["_parameters"].get("weight")
        else:
            given = node.args[2] if len(node.args) > 2 else node.kwargs.get("weight")
            if isinstance(given, fx.Node) and given.op == "get_attr":
                owner, _, leaf = str(given.target).rpartition(".")
                weight = getattr(root.get_submodule(owner), leaf)
        name = self.analysis.state.names.get(id(weight))
        return () if name is None else ((name, 0),)

    def _scales(self) -> set[Axis]:
        """Weights with one number per unit, which others are multiplied with."""
        roles = self.analysis.state.roles
        return {
            (s.tensor, s.dim)
            for s in self.slots
            if s.positions.shape[1] == 1 and "scale" in roles.get((s.tensor, s.dim), ())
        }

    def _terms(self) -> Iterable[Term]:
        """Products of weights whose new entries must be means, or zero."""
        own = {(slot.tensor, slot.dim) for slot in self.slots}
        found: set[Term] = set()
        if self.recipe == "mean":
            for mixed in self.mixed:
                if _means(mixed) and mixed.mixing.flow is not None:
                    found |= mixed.mixing.flow.terms or frozenset()
            return sorted(found)
        return sorted(term for term in self.analysis.state.book.grounded if own & set(term))

    def _filling(self, axis: Axis, gains: set[Axis], partners: dict[Axis, Term]) -> Filling | None:
        """How the new entries of one slot are made; None where its uses contradict."""
        book, roles = self.analysis.state.book, self.analysis.state.roles.get(axis, set())
        kinds: set[str] = roles & {"offset", "scale"}
        if axis in gains:
            kinds = kinds - {"scale"} | {"gain"}
        if axis in partners:
            kinds.add("writer")
        if axis in book.closers:
            quiet = all(self._quiet(flow) for flow in book.reads.get(axis, [None]))
            if not kinds:
                return Filling("random" if quiet else "zero")
            if not quiet:
                return None
        if self.recipe == "zero" and kinds == {"offset", "writer"}:
            kinds = {"offset"}
        if len(kinds) > 1:
            return None
        kind = next(iter(kinds), "")
        if kind == "writer":
            return Filling("mean", partners[axis]) if self.recipe == "mean" else Filling("zero")
        return Filling({"offset": "zero", "scale": "scale", "gain": "gain"}.get(kind, ""))

    def _quiet(self, flow: Flow | None) -> bool:
        """Whether a read finds zeros at new units."""
        return flow is not None and (flow.calm if self.recipe == "mean" else flow.rests)

    def _moves(self, fillings: Sequence[Filling]) -> bool:
        """Whether gradients reach new units, through random columns that train or may."""
        rank = self.analysis.state.book.weights.rank
        closers = self.analysis.state.book.closers
        return any(
            (slot.tensor, slot.dim) in closers
            and filling.kind != "zero"
            and rank[slot.tensor, slot.dim] >= (2 if self.analysis.trains else 1)
            for slot, filling in zip(self.slots, fillings, strict=True)
        )

    def _coarse(self, fillings: Sequence[Filling]) -> bool:
        """Whether weights of half precision would have to hold means or roots: too coarse."""
        tensors = self.analysis.tensors
        return any(
            filling.kind in {"mean", "gain"} and tensors[slot.tensor].element_size() < 4
            for slot, filling in zip(self.slots, fillings, strict=True)
        )


def _partners(
    terms: Iterable[Term], scales: set[Axis], gains: set[Axis], recipe: Recipe
) -> dict[Axis, Term] | None:
    """Choose the weight of every product that makes it a mean or zero, and name the others.

    A mean needs exactly one weight that is no scale, with the same scales wherever it is
    used. A product is zero if one of its weights is; the other ones stay, so that it moves.
    """
    found: dict[Axis, Term] = {}
    for term in terms:
        writers = [axis for axis in term if axis not in scales and axis not in gains]
        if recipe == "zero":
            writers = [axis for axis in writers if axis != VARIES]
            if not writers:
                return None
            if not found.keys() & set(writers):
                found[writers[0]] = ()
            continue
        rest = tuple(sorted(axis for axis in term if axis in scales))
        if len(writers) != 1 or gains & set(term) or found.setdefault(writers[0], rest) != rest:
            return None
        if rest and writers[0][0].startswith(PLACED):  # they are the mean of what they are
            return None
    return found
