"""Growth of the user's own class: where its code holds sizes, they grow with the tensors.

A graph has the sizes that a model's code computes as numbers, which the rewriter changes; the
code itself still has the old ones. Where that is so the model is analysed once more below its
code (:mod:`fxgrow.whole`), where sizes are followed back to the attributes they come from.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from .errors import UnsupportedError, VerificationError
from .inspection import inspect_own
from .ir import Reason
from .rewrite import rewrite
from .verify import verify

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from .inspection import Inspection
    from .ir import Group, Rewritten
    from .trace import Inputs

__all__ = ["followed", "rewrite_own"]

_OTHERS = "there it is one with other groups, which grow together, by as many units"


def rewrite_own(
    model: nn.Module, inspection: Inspection, additions: Mapping[str, int], *, seed: int
) -> Rewritten:
    """Return a resized copy of the user's class, the sizes that its code holds included.

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

    Returns
    -------
    Rewritten

    Raises
    ------
    UnsupportedError
        When the code has sizes that can't follow.
    """
    refused: UnsupportedError | None = None
    rewritten: Rewritten | None = None
    try:
        rewritten = rewrite(model, inspection, additions, seed=seed, emit="module")
    except UnsupportedError as error:
        if inspection.analysis.traced.obstacle:
            raise
        refused = error
    if rewritten is not None and (inspection.analysis.traced.obstacle or not rewritten.inlined):
        return rewritten
    own = inspect_own(model, inspection)
    below = _below(inspection, own)
    asked, lost = _together(additions, below)
    if not lost:
        return rewrite(model, own, asked, seed=seed, emit="module")
    if rewritten is None:
        assert refused is not None
        raise refused
    _must_run(model, rewritten, own.analysis.traced.inputs, [(n, below.get(n)) for n in lost])
    return rewritten


def _below(inspection: Inspection, own: Inspection) -> dict[str, Group]:
    """Find the group below the code that has the units of each group, by its name.

    Names don't tell: several groups of one layer are numbered.
    """
    owner = {
        (slot.tensor, slot.dim, position): group
        for group in (*own.frozen, *own.groups)
        for slot in group.slots
        for position in slot.positions.flat
    }
    firsts = {g.name: g.slots[0] for g in inspection.groups}
    places = {n: (s.tensor, s.dim, s.positions.flat[0]) for n, s in firsts.items()}
    return {name: owner[place] for name, place in places.items() if place in owner}


def _together(
    additions: Mapping[str, int], below: Mapping[str, Group]
) -> tuple[dict[str, int], list[str]]:
    """Additions to the groups below the code, and the names of those that don't fit."""
    asked: dict[str, int] = {}
    lost = [name for name in additions if name not in below]
    for group in {id(g): g for n, g in below.items() if additions.get(n)}.values():
        several = [name for name, other in below.items() if other is group]
        counts = {additions.get(name, 0) for name in several}
        if group.reason is not None or len(counts) > 1 or min(counts) % group.multiple_of:
            lost += [name for name in several if additions.get(name)]
        else:
            asked[group.name] = counts.pop()
    return asked, lost


def _must_run(
    model: nn.Module, rewritten: Rewritten, inputs: Inputs, lost: list[tuple[str, Group | None]]
) -> None:
    """Refuse what does not run for a size in code that can't follow, with the reason.

    Raises
    ------
    UnsupportedError
    """
    try:
        verify(model, rewritten.module, inputs)
    except VerificationError as error:
        (name, group), more = lost[0], f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        why = _OTHERS if group is None or group.reason is None else group.reason.message
        raise UnsupportedError(
            f"group {name!r}{more} can't grow in the model's own class: {why}; use "
            "emit='graph', or exclude the group"
        ) from error


def followed(model: nn.Module, inspection: Inspection) -> Inspection:
    """Freeze the groups that can't grow as the user's own class, with the reason.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed.
    inspection : Inspection
        Of this model.

    Returns
    -------
    Inspection
        Groups grow in steps that the code can follow.
    """
    traced = inspection.analysis.traced
    if traced.obstacle or traced.rules.functions:  # the caller's are known in graphs only
        return inspection
    own = inspect_own(model, inspection)
    below = _below(inspection, own)
    shared = Counter(id(group) for group in below.values())
    groups, lost = [], []
    for group in inspection.groups:
        other = below.get(group.name)
        if other is None or other.reason is not None or shared[id(other)] > 1:
            reason = None if other is None else other.reason
            lost.append(replace(group, reason=reason or Reason("own_code", _OTHERS)))
        else:
            groups.append(replace(group, multiple_of=other.multiple_of))
    return replace(inspection, groups=tuple(groups), frozen=(*inspection.frozen, *lost))
