"""Slopes of the loss by which candidates are judged, read off any backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from .data import LossFn, Progress, batch_loss, batches, count_batches
from .groups import layer_of
from .ir import GrownGroup, GrownSlot
from .reduce import Mean, alone, samples

__all__ = ["Judge", "gate_gradients", "gate_gradients_by_batch", "named_tensors"]


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
    judge = Judge(module, grown)
    values: dict[str, list[np.ndarray]] = {group.name: [] for group in grown}
    total = count_batches(data)
    module.train()
    for number, (inputs, targets) in enumerate(batches(data, module)):
        module.zero_grad(set_to_none=True)
        torch.autograd.backward(batch_loss(module, inputs, targets, loss, number))
        slopes = [torch.from_numpy(values) for values in judge.slopes()]
        where = f"candidates' judging, batch {number}"
        for group, row in zip(grown, mean(slopes, samples(inputs), where), strict=True):
            values[group.name].append(np.zeros(group.added) if row is None else row.numpy())
        if progress:
            progress("vote: judging candidates", number + 1, total)
    module.zero_grad(set_to_none=True)
    return {name: np.stack(rows) for name, rows in values.items()}


def named_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by all of their names."""
    named: dict[str, torch.Tensor] = dict(module.named_buffers(remove_duplicate=False))
    named.update(module.named_parameters(remove_duplicate=False))
    return named


class Judge:
    """Reads the candidates' slopes off the present gradients of a module.

    Attributes
    ----------
    judged : list of torch.nn.Parameter
        Whose gradients are read.
    """

    def __init__(self, module: torch.nn.Module, grown: Sequence[GrownGroup]) -> None:
        self._tensors = named_tensors(module)
        self._slots = [(group.added, self._voting(group)) for group in grown]
        names = dict.fromkeys(slot.tensor for _, slots in self._slots for slot in slots)
        found = {id(self._tensors[name]): self._tensors[name] for name in names}
        self.judged = [tensor for tensor in found.values() if tensor.is_floating_point()]

    def slopes(self) -> list[np.ndarray]:
        """Return ``dL/dy`` of each group's new units, shape ``(added,)``, float64."""
        return [
            sum((_slopes(slot, self._tensors[slot.tensor]) for slot in slots), np.zeros(added))
            for added, slots in self._slots
        ]

    def _voting(self, group: GrownGroup) -> tuple[GrownSlot, ...]:
        learnt = [s for s in group.slots if isinstance(self._tensors[s.tensor], torch.nn.Parameter)]
        rows = tuple(slot for slot in learnt if slot.role == "producer")
        norms = tuple(slot for slot in learnt if slot.role == "norm")
        # Gains of standardised rows lie in the rows' layer; they scale all but its bias.
        gains = {layer_of(slot.tensor) for slot in norms}
        biases = [s for s in rows if self._tensors[s.tensor].ndim == 1]
        return (*norms, *(s for s in biases if layer_of(s.tensor) in gains)) if norms else rows


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
