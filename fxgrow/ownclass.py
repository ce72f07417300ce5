"""Growth of the user's own class: where its code holds sizes, they grow with the tensors.

A graph has the sizes that a model's code computes as numbers, which the rewriter changes; the
code itself still has the old ones. Where that is so the model is analysed once more below its
code (:mod:`fxgrow.whole`), where sizes are followed back to the attributes they come from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .errors import UnsupportedError, VerificationError
from .inspection import inspect_own
from .ir import Reason
from .plan import MAX_ADDED
from .rewrite import rewrite
from .verify import verify

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from .inspection import Inspection
    from .ir import Rewritten

__all__ = ["followed", "rewrite_own"]

_OTHERS = "below its code other units grow together"


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
    steps = {group.name: group.multiple_of for group in own.groups}
    lost = [name for name, count in additions.items() if count % steps.get(name, MAX_ADDED)]
    if not lost:
        return rewrite(model, own, additions, seed=seed, emit="module")
    if rewritten is None:
        assert refused is not None
        raise refused
    _must_run(model, rewritten, own, lost)
    return rewritten


def _must_run(model: nn.Module, rewritten: Rewritten, own: Inspection, lost: list[str]) -> None:
    """Refuse what does not run for a size in code that can't follow, with the reason.

    Raises
    ------
    UnsupportedError
    """
    try:
        verify(model, rewritten.module, own.analysis.traced.inputs)
    except VerificationError as error:
        reasons = {g.name: g.reason for g in own.frozen if g.reason is not None}
        why = reasons[lost[0]].message if lost[0] in reasons else _OTHERS
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise UnsupportedError(
            f"group {lost[0]!r}{more} can't grow in the model's own class: {why}; use "
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
    kept = {group.name: group.multiple_of for group in own.groups}
    reasons = {group.name: group.reason for group in own.frozen}
    lost = [
        replace(g, reason=reasons.get(g.name) or Reason("own_code", _OTHERS))
        for g in inspection.groups
        if g.name not in kept
    ]
    groups = tuple(
        replace(group, multiple_of=kept[group.name])
        for group in inspection.groups
        if group.name in kept
    )
    return replace(inspection, groups=groups, frozen=(*inspection.frozen, *lost))
