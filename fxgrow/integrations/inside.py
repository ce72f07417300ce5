"""What the integrations share: a Grower on one part of a framework's model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from ..errors import InputError, UnsupportedError
from ..grower import Grower
from ..growing import with_own_iterator
from ..regrowth import regrown

__all__ = ["Inside", "Pairs", "as_pair"]


def as_pair(batch: Any) -> tuple[Any, Any]:
    """Split a batch into inputs and targets: a pair, or a dict with ``labels``.

    Raises
    ------
    InputError
        For other batches.
    """
    if isinstance(batch, Mapping) and "labels" in batch:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return (next(iter(inputs.values())) if len(inputs) == 1 else inputs), batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise InputError(
        f"a batch of type {type(batch).__name__} is neither a pair nor a dict with 'labels'; "
        "pass pair=, which turns it into (inputs, targets) of the part that grows"
    )


class Pairs:
    """A framework's loader as ``(inputs, targets)`` batches, as often as wanted.

    Parameters
    ----------
    loader : re-iterable
    pair : callable
        Batch → ``(inputs, targets)``.
    """

    def __init__(self, loader: Iterable[Any], pair: Callable[[Any], tuple[Any, Any]]) -> None:
        loader = getattr(loader, "base_dataloader", loader)  # Accelerate's count their batches
        self._loader, self._pair = loader, pair
        self.sampler = getattr(loader, "sampler", None)
        self.batch_sampler = getattr(loader, "batch_sampler", None)
        self.generator = getattr(loader, "generator", None)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return map(self._pair, with_own_iterator(self._loader))

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]  # where it has a length


class Inside:
    """A Grower on a submodule, which is replaced in place as it grows.

    Parameters
    ----------
    part : str
        Dotted name of the submodule that grows.
    monitor : str or None
        Name of the metric among the framework's.
    pair : callable
        Batch → ``(inputs, targets)`` of the part.
    options : dict
        Arguments of :class:`fxgrow.Grower`; ``data`` is the training loader by default.

    Attributes
    ----------
    grower : Grower or None
        From the start of training on.
    """

    def __init__(
        self,
        part: str,
        monitor: str | None,
        pair: Callable[[Any], tuple[Any, Any]],
        options: Mapping[str, Any],
    ) -> None:
        self._part, self._monitor, self._pair, self._options = part, monitor, pair, dict(options)
        self._record: Mapping[str, Any] | None = None
        self.grower: Grower | None = None

    def start(
        self, model: torch.nn.Module, optimizers: Iterable[Any], loader: Any, processes: int
    ) -> None:
        """Put a Grower on the part of the model.

        Raises
        ------
        UnsupportedError
            When several processes train: the framework holds the wrapped model then.
        InputError
            When the model has no such part.
        """
        if processes > 1:
            raise UnsupportedError(
                f"{processes} processes train; inside this framework only one can grow. "
                "Use a plain loop with fxgrow.Grower for more"
            )
        options = dict(self._options)
        options.setdefault("data", Pairs(loader, self._pair))
        bare = tuple(getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers)
        self.grower = Grower(self._get(model), bare, **options)
        if self._record is not None:
            self.grower.restore(self._record, grown=True)

    def step(self, model: torch.nn.Module) -> None:
        """Count a step, and grow when that is due."""
        if self.grower is not None:
            self._put(model, self.grower.step_end())

    def epoch(self, model: torch.nn.Module, metrics: Mapping[str, Any]) -> None:
        """Count an epoch with its metric, and grow when that is due.

        Raises
        ------
        InputError
            When the metric is not among those of the framework.
        """
        if self.grower is None:
            return
        if self._monitor is not None and self._monitor not in metrics:
            raise InputError(
                f"no metric is called {self._monitor!r}; there are: {', '.join(sorted(metrics))}"
            )
        metric = None if self._monitor is None else float(metrics[self._monitor])
        self._put(model, self.grower.epoch_end(metric))

    def record(self) -> dict[str, Any]:
        """Return what :meth:`regrow` needs; empty before the start of training."""
        return {} if self.grower is None else self.grower.record()

    def regrow(self, model: torch.nn.Module, record: Mapping[str, Any]) -> None:
        """Give the part the shape that a record tells of, before weights are loaded."""
        if record:
            rules = self._options.get("rules", ())
            self._put(model, regrown(self._get(model), record, rules))
            self._record = record

    def _get(self, model: torch.nn.Module) -> torch.nn.Module:
        try:
            return model.get_submodule(self._part)
        except AttributeError as error:
            names = ", ".join(name for name, _ in model.named_children())
            raise InputError(
                f"the {type(model).__name__} has no part {self._part!r} to grow; it has: {names}"
            ) from error

    def _put(self, model: torch.nn.Module, module: torch.nn.Module) -> None:
        parent, _, name = self._part.rpartition(".")
        setattr(model.get_submodule(parent), name, module)
