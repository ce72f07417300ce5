"""Growth in a plain training loop: three lines more, marked below.

``python examples/plain_loop.py`` trains on scikit-learn's digits in a few seconds. Kill it
and start it again: with a file name as argument it goes on where it was.
"""

from __future__ import annotations

import sys

import torch
from digits_cnn import DigitsCNN, accuracy, digits, train_loader
from torch import nn

import fxgrow  # 1


def main(epochs: int = 6, path: str | None = None) -> fxgrow.Grower:
    """Train, grow, print what happened; return the Grower."""
    torch.manual_seed(0)
    loader = train_loader()
    model: nn.Module = DigitsCNN()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    grower = fxgrow.Grower(  # 2
        model,
        optimizer,
        data=loader,
        budget="+50%",
        rounds=2,
        schedule=fxgrow.every(epochs=2),
        track={"scheduler": scheduler},
    )
    if path is not None:
        model = grower.resume(path)
    for epoch in range(grower.epoch, epochs):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        scheduler.step()
        loss = test_loss(model)
        print(f"epoch {epoch + 1}: test loss {loss:.4f}, accuracy {accuracy(model):.1%}")
        model = grower.epoch_end(metric=loss)  # 3
        if path is not None:
            grower.save(path)
    print(grower.history.table())
    return grower


@torch.no_grad()
def test_loss(model: nn.Module) -> float:
    """Mean cross entropy on the test set."""
    images, labels = digits()[1].tensors
    return float(nn.functional.cross_entropy(model.eval()(images), labels))


if __name__ == "__main__":
    main(path=sys.argv[1] if len(sys.argv) > 1 else None)
