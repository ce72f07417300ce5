"""Growth under the transformers Trainer: one callback more.

Needs ``pip install 'fxgrow[transformers,demo]'``; trains on scikit-learn's digits in seconds.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from digits_cnn import DigitsCNN, digits
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

import fxgrow
from fxgrow.integrations.transformers import GrowthCallback


class Rows(Dataset[dict[str, Tensor]]):
    """Digits, one dict each, as the Trainer wants them."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        """Count the images."""
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Image and label."""
        image, label = self.data[index]
        return {"pixel_values": image, "labels": label}


class Classifier(nn.Module):
    """A model of your own for the Trainer; what grows is its part ``net``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = DigitsCNN()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Scores, and the loss where there are labels."""
        logits = self.net(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer_of(
    folder: str, epochs: int, callbacks: list[TrainerCallback], **arguments: Any
) -> Trainer:
    """Return a Trainer on digits."""
    set_seed(0)
    options: dict[str, Any] = {
        "output_dir": folder,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 64,
        "per_device_eval_batch_size": 200,
        "learning_rate": 2e-3,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    train, test = (Rows(part) for part in digits())
    return Trainer(
        model=Classifier(),
        args=TrainingArguments(**{**options, **arguments}),
        train_dataset=train,
        eval_dataset=test,
        callbacks=callbacks,
        compute_metrics=lambda found: {
            "accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())
        },
    )


def main(epochs: int = 4) -> GrowthCallback:
    """Train, grow, print what happened; return the callback."""
    torch.manual_seed(0)
    growth = GrowthCallback(
        "net", monitor="eval_loss", budget="+50%", rounds=2, schedule=fxgrow.every(epochs=1)
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(folder, epochs, [growth])
        trainer.train()
        print(f"test accuracy {trainer.evaluate()['eval_accuracy']:.1%}")
    if growth.grower is not None:
        print(growth.grower.history.table())
    return growth


if __name__ == "__main__":
    main()
