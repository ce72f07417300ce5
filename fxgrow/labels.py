"""Planes of labels and what happens where they meet: pure algebra, no torch.

A *label* is one position on one axis of one parameter or buffer (a slice). A *plane*
says, for every position of a tensor, which label it descends from; it is stored in
broadcast shape, with size 1 in every dimension along which it does not vary. Labels
that must be added or removed together are united in a union-find forest; its classes
are the *units*. Label 0 is the outside world (the user's interface): what unites with
it can't grow.

What can only be judged once all labels are united (is this grid a head or a
channel?) is written down as an event and decided in :meth:`LabelBook.settle`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from . import echoes
from .centring import settle_statistics
from .events import (
    Closing,
    Frozen,
    Meeting,
    Mixing,
    Reshape,
    Seam,
    Shared,
    Statistic,
    Unlabelled,
    Where,
)
from .flows import Flow, grounds, without
from .forest import Forest
from .inner import closure, is_inner
from .planes import Axis, Labels, Plane, lift, pattern
from .weights import WeightAxes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .flows import Combine, Flow, Term

__all__ = ["Closing", "Frozen", "LabelBook", "Meeting", "Mixing", "Reshape", "Unlabelled", "Where"]


@dataclass
class LabelBook:
    """Union-find over labels, and the events still to be judged."""

    forest: Forest = field(default_factory=Forest)
    frozen: list[Frozen] = field(default_factory=list)
    meetings: list[Meeting] = field(default_factory=list)
    unlabelled: list[Unlabelled] = field(default_factory=list)
    closings: list[Closing] = field(default_factory=list)
    shared: list[Shared] = field(default_factory=list)
    mixings: list[Mixing] = field(default_factory=list)
    statistics: list[Statistic] = field(default_factory=list)
    standards: list[Statistic] = field(default_factory=list)  # those to be made up for
    reshapes: list[Reshape] = field(default_factory=list)
    seams: list[Seam] = field(default_factory=list)
    closers: dict[Axis, list[Where]] = field(default_factory=dict)
    couplings: list[Meeting] = field(default_factory=list)
    rivals: list[Meeting] = field(default_factory=list)
    weights: WeightAxes = field(default_factory=WeightAxes)
    reads: dict[Axis, list[Flow | None]] = field(default_factory=dict)
    gates: set[Axis] = field(default_factory=set)  # weights of norms, see fxgrow.gates
    passed: set[Axis] = field(default_factory=set)  # those whose results have just been read
    open: set[Axis] = field(default_factory=set)  # those whose results are used otherwise
    grounded: set[Term] = field(default_factory=set)
    outer: Labels | None = None  # of labels that grow by their inner axis (fxgrow.inner)
    echoes: set[int] = field(default_factory=set)  # labels of no axis (fxgrow.echoes)
    echoed: list[Meeting] = field(default_factory=list)
    zeroed: dict[Axis, Labels] = field(default_factory=dict)
    closed: set[object] = field(default_factory=set)  # planes that the zeros are planned for

    @property
    def size(self) -> int:
        """One more than the highest label."""
        return self.forest.size

    def fresh(self, count: int) -> Labels:
        """Return ``count`` labels that nothing is united with."""
        return self.forest.fresh(count)

    def find(self, labels: Labels) -> Labels:
        """Roots of ``labels``, same shape."""
        return self.forest.find(labels)

    def unite(self, a: Labels, b: Labels) -> None:
        """Unite ``a`` and ``b`` position by position (they broadcast)."""
        self.forest.unite(a, b)

    def merge_along(self, plane: Plane, dims: Iterable[int]) -> Plane:
        """Unite all labels along ``dims`` and drop these dimensions from the plane."""
        head = plane.labels
        for dim in dims:
            head = head.take([0], axis=dim)
        self.unite(plane.labels, head)
        return Plane(head, plane.zero)

    def freeze(self, labels: Labels, code: str, where: Where) -> None:
        """Write down that ``labels`` can't grow."""
        self.frozen.append(Frozen(labels, code, where))

    # -- meeting ---------------------------------------------------------------

    def meet(
        self,
        operands: Sequence[tuple[Sequence[Plane], Sequence[int]]],
        ndim: int,
        where: Where,
        *,
        flow: Combine | None = None,
        product: bool = False,
    ) -> list[Plane]:
        """Align operands (planes, shape) by broadcasting and unite where they meet.

        Planes of one operand coexist; planes of different operands with the same
        varying dimensions unite; those that share only some are left to
        :meth:`settle`. ``product`` keeps zeros (a zero factor gives a zero); ``flow`` says
        how flows combine, which are lost otherwise.
        """
        if len(operands) == 1:
            alone = [lift(p, ndim, keep_zero=product) for p in operands[0][0]]
            return [Plane(p.labels, p.zero, self.flow(flow, [p.flow])) for p in alone]
        loose = echoes.apart(self, operands, ndim) if self.echoes else None
        if loose is not None:
            own = loose.operands
            open_dims = [self._uncovered(planes, shape, ndim) for planes, shape in own]
            met = self.meet(own, ndim, where, flow=flow, product=product)
            return echoes.join(self, loose, open_dims, met, ndim, where)
        alike = self._meet_alike(operands, ndim, where, flow=flow, product=product)
        if alike is not None:
            return [alike]
        result: list[Plane] = []
        parts: list[list[Flow | None]] = []
        open_dims = [self._uncovered(planes, shape, ndim) for planes, shape in operands]
        for i, (planes, _) in enumerate(operands):
            others = set().union(*open_dims[:i], *open_dims[i + 1 :])
            known = len(result)
            for plane in planes:
                lifted = lift(plane, ndim, keep_zero=product)
                bare = tuple(d for d in lifted.dims if d in others) if others else ()
                if bare and bare == lifted.dims:
                    self.freeze(lifted.labels, "unlabelled", where)
                    continue
                if bare:
                    self.unlabelled.append(Unlabelled(lifted.labels, bare, where))
                place = self._join(result, known, lifted, where)
                parts += [[] for _ in range(len(result) - len(parts))]
                parts[place].append(plane.flow)
        return [
            Plane(p.labels, p.zero, self.flow(flow, own, len(own) == len(operands)))
            for p, own in zip(result, parts, strict=True)
        ]

    def flow(
        self, combine: Combine | None, flows: Sequence[Flow | None], complete: bool = True
    ) -> Flow | None:
        """Combine flows, and remember the weights that a zero now rests on."""
        if combine is None:
            return None
        flow = combine(flows, complete)
        self.grounded |= grounds(combine, flows, flow)
        return flow

    def _meet_alike(
        self,
        operands: Sequence[tuple[Sequence[Plane], Sequence[int]]],
        ndim: int,
        where: Where,
        *,
        flow: Combine | None,
        product: bool,
    ) -> Plane | None:
        """Unite in one go where every operand has one plane, all over the same dimensions."""
        for planes, _ in operands:
            if len(planes) != 1:
                return None
        head, *rest = [lift(planes[0], ndim, keep_zero=product) for planes, _ in operands]
        if not head.dims:
            return None
        for plane in rest:
            if plane.labels.shape != head.labels.shape:
                return None
        for plane in rest:
            self.unite(head.labels, plane.labels)
            self.couplings.append(Meeting(head.labels, plane.labels, where))
        own = None if flow is None else self.flow(flow, [p[0].flow for p, _ in operands], True)
        return Plane(head.labels, _once([head.zero, *(p.zero for p in rest)]), own)

    @staticmethod
    def _uncovered(planes: Sequence[Plane], shape: Sequence[int], ndim: int) -> set[int]:
        """Dimensions along which an operand carries no labels."""
        shift = ndim - len(shape)
        big = {d for d, size in enumerate(shape, shift) if size > 1}
        for plane in planes:
            big.difference_update([d + shift for d in plane.dims] if shift else plane.dims)
        return big

    def _join(self, result: list[Plane], known: int, plane: Plane, where: Where) -> int:
        """Let ``plane`` meet ``known`` planes, or stand beside; return who stands for it."""
        alike = [i for i in range(known) if result[i].labels.shape == plane.labels.shape]
        if alike:
            return self._unite_with(result, alike, plane, where)
        dims = set(plane.dims)
        for index in range(known):
            other = result[index]
            if not dims & set(other.dims):
                continue
            self.meetings.append(Meeting(other.labels, plane.labels, where))
            # The finer plane will speak for both, unless the coarser one closes it.
            if dims < set(other.dims) and not plane.zero:
                return index
            if dims > set(other.dims) and not other.zero:
                result[index] = plane
                return index
        result.append(plane)
        return len(result) - 1

    def _unite_with(self, result: list[Plane], alike: list[int], plane: Plane, where: Where) -> int:
        """Unite ``plane`` with the one of several planes over these positions that fits."""
        index = alike[0]
        if len(alike) > 1:
            own = pattern(plane.labels)
            fitting = [i for i in alike if np.array_equal(pattern(result[i].labels), own)]
            if fitting:
                index = fitting[0]
            else:
                # A position lies in one unit only: of two axes over it, the outer one grows.
                for rest in alike[1:]:
                    self.rivals.append(Meeting(result[index].labels, result[rest].labels, where))
        other = result[index]
        self.unite(other.labels, plane.labels)
        self.couplings.append(Meeting(other.labels, plane.labels, where))
        result[index] = Plane(other.labels, _once([other.zero, plane.zero]))
        return index

    # -- reducing --------------------------------------------------------------

    def contract(
        self,
        planes: Sequence[Plane],
        dims: Sequence[int],
        where: Where,
        *,
        closing: Callable[[], bool] | None = None,
    ) -> list[Plane]:
        """Sum over ``dims``: partial overlaps merge units, whole planes must close.

        ``closing``, of products of two activations, looks for entries of one that close it.
        """
        gone, kept = self._split(planes, dims, where)
        if gone and closing is not None and closing():
            return kept
        closed: list[Labels] = []
        for plane in gone if len(gone) < 2 else sorted(gone, key=_coarseness):
            axis = self.weights.closer(plane.zero)
            # Both activations would rest at zero: neither has a slope there.
            dead = closing is not None and plane.flow is not None and plane.flow.still
            if axis is not None and not dead:
                self.shared.append(Shared(plane.labels, tuple(closed), axis, plane.flow, where))
                self.passed.update(plane.flow.gates if plane.flow is not None else ())
                closed.append(plane.labels)
            else:
                able = [(p.labels, self.weights.closer(p.zero)) for p in gone if not dead]
                partners = tuple((labels, axis) for labels, axis in able if axis is not None)
                self.closings.append(Closing(plane.labels, partners, where))
        return kept

    def _read(self, axis: Axis, flow: Flow | None) -> None:
        """Write down what a weight reads, itself taken out."""
        terms = without(flow, axis)
        self.reads.setdefault(axis, []).append(None if () in terms else flow)
        self.grounded |= terms

    def mix(
        self,
        planes: Sequence[Plane],
        dims: Sequence[int],
        code: str,
        where: Where,
        *,
        flow: Flow | None = None,
        gains: tuple[Axis, ...] = (),
    ) -> list[Plane]:
        """Reduce over ``dims`` by an operation that mixes what it reduces."""
        gone, kept = self._split(planes, dims, where)
        for plane in gone:
            own = plane.flow if flow is None else flow
            self.mixings.append(Mixing(plane.labels, code, where, own, gains))
            if own is not None and own.terms is not None:
                self.grounded |= own.terms
        return kept

    def reduce_weight(
        self, planes: Sequence[Plane], dims: Sequence[int], event: Statistic
    ) -> list[Plane]:
        """Reduce a weight over ``dims`` to a statistic; what comes of it is seen later."""
        known = len(self.mixings)
        kept = self.mix(planes, dims, event.where.op, event.where)
        if known < len(self.mixings):
            self.statistics.append(event._replace(mixings=tuple(self.mixings[known:])))
            del self.mixings[known:]
        return kept

    def _split(
        self, planes: Sequence[Plane], dims: Sequence[int], where: Where
    ) -> tuple[list[Plane], list[Plane]]:
        gone, kept = [], []
        for plane in planes:
            hit = [d for d in plane.dims if d in dims]
            if not hit:
                kept.append(plane)
            elif echoes.is_echo(self, plane):
                self.freeze(plane.labels, "unlabelled", where)
            elif len(hit) == len(plane.dims):
                gone.append(plane)
            elif is_inner(self, plane.labels) and not self._constant(plane.labels, hit):
                rest = [d for d in plane.dims if d not in hit]
                gone.append(self.merge_along(plane, rest)._replace(flow=plane.flow))
            else:
                kept.append(self.merge_along(plane, hit))
        return gone, kept

    # -- judging ---------------------------------------------------------------

    def settle(self) -> None:
        """Decide what had to wait until all labels were united."""
        for a, b, where in self.meetings:
            shared = [d for d in range(a.ndim) if a.shape[d] > 1 and b.shape[d] > 1]
            if self._constant(a, shared):
                self.freeze(b, "inner_axis", where)
            elif self._constant(b, shared):
                self.freeze(a, "inner_axis", where)
            else:
                self.unite(a, b)
                self.couplings.append(Meeting(a, b, where))
        echoes.settle(self)
        closure(self)
        for a, b, where in self.rivals:
            if not np.array_equal(self.find(a), self.find(b)):  # else one axis by now
                self.freeze(b, "inner_axis", where)
        for labels, dims, where in self.unlabelled:
            if not self._constant(labels, dims):
                self.freeze(labels, "unlabelled", where)
        self._settle_closings()
        settle_statistics(self)

    def _settle_closings(self) -> None:
        # What is shared by all heads stays as it is, and closes nothing.
        inner = [f.labels.reshape(-1) for f in self.frozen if f.code == "inner_axis"]
        held = np.zeros(self.size, dtype=bool)
        held[self.find(np.concatenate(inner)) if inner else []] = True
        for plane, finer, axis, flow, where in self.shared:
            if inner and held[self.find(plane)].all():
                continue
            if not any(self._alike(plane, other) for other in finer):
                self.closers.setdefault(axis, []).append(where)
                self._read(axis, flow)
        for labels, partners, where in self.closings:
            able = [axis for other, axis in partners if self._alike(labels, other)]
            if not able:
                self.freeze(labels, "product", where)
            elif self.closers.keys().isdisjoint(able):  # zeros in two factors have no slope
                self.closers[able[0]] = [where]
                self._read(able[0], None)

    def _alike(self, labels: Labels, other: Labels) -> bool:
        """Whether two planes are of the same units, position by position."""
        own, its = np.broadcast_arrays(self.find(labels), self.find(other))
        return np.array_equal(own, its)

    def _constant(self, labels: Labels, dims: Iterable[int]) -> bool:
        roots = self.find(labels)
        return all(bool((roots == roots.take([0], axis=d)).all()) for d in dims)

    def varying(self, labels: Labels) -> list[int]:
        """Dimensions along which the units of ``labels`` still vary."""
        roots = self.find(labels)
        sizes = enumerate(labels.shape)
        return [d for d, size in sizes if size > 1 and (roots != roots.take([0], axis=d)).any()]


def _coarseness(plane: Plane) -> int:
    """Return less for planes of more different labels."""
    return -len(np.unique(plane.labels))


def _once(zeros: Sequence[tuple[Axis, ...]]) -> tuple[Axis, ...]:
    """Join factors; squares have no slope at zero: what is one twice could never leave it."""
    joined = [axis for zero in zeros for axis in zero]
    if len(joined) == len(set(joined)):
        return tuple(joined)
    return tuple(axis for axis in joined if joined.count(axis) == 1)
