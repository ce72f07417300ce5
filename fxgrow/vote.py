"""SVoD: which layers want more neurons (paper arXiv 2509.18842, section SVoD).

A clone of the network with small random candidates in every group is trained for an
epoch; then each candidate ``j`` is judged by ``dL/dy_j``, the slope of the loss when its
pre-activation is multiplied by ``1 + y_j``. No gate is ever built: by the chain rule
``dL/dy_j = <grad W_j, W_j> + grad b_j * b_j`` over the rows that compute the unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .ballot import Candidates, candidate_count, count_votes, vote_noise
from .data import LossFn, Progress, batch_loss, batches, count_batches, seeded
from .ir import Group, GrownGroup, GrownSlot, Unit, Votes
from .plan import price
from .precision import Masters
from .reduce import Mean, alone, average_gradients, samples

__all__ = [
    "Candidates",
    "candidate_count",
    "cast_votes",
    "count_votes",
    "fill_candidates",
    "gate_gradients",
    "gate_gradients_by_batch",
    "train_candidates",
    "vote_noise",
]


@torch.no_grad()
def fill_candidates(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    generator: torch.Generator,
    scale: float = 1e-2,
) -> None:
    """Draw all in- and outgoing entries of the new units from U(-scale, scale), in place.

    Blocks between candidates of neighbouring groups are included. Entries of norms and
    other per-unit entries stay as they were inserted; those of producers under layer
    normalisation are added to what was inserted.

    Parameters
    ----------
    module : torch.nn.Module
        The widened clone.
    grown : sequence of GrownGroup
        Its candidates.
    generator : torch.Generator
        A CPU generator; draws are the same on every device.
    scale : float
        Half the width of the distribution.
    """
    tensors = _tensors(module)
    for group in grown:
        for slot in group.slots:
            tensor = tensors[slot.tensor]
            if slot.role not in ("producer", "consumer") or not tensor.is_floating_point():
                continue
            index = torch.from_numpy(slot.new.reshape(-1)).to(tensor.device)
            shape = list(tensor.shape)
            shape[slot.dim] = len(index)
            draw = torch.rand(shape, generator=generator, dtype=torch.float64)
            draw = (2 * draw - 1).mul_(scale).to(tensor)
            if slot.filling.kind == "mean":  # around the mean, or norms of the stream would shift
                tensor.index_add_(slot.dim, index, draw)
            else:
                tensor.index_copy_(slot.dim, index, draw)


def train_candidates(
    module: torch.nn.Module,
    data: Iterable[Any],
    loss: LossFn | str | None = None,
    *,
    epochs: int = 1,
    lr: float = 1e-3,
    alpha: float = 0.9,
    momentum: float = 0.1,
    progress: Progress | None = None,
    mean: Mean = alone,
) -> None:
    """Train the clone's weights that require gradients with RMSprop, in train mode, in place.

    Parameters
    ----------
    module : torch.nn.Module
        The widened clone.
    data : iterable of (inputs, targets)
        See :mod:`fxgrow.data`.
    loss : callable, str or None
        See :func:`fxgrow.data.resolve_loss`.
    epochs, lr, alpha, momentum
        The paper's settings are the defaults.
    progress : callable, optional
        Told ``(stage, done, total)``.
    mean : callable
        Averages over processes (see :mod:`fxgrow.reduce`).

    Raises
    ------
    DataError
        See :func:`fxgrow.data.batch_loss`.
    """
    weights = [p for p in module.parameters() if p.requires_grad]
    masters = Masters(weights)
    optimizer = torch.optim.RMSprop(masters.tensors, lr=lr, alpha=alpha, momentum=momentum)
    module.train()
    total, done = count_batches(data) * epochs, 0
    for epoch in range(epochs):
        for number, (inputs, targets) in enumerate(batches(data, module)):
            module.zero_grad()
            torch.autograd.backward(batch_loss(module, inputs, targets, loss, number))
            where = f"candidates' training, epoch {epoch}, batch {number}"
            average_gradients(mean, weights, samples(inputs), where)
            masters.pull()
            optimizer.step()
            masters.push()
            done += 1
            if progress:
                progress("vote: training candidates", done, total)


def gate_gradients(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any],
    loss: LossFn | str | None = None,
    *,
    progress: Progress | None = None,
    mean: Mean = alone,
) -> dict[str, np.ndarray]:
    """Mean over the batches of ``dL/dy`` for every candidate of every group.

    See :func:`gate_gradients_by_batch` for parameters and errors.

    Returns
    -------
    dict of str to numpy.ndarray, shape ``(added,)``
        Negative is good: the loss falls when the unit's part grows.
    """
    by_batch = gate_gradients_by_batch(module, grown, data, loss, progress=progress, mean=mean)
    return {name: values.mean(axis=0) for name, values in by_batch.items()}


def gate_gradients_by_batch(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any],
    loss: LossFn | str | None = None,
    *,
    progress: Progress | None = None,
    mean: Mean = alone,
) -> dict[str, np.ndarray]:
    """``dL/dy`` of every candidate on every batch, without any optimizer step.

    The gate sits on the unit's norm where it has one (``<grad gamma, gamma> +
    <grad beta, beta>``; before a batch norm in train mode the slope would be an artefact
    of its eps), else on the rows that compute the unit, summed over all of them.

    Parameters
    ----------
    module : torch.nn.Module
        The trained clone; run in train mode.
    grown : sequence of GrownGroup
        Its candidates.
    data : iterable of (inputs, targets)
        See :mod:`fxgrow.data`.
    loss : callable, str or None
        See :func:`fxgrow.data.resolve_loss`.
    progress : callable, optional
        Told ``(stage, done, total)``.
    mean : callable
        Averages over processes (see :mod:`fxgrow.reduce`).

    Returns
    -------
    dict of str to numpy.ndarray, shape ``(batches, added)``
        In float64.

    Raises
    ------
    DataError
        See :func:`fxgrow.data.batch_loss`.
    """
    tensors = _tensors(module)
    voting = {group.name: _voting_slots(group, tensors) for group in grown}
    values: dict[str, list[np.ndarray]] = {group.name: [] for group in grown}
    total = count_batches(data)
    module.train()
    for number, (inputs, targets) in enumerate(batches(data, module)):
        module.zero_grad(set_to_none=True)
        torch.autograd.backward(batch_loss(module, inputs, targets, loss, number))
        slopes = [torch.from_numpy(_group_slopes(g, voting[g.name], tensors)) for g in grown]
        where = f"candidates' judging, batch {number}"
        for group, row in zip(grown, mean(slopes, samples(inputs), where), strict=True):
            values[group.name].append(np.zeros(group.added) if row is None else row.numpy())
        if progress:
            progress("vote: judging candidates", number + 1, total)
    module.zero_grad(set_to_none=True)
    return {name: np.stack(rows) for name, rows in values.items()}


def cast_votes(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    groups: Sequence[Group],
    data: Iterable[Any],
    loss: LossFn | str | None = None,
    *,
    budget: float,
    unit: Unit = "neurons",
    seed: int = 0,
    epochs: int = 1,
    lr: float = 1e-3,
    scale: float = 1e-2,
    progress: Progress | None = None,
    mean: Mean = alone,
) -> Votes:
    """Hold the whole vote on a widened clone, which is used up.

    Parameters
    ----------
    module : torch.nn.Module
        The clone, widened by :func:`candidate_count` units per group.
    grown : sequence of GrownGroup
        Its candidates.
    groups : sequence of Group
        The groups of the model before growth (prices).
    data : iterable of (inputs, targets)
        See :mod:`fxgrow.data`.
    loss : callable, str or None
        See :func:`fxgrow.data.resolve_loss`.
    budget : float
        K, in ``unit``.
    unit : {"neurons", "params", "flops"}
        What the budget counts.
    seed : int
        Of the candidates, the dropout masks and the order of a shuffling loader. The
        caller's random state is left alone.
    epochs, lr : int, float
        See :func:`train_candidates`.
    scale : float
        See :func:`fill_candidates`.
    progress : callable, optional
        Told ``(stage, done, total)``.
    mean : callable
        Averages over processes (see :mod:`fxgrow.reduce`).

    Returns
    -------
    Votes
        With ``noise`` where there are two batches or more.

    Raises
    ------
    DataError
        See :func:`fxgrow.data.batch_loss`.
    """
    prices = {group.name: max(1, price(group, unit)) for group in groups}
    with seeded(seed, module):
        fill_candidates(module, grown, torch.Generator().manual_seed(seed), scale)
        train_candidates(module, data, loss, epochs=epochs, lr=lr, progress=progress, mean=mean)
        for parameter in module.parameters():  # resting rows are judged too, but never stepped
            parameter.requires_grad_(parameter.is_floating_point())
        by_batch = gate_gradients_by_batch(module, grown, data, loss, progress=progress, mean=mean)
    values = {name: rows.mean(axis=0) for name, rows in by_batch.items()}
    return Votes(
        values=values,
        counts=count_votes(values, budget, prices),
        noise=vote_noise(by_batch, budget, prices, seed=seed),
        budget=budget,
        unit=unit,
        seed=seed,
    )


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by all of their names."""
    named: dict[str, torch.Tensor] = dict(module.named_buffers(remove_duplicate=False))
    named.update(module.named_parameters(remove_duplicate=False))
    return named


