"""Reductions over units that grow: what their results are multiplied with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import fx

__all__ = ["MADE_UP"]


def _mean(node: fx.Node, entries: int, ratio: float) -> float:
    """Make up for new zeros: the sum stays, and is divided by more."""
    return 1 / ratio


def _variance(node: fx.Node, entries: int, ratio: float) -> float:
    """Make up for copies: the sum grows as the count does, but the correction stays."""
    correction = _correction(node)
    return (entries - correction) / (entries - correction / ratio)


def _deviation(node: fx.Node, entries: int, ratio: float) -> float:
    return math.sqrt(_variance(node, entries, ratio))


def _sum(node: fx.Node, entries: int, ratio: float) -> float:
    """Make up for copies, each of which adds what its unit does."""
    return ratio


def _norm(node: fx.Node, entries: int, ratio: float) -> float:
    """Make up for copies in a root of a sum of squares."""
    return math.sqrt(ratio)


def _normalized(node: fx.Node, entries: int, ratio: float) -> float:
    """Make up for copies in what is divided by such a root."""
    return 1 / math.sqrt(ratio)


def _correction(node: fx.Node) -> float:
    """Read what a variance divides by less than its count, as torch does."""
    given = node.kwargs.get("correction")
    if isinstance(given, (int, float)):
        return float(given)
    # var(unbiased) or var(dim, unbiased, keepdim)
    rest = [a for a in node.args[1:3] if isinstance(a, bool)]
    unbiased = node.kwargs.get("unbiased", rest[0] if rest else True)
    return float(bool(unbiased))


MADE_UP: Mapping[str, Callable[[fx.Node, int, float], float]] = {
    "mean": _mean,
    "var": _variance,
    "std": _deviation,
    "sum": _sum,
    "norm": _norm,
    "normalize": _normalized,
}
"""Kind of a norm (:class:`fxgrow.ir.Norm`) → factor of its result.

Given are the node, the (new) number of entries that a result is made of, and old over new width.
"""
