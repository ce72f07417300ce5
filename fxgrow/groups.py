"""Units and groups: label classes with the same signature are one width."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .aligned import in_steps
from .gates import gated
from .inner import SUFFIX, is_one, slots_of, spans
from .ir import Group, Reason, Slot
from .irregular import freeze_irregular
from .jointly import join_mixed, rows_of
from .messages import reason_for
from .plan import CostModel
from .repeats import bears_copies, made_up
from .resting import LOCAL, at_rest
from .shuffle import Shuffle, find_shuffles
from .slots import slots_by_group
from .streams import Mixed, judge
from .walks import named_parameters

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .analyse import Analysis
    from .ir import Role
    from .labels import Mixing
    from .planes import Axis, Labels

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Grouping:
    """All groups of a model, growable and frozen, and what growing them costs."""

    groups: tuple[Group, ...]
    frozen: tuple[Group, ...]
    costs: CostModel
    coverage: float
    shuffles: tuple[Shuffle, ...] = ()


@dataclass(frozen=True, eq=False)
class _Census:
    """Labels laid out axis by axis (label ``i`` is entry ``i - 1``)."""

    axes: list[Axis]
    labels: Labels  # of all axes, one axis after the other
    axis_of: Labels  # of ``labels``: index into ``axes``
    places: Labels  # of ``labels``: position along the axis
    roots: Labels
    frozen_by: Labels  # index into ``reasons`` per root, -1 where nothing freezes
    reasons: list[Reason]
    shuffles: list[Shuffle]


def _census(analysis: Analysis) -> _Census:
    state, book = analysis.state, analysis.state.book
    axes = list(state.axes)
    sizes = np.array([len(state.axes[a]) for a in axes], dtype=np.int64)
    labels = np.concatenate([*state.axes.values(), np.zeros(0, dtype=np.int64)])
    axis_of = np.repeat(np.arange(len(axes)), sizes)
    places = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    roots = book.find(np.arange(book.size, dtype=np.int64))
    frozen_by = np.full(book.size, -1, dtype=np.int64)
    reasons = [reason_for("input", None)]
    frozen_by[0] = 0
    events = [(f.labels, f.code, f.where) for f in book.frozen]
    mixings = book.mixings
    events += [(m.labels, m.code, m.where) for m in mixings if not bears_copies(analysis, m)]
    for touched, code, where in events:
        hit = roots[touched.reshape(-1)]
        hit = hit[frozen_by[hit] < 0]
        if len(hit):
            frozen_by[hit] = len(reasons)
            reasons.append(reason_for(code, where))
    shuffles = find_shuffles(analysis)
    explicit = {id(node) for shuffle in shuffles for node in shuffle.nodes}
    freeze_irregular(book, roots, frozen_by, reasons, explicit)
    return _Census(axes, labels, axis_of, places, roots, frozen_by, reasons, shuffles)


def _signatures(census: _Census) -> Hashes:
    """Hash of every unit's multiset of axes, per label (same hash: same group)."""
    rng = np.random.default_rng(0)
    salt = rng.integers(1, 2**62, size=len(census.axes), dtype=np.int64).astype(np.uint64)
    totals: Hashes = np.zeros(len(census.roots), dtype=np.uint64)
    np.add.at(totals, census.roots[census.labels], salt[census.axis_of])
    return totals[census.roots]


def group_units(analysis: Analysis) -> Grouping:
    """Collect units into groups and price them.

    Units are alike, and make one group, when they have slices in the same multiset of
    (tensor, dim). Linear in the number of labels, but for sorting them.

    Parameters
    ----------
    analysis : Analysis

    Returns
    -------
    Grouping
        Growable and frozen groups, in execution order.
    """
    census = _census(analysis)
    signatures = _signatures(census)
    exact = [m for m in analysis.state.book.mixings if bears_copies(analysis, m)]
    joint = [m for m in exact if m.code != LOCAL]
    if join_mixed(analysis.state, census, signatures, joint):
        census = _census(analysis)
        signatures = _signatures(census)
    mixed = _judge_mixings(exact, census, signatures)
    groups, widths = _group_ids(census, signatures)
    roles = [_role(analysis, axis) for axis in census.axes]
    state = analysis.state

    def make(axis: Axis, role: Role, positions: Labels) -> list[Slot]:
        return slots_of(state, axis, role, positions)

    # Groups of one axis are named in order: queries, values.
    ordered = bool(state.outer or state.book.zeroed)
    members, reasons = slots_by_group(census, roles, groups, widths, make, ordered=ordered)
    streams: dict[int, list[Mixed]] = defaultdict(list)
    for label, event in mixed:
        streams[int(groups[label])].append(event)
    return _finish(analysis, census, members, reasons, streams)


