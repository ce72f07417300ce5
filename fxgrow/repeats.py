"""Reductions over units that copies of all of them leave as they are, or that can be made up for.

A mean, a maximum or a layer normalisation does not see that every channel is repeated. A sum, a
norm or a variance does: in a graph, its result is multiplied by what makes up for it. Where a
maximum is, copies do change: what uses that keeps its units as they are.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx

from .ir import Norm
from .propagate import Noted
from .resting import LOCAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .analyse import Analysis
    from .events import Mixing
    from .streams import Mixed

__all__ = ["bears_copies", "made_up"]

_UNSEEN = frozenset({"layer_norm", "group_norm", "mean", "amax", "amin"})
_EXTREMA: frozenset[Any] = frozenset(
    {"max", "min", torch.max, torch.min, F.adaptive_max_pool1d, F.adaptive_max_pool2d}
)
# Code of a reduction → functions and methods whose results can be scaled, and how
# (:data:`fxgrow.counts.MADE_UP`).
_SCALED: Mapping[str, Mapping[Any, str]] = {
    LOCAL: {},
    "var": {"var": "var", torch.var: "var"},
    "std": {"std": "std", torch.std: "std"},
    "sum": {"sum": "sum", torch.sum: "sum"},
    "norm": {
        **dict.fromkeys(("norm", torch.norm, torch.linalg.norm, torch.linalg.vector_norm), "norm"),
        F.normalize: "normalize",
    },
}


def bears_copies(analysis: Analysis, mixing: Mixing) -> bool:
    """Whether a reduction may be exact once all units are copied, or some are added.

    Parameters
    ----------
    analysis : Analysis
        Its graphs show whether positions of maxima are used.
    mixing : Mixing
    """
    if mixing.code in {"max", "min"}:
        return _tells_values(mixing.where.site, analysis.planes)
    return mixing.code in _UNSEEN or mixing.code in _SCALED


def _tells_values(node: object, planes: Mapping[fx.Node, Any]) -> bool:
    """Whether nothing but the values of a maximum leaves a node."""
    if not isinstance(node, fx.Node) or node.target not in _EXTREMA:
        return False
    return isinstance(planes.get(node), Noted) or all(map(_takes_values, node.users))


def _takes_values(user: fx.Node) -> bool:
    first = user.target is operator.getitem and user.args[1] == 0
    named = user.target is getattr and user.args[1] == "values"
    return bool(first) or bool(named) or not user.users


def made_up(mixed: Iterable[Mixed]) -> tuple[Norm, ...] | None:
    """Find what makes up for copies: results whose count, or correction, is another then.

    Parameters
    ----------
    mixed : iterable of Mixed
        All operations that reduce over the units of a group that grows by copies.

    Returns
    -------
    tuple of Norm or None
        None where the graph does not show one, to make up for it.
    """
    found = []
    for own in mixed:
        node, table = own.mixing.where.site, _SCALED.get(own.mixing.code)
        if table is None:
            continue
        kind = table.get(node.target) if isinstance(node, fx.Node) else None
        if kind is None:
            return None
        found.append(Norm(node, kind, ()))
    return tuple(found)
