"""Norms that users write themselves: told by how they behave, not by their code.

A norm over C channels computes the same over C + k, if its weight is scaled by the root of
C / (C + k) and its eps by C / (C + k), and the new channels hold zeros (RMS normalisation) or
means (layer normalisation). A copy of the module is tried on random numbers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from .casts import Exact
from .plain import duplicate
from .tracer import FAILURES

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OwnNorm", "as_norm"]

_EXACT = 1e-10


class OwnNorm(NamedTuple):
    """Names of a norm's attributes: its weight, and its eps (``""`` if there is none)."""

    gain: str
    epsilon: str


def as_norm(module: nn.Module, width: int, recipe: str) -> OwnNorm | None:
    """Find out whether a module is a norm that can be made up for a new width.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed; its values do not matter.
    width : int
        Number of channels.
    recipe : {"mean", "zero"}
        What new channels hold.

    Returns
    -------
    OwnNorm or None
        None for anything else.
    """
    own = {k: p for k, p in module._parameters.items() if p is not None}
    if any(module.children()) or not own or any(p.shape != (width,) for p in own.values()):
        return None
    floats = [k for k, v in module.__dict__.items() if type(v) is float]
    for gain in own:
        for epsilon in ("", *floats):
            if _behaves(module, width, recipe, OwnNorm(gain, epsilon)):
                return OwnNorm(gain, epsilon)
    return None


def _behaves(module: nn.Module, width: int, recipe: str, names: OwnNorm) -> bool:
    generator = torch.Generator().manual_seed(0)
    added = max(width // 2, 1)
    ratio = width / (width + added)
    old = _copy(module, width, generator)
    new = _copy(module, width + added, generator)
    for name, parameter in old._parameters.items():
        if parameter is not None:
            wider = new._parameters[name]
            assert wider is not None
            scale = math.sqrt(ratio) if name == names.gain else 1.0
            wider.data[:width] = parameter.data * scale
            if name != names.gain:
                wider.data[width:] = 0
    _resize(new, width, width + added)
    if names.epsilon:
        new.__dict__[names.epsilon] *= ratio
    return any(_agree(old, new, x, dim, added, recipe) for x, dim in _inputs(width, generator))


def _copy(module: nn.Module, width: int, generator: torch.Generator) -> Any:
    """Copy of a module with random weights of another width, in float64 on the CPU."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.randn(width, dtype=torch.float64, generator=generator))
        for p in module._parameters.values()
        if p is not None
    }
    return duplicate(module, memo).eval()


def _resize(module: nn.Module, old: int, new: int) -> None:
    """Change the sizes that a module holds."""
    for name, value in list(module.__dict__.items()):
        if type(value) is int and value == old:
            module.__dict__[name] = new
        elif isinstance(value, (tuple, list)) and old in value:
            module.__dict__[name] = type(value)(new if v == old else v for v in value)


def _inputs(width: int, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield inputs of the shapes that norms take, small and large so that eps counts."""
    for shape, dim in (((2, 3, width), 2), ((2, width, 3, 4), 1), ((2, 3, 4, width), 3)):
        x = torch.randn(shape, dtype=torch.float64, generator=generator)
        yield x * torch.tensor([1.0, 1e-3]).reshape(2, *[1] * (len(shape) - 1)), dim


def _agree(
    old: nn.Module, new: nn.Module, x: torch.Tensor, dim: int, added: int, recipe: str
) -> bool:
    mean = x.mean(dim, keepdim=True) if recipe == "mean" else torch.zeros(()).to(x)
    shape = list(x.shape)
    shape[dim] = added
    try:
        with Exact(), torch.no_grad():
            before = old(x)
            after = new(torch.cat([x, mean.expand(shape)], dim))
    except FAILURES:
        return False
    if not isinstance(before, torch.Tensor) or before.shape != x.shape:
        return False
    kept = after.narrow(dim, 0, x.shape[dim])
    rest = after.narrow(dim, x.shape[dim], added)
    gap = max((kept - before).abs().max().item(), rest.abs().max().item())
    return bool(gap <= _EXACT * before.abs().max().item())
