"""Networks and data of the growth benchmark: small enough for two cores, real data.

Scaled down, so that all arms, five seeds and ten tasks take a few hours of one core: MNIST is
its 10,000 test images; CIFAR-10 is 6,000 of its images (3,000 to train on) at half size, 16 x 16
(means of 2 x 2 pixels); networks are narrow, and train for tens of epochs in all. So accuracies
compare arms; they are not those of these architectures.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CIFAR, MNIST = SHARED / "cifar10-images.zip", SHARED / "mnist-test10k.npz"


@dataclass(frozen=True)
class Split:
    """Inputs and targets for training, choosing and testing."""

    train: tuple[torch.Tensor, torch.Tensor]
    valid: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Task:
    """One experiment: data, network (by its widths), rounds of growth.

    ``budgets``: neurons of each round; ``epochs``: of the small network, and of each round;
    ``decay``: AdamW's, for every arm: that with the lowest validation loss of the network of the
    final size, trained from scratch (``explore.py --decays``); of those within 0.02 of it, the
    one with the best accuracy. ``patience``: epochs without a better validation loss that end a
    round, where ``epochs`` are the most. ``l2``: the published optimizer, Adam with that penalty,
    in place of AdamW. ``stays``: groups that do not grow. ``arms``: the ones to run, else all.
    ``later``: epochs of the rounds, where they are not alike. ``like``: the task of which this is
    another schedule, with as many epochs in all; what does not grow is taken from there.
    """

    name: str
    data: str
    net: type[nn.Module]
    widths: tuple[int, ...]
    budgets: tuple[int, ...]
    epochs: tuple[int, int]
    batch: int = 64
    lr: float = 1e-3
    decay: float = 0.3
    patience: int = 0
    l2: float = 0.0
    stays: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    later: tuple[int, ...] = ()
    like: str = ""

    def rounds(self) -> tuple[int, ...]:
        """Epochs of the rounds that begin with a growth."""
        return self.later or (self.epochs[1],) * len(self.budgets)


def parts(x, y, sizes, seed=0):
    """Shuffle and split."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    cuts = order[: sum(sizes)].split(sizes)
    return Split(*((x[index], y[index]) for index in cuts))


@cache
def digits():
    """1,797 images of 8 x 8 (scikit-learn)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.from_numpy(found.data).float() / 16
    return parts((x - x.mean()) / x.std(), torch.from_numpy(found.target).long(), [1000, 300, 497])


@cache
def mnist():
    """MNIST's 10,000 test images: 7,000 to train on, 1,000 to choose, 2,000 to test."""
    found = np.load(MNIST)
    names = sorted(found.files, key=lambda name: found[name].ndim)
    y, x = (torch.from_numpy(found[name]) for name in names[:2])
    x = x.reshape(len(x), -1).float() / 255
    return parts((x - x.mean()) / x.std(), y.long(), [7000, 1000, 2000])


@cache
def cifar(sizes=(3000, 1000, 2000)):
    """A share of CIFAR-10's images at half size: to train on, to choose, to test."""
    from PIL import Image

    pixels, labels = [], []
    with zipfile.ZipFile(CIFAR) as archive:
        names = sorted(n for n in archive.namelist() if n.lower().endswith((".png", ".jpg")))
        classes = sorted({Path(n).parent.name for n in names})
        rng = np.random.default_rng(0)
        for name in rng.permutation(names)[: sum(sizes)]:
            image = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            pixels.append(np.asarray(image))
            labels.append(classes.index(Path(name).parent.name))
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    x = nn.functional.avg_pool2d(x, 2)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    return parts(x, torch.tensor(labels), list(sizes))


DATA = {"digits": digits, "mnist": mnist, "cifar": cifar}


class MLP(nn.Sequential):
    """Fully connected, ReLU; the first width is that of the input."""

    def __init__(self, widths, classes=10):
        layers = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        super().__init__(*layers, nn.Linear(widths[-1], classes))


class ConvTrunk(nn.Sequential):
    """The published protocol's network: four convolutions, three hidden layers, no norms."""

    def __init__(self, widths, classes=10):
        a, b, c, d, *hidden = widths
        layers = [nn.Conv2d(3, a, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, c, 3, padding=1)]
        layers += [nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(c, d, 3, padding=1), nn.ReLU()]
        layers += [nn.Flatten()]
        last = 16 * d
        for width in hidden:
            layers += [nn.Linear(last, width), nn.ReLU()]
            last = width
        super().__init__(*layers, nn.Linear(last, classes))


