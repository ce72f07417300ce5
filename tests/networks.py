"""Small networks, one for each thing that real ones do. ``NETWORKS``: name → (factory, example)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from networks_attention import ATTENTION
from torch import nn
from torch.nn.utils import parametrize

IMAGE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
VECTOR = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def conv(a, b, k=3, **options):
    return nn.Conv2d(a, b, k, padding=k // 2, **options)


class Head(nn.Module):
    """Pools over space and classifies."""

    def __init__(self, width, classes=5):
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = conv(3, 6), nn.BatchNorm2d(6)
        self.a, self.na, self.b, self.nb = (
            conv(6, 8),
            nn.BatchNorm2d(8),
            conv(8, 6),
            nn.BatchNorm2d(6),
        )
        self.down = conv(6, 10, 1)
        self.c, self.head = conv(6, 10), Head(10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.nb(self.b(F.relu(self.na(self.a(x))))))
        return self.head(self.c(x).relu_() + self.down(x))


class Dense(nn.Module):
    """Concatenation, DenseNet-like."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = conv(3, 4), conv(4, 3), conv(7, 3)
        self.norm, self.head = nn.BatchNorm2d(10), Head(10)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, self.a(x.tanh())], 1)
        x = torch.cat([x, self.b(x.relu())], 1)
        return self.head(self.norm(x).relu())


class Gated(nn.Module):
    """Split, chunk and GLU; slices by hand."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 12), conv(6, 8), conv(4, 12), Head(4)

    def forward(self, x):
        value, gate = torch.split(self.a(x), 6, dim=1)
        x = F.glu(self.b(value * gate.sigmoid()), 1)
        one, two, three = self.c(x).chunk(3, 1)
        return self.head(one * two.tanh() + three)


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 12, groups=4), conv(12, 12, groups=2)
        self.na, self.nb, self.head = nn.BatchNorm2d(8), nn.BatchNorm2d(12), Head(12)

    def forward(self, x):
        return self.head(self.c(self.nb(self.b(self.na(self.a(x)).relu())).relu()).tanh())


class Depthwise(nn.Module):
    """Inverted residual, and a depthwise convolution that multiplies channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.up, self.dw = conv(3, 6), conv(6, 12, 1), conv(12, 12, groups=12)
        self.down, self.multiply, self.head = conv(12, 6, 1), conv(6, 18, groups=6), Head(18)
        self.n1, self.n2 = nn.BatchNorm2d(12), nn.BatchNorm2d(12)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu6(self.n2(self.dw(F.relu6(self.n1(self.up(x))))))
        return self.head(self.multiply(x + self.down(y)).tanh())


class Shuffle(nn.Module):
    """Channel shuffle by hand, after a (grouped) convolution and a concatenation of halves."""

    def __init__(self, groups=1):
        super().__init__()
        self.a, self.b, self.c = conv(3, 12), conv(12, 12, 1, groups=groups), conv(6, 6)
        self.norm, self.head = nn.BatchNorm2d(12), Head(12)

    def shuffle(self, x, groups):
        n, c, h, w = x.shape
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)

    def forward(self, x):
        x = self.shuffle(self.b(self.a(x).relu()), 3)
        keep, work = self.norm(x).chunk(2, 1)
        return self.head(self.shuffle(torch.cat([keep, self.c(work).relu()], 1), 2).tanh())