def _voting_slots(group: GrownGroup, tensors: Mapping[str, torch.Tensor]) -> tuple[GrownSlot, ...]:
    learnt = [s for s in group.slots if isinstance(tensors[s.tensor], torch.nn.Parameter)]
    norms = tuple(slot for slot in learnt if slot.role == "norm")
    return norms or tuple(slot for slot in learnt if slot.role == "producer")


def _group_slopes(
    group: GrownGroup, slots: Sequence[GrownSlot], tensors: Mapping[str, torch.Tensor]
) -> np.ndarray:
    """``dL/dy`` of each new unit on the present gradients, shape ``(added,)``, float64."""
    slopes = np.zeros(group.added)
    for slot in slots:
        slopes += _slopes(slot, tensors[slot.tensor])
    return slopes


def _slopes(slot: GrownSlot, tensor: torch.Tensor) -> np.ndarray:
    """``<grad, weight>`` of each new unit's slices, shape ``(added,)``, float64."""
    if tensor.grad is None:  # not used in this batch, or frozen by the user
        return np.zeros(len(slot.new))
    index = torch.from_numpy(slot.new.reshape(-1)).to(tensor.device)
    product = tensor.detach().index_select(slot.dim, index).double()
    product = product * tensor.grad.index_select(slot.dim, index)
    per_slice = product.movedim(slot.dim, 0).reshape(len(index), -1).sum(dim=1)
    result: np.ndarray = per_slice.reshape(slot.new.shape).sum(dim=1).cpu().numpy()
    return result
