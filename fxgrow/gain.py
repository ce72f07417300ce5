"""Gain: what new units contribute to a falling loss, measured while only they train.

A clone of the network gets a few new units in every group: active rows, outgoing entries zero.
For an epoch only their entries are stepped. Each step changes the loss by about ``<grad, step>``,
a sum over entries, so every unit is credited with its own part (loss change allocation, Lan et
al. 2019, arXiv 1909.01440). The gradient is that of the *next* batch at the new weights: the
batch that made a step would flatter it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .calibrate import calibrate_norms
from .data import LossFn, Progress, batch_loss, batches, count_batches, seeded
from .ir import Group, GrownGroup, GrownSlot, Unit, Votes
from .plan import price
from .precision import LOW
from .reduce import Mean, alone, samples
from .rows import activate_rows

__all__ = ["cast_gains", "contributions", "share_by_gain"]

UNIFORM = 0.5
"""Part of the budget that all groups share evenly, whatever their gains."""

PRECISION = 1000
"""Counts sum to about this; only their ratios matter."""


def contributions(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any],
    loss: LossFn | str | None = None,
    *,
    epochs: int = 1,
    lr: float = 3e-3,
    progress: Progress | None = None,
    mean: Mean = alone,
) -> dict[str, np.ndarray]:
    """Train the new units' entries alone (Adam), in place, and credit each with its part.

    Parameters
    ----------
    module : torch.nn.Module
        The widened clone; run in train mode.
    grown : sequence of GrownGroup
        Its new units.
    data : iterable of (inputs, targets)
        See :mod:`fxgrow.data`.
    loss : callable, str or None
        See :func:`fxgrow.data.resolve_loss`.
    epochs, lr : int, float
        Of Adam, on the new entries.
    progress : callable, optional
        Told ``(stage, done, total)``.
    mean : callable
        Averages over processes (see :mod:`fxgrow.reduce`).

    Returns
    -------
    dict of str to numpy.ndarray, shape ``(steps, added)``
        Change of the loss by each unit in each step but the last; negative is good.

    Raises
    ------
    DataError
        See :func:`fxgrow.data.batch_loss`.
    """
    parts = _new_entries(module, grown)
    vectors = [part.values for part in parts]
    optimizer = torch.optim.Adam(vectors, lr=lr) if vectors else None
    units = sum(group.added for group in grown)
    steps: list[np.ndarray] = []
    before: list[torch.Tensor] = []
    total = count_batches(data) * epochs
    module.train()
    for done, (epoch, number, inputs, targets) in enumerate(_epochs(data, module, epochs), 1):
        module.zero_grad(set_to_none=True)
        torch.autograd.backward(batch_loss(module, inputs, targets, loss, number))
        where = f"gains, epoch {epoch}, batch {number}"
        grads = mean([part.gradient() for part in parts], samples(inputs), where, vectors)
        for vector, grad in zip(vectors, grads, strict=True):
            vector.grad = torch.zeros_like(vector) if grad is None else grad
        if before:
            steps.append(_credits(parts, before, units))
        before = [vector.detach().clone() for vector in vectors]
        if optimizer is not None:
            optimizer.step()
            for part in parts:
                part.write()
        if progress:
            progress("gain: training new units alone", done, total)
    module.zero_grad(set_to_none=True)
    by_step = np.stack(steps) if steps else np.zeros((0, units))
    bounds = np.cumsum([group.added for group in grown])[:-1]
    pieces = np.split(by_step, bounds, axis=1)
    return {group.name: piece for group, piece in zip(grown, pieces, strict=True)}


def share_by_gain(
    values: Mapping[str, np.ndarray],
    groups: Sequence[Group],
    unit: Unit = "neurons",
    uniform: float = UNIFORM,
) -> dict[str, int]:
    """Share a budget: one part evenly, the rest in proportion to gain per width and price.

    The gain of a unit is divided by the width that its group has already: what one more unit
    adds to many is less than what it adds to few, and the clone, whose old units rest, can't
    see that the old ones would have learnt a part of it.

    Parameters
    ----------
    values : dict of str to numpy.ndarray, shape ``(candidates,)``
        Mean change of the loss; negative is good.
    groups : sequence of Group
        The groups before growth; those without values share only the even part.
    unit : {"neurons", "params", "flops"}
        What the budget counts.
    uniform : float
        The even part, 0 to 1. All of it where no group gains.

    Returns
    -------
    dict of str to int
        Counts of every growable group.
    """
    growable = [group for group in groups if group.growable]
    scores = np.array([_score(values.get(group.name), group, unit) for group in growable])
    even = np.full(len(growable), 1 / max(1, len(growable)))
    total = scores.sum()
    shares = even if not total > 0 else uniform * even + (1 - uniform) * scores / total
    return {
        group.name: math.ceil(PRECISION * share)
        for group, share in zip(growable, shares.tolist(), strict=True)
    }


def cast_gains(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    groups: Sequence[Group],
    data: Iterable[Any],
    loss: LossFn | str | None = None,
    *,
    budget: float,
    unit: Unit = "neurons",
    seed: int = 0,
    progress: Progress | None = None,
    mean: Mean = alone,
) -> Votes:
    """Measure gains on a widened clone, which is used up, and share by them.

    Parameters
    ----------
    module : torch.nn.Module
        The clone, widened by some units per group.
    grown : sequence of GrownGroup
        Its new units.
    groups : sequence of Group
        The groups of the model before growth.
    data : iterable of (inputs, targets)
        See :mod:`fxgrow.data`.
    loss : callable, str or None
        See :func:`fxgrow.data.resolve_loss`.
    budget, unit
        As for :func:`fxgrow.vote`.
    seed : int
        Of the rows, the dropout masks and the order of a shuffling loader. The caller's random
        state is left alone.
    progress : callable, optional
        Told ``(stage, done, total)``.
    mean : callable
        Averages over processes (see :mod:`fxgrow.reduce`).

    Returns
    -------
    Votes
        ``values`` are mean changes of the loss; ``noise`` by a bootstrap over the steps.

    Raises
    ------
    DataError
        See :func:`fxgrow.data.batch_loss`.
    """
    with seeded(seed, module):
        activate_rows(module, grown, data, seed=seed, progress=progress, mean=mean)
        calibrate_norms(module, grown, data, progress=progress, mean=mean)
        by_step = contributions(module, grown, data, loss, progress=progress, mean=mean)
    values = {n: rows.mean(axis=0) for n, rows in by_step.items() if len(rows)}
    return Votes(
        values=values,
        counts=share_by_gain(values, groups, unit),
        noise=_noise(by_step, groups, unit, seed),
        distributor="gain",
        budget=budget,
        unit=unit,
        seed=seed,
    )


def _noise(
    by_step: Mapping[str, np.ndarray], groups: Sequence[Group], unit: Unit, seed: int
) -> dict[str, float]:
    """Take the standard deviation of the counts over resamples of the steps."""
    steps = min((len(rows) for rows in by_step.values()), default=0)
    if steps < 2:
        return {}
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(20):
        chosen = generator.integers(steps, size=steps)
        values = {name: rows[chosen].mean(axis=0) for name, rows in by_step.items()}
        draws.append(share_by_gain(values, groups, unit))
    return {name: float(np.std([draw[name] for draw in draws])) for name in draws[0]}


def _score(values: np.ndarray | None, group: Group, unit: Unit) -> float:
    if values is None or not len(values) or not price(group, unit):
        return 0.0
    return max(0.0, -float(values.mean())) / group.width / price(group, unit)


def _epochs(
    data: Iterable[Any], module: torch.nn.Module, epochs: int
) -> Iterable[tuple[int, int, Any, Any]]:
    for epoch in range(epochs):
        for number, (inputs, targets) in enumerate(batches(data, module)):
            yield epoch, number, inputs, targets


@dataclass(frozen=True, eq=False)
class _Entries:
    """The entries of one parameter that belong to new units.

    Attributes
    ----------
    values : torch.Tensor, shape ``(entries,)``
        What is stepped, in single precision at least.
    index : torch.Tensor, shape ``(entries,)``
        Where they lie in the flat parameter.
    owners : torch.Tensor, shape ``(slots, entries)``
        Numbers of the units that each entry belongs to; a last, superfluous one where it
        does not belong to the slot.
    weight : torch.Tensor, shape ``(entries,)``
        One over the number of owners.
    """

    param: torch.Tensor
    values: torch.Tensor
    index: torch.Tensor
    owners: torch.Tensor
    weight: torch.Tensor

    def gradient(self) -> torch.Tensor | None:
        if self.param.grad is None:
            return None
        return self.param.grad.reshape(-1)[self.index].to(self.values.dtype)

    @torch.no_grad()
    def write(self) -> None:
        self.param.view(-1)[self.index] = self.values.to(self.param.dtype)


def _new_entries(module: torch.nn.Module, grown: Sequence[GrownGroup]) -> list[_Entries]:
    """Collect the entries of new units, parameter by parameter."""
    named = dict(module.named_parameters(remove_duplicate=False))
    offsets = np.cumsum([0, *(group.added for group in grown)]).tolist()
    slots: dict[int, tuple[torch.Tensor, dict[tuple[int, int], GrownSlot]]] = {}
    for offset, group in zip(offsets, grown, strict=False):
        for slot in group.slots:
            param = named.get(slot.tensor)
            if param is not None and param.requires_grad and param.is_floating_point():
                # tied parameters have two names and the same slots
                slots.setdefault(id(param), (param, {}))[1][slot.dim, offset] = slot
    return [_entries(param, found, offsets[-1]) for param, found in slots.values()]


def _entries(
    param: torch.Tensor, slots: Mapping[tuple[int, int], GrownSlot], units: int
) -> _Entries:
    param.data = param.data.contiguous()  # `view` below; the clone is ours
    tables = []
    mine = torch.zeros(param.shape, dtype=torch.bool, device=param.device)
    for (dim, offset), slot in slots.items():
        table = torch.full((param.shape[dim],), units)
        numbers = offset + torch.arange(len(slot.new)).repeat_interleave(slot.new.shape[1])
        table[torch.from_numpy(slot.new.reshape(-1))] = numbers
        tables.append((dim, table.to(param.device)))
        mine.index_fill_(dim, torch.from_numpy(slot.new.reshape(-1)).to(param.device), value=True)
    index = mine.reshape(-1).nonzero().reshape(-1)
    places = torch.unravel_index(index, param.shape)
    owners = torch.stack([table[places[dim]] for dim, table in tables])
    weight = 1 / (owners < units).sum(dim=0)
    values = param.detach().reshape(-1)[index]
    values = values.float() if param.dtype in LOW else values
    return _Entries(param, values.requires_grad_(), index, owners, weight)


@torch.no_grad()
def _credits(parts: Sequence[_Entries], before: Sequence[torch.Tensor], units: int) -> np.ndarray:
    """Change of the loss by every unit: ``<grad, last step>`` over its entries, float64."""
    found = np.zeros(units)
    for part, old in zip(parts, before, strict=True):
        assert part.values.grad is not None
        change = ((part.values - old) * part.values.grad).double() * part.weight
        sums = torch.zeros(units + 1, dtype=torch.float64, device=change.device)
        for owners in part.owners:
            sums.index_add_(0, owners, change)
        found += sums[:units].cpu().numpy()
    return found
