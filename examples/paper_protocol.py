"""The eight-round protocol of arXiv 2509.18842 on ``fxgrow.Grower``.

A convolutional trunk (32-32-64-64) with three fully connected layers of a third of the
final width is trained with early stopping, grown, trained again: eight rounds, seven
growths. ``--data`` is CIFAR-10 as a folder or zip of images (``train/<class>/*``,
``test/<class>/*``); without it, scikit-learn's digits, enlarged, stand in for it.

::

    python examples/paper_protocol.py --data cifar10-images.zip     # hours on a CPU
    python examples/paper_protocol.py                               # digits, minutes
    python examples/paper_protocol.py --smoke                       # seconds

The outcome goes to ``paper-out/``: checkpoint and table. Start again to go on.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from digits_cnn import digits
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxgrow


@dataclass(frozen=True)
class Protocol:
    """Everything that can be set."""

    trunk: tuple[int, ...] = (32, 32, 64, 64)
    width: int = 62  # of each fully connected layer at the start
    budgets: tuple[int, ...] = (36, 47, 60, 80, 102, 134, 174)  # neurons, one a growth
    stays: tuple[str, ...] = ("conv*",)  # groups that do not grow: the trunk
    distributor: str = "svod"
    coupling: str = "pairwise"  # as in the paper
    candidates: str = "paper"  # 2K a layer
    adjust_epochs: int = 1
    lr: float = 1e-3
    weight_decay: float = 1e-4
    patience: int = 5  # epochs without a better validation loss end a round
    most_epochs: int = 100  # in any round
    batch_size: int = 64
    validation: float = 0.1  # of the training set
    images: int = 50_000  # of the training set, at most
    seed: int = 0


SMOKE = Protocol(
    trunk=(4, 4, 8, 8), width=8, budgets=(3, 4, 5, 6, 7, 8, 9), coupling="laplacian",
    candidates="auto", lr=5e-3, patience=1, most_epochs=2, images=320,
)  # fmt: skip


class Net(nn.Module):
    """Four convolutions, pooled twice, and three fully connected layers before the last."""

    def __init__(self, protocol: Protocol, channels: int, side: int, classes: int) -> None:
        super().__init__()
        a, b, c, d = protocol.trunk
        self.conv1 = nn.Conv2d(channels, a, 3, padding=1)
        self.conv2 = nn.Conv2d(a, b, 3, padding=1)
        self.conv3 = nn.Conv2d(b, c, 3, padding=1)
        self.conv4 = nn.Conv2d(c, d, 3, padding=1)
        self.fc1 = nn.Linear(d * (side // 4) ** 2, protocol.width)
        self.fc2 = nn.Linear(protocol.width, protocol.width)
        self.fc3 = nn.Linear(protocol.width, protocol.width)
        self.out = nn.Linear(protocol.width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images → scores."""
        x = nn.functional.max_pool2d(self.conv2(self.conv1(x).relu()).relu(), 2)
        x = nn.functional.max_pool2d(self.conv4(self.conv3(x).relu()).relu(), 2)
        x = self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu()).relu()
        return self.out(x)


