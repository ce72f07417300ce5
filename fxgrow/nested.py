"""Outputs of nodes that hold several tensors, in tuples, lists and dicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .propagate import Noted

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["noted_in", "pairs_in"]


def noted_in(value: Any) -> Iterator[Noted]:
    """Yield what is noted of the tensors among the (nested) outputs of a node."""
    if isinstance(value, Noted):
        yield value
    elif isinstance(value, (dict, tuple, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from noted_in(item)


def pairs_in(before: Any, value: Any) -> list[tuple[Noted, torch.Tensor]]:
    """Pair what is noted of a node's outputs with their values after growth."""
    if isinstance(before, Noted):
        return [(before, value)] if isinstance(value, torch.Tensor) else []
    if isinstance(before, dict):
        return [p for key, item in before.items() for p in pairs_in(item, value[key])]
    if isinstance(before, (tuple, list)):
        return [p for a, b in zip(before, value, strict=False) for p in pairs_in(a, b)]
    return []
