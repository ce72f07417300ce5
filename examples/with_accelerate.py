"""Growth with Accelerate: ``accelerated(...)`` after ``prepare``, then as in a plain loop.

Needs ``pip install 'fxgrow[accelerate,demo]'``; trains on scikit-learn's digits in seconds.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from digits_cnn import DigitsCNN, accuracy, train_loader
from torch import nn

import fxgrow
from fxgrow.integrations.accelerate import accelerated


def main(epochs: int = 4, mixed_precision: str = "no") -> tuple[fxgrow.Grower, Accelerator]:
    """Train, grow, print what happened; return the Grower and the Accelerator."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision)
    model = DigitsCNN()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80)
    model, optimizer, scheduler, loader = accelerator.prepare(
        model, optimizer, scheduler, train_loader()
    )
    grower = accelerated(
        accelerator, model, optimizer, data=loader, budget="+50%", rounds=2,
        schedule=fxgrow.every(epochs=1),
    )  # fmt: skip
    for epoch in range(epochs):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
        print(f"epoch {epoch + 1}: test accuracy {accuracy(model):.1%}")
        model = grower.epoch_end(metric=loss.item())
    print(grower.history.table())
    return grower, accelerator


if __name__ == "__main__":
    main()
