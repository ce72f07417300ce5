"""A small network for 8×8 digits with the couplings that make growing hard.

A residual sum, a concatenation, a depthwise convolution, batch normalisation and a
flatten → Linear: each of them ties several layers to one width.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

TRAIN = 1200  # of 1797 images; the rest is the test set


class ConvNorm(nn.Sequential):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class DigitsCNN(nn.Module):
    """Images ``(batch, 1, 8, 8)`` → scores ``(batch, 10)``.

    Parameters
    ----------
    width : int
        Channels of the residual stream.
    """

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = ConvNorm(1, width)
        self.inner = ConvNorm(width, width)
        self.outer = nn.Conv2d(width, width, 3, padding=1)
        self.point = ConvNorm(width, width, kernel=1)
        self.depthwise = ConvNorm(width, width, groups=width)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(2 * width * 16, 16)
        self.classify = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the scores."""
        x = self.stem(x)
        x = torch.relu(x + self.outer(self.inner(x)))
        x = torch.cat([self.point(x), self.depthwise(x)], dim=1)
        x = torch.flatten(self.pool(x), 1)
        return self.classify(torch.relu(self.hidden(x)))


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return scikit-learn's digits, shuffled once, as a training and a test set."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = torch.from_numpy(bunch.images[order]).float().unsqueeze(1) / 16
    labels = torch.from_numpy(bunch.target[order]).long()
    return (
        TensorDataset(images[:TRAIN], labels[:TRAIN]),
        TensorDataset(images[TRAIN:], labels[TRAIN:]),
    )


def train_loader(seed: int = 0) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of the training set; also what ``--data digits_cnn.py:train_loader`` means."""
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(digits()[0], batch_size=64, shuffle=True, drop_last=True, generator=generator)


def train(model: nn.Module, epochs: int, seed: int) -> None:
    """Train in place: cross entropy, a fresh Adam at 1e-3."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = train_loader(seed)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Share of the test set that is classified right."""
    images, labels = digits()[1].tensors
    model.eval()
    return float((model(images).argmax(1) == labels).float().mean())
