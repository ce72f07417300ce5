"""What new entries of a plane would hold: pure algebra on sums of products of weights.

Two recipes add units to a stream that is normalised over its channels. With ``"mean"``
every new entry is the mean over the old ones (layer normalisation then sees nothing new
but a larger count), with ``"zero"`` it is zero (so for RMS normalisation). Whether weights
can bring that about is followed from operation to operation; where it isn't known, a plane
has no flow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Axis = tuple[str, int]
    Term = tuple[Axis, ...]
    Combine = Callable[[Sequence["Flow | None"], bool], "Flow | None"]

_MOST_TERMS = 64  # of a product of two sums


VARIES = ("", 0)
"""Stands, in a product of weights, for what is not the same for all units (and not known)."""


class Flow(NamedTuple):
    """What is known of the entries of new units.

    Attributes
    ----------
    terms : frozenset of tuple of (tensor, dim), or None
        The value is a sum of these products of weights, times what is the same for all
        units: its new entries are what the new entries of the weights make them. Where
        :data:`VARIES` is a factor, all that is known is that they are zero if a weight is.
    calm : bool
        New entries are zero with the recipe ``"mean"``.
    still : bool
        New entries are zero with the recipe ``"zero"``.
    gates : frozenset of (tensor, dim)
        Weight and bias of the norm that was last: whatever they are multiplied with along the
        units, so is the value (:mod:`fxgrow.gates`).
    """

    terms: frozenset[Term] | None = None
    calm: bool = False
    still: bool = False
    gates: frozenset[Axis] = frozenset()

    @property
    def rests(self) -> bool:
        """Whether new entries are zero with the recipe ``"zero"``, one way or the other."""
        return self.still or (self.terms is not None and () not in self.terms)


def weight_flow(axis: Axis) -> Flow:
    """Flow of a weight along one of its axes."""
    return Flow(frozenset({(axis,)}))


def masked(flows: Sequence[Flow | None], complete: bool) -> Flow | None:
    """Flow of a product of activations: zero where what is known to be zero is a factor."""
    given = [flow for flow in flows if flow is not None]
    if len(given) == len(flows) or not given:
        return product(flows, complete)
    first = product(given, complete)
    if first is None or not first.terms or () in first.terms:
        return None if first is None else known(Flow(None, first.calm, first.still))
    return Flow(frozenset((*term, VARIES) for term in first.terms), first.calm, first.still)


def is_linear(flow: Flow | None) -> bool:
    """Whether all that varies from unit to unit are weights: new entries can be means."""
    terms = flow.terms if flow is not None else None
    return terms is not None and not any(VARIES in term for term in terms)


def scaled(flows: Sequence[Flow | None], complete: bool) -> Flow | None:
    """Flow of anything times a weight, plus another weight, if there is one (batch norms)."""
    terms: set[Term] = set()
    for flow, factor in zip(flows, ((VARIES,), ()), strict=False):
        if flow is None or flow.terms is None:
            return None
        terms |= {term + factor for term in flow.terms}
    return Flow(frozenset(terms)) if terms else None


def known(flow: Flow) -> Flow | None:
    """Return ``flow``, or None where it says nothing."""
    return flow if flow.terms is not None or flow.calm or flow.still or flow.gates else None


def product(flows: Sequence[Flow | None], complete: bool) -> Flow | None:
    """Flow of a product; factors that do not vary with the units change nothing."""
    first, *rest = flows
    for other in rest:
        if first is None or other is None:
            return None
        terms = None
        if first.terms is not None and other.terms is not None:
            pairs = len(first.terms) * len(other.terms)
            if pairs <= _MOST_TERMS or pairs == max(len(first.terms), len(other.terms)):
                terms = frozenset(a + b for a in first.terms for b in other.terms)
        # A weight can be zero, but need not be where another factor is.
        both = first.terms is not None and other.terms is not None and terms is None
        still = first.still or other.still or both
        gates = frozenset() if first.gates and other.gates else first.gates or other.gates
        first = known(Flow(terms, first.calm or other.calm, still, gates))
    return first


def total(flows: Sequence[Flow | None], complete: bool) -> Flow | None:
    """Flow of a sum, or of what lies side by side; every summand must have one."""
    if not complete or any(flow is None or flow == _ONE for flow in flows):
        return None
    given = [flow for flow in flows if flow is not None]
    sums = [flow.terms for flow in given if flow.terms is not None]
    whole = len(sums) == len(given)
    terms = frozenset().union(*sums) if whole else None
    still = not whole and all(flow.rests for flow in given)
    return known(Flow(terms, all(flow.calm for flow in given), still))


def same(flows: Sequence[Flow | None], complete: bool) -> Flow | None:
    """Flow of an operation that hands its first operand on."""
    return flows[0] if flows else None


def alone(flows: Sequence[Flow | None], complete: bool) -> Flow | None:
    """Flow of an operation that picks entries of one operand, the same ones for all units."""
    return flows[0] if len(flows) == 1 else None


def fixed(flows: Sequence[Flow | None], complete: bool) -> Flow | None:
    """Flow of a function of one operand that is zero at zero."""
    flow = flows[0] if len(flows) == 1 else None
    return None if flow is None else known(Flow(None, flow.calm, flow.rests))


def noise(flows: Sequence[Flow | None], complete: bool) -> Flow | None:
    """Flow of the masks of dropout: the same for all units, as far as the function goes."""
    return _ONE


def nothing(flows: Sequence[Flow | None], complete: bool) -> Flow | None:
    """Flow of zeros of the operand's shape: a sum of no products."""
    return Flow(frozenset(), calm=True, still=True)


_ONE = Flow(frozenset({()}))


def grounds(combine: Combine, flows: Sequence[Flow | None], result: Flow | None) -> frozenset[Term]:
    """Products of weights that must be zero for ``result`` to be so, and are now out of sight."""
    if result is None or not result.still:
        return frozenset()
    given = [flow for flow in flows if flow is not None]
    if combine in {product, masked} and any(flow.still for flow in given):
        return frozenset()
    return frozenset().union(*(flow.terms for flow in given if flow.terms is not None))


def without(flow: Flow | None, axis: Axis) -> set[Term]:
    """Products of weights in what a weight reads along ``axis``, itself taken out."""
    found = set()
    for term in (flow.terms or ()) if flow else ():
        place = term.index(axis) if axis in term else len(term)
        found.add(term[:place] + term[place + 1 :])
    return found
