"""A transformers callback that grows a part of the Trainer's model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import FileError
from ..grower import Grower
from ..io import atomic_write
from .inside import Inside, as_pair

__all__ = ["GrowthCallback"]

FILE = "fxgrow.json"
"""Where a checkpoint folder tells of the growths."""


class GrowthCallback(TrainerCallback):
    """Grows ``getattr(model, part)`` while the Trainer trains.

    The Trainer keeps its model for the whole training, so what grows is a part of it.
    The optimizer is migrated in place, and the scheduler goes on.

    Parameters
    ----------
    part : str
        Dotted name of the submodule that grows; its forward must be traceable.
    monitor : str, optional
        Metric of the evaluations (``"eval_loss"``) that schedules and ``patience`` look
        at. With it an epoch ends for the Grower when it has been evaluated, so evaluate
        once an epoch.
    pair : callable, optional
        Batch → ``(inputs, targets)`` of the part.
    **options
        Arguments of :class:`fxgrow.Grower`: ``budget``, ``schedule``, ``fill``, ...

    Notes
    -----
    To resume, call :meth:`regrow` before ``trainer.train(resume_from_checkpoint=folder)``.
    ``load_best_model_at_end`` can't load a checkpoint from before the last growth.
    """

    def __init__(
        self,
        part: str = "model",
        *,
        monitor: str | None = None,
        pair: Callable[[Any], tuple[Any, Any]] = as_pair,
        **options: Any,
    ) -> None:
        self._inside = Inside(part, monitor, pair, options)
        self._monitored = monitor is not None

    @property
    def grower(self) -> Grower | None:
        """The Grower at work."""
        return self._inside.grower

    def regrow(self, model: torch.nn.Module, folder: str | Path) -> None:
        """Bring the model to the shape of a checkpoint, before the Trainer loads it.

        Parameters
        ----------
        model : torch.nn.Module
            As at the start of training; its part is replaced.
        folder : str or Path
            ``.../checkpoint-120``.

        Raises
        ------
        FileError
            When the folder holds no record of growths.
        """
        path = Path(folder) / FILE
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileError(f"{path}: no record of growths could be read ({error})") from error
        self._inside.regrow(model, record)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Put a Grower on the part."""
        self._inside.start(
            kwargs["model"], [kwargs["optimizer"]], kwargs["train_dataloader"], args.world_size
        )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Count a step."""
        self._inside.step(kwargs["model"])

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Count an epoch, unless evaluations do."""
        if not self._monitored:
            self._inside.epoch(kwargs["model"], {})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Count an epoch with its metric."""
        if self._monitored:
            self._inside.epoch(kwargs["model"], kwargs["metrics"])

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Write growths, counters and metrics beside the checkpoint."""
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        text = json.dumps(self._inside.record())
        atomic_write(folder / FILE, lambda file: file.write_text(text, encoding="utf-8"))