def main(arguments: list[str] | None = None) -> fxgrow.Grower:
    """Run the protocol, or what is left of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-10: a folder or .zip of images")
    parser.add_argument("--images", type=int, help="use only so many training images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a tiny network, seconds")
    parser.add_argument("--out", type=Path, default=Path("paper-out"))
    asked = parser.parse_args(arguments)
    protocol = replace(SMOKE if asked.smoke else Protocol(), seed=asked.seed)
    if asked.images:
        protocol = replace(protocol, images=asked.images)
    train, test = enlarged_digits() if asked.data is None else pictures(asked.data)
    asked.out.mkdir(parents=True, exist_ok=True)
    return run(protocol, train, test, asked.out)


def run(protocol: Protocol, train: TensorDataset, test: TensorDataset, out: Path) -> fxgrow.Grower:
    """Train, grow, train ... until the last round has stopped."""
    torch.manual_seed(protocol.seed)
    loader, validation = split(train, protocol)
    images, labels = train.tensors
    model: nn.Module = Net(protocol, images.shape[1], images.shape[2], int(labels.max()) + 1)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=protocol.lr, weight_decay=protocol.weight_decay
    )
    stops = fxgrow.plateau(patience=protocol.patience)
    grower = fxgrow.Grower(
        model,
        optimizer,
        data=loader,
        budget=protocol.budgets,
        schedule=lambda now: stops(now) or now.epochs_in_round >= protocol.most_epochs,
        exclude=protocol.stays,
        distributor=protocol.distributor,
        coupling=protocol.coupling,
        candidates=protocol.candidates,
        adjust_epochs=protocol.adjust_epochs,
        fill="reset",  # the paper goes on with a fresh optimizer
        seed=protocol.seed,
    )
    model = grower.resume(out / "run.pt")
    while not grower.finished:
        model.train()
        for inputs, targets in grower.batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            grower.step_end()
        loss, _ = judged(model, validation)
        before = grower.round
        narrow, model = model, grower.epoch_end(metric=loss)
        if grower.round > before or grower.finished:
            report(grower, narrow, before, loss, test)
        grower.save(out / "run.pt")
    (out / "history.md").write_text(grower.history.table() + "\n", encoding="utf-8")
    (out / "history.json").write_text(json.dumps(grower.history.rows(), indent=1))
    return grower


def report(
    grower: fxgrow.Grower, model: nn.Module, round_: int, loss: float, test: TensorDataset
) -> None:
    """Print one line at the end of a round."""
    params = sum(parameter.numel() for parameter in model.parameters())
    accuracy = judged(model, test)[1]
    print(
        f"round {round_ + 1}, epoch {grower.epoch}: {params:,} parameters, "
        f"validation loss {loss:.4f}, test accuracy {accuracy:.2%}"
    )


def split(data: TensorDataset, protocol: Protocol) -> tuple[DataLoader, TensorDataset]:
    """Shuffle, cut down, and split into training batches and a validation set."""
    generator = torch.Generator().manual_seed(protocol.seed)
    chosen = torch.randperm(len(data), generator=generator)[: protocol.images]
    held = int(len(chosen) * protocol.validation)
    validation = TensorDataset(*data[chosen[:held]])
    loader = DataLoader(
        TensorDataset(*data[chosen[held:]]),
        batch_size=protocol.batch_size,
        shuffle=True,
        generator=generator,
    )
    return loader, validation


@torch.no_grad()
def judged(model: nn.Module, data: TensorDataset) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    model.eval()
    loss = right = 0.0
    for images, labels in DataLoader(data, 500):
        scores = model(images)
        loss += float(nn.functional.cross_entropy(scores, labels, reduction="sum"))
        right += float((scores.argmax(1) == labels).sum())
    return loss / len(data), right / len(data)


def enlarged_digits() -> tuple[TensorDataset, TensorDataset]:
    """Return digits of 16 × 16 pixels in three equal channels."""

    def enlarged(data: TensorDataset) -> TensorDataset:
        images, labels = data.tensors
        images = nn.functional.interpolate(images, size=16, mode="bilinear")
        return TensorDataset(images.repeat(1, 3, 1, 1), labels)

    train, test = digits()
    return enlarged(train), enlarged(test)


def pictures(path: Path) -> tuple[TensorDataset, TensorDataset]:
    """Read ``train/<class>/*`` and ``test/<class>/*`` from a folder or a zip of images."""
    found: dict[str, list[tuple[str, np.ndarray]]] = {"train": [], "test": []}
    for name, content in files(path):
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and parts[-3] in found:
            pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
            found[parts[-3]].append((parts[-2], pixels))
    classes = sorted({label for label, _ in found["train"]})
    if not classes or not found["test"]:
        raise SystemExit(f"{path}: holds no train/<class>/ and test/<class>/ images")

    def dataset(rows: list[tuple[str, np.ndarray]]) -> TensorDataset:
        images = torch.from_numpy(np.stack([pixels for _, pixels in rows]))
        labels = torch.tensor([classes.index(label) for label, _ in rows])
        return TensorDataset(images.permute(0, 3, 1, 2).float() / 127.5 - 1, labels)

    return dataset(found["train"]), dataset(found["test"])


def files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every image, in order."""
    endings = (".jpg", ".jpeg", ".png")
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.name.lower().endswith(endings):
                yield file.as_posix(), file.read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.lower().endswith(endings):
                yield name, archive.read(name)


if __name__ == "__main__":
    main()
