"""GradMax: new units whose outgoing entries have the largest gradients (arXiv 2201.05125).

Outgoing entries are zero, so a unit learns at first only through their gradient, which depends on
its incoming row. The row is chosen so that this gradient is as large as can be. The paper has it
the other way around: incoming rows are zero there, and a singular value decomposition gives the
outgoing entries. A ReLU has no slope at zero, and norms none to speak of, so here outgoing entries
are zero, as everywhere in this package, and the rows come from an iteration over the data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from .calibrate import calibrate_norms
from .data import LossFn, Progress, batch_loss, batches, seeded
from .ir import GrownGroup, GrownSlot
from .plain import duplicate
from .reduce import Mean, alone, samples
from .rows import activate_rows, drawn_rows

__all__ = ["maximise_gradients"]

SMALL = 1e-3
"""Norm of the outgoing entries with which rows get a gradient, relative to the old entries."""


def maximise_gradients(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any] | None,
    loss: LossFn | str | None = None,
    *,
    steps: int = 5,
    look_at: int = 1024,
    seed: int = 0,
    progress: Progress | None = None,
    mean: Mean = alone,
) -> tuple[str, ...]:
    """Turn rows of new units to where their outgoing entries' gradient is largest, in place.

    Rows (with their bias) keep the mean norm of the old ones and, as long as there are no more
    of them than entries, are orthogonal to each other; outgoing entries stay zero, so the
    function is kept. Only rows that were drawn afresh change, and without data none does.

    Parameters
    ----------
    module : torch.nn.Module
        The widened module, its outgoing entries zero.
    grown : sequence of GrownGroup
        Its groups.
    data : iterable of (inputs, targets), optional
        See :mod:`fxgrow.data`.
    loss : callable, str or None
        See :func:`fxgrow.data.resolve_loss`.
    steps : int
        Of the iteration. Each passes twice over the samples (once more where norms follow).
    look_at : int
        Samples to look at in every process, about: whole batches, the first ones.
    seed : int
        Of what is random in the model, and of the start.
    progress : callable, optional
        Told ``(stage, done, total)``.
    mean : callable
        Averages over processes (see :mod:`fxgrow.reduce`).

    Returns
    -------
    tuple of str
        Names of the groups that changed.

    Raises
    ------
    DataError
        See :func:`fxgrow.data.batch_loss`.

    Notes
    -----
    A generalised power iteration: with rows u, outgoing gradients G(u), and outgoing entries
    set to a small multiple of G(u), the gradient of the rows is that of ``|G(u)|**2 / 2``; it
    takes the rows' place. For linear units that is the power iteration of the paper's matrix.

    Memory: a copy of the model, and the gradients of what makes and reads the new units.

    References
    ----------
    Evci, van Merrienboer, Unterthiner, Vladymyrov, Pedregosa: GradMax, arXiv 2201.05125.
    """
    fresh = [group for group in grown if _fits(group)]
    if data is None or not fresh:
        return ()
    twin = duplicate(module).eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    few = _first(data, twin, look_at, mean)
    activate_rows(twin, fresh, few, samples=look_at, on=None, seed=seed, mean=mean)
    parts = [_Units(twin, group) for group in fresh]
    with seeded(seed, twin):
        for step in range(steps):
            calibrate_norms(twin, fresh, few, mean=mean)
            _turn(twin, parts, few, loss, f"GradMax, step {step}", mean)
            if progress:
                progress("maximising gradients", step + 1, steps)
    own = dict(module.named_parameters())
    for units in parts:
        units.write([own[slot.tensor] for slot in units.rows])
    return tuple(group.name for group in fresh)


def _fits(group: GrownGroup) -> bool:
    """Whether new units have fresh rows and plain zeros behind them."""
    if group.recipe != "fresh" or group.tied or not group.added or not drawn_rows(group):
        return False
    return not any(slot.filling.kind for slot in group.slots if slot.role == "consumer")


def _first(data: Iterable[Any], module: torch.nn.Module, count: int, mean: Mean) -> list[Any]:
    """Return the first batches, of so many samples; as many batches in every process."""
    most = 0
    for inputs, _ in batches(data, module):
        most += 1
        count -= samples(inputs)
        if count <= 0:
            break
    own = torch.tensor(float(most))
    (agreed,) = mean([own], 1.0, "batches to look at", [own])
    most = most if agreed is None else math.ceil(float(agreed) - 1e-6)
    return list(itertools.islice(batches(data, module), most))


class _Units:
    """New units of one group: their rows as vectors, and what reads them."""

    def __init__(self, module: torch.nn.Module, group: GrownGroup) -> None:
        tensors = dict(module.named_parameters())
        slots = [slot for slot in group.slots if slot.tensor in tensors]
        drawn = [slot for slot in drawn_rows(group) if slot in slots]
        self.rows = drawn
        self.readers = [slot for slot in slots if slot.role == "consumer"]
        self.row_tensors = [tensors[slot.tensor] for slot in drawn]
        self.reading = [tensors[slot.tensor] for slot in self.readers]
        old = torch.cat([_vectors(t, s, s.old) for t, s in self._own()], 1)
        self.norm = old.norm(dim=1).mean()
        self.vectors = torch.cat([_vectors(t, s, s.new) for t, s in self._own()], 1)
        self.point(self.vectors)

    def _own(self) -> list[tuple[torch.Tensor, GrownSlot]]:
        return list(zip(self.row_tensors, self.rows, strict=True))

    def read(self, grads: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Return the gradients of the rows as vectors."""
        found = [
            torch.zeros_like(_vectors(tensor, slot, slot.new))
            if grad is None
            else _vectors(grad, slot, slot.new)
            for (tensor, slot), grad in zip(self._own(), grads, strict=True)
        ]
        return torch.cat(found, 1)

    def point(self, vectors: torch.Tensor) -> None:
        """Take directions; where one is zero (a unit that is never on) the old one stays."""
        moved = vectors.norm(dim=1, keepdim=True) > 0
        self.vectors = _orthogonal(torch.where(moved, vectors, self.vectors)) * self.norm
        self.write(self.row_tensors)

    @torch.no_grad()
    def write(self, tensors: Sequence[torch.Tensor]) -> None:
        """Write the rows into tensors."""
        start = 0
        for tensor, slot in zip(tensors, self.rows, strict=True):
            shape = list(tensor.movedim(slot.dim, 0).shape)
            shape[0] = slot.new.size
            size = _vectors(tensor, slot, slot.new).shape[1]
            values = self.vectors[:, start : start + size].reshape(shape).movedim(0, slot.dim)
            tensor.index_copy_(slot.dim, _index(slot.new, tensor), values.to(tensor))
            start += size

    @torch.no_grad()
    def send(self, grads: Sequence[torch.Tensor | None] | None) -> None:
        """Set outgoing entries to a small multiple of their gradients, or to zero."""
        shares = [
            None if grad is None else grad.index_select(slot.dim, _index(slot.new, grad))
            for slot, grad in zip(self.readers, grads or [None] * len(self.readers), strict=True)
        ]
        length = sum(float(share.square().sum()) for share in shares if share is not None) ** 0.5
        for tensor, slot, share in zip(self.reading, self.readers, shares, strict=True):
            index = _index(slot.new, tensor)
            if share is None or not length:
                tensor.index_fill_(slot.dim, index, 0.0)
                continue
            old = tensor.index_select(slot.dim, _index(slot.old, tensor)).norm()
            tensor.index_copy_(slot.dim, index, share * (SMALL * old / length))