def _judge_mixings(
    mixings: Iterable[Mixing], census: _Census, signatures: Hashes
) -> list[tuple[int, Mixed]]:
    """Find units that are normalised over the channels; return a label of each such group.

    Where the reduction covers a whole group evenly, there are recipes that keep it.
    Otherwise the units are frozen.
    """
    roots, frozen_by = census.roots, census.frozen_by
    heads = signatures[roots == np.arange(len(roots))]
    even: list[tuple[int, Mixed]] = []
    for mixing in mixings:
        labels, code, where = mixing.labels, mixing.code, mixing.where
        units, counts = np.unique(roots[labels], return_counts=True)
        own = signatures[units]
        whole = (
            (own == own[0]).all()
            and (counts == counts[0]).all()
            and np.count_nonzero(heads == own[0]) == len(units)
        )
        held = frozen_by[units] >= 0
        whole = whole and (held.all() or not held.any())  # else they are no one group
        if code == LOCAL:  # the last unit, behind which new ones come, must be the last there
            whole = whole and counts[0] == 1 and roots[labels].flat[-1] == units[-1]
        if whole:
            even.append((int(units[0]), Mixed(mixing, int(counts[0]), len(units))))
            continue
        open_units = units[frozen_by[units] < 0]
        frozen_by[open_units] = len(census.reasons)
        census.reasons.append(reason_for(code, where))
    return even


def _tied(analysis: Analysis, group: Group) -> bool:
    """Whether an axis of the group is both written and read (copies would contradict)."""
    closers, roles = analysis.state.book.closers, analysis.state.roles
    return any(
        (slot.tensor, slot.dim) in closers and "producer" in roles.get((slot.tensor, slot.dim), ())
        for slot in group.slots
    )


def _as_stream(analysis: Analysis, group: Group, mixed: list[Mixed]) -> Group:
    """Give a group that is normalised over its units a recipe that keeps the norms."""
    held = _held(analysis, group.slots, copies=True, products=False)
    stream = judge(analysis, group.slots, mixed) if held is None else None
    if stream is not None:
        slots = tuple(
            replace(slot, filling=filling)
            for slot, filling in zip(group.slots, stream.fillings, strict=True)
        )
        return replace(group, slots=slots, recipe=stream.recipe, norms=stream.norms)
    rested = at_rest(analysis, group.slots, mixed)
    if rested is not None:
        return replace(group, slots=rested)
    norms = made_up(mixed)
    shared = gated(analysis, group.slots) if _tied(analysis, group) else group.slots
    if shared is None or norms is None:
        first = next((m for m in mixed if norms is None and made_up([m]) is None), mixed[0])
        held = reason_for(first.mixing.code, first.mixing.where)
    slots = shared or group.slots
    return replace(
        group, multiple_of=group.width, recipe="copies", reason=held, norms=norms or (), slots=slots
    )


def _group_ids(census: _Census, signatures: Hashes) -> tuple[Labels, Labels]:
    """Group of every label, and the number of units of every group."""
    # A signature that is partly frozen makes two groups.
    keys = signatures ^ (census.frozen_by[census.roots] + 1).astype(np.uint64)
    keys[census.roots == 0] = 0
    own = census.roots == np.arange(len(census.roots))
    own[1:] &= signatures[1:] != 0  # without slices: initial states that nothing reads
    heads = np.flatnonzero(own)
    _, ids = np.unique(keys[heads], return_inverse=True)
    of_root = np.zeros(len(census.roots), dtype=np.int64)
    of_root[heads] = ids
    return of_root[census.roots], np.bincount(ids)


def _role(analysis: Analysis, axis: Axis) -> Role:
    roles = analysis.state.roles.get(axis, set())
    if axis in analysis.state.book.closers:
        return "consumer"
    if "norm" in roles:
        return "norm"
    return "producer" if "producer" in roles else "per_unit"


def _finish(
    analysis: Analysis,
    census: _Census,
    members: dict[int, list[Slot]],
    reasons: dict[int, int],
    streams: dict[int, list[Mixed]],
) -> Grouping:
    taken: set[str] = set()
    draft: list[Group] = []
    # Growable groups first: the plain names are theirs.
    for key, slots in sorted(members.items(), key=lambda item: reasons[item[0]] >= 0):
        slots = _trained_first(analysis, slots)
        reason = None if reasons[key] < 0 else census.reasons[reasons[key]]
        if reason is None:
            reason = _useless(analysis, slots)
        inner = spans(analysis.state, slots)
        if reason is None and is_one(analysis.state, slots):
            reason = reason_for("inner_mixed", None)
        group = _draft(slots, reason, taken, SUFFIX if inner else "")
        group = replace(group, rows_per_unit=rows_of(analysis.state, slots) or group.rows_per_unit)
        if reason is None and key in streams:
            group = _as_stream(analysis, group, streams[key])
        draft.append(replace(group, tied=True) if _tied(analysis, group) else group)
    draft = in_steps(analysis.state, draft)
    costs = _costs(analysis, draft)
    priced = []
    for group in draft:
        if not group.growable:
            priced.append(group)
            continue
        one = {group.name: 1}
        params, flops = costs.params([group], one), costs.flops([group], one)
        priced.append(replace(group, params_per_unit=params, flops_per_unit=flops))
    growable = tuple(g for g in priced if g.growable)
    frozen = tuple(g for g in priced if g.reason is not None and g.reason.code != "kernel")
    return Grouping(growable, frozen, costs, _coverage(analysis, growable), tuple(census.shuffles))


