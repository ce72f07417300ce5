"""What loops over batches need from other processes: one weighted mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

__all__ = ["Mean", "alone", "average_gradients", "samples"]


class Mean(Protocol):
    """Average of tensors over all processes that work together."""

    def __call__(
        self,
        tensors: Sequence[torch.Tensor | None],
        weight: float,
        where: str,
        like: Sequence[torch.Tensor] | None = None,
    ) -> list[torch.Tensor | None]:
        """Return the weighted means.

        Parameters
        ----------
        tensors : sequence of torch.Tensor or None
            This process' share; ``None`` counts as zeros.
        weight : float
            Of this process, e.g. its number of samples.
        where : str
            What is being done, for messages; must be the same in all processes.
        like : sequence of torch.Tensor, optional
            Gives shape, dtype and device where ``tensors`` may hold ``None``.

        Returns
        -------
        list of torch.Tensor or None
            ``None`` where every process had ``None``.
        """
        ...


def alone(
    tensors: Sequence[torch.Tensor | None],
    weight: float,
    where: str,
    like: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor | None]:
    """Return the tensors as they are: a single process is its own mean."""
    del weight, where, like
    return list(tensors)


def average_gradients(
    mean: Mean, params: Sequence[torch.Tensor], weight: float, where: str
) -> None:
    """Put the mean gradients into ``params``."""
    for param, grad in zip(
        params, mean([p.grad for p in params], weight, where, params), strict=True
    ):
        param.grad = grad


def samples(inputs: Any) -> int:
    """Count the samples of one batch: the length of its first tensor."""
    found = _first(inputs)
    return len(found) if found is not None and found.ndim else 1


def _first(value: Any) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value
    items: Iterable[Any] = ()
    if isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, (tuple, list)):
        items = value
    return next((t for t in map(_first, items) if t is not None), None)
