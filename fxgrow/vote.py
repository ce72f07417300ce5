"""SVoD: which layers want more neurons (paper arXiv 2509.18842, section SVoD).

A clone of the network with small random candidates in every group is trained for an
epoch; each candidate ``j`` is judged by ``dL/dy_j``, the slope of the loss when its
pre-activation is multiplied by ``1 + y_j``. No gate is ever built: by the chain rule
``dL/dy_j = <grad W_j, W_j> + grad b_j * b_j`` over the rows that compute the unit. So any
backward pass judges: by default those of the second half of the training, as published those
of a pass of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from .ballot import Candidates, candidate_count, count_votes, vote_noise
from .data import LossFn, Progress, batch_loss, batches, count_batches, seeded
from .ir import Group, GrownGroup, Unit, Votes
from .plan import price
from .precision import Masters
from .reduce import Mean, alone, average_gradients, samples
from .slopes import Judge, gate_gradients, gate_gradients_by_batch, named_tensors

__all__ = [
    "Candidates",
    "candidate_count",
    "cast_votes",
    "count_votes",
    "fill_candidates",
    "gate_gradients",
    "gate_gradients_by_batch",
    "train_and_judge",
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
    tensors = named_tensors(module)
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
            if slot.filling.kind in {"mean", "centre"}:  # around the mean, or norms would shift
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
    resting: Sequence[torch.Tensor] = (),
    watch: Callable[[], None] | None = None,
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
    resting : sequence of torch.Tensor
        Parameters that get gradients but are never stepped.
    watch : callable, optional
        Called when the gradients of a batch are there, before the step.

    Raises
    ------
    DataError
        See :func:`fxgrow.data.batch_loss`.
    """
    rest = {id(tensor) for tensor in resting}
    weights = [p for p in module.parameters() if p.requires_grad and id(p) not in rest]
    masters = Masters(weights)
    optimizer = torch.optim.RMSprop(masters.tensors, lr=lr, alpha=alpha, momentum=momentum)
    module.train()
    total, done = count_batches(data) * epochs, 0
    for epoch in range(epochs):
        for number, (inputs, targets) in enumerate(batches(data, module)):
            module.zero_grad()
            torch.autograd.backward(batch_loss(module, inputs, targets, loss, number))
            where = f"candidates' training, epoch {epoch}, batch {number}"
            average_gradients(mean, [*weights, *resting], samples(inputs), where)
            if watch:
                watch()
            masters.pull()
            optimizer.step()
            masters.push()
            done += 1
            if progress:
                progress("vote: training candidates", done, total)


def train_and_judge(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any],
    loss: LossFn | str | None = None,
    *,
    epochs: int = 1,
    lr: float = 1e-3,
    progress: Progress | None = None,
    mean: Mean = alone,
) -> dict[str, np.ndarray]:
    """Train the candidates and judge them meanwhile: half the cost of two passes.

    The slopes are those of the backward passes of the second half of the training, when
    the candidates have settled. Rows whose parameters rest are judged, but never stepped.

    Parameters
    ----------
    module, grown, data, loss, progress, mean
        See :func:`gate_gradients_by_batch`.
    epochs, lr : int, float
        See :func:`train_candidates`.

    Returns
    -------
    dict of str to numpy.ndarray, shape ``(batches, added)``
        In float64; half as many batches, rounded up, as were trained on.

    Raises
    ------
    DataError
        See :func:`fxgrow.data.batch_loss`.
    """
    judge = Judge(module, grown)
    resting = [tensor for tensor in judge.judged if not tensor.requires_grad]
    for tensor in resting:
        tensor.requires_grad_(True)
    rows: deque[list[np.ndarray]] = deque()
    done = 0

    def watch() -> None:
        nonlocal done
        done += 1
        rows.append(judge.slopes())
        if len(rows) > done - done // 2:
            rows.popleft()

    train_candidates(
        module, data, loss, epochs=epochs, lr=lr, progress=progress, mean=mean,
        resting=resting, watch=watch,
    )  # fmt: skip
    module.zero_grad(set_to_none=True)
    by_group = zip(*rows, strict=True)
    return {group.name: np.stack(each) for group, each in zip(grown, by_group, strict=True)}


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
    own_pass: bool = False,
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
    own_pass : bool
        Judge in a pass of its own after the training, as published, in place of
        :func:`train_and_judge`.
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
        if own_pass:
            train_candidates(module, data, loss, epochs=epochs, lr=lr, progress=progress, mean=mean)
            for tensor in Judge(module, grown).judged:  # resting rows are judged too
                tensor.requires_grad_(True)
            by_batch = gate_gradients_by_batch(
                module, grown, data, loss, progress=progress, mean=mean
            )
        else:
            by_batch = train_and_judge(
                module, grown, data, loss, epochs=epochs, lr=lr, progress=progress, mean=mean
            )
    values = {name: rows.mean(axis=0) for name, rows in by_batch.items()}
    return Votes(
        values=values,
        counts=count_votes(values, budget, prices),
        noise=vote_noise(by_batch, budget, prices, seed=seed),
        budget=budget,
        unit=unit,
        seed=seed,
    )