def _turn(
    module: torch.nn.Module,
    parts: Sequence[_Units],
    few: Sequence[Any],
    loss: LossFn | str | None,
    where: str,
    mean: Mean,
) -> None:
    """Take one step of the iteration, for all groups at once."""
    readers = [tensor for units in parts for tensor in units.reading]
    grads = iter(_gradients(module, readers, few, loss, where, mean))
    for units in parts:
        units.send([next(grads) for _ in units.reading])
    rows = [tensor for units in parts for tensor in units.row_tensors]
    grads = iter(_gradients(module, rows, few, loss, where, mean))
    for units in parts:
        units.point(units.read([next(grads) for _ in units.row_tensors]))
        units.send(None)


def _gradients(
    module: torch.nn.Module,
    tensors: Sequence[torch.Tensor],
    few: Sequence[Any],
    loss: LossFn | str | None,
    where: str,
    mean: Mean,
) -> list[torch.Tensor | None]:
    """Mean gradients over the batches."""
    sums: list[torch.Tensor | None] = [None] * len(tensors)
    for number, (inputs, targets) in enumerate(few):
        value = batch_loss(module, inputs, targets, loss, number)
        own: Sequence[torch.Tensor | None] = [None] * len(tensors)
        if value.requires_grad:
            own = torch.autograd.grad(value, tensors, allow_unused=True)
        # Averaged batch by batch: a batch that is too small to share is whole everywhere.
        grads = mean(own, samples(inputs), f"{where}, batch {number}", tensors)
        for place, grad in enumerate(grads):
            if grad is not None:
                before = sums[place]
                sums[place] = grad if before is None else before + grad
    return [None if each is None else each / len(few) for each in sums]


def _orthogonal(vectors: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, orthogonal to each other in blocks of as many as have room."""
    blocks = vectors.to(torch.promote_types(vectors.dtype, torch.float32)).split(vectors.shape[1])
    found = []
    for block in blocks:
        unit = block / block.norm(dim=1, keepdim=True).clamp_min(1e-30)
        q, r = torch.linalg.qr(unit.T)
        signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
        found.append((q * signs).T)
    return torch.cat(found).to(vectors)


def _vectors(tensor: torch.Tensor, slot: GrownSlot, positions: Any) -> torch.Tensor:
    """Slices of some units, one vector a unit."""
    chosen = tensor.detach().index_select(slot.dim, _index(positions, tensor))
    return chosen.movedim(slot.dim, 0).reshape(len(positions), -1)


def _index(positions: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(positions.reshape(-1)).to(like.device)
