"""Growth under Lightning: one callback more.

Needs ``pip install 'fxgrow[lightning,demo]'``; trains on scikit-learn's digits in seconds.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from digits_cnn import DigitsCNN, digits, train_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fxgrow
from fxgrow.integrations.lightning import GrowthCallback


class Digits(pl.LightningModule):
    """A usual LightningModule; what grows is its part ``model``."""

    def __init__(self) -> None:
        super().__init__()
        self.model = DigitsCNN()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Cross entropy of a batch."""
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log loss and accuracy."""
        images, labels = batch
        scores = self.model(images)
        self.log("val_loss", nn.functional.cross_entropy(scores, labels))
        self.log("accuracy", (scores.argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        """AdamW with a cosine schedule."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)]


def fit(
    epochs: int, callbacks: list[pl.Callback], ckpt_path: str | None = None
) -> tuple[Digits, pl.Trainer]:
    """Train for so many epochs, from a checkpoint if one is given."""
    pl.seed_everything(0, verbose=False)
    module = Digits()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=any(isinstance(each, pl.callbacks.Checkpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(module, train_loader(), DataLoader(digits()[1], 200), ckpt_path=ckpt_path)
    return module, trainer


def main(epochs: int = 4) -> GrowthCallback:
    """Train, grow, print what happened; return the callback."""
    growth = GrowthCallback(
        "model", monitor="val_loss", budget="+50%", rounds=2, schedule=fxgrow.every(epochs=1)
    )
    _, trainer = fit(epochs, [growth])
    print(f"test accuracy {float(trainer.callback_metrics['accuracy']):.1%}")
    if growth.grower is not None:
        print(growth.grower.history.table())
    return growth


if __name__ == "__main__":
    main()
