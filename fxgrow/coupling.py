"""Couplings: how new units and old units of one slot move against each other in SWE.

Paper arXiv 2509.18842, section SWE: every pair of a new row ``j`` and an old row ``i``
has a vector ``D[j, i]``; effective rows are ``old_i = W_i - sum_j D[j, i]`` and ``new_j =
W_j + sum_i D[j, i]``. With ``g`` the gradient of the *effective* rows, ``dL/dD[j, i] =
g_j - g_i``. A coupling stores what it needs of D and turns gradients of the rows into
displacements of the rows. Rows are matrices of shape ``(old + new, entries)``, old first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from .errors import InputError
from .ir import GrownSlot

CHUNK = 2**20
"""Entries of D that the pairwise coupling holds at a time (at least one new row's)."""


@dataclass(frozen=True, eq=False)
class Rows:
    """One slot's slices as a matrix with one row per unit, old units first.

    Attributes
    ----------
    dim : int
        Axis of the tensor along which the units lie.
    old, new : int
        Numbers of old and new units.
    index : torch.Tensor or None
        Positions along ``dim``, unit by unit; None when that is the present order.
    """

    dim: int
    old: int
    new: int
    index: torch.Tensor | None

    @classmethod
    def of(cls, slot: GrownSlot, tensor: torch.Tensor) -> Rows:
        """Rows of a slot of ``tensor``."""
        flat = torch.cat(
            [torch.from_numpy(slot.old.reshape(-1)), torch.from_numpy(slot.new.reshape(-1))]
        )
        whole = len(flat) == tensor.shape[slot.dim] and torch.equal(flat, torch.arange(len(flat)))
        index = None if whole else flat.to(tensor.device)
        return cls(slot.dim, len(slot.old), len(slot.new), index)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Slices of ``tensor``, shape ``(old + new, entries)``; a view where possible."""
        moved = tensor.movedim(self.dim, 0)
        if self.index is not None:
            moved = moved.index_select(0, self.index)
        return moved.reshape(self.old + self.new, -1)

    def add_(self, tensor: torch.Tensor, rows: torch.Tensor) -> None:
        """Add ``rows`` (as from :meth:`gather`) to the slices of ``tensor``, in place."""
        moved = tensor.movedim(self.dim, 0)
        length = moved.shape[0] if self.index is None else len(self.index)
        shaped = rows.reshape(length, *moved.shape[1:])
        if self.index is None:
            moved.add_(shaped)
        else:
            moved.index_add_(0, self.index, shaped)

    def put_(self, tensor: torch.Tensor, rows: torch.Tensor) -> None:
        """Write ``rows`` (as from :meth:`gather`) into the slices of ``tensor``, in place."""
        if rows.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
            return  # a view: it is there already
        moved = tensor.movedim(self.dim, 0)
        if self.index is None:
            moved.copy_(rows.reshape(moved.shape))
        else:
            moved.index_copy_(0, self.index, rows.reshape(len(self.index), *moved.shape[1:]))

    def fill(self, tensor: torch.Tensor) -> bool:
        """Say whether ``tensor`` has no other slices than these."""
        return self.index is None or len(self.index) == tensor.shape[self.dim]


class Coupling(Protocol):
    """State of the coupling of one slot while it is adjusted."""

    @property
    def trained(self) -> list[torch.Tensor]:
        """Tensors that the optimizer steps; :meth:`pull` sets their gradients."""
        ...

    def displacement(self) -> torch.Tensor:
        """Effective rows minus own rows: D folded, shape ``(old + new, entries)``."""
        ...

    def pull(self, grad: torch.Tensor) -> None:
        """Take in the gradient of the effective rows, shape ``(old + new, entries)``."""
        ...


@dataclass(frozen=True)
class AdamSettings:
    """Settings of Adam as in :class:`torch.optim.Adam`."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


def fold(couplings: torch.Tensor) -> torch.Tensor:
    """Displacement of the rows by D, old rows first.

    Parameters
    ----------
    couplings : torch.Tensor, shape ``(new, old, entries)``
        D.

    Returns
    -------
    torch.Tensor, shape ``(old + new, entries)``
        Its sum over all rows is zero.
    """
    return torch.cat([-couplings.sum(0), couplings.sum(1)])


def laplacian(grad: torch.Tensor, old: int) -> torch.Tensor:
    """Multiply by the Laplacian of the complete bipartite graph of old and new rows.

    Row ``i`` of the old becomes ``new * g_i - sum g_new``, row ``j`` of the new becomes
    ``old * g_j - sum g_old``. A gradient step on D moves the rows by exactly this.

    Parameters
    ----------
    grad : torch.Tensor, shape ``(old + new, entries)``
        Gradient of the effective rows, old first.
    old : int
        Number of old rows.
    """
    return laplacian_(grad.clone(), old)


def laplacian_(grad: torch.Tensor, old: int) -> torch.Tensor:
    """Do as :func:`laplacian`, in place."""
    first, second = grad[:old], grad[old:]
    sums = -first.sum(0), -second.sum(0)
    # in one pass over the rows each
    torch.add(sums[1], first, alpha=len(second), out=first)
    torch.add(sums[0], second, alpha=len(first), out=second)
    return grad


@dataclass(eq=False)
class LaplacianCoupling:
    """D is never stored: the displacement trains on ``laplacian(grad)``.

    Under any optimizer that is linear in the gradients (SGD, momentum, Nesterov, weight
    decay) this *is* training D from zero; under Adam it is a method of its own. Memory is
    that of the rows.
    """

    old: int
    delta: torch.Tensor

    @classmethod
    def start(cls, rows: Rows, like: torch.Tensor, setup: CouplingSetup) -> LaplacianCoupling:
        """Begin with no displacement."""
        del setup
        return cls(rows.old, torch.zeros_like(like))

    @property
    def trained(self) -> list[torch.Tensor]:
        """The displacement."""
        return [self.delta]

    def displacement(self) -> torch.Tensor:
        """Return the displacement."""
        return self.delta

    def pull(self, grad: torch.Tensor) -> None:
        """Precondition the gradient."""
        self.delta.grad = laplacian(grad, self.old)


@dataclass(eq=False)
class DenseCoupling:
    """D itself is stored and trained: the definition, O(new * old * entries) memory."""

    couplings: torch.Tensor

    @classmethod
    def start(cls, rows: Rows, like: torch.Tensor, setup: CouplingSetup) -> DenseCoupling:
        """Draw D from N(0, std²), or take the given one."""
        shape = (rows.new, rows.old, like.shape[1])
        if setup.initial is None:
            draw = torch.randn(shape, generator=setup.generator, dtype=torch.float64) * setup.std
        else:
            draw = setup.initial.detach()
        if draw.numel() != rows.new * rows.old * like.shape[1]:
            raise InputError(f"couplings have shape {tuple(draw.shape)}, expected {shape}")
        couplings = draw.reshape(shape).to(like, copy=True)
        return cls(couplings.requires_grad_())

    @property
    def trained(self) -> list[torch.Tensor]:
        """D."""
        return [self.couplings]

    def displacement(self) -> torch.Tensor:
        """Fold D."""
        return fold(self.couplings.detach())

    def pull(self, grad: torch.Tensor) -> None:
        """Let autograd find the gradient of D."""
        with torch.enable_grad():
            folded = fold(self.couplings)
        (self.couplings.grad,) = torch.autograd.grad(folded, self.couplings, grad)


@dataclass(eq=False)
class PairwiseCoupling:
    """Adam on D, recomputed pair by pair in chunks without storing D.

    Adam's first moment of D is ``m_j - m_i``; its second moment, the average of
    ``(g_j - g_i)²``, is taken as ``v_j + v_i - 2 q_j q_i`` with ``m``, ``v``, ``q``
    averages of ``g`` (beta 1), ``g²`` and ``g`` (beta 2). Memory is that of five copies of
    the rows plus a chunk; time is that of ``new * old * entries``.
    """

    old: int
    adam: AdamSettings
    delta: torch.Tensor
    moments: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    steps: int = 0
    chunk: int = field(default_factory=lambda: CHUNK)

    @classmethod
    def start(cls, rows: Rows, like: torch.Tensor, setup: CouplingSetup) -> PairwiseCoupling:
        """Begin with no displacement and no moments."""
        zero = torch.zeros_like
        return cls(rows.old, setup.adam, zero(like), (zero(like), zero(like), zero(like)))

    @property
    def trained(self) -> list[torch.Tensor]:
        """Nothing: :meth:`pull` steps by itself."""
        return []

    def displacement(self) -> torch.Tensor:
        """Return the displacement."""
        return self.delta

    def pull(self, grad: torch.Tensor) -> None:
        """Update the moments and move the rows by one Adam step on D."""
        first, second = self.adam.betas
        mean, square, slow = self.moments
        mean.lerp_(grad, 1 - first)
        square.lerp_(grad * grad, 1 - second)
        slow.lerp_(grad, 1 - second)
        self.steps += 1
        mean = mean / (1 - first**self.steps)
        square = square / (1 - second**self.steps)
        slow = slow / (1 - second**self.steps)
        # v_j + v_i - 2 q_j q_i as a sum of parts that can't be negative
        spread = (square - slow * slow).clamp_(min=0)
        old, new = slice(None, self.old), slice(self.old, None)
        size = max(1, self.chunk // max(1, mean[old].numel()))
        parts = (torch.split(p[new], size) for p in (mean, spread, slow, self.delta))
        for mean_j, spread_j, slow_j, delta_j in zip(*parts, strict=True):
            variance = slow_j[:, None] - slow[old]
            variance.square_().add_(spread_j[:, None]).add_(spread[old])
            step = mean_j[:, None] - mean[old]
            step.div_(variance.sqrt_().add_(self.adam.eps)).mul_(self.adam.lr)
            delta_j.sub_(step.sum(1))
            self.delta[old].add_(step.sum(0))


@dataclass(frozen=True, eq=False)
class CouplingSetup:
    """What a coupling may need at its start.

    Attributes
    ----------
    adam : AdamSettings
        For couplings that step by themselves.
    generator : torch.Generator
        CPU generator of initial draws.
    initial : torch.Tensor, optional
        Given D, ``(new, old, ...)``, for couplings that store it.
    std : float
        Standard deviation of the initial D.
    in_place : bool
        Steps depend on gradients alone (no decay), so that those of a displacement are
        those of the rows: a coupling that only turns gradients needs no displacement.
    """

    adam: AdamSettings
    generator: torch.Generator
    initial: torch.Tensor | None = None
    std: float = 1e-4
    in_place: bool = False


COUPLINGS: Mapping[str, Callable[[Rows, torch.Tensor, CouplingSetup], Coupling]] = {
    "dense": DenseCoupling.start,
    "laplacian": LaplacianCoupling.start,
    "pairwise": PairwiseCoupling.start,
}
"""Couplings by name: functions of the slot, its rows and the setup."""
