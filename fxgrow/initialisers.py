"""Other ways to start new units, the function kept: copies (Net2Wider) and pairs.

They change what was inserted (fresh rows, outgoing entries of zero), group by group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from .ir import GrownGroup

__all__ = ["copy_units", "pair_units"]


@torch.no_grad()
def copy_units(module: torch.nn.Module, grown: Sequence[GrownGroup], *, seed: int = 0) -> None:
    """Make every new unit a copy of an old one, and split what reads it (Net2Wider), in place.

    Shares are uneven, so that copies part in training.

    Parameters
    ----------
    module : torch.nn.Module
        The widened module.
    grown : sequence of GrownGroup
        Its groups; only those of fresh units change.
    seed : int
        Of the choice and the shares.

    References
    ----------
    Chen, Goodfellow, Shlens: Net2Net, arXiv 1511.05641.
    """
    rng = np.random.default_rng(seed)
    for group, tensors in _fresh(module, grown):
        chosen = rng.integers(group.width, size=group.added)
        shares = _shares(chosen, group.width, rng)
        for slot in group.slots:
            tensor = tensors[slot.tensor]
            family = np.concatenate([slot.old, slot.new])
            values = tensor.index_select(slot.dim, _flat(slot.old[chosen], tensor))
            tensor.index_copy_(slot.dim, _flat(slot.new, tensor), values)
            if slot.role == "consumer":
                factors = np.repeat(shares, family.shape[1])
                _scale(tensor, slot.dim, family, factors)


@torch.no_grad()
def pair_units(
    module: torch.nn.Module, grown: Sequence[GrownGroup], *, scale: float = 0.1, seed: int = 0
) -> None:
    """Let new units come in pairs that cancel, in place: equal rows, opposite outgoing entries.

    Exact for any activation, and both sides have gradients from the first step. An odd unit
    keeps outgoing entries of zero.

    Parameters
    ----------
    module : torch.nn.Module
        The widened module.
    grown : sequence of GrownGroup
        Its groups; only those of fresh units change.
    scale : float
        Of the outgoing entries, relative to the standard deviation of the old ones.
    seed : int
        Of the outgoing entries.
    """
    generator = torch.Generator().manual_seed(seed)
    for group, tensors in _fresh(module, grown):
        half = group.added // 2
        for slot in group.slots:
            tensor = tensors[slot.tensor]
            first, second = (_flat(slot.new[a : a + half], tensor) for a in (0, half))
            if slot.role != "consumer":
                values = tensor.index_select(slot.dim, first)
                tensor.index_copy_(slot.dim, second, values)
                continue
            shape = list(tensor.shape)
            shape[slot.dim] = len(first)
            spread = tensor.index_select(slot.dim, _flat(slot.old, tensor)).float().std()
            draw = torch.randn(shape, generator=generator).to(tensor) * (scale * spread.to(tensor))
            tensor.index_copy_(slot.dim, first, draw)
            tensor.index_copy_(slot.dim, second, -draw)


def _fresh(
    module: torch.nn.Module, grown: Sequence[GrownGroup]
) -> Iterator[tuple[GrownGroup, Mapping[str, torch.Tensor]]]:
    tensors: dict[str, torch.Tensor] = dict(module.named_buffers(remove_duplicate=False))
    tensors.update(module.named_parameters(remove_duplicate=False))
    for group in grown:
        if group.recipe == "fresh" and group.added and _is_plain(group):
            yield group, tensors


def _is_plain(group: GrownGroup) -> bool:
    """Whether all entries are rows, columns and per-unit entries of the ordinary recipe.

    What is both row and column can't be copied and split at once.
    """
    return not group.tied and not any(slot.filling.kind for slot in group.slots)


def _shares(chosen: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """Share of every old and new unit in what read its original, shape ``(width + added,)``."""
    owner = np.concatenate([np.arange(width), chosen])
    weights = rng.uniform(0.5, 1.5, size=len(owner))
    shares: np.ndarray = weights / np.bincount(owner, weights, minlength=width)[owner]
    return shares


def _flat(positions: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(positions.reshape(-1))).to(like.device)


def _scale(tensor: torch.Tensor, dim: int, positions: np.ndarray, factors: np.ndarray) -> None:
    index = _flat(positions, tensor)
    shape = [-1 if d == dim else 1 for d in range(tensor.ndim)]
    column = torch.from_numpy(factors).reshape(shape).to(tensor)
    tensor.index_copy_(dim, index, tensor.index_select(dim, index) * column)