class Squeeze(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down, self.up = conv(3, 8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.fc1, self.fc2, self.head = nn.Linear(8, 3), nn.Linear(3, 8), Head(8)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x * F.hardsigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        gate = self.fc2(F.gelu(self.fc1(x.mean((2, 3))))).sigmoid()
        return self.head(x * gate[:, :, None, None])


class Tied(nn.Module):
    """An autoencoder whose decoder is the transposed encoder, and a language model's head."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.head(x + self.mix(x).tanh())


class TwiceShared(nn.Module):
    """One block called twice, one layer under two names."""

    def __init__(self):
        super().__init__()
        self.stem, self.block = (
            nn.Linear(6, 7),
            nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 7)),
        )
        self.alias, self.head = self.block[2], nn.Linear(7, 3)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(2):
            x = x + self.block(x)
        return self.head(x)


class Flattened(nn.Module):
    """7×7 positions per channel reach a linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.fc, self.out = nn.Conv2d(3, 4, 2), nn.Linear(4 * 49, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.fc(torch.flatten(self.a(x).relu(), 1)).tanh())


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.up = nn.Linear(6, 5 * 16), nn.ConvTranspose2d(5, 4, 2, stride=2)
        self.norm, self.out = nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 3, 3, padding=1)

    def forward(self, z):
        x = self.fc(z).view(-1, 5, 4, 4).tanh()
        return self.out(self.norm(self.up(x)).relu())


class Norms(nn.Module):
    """GroupNorm, one-group GroupNorm, InstanceNorm."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 8), conv(8, 6), conv(6, 4), Head(4)
        self.ga, self.gb, self.gc = (
            nn.GroupNorm(4, 8),
            nn.GroupNorm(1, 6),
            nn.InstanceNorm2d(4, affine=True),
        )

    def forward(self, x):
        return self.head(self.gc(self.c(self.gb(self.b(self.ga(self.a(x)).tanh())).tanh())).relu())


class Auxiliary(nn.Module):
    """A second head in training only, functional dropout, nested outputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.main, self.aux = conv(3, 6), conv(6, 8), Head(8), Head(6)
        self.p = 0.3

    def forward(self, x):
        x = self.a(x).relu()
        y = F.dropout(self.b(x).relu(), self.p, self.training)
        result = {"out": self.main(y), "more": (self.main(y + 1), [y.mean((1, 2, 3))])}
        if self.training:
            result["aux"] = self.aux(x)
        return result


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, left, right=None, *, scale: float = 1.0, unused=None):
        x = self.a(left)
        if right is not None:
            x = x + self.b(right) * scale
        return self.out(torch.tanh(x)), x.shape[0]


class Standardised(nn.Conv2d):
    """Weight standardisation."""

    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        var = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        return self._conv_forward(x, (self.weight - mean) / (var + 1e-5).sqrt(), self.bias)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight.tanh()


class Parametrised(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 7), nn.Linear(7, 2)
        parametrize.register_parametrization(self.a, "weight", Doubled())

    def forward(self, x):
        return self.b(self.a(x).tanh())


class Frozen(nn.Module):
    """Parameters that don't train, a buffer of constants, half of the layers in eval mode."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, 2)
        self.a.weight.requires_grad_(False)
        self.register_buffer("scale", torch.full((7,), 0.5))
        self.norm.eval()

    def forward(self, x):
        return self.b(self.norm(self.a(x)).tanh())


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 7),
        nn.Dropout(0.4), nn.GELU(), nn.Linear(7, 3),
    )  # fmt: skip


def standardised():
    return nn.Sequential(conv(3, 6), nn.ReLU(), Standardised(6, 5, 3), nn.ReLU(), conv(5, 2))


def one_dimensional():
    return nn.Sequential(
        nn.Conv1d(6, 8, 1),
        nn.BatchNorm1d(8),
        nn.GELU(),
        nn.Conv1d(8, 4, 1, groups=4),
        nn.Tanh(),
        nn.Conv1d(4, 2, 1),
    )


def volumes():
    return nn.Sequential(
        nn.Conv3d(2, 4, 3),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


PAIR = {"left": VECTOR, "right": VECTOR + 1, "scale": 0.5}
NETWORKS = {
    "plain": (plain, IMAGE),
    "residual": (Residual, IMAGE),
    "dense": (Dense, IMAGE),
    "gated": (Gated, IMAGE),
    "grouped": (Grouped, IMAGE),
    "depthwise": (Depthwise, IMAGE),
    "shuffle": (Shuffle, IMAGE),
    "grouped shuffle": (lambda: Shuffle(3), IMAGE),
    "squeeze": (Squeeze, IMAGE),
    "tied": (Tied, torch.arange(8).view(2, 4)),
    "shared": (TwiceShared, VECTOR),
    "flattened": (Flattened, IMAGE),
    "decoder": (Decoder, VECTOR),
    "norms": (Norms, IMAGE),
    "auxiliary": (Auxiliary, IMAGE),
    "keywords": (Keywords, PAIR),
    "positional": (Keywords, (VECTOR, VECTOR - 1)),
    "standardised": (standardised, IMAGE),
    "parametrised": (Parametrised, VECTOR),
    "one dimension": (one_dimensional, VECTOR[..., None].expand(4, 6, 5).contiguous()),
    "three dimensions": (volumes, torch.randn(2, 2, 4, 4, 4)),
    **ATTENTION,
}