class PaperNet(nn.Sequential):
    """The published network as it is: pooled after the second and the fourth convolution."""

    def __init__(self, widths, classes=10):
        a, b, c, d, *hidden = widths
        layers = []
        for one, two, three in ((3, a, b), (b, c, d)):
            layers += [nn.Conv2d(one, two, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(two, three, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Flatten(), *MLP((16 * d, *hidden), classes))


class Block(nn.Module):
    """Residual block with batch norms."""

    def __init__(self, inner, stream):
        super().__init__()
        self.conv1 = nn.Conv2d(stream, inner, 3, padding=1, bias=False)
        self.norm1, self.act1 = nn.BatchNorm2d(inner), nn.ReLU()
        self.conv2 = nn.Conv2d(inner, stream, 3, padding=1, bias=False)
        self.norm2, self.act2 = nn.BatchNorm2d(stream), nn.ReLU()

    def forward(self, x):
        y = self.act1(self.norm1(self.conv1(x)))
        return self.act2(x + self.norm2(self.conv2(y)))


class ResNet(nn.Sequential):
    """Stem, which halves the image again, and blocks of one stream."""

    def __init__(self, widths, classes=10):
        stream, *inner = widths
        stem = [nn.Conv2d(3, stream, 3, 2, 1, bias=False), nn.BatchNorm2d(stream), nn.ReLU()]
        blocks = [Block(width, stream) for width in inner]
        super().__init__(
            *stem, *blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * stream, classes)
        )


class Encoder(nn.Module):
    """Transformer block, layer norms first; its MLP has ReLUs, so that activity can be seen."""

    def __init__(self, stream, hidden, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(stream), nn.LayerNorm(stream)
        self.qkv, self.proj = nn.Linear(stream, 3 * stream), nn.Linear(stream, stream)
        self.up, self.act, self.down = (
            nn.Linear(stream, hidden),
            nn.ReLU(),
            nn.Linear(hidden, stream),
        )
        self.heads = heads

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(n, t, c))
        return x + self.down(self.act(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Patches of 4 x 4, encoder blocks, mean over the tokens."""

    def __init__(self, widths, classes=10):
        super().__init__()
        stream, *hidden = widths
        self.patch = nn.Conv2d(3, stream, 4, 4)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, stream))
        self.blocks = nn.Sequential(*(Encoder(stream, width, 4) for width in hidden))
        self.norm, self.head = nn.LayerNorm(stream), nn.Linear(stream, classes)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


PUBLISHED = Task(
    name="cifar-paper",
    data="cifar",
    net=PaperNet,
    widths=(11, 11, 21, 21, 62, 62, 62),  # the trunk at a third of 32-32-64-64
    budgets=(36, 47, 60, 80, 102, 134, 174),  # as published: eight rounds, seven growths
    epochs=(100, 100),
    patience=5,
    lr=1e-3,
    l2=1e-4,
    stays=("0", "2", "5", "7"),  # the convolutions
    arms=(
        "default",  # first: it says how long the last two train
        "swe paper, to svod paper",
        "swe laplacian, auto",
        "small",
        "scratch",
    ),
)
"""The published protocol (arXiv 2509.18842), scaled down."""
DECAYED = replace(PUBLISHED, name="cifar-paper-decay", l2=0.0, decay=0.3)
"""The same with AdamW and a decay chosen on validation data, as in the other tasks."""


def early(task: Task) -> Task:
    """Let a task grow as soon as its network has seen the data twice, an epoch a round."""
    total = task.epochs[0] + sum(task.rounds())
    between = (1,) * (len(task.budgets) - 1)
    return replace(
        task,
        name=f"{task.name}-early",
        epochs=(2, 1),
        later=(*between, total - 2 - len(between)),
        like=task.name,
        arms=(
            *("small", "scratch", "default"),
            *("swe laplacian, auto", "swe paper, to svod paper"),
            "default, revived",
        ),
    )


USUAL = {
    task.name: task
    for task in (
        Task("digits-mlp", "digits", MLP, (64, 8, 8, 8), (12, 16, 24), (15, 10), 32, decay=0.1),
        Task("digits-narrow", "digits", MLP, (64, 32, 2, 32), (6, 6), (15, 10), 32, decay=0.1),
        Task("mnist-mlp", "mnist", MLP, (784, 12, 12, 12), (24, 36, 48), (8, 6), 64, decay=0.3),
        Task("mnist-lopsided", "mnist", MLP, (784, 48, 3, 48), (12, 12, 12), (8, 6), 64, decay=0.3),
        Task("cifar-conv", "cifar", ConvTrunk, (6,) * 7, (14, 21, 28), (8, 4), 64, 3e-3, 0.1),
        Task("cifar-long", "cifar", ConvTrunk, (6,) * 7, (14, 21, 28), (24, 16), 64, 3e-3, 0.1),
        Task("cifar-resnet", "cifar", ResNet, (6, 6, 6), (6, 9, 12), (4, 3), 64, 3e-3, 0.1),
        Task("cifar-vit", "cifar", ViT, (24, 16, 16), (12, 20, 28), (5, 4), 64, 2e-3, 0.3),
        PUBLISHED,
        DECAYED,
    )
}
EARLY = {
    task.name: task for task in (early(USUAL[f"cifar-{net}"]) for net in ("conv", "resnet", "vit"))
}
TASKS = {**USUAL, **EARLY}
# Only when asked for: a few arms say enough.
LONG = frozenset({"cifar-long", "cifar-paper", "cifar-paper-decay", *EARLY})