def _held(
    analysis: Analysis, slots: Iterable[Slot], *, copies: bool, products: bool = True
) -> Reason | None:
    """Find weights that are normalised over the units (``products``: multiplied along them)."""
    weights = analysis.state.book.weights
    fixed = weights.factors | weights.rigid if products else weights.rigid
    for slot in slots:
        where = fixed.get((slot.tensor, slot.dim))
        torn = (slot.tensor, slot.dim) in weights.torn
        shared = weights.split.get((slot.tensor, slot.dim)) if copies else None
        if shared is not None and slot.role == "consumer":
            return reason_for(shared.op, shared)
        if where is not None and (slot.role != "consumer" or copies or torn):
            return reason_for("weight_norm", where)
    return None


def _trained_first(analysis: Analysis, slots: list[Slot]) -> list[Slot]:
    """Let buffers in which rows are looked up be tables beside weights: new entries are means.

    A fixed table of positions is no layer that would have to learn other units.
    """
    rank, roles = analysis.state.book.weights.rank, analysis.state.roles
    writers = [(s.tensor, s.dim) for s in slots if s.role == "producer"]
    fixed = {axis for axis in writers if not rank[axis] and "lookup" in roles[axis]}
    if not fixed or not any(rank[axis] for axis in writers):
        return slots
    return [replace(s, role="per_unit") if (s.tensor, s.dim) in fixed else s for s in slots]


def _useless(analysis: Analysis, slots: list[Slot]) -> Reason | None:
    """Find out why new units of this group could not be kept out, or never have an effect."""
    held = _held(analysis, slots, copies=False)
    if held is not None:
        return held
    book = analysis.state.book
    own = [(s.role, (s.tensor, s.dim)) for s in slots]
    if not any(role == "consumer" for role, _ in own):
        return reason_for("unread", None)
    if all(role == "consumer" for role, _ in own):
        written = any("producer" in analysis.state.roles.get(axis, ()) for _, axis in own)
        # Rows that must be zero, too, else columns of an input that is repeated.
        return reason_for("product" if written else "input", None)
    if any(role == "producer" and not book.weights.rank[axis] for role, axis in own):
        return reason_for("constant", None)
    resting = all(book.weights.rank[axis] < 2 for role, axis in own if role == "consumer")
    if resting and analysis.trains:
        return reason_for("requires_grad", None)
    return None


def layer_of(tensor: str) -> str:
    """Name of the layer that a tensor belongs to, its own name where there is none.

    Examples
    --------
    >>> layer_of("stem.conv.weight"), layer_of("fc.parametrizations.weight.original1")
    ('stem.conv', 'fc')
    """
    layer = tensor
    if "parametrizations." in tensor:
        layer = re.sub(r"(^|\.)parametrizations\..*", "", tensor)
    return layer if layer and layer != tensor else tensor.rpartition(".")[0] or tensor


def _draft(slots: list[Slot], reason: Reason | None, taken: set[str], suffix: str) -> Group:
    first = next((s for s in slots if s.role == "producer"), slots[0])
    base = layer_of(first.tensor) + suffix
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}#{count}"
    taken.add(name)
    rows = [s.positions.shape[1] for s in slots if s.role in {"producer", "consumer"}] or [1]
    layers = dict.fromkeys(layer_of(s.tensor) for s in slots)
    width = slots[0].positions.shape[0]
    return Group(name, width, 1, min(rows), 0, 0, tuple(layers), tuple(slots), reason)


def _costs(analysis: Analysis, groups: list[Group]) -> CostModel:
    state = analysis.state
    owner = np.full(state.book.size, -1, dtype=np.int64)
    for number, group in enumerate(groups if state.product_flops else ()):
        if group.growable:
            slot = group.slots[0]
            labels = state.axes[slot.tensor, slot.dim][slot.positions[:, 0]]
            owner[state.book.find(labels)] = number
    products = []
    for flops, planes in state.product_flops:
        found = {n for p in planes for n in set(owner[state.book.find(p)].reshape(-1).tolist())}
        products.append((flops, tuple(sorted(groups[n].name for n in found if n >= 0))))
    parameters = named_parameters(analysis.traced.root)
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    return CostModel(shapes, dict(state.tensor_flops), tuple(products))


def _coverage(analysis: Analysis, groups: tuple[Group, ...]) -> float:
    """Share of the reached parameter elements that lie in a growable group."""
    covered: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for group in groups:
        for slot in group.slots:
            covered[slot.tensor][slot.dim] += slot.positions.size
    total = inside = 0.0
    parameters = named_parameters(analysis.traced.root)
    for name in analysis.state.reached & parameters.keys():
        tensor = parameters[name]
        outside = 1.0
        for dim, count in covered[name].items():
            outside *= 1 - count / tensor.shape[dim]
        total += tensor.numel()
        inside += tensor.numel() * (1 - outside)
    return inside / total if total else 0.0
