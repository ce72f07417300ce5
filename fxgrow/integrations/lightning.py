"""A Lightning callback that grows a part of the LightningModule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ..checkpoint import random_state, set_random_state
from ..grower import Grower
from .inside import Inside, as_pair

__all__ = ["GrowthCallback"]


class GrowthCallback(Callback):
    """Grows ``getattr(lightning_module, part)`` while Lightning trains.

    Optimizers are migrated in place, so schedulers go on. Checkpoints need nothing else:
    ``trainer.fit(..., ckpt_path=...)`` brings the part to its grown size first, and the
    random states (that of the training loader too) to where they were. Let ModelCheckpoint
    save at the end of training epochs (``save_on_train_epoch_end=True``), where this
    callback grows, for a resumed run to be the same.

    Parameters
    ----------
    part : str
        Dotted name of the submodule that grows; its forward must be traceable.
    monitor : str, optional
        Logged metric that schedules and ``patience`` look at.
    pair : callable, optional
        Batch → ``(inputs, targets)`` of the part.
    **options
        Arguments of :class:`fxgrow.Grower`: ``budget``, ``schedule``, ``fill``, ...

    Attributes
    ----------
    grower : Grower or None
        From the start of training on.
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
        self._random: dict[str, Any] | None = None  # of a checkpoint, until training starts

    @property
    def grower(self) -> Grower | None:
        """The Grower at work."""
        return self._inside.grower

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the part grown before Lightning loads a checkpoint's weights into it."""
        theirs = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            del pl_module.on_load_checkpoint
            state = checkpoint.get("callbacks", {}).get(self.state_key, {})
            self._inside.regrow(pl_module, state.get("record", {}))
            self._random = state.get("random")
            theirs(checkpoint)

        # callbacks are only asked after the weights are loaded, the module is asked before
        pl_module.__dict__["on_load_checkpoint"] = on_load_checkpoint

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put a Grower on the part."""
        pl_module.__dict__.pop("on_load_checkpoint", None)
        loader = trainer.train_dataloader
        self._inside.start(pl_module, trainer.optimizers, loader, trainer.world_size)
        if self._random is not None and self.grower is not None:
            set_random_state(self._random, self.grower.generators)
            iter(trainer.fit_loop._data_fetcher)  # draws its order, too early the first time
            self._random = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count a step."""
        self._inside.step(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count an epoch."""
        self._inside.epoch(pl_module, trainer.callback_metrics)

    def state_dict(self) -> dict[str, Any]:
        """Return growths, counters, metrics and random states for the checkpoint."""
        if self.grower is None:
            return {}
        random = random_state(self.grower.generators)
        return {"record": self.grower.record(), "random": random}

    @property
    def state_key(self) -> str:
        """Name of this callback's state in checkpoints."""
        return "fxgrow.GrowthCallback"
