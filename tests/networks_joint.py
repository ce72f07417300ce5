"""Networks whose normalisations, means or maxima lie over channels of several groups at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

PICTURE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3))
VECTORS = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(4))


class Channels(nn.LayerNorm):
    """Layer normalisation over the channels of images."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Dense(nn.Module):
    """Every block reads what all before it wrote, filtered and normalised (RDNet)."""

    def __init__(self, first=6, each=4, norm=Channels, depth=2):
        super().__init__()
        self.stem = nn.Conv2d(3, first, 1)
        self.blocks = nn.ModuleList()
        width = first
        for _ in range(depth):
            deep = nn.Conv2d(width, width, 3, padding=1, groups=width)
            last = nn.Conv2d(8, each, 1)
            self.blocks.append(
                nn.Sequential(deep, norm(width), nn.Conv2d(width, 8, 1), nn.GELU(), last)
            )
            width += each
        self.gamma = nn.ParameterList(torch.ones(each) for _ in range(depth))
        self.norm, self.out = norm(width), nn.Conv2d(width, 5, 1)

    def forward(self, x):
        found = [self.stem(x)]
        for block, gamma in zip(self.blocks, self.gamma, strict=True):
            found.append(block(torch.cat(found, 1)) * gamma[:, None, None])
        return self.out(self.norm(torch.cat(found, 1))).mean((2, 3))


class Parts(nn.Module):
    """Parts of a stream are filtered one after the other, then normalised as a whole (EdgeNeXt)."""

    def __init__(self, width=12, parts=3, norm=Channels):
        super().__init__()
        self.stem, self.parts = nn.Conv2d(3, width, 1), parts
        each = width // parts
        self.filters = nn.ModuleList(
            nn.Conv2d(each, each, 3, padding=1, groups=each) for _ in range(parts - 1)
        )
        self.norm, self.a, self.b = norm(width), nn.Conv2d(width, 10, 1), nn.Conv2d(10, width, 1)
        self.last, self.out = norm(width), nn.Conv2d(width, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        *parts, rest = x.chunk(self.parts, 1)
        made, carried = [], 0
        for part, layer in zip(parts, self.filters, strict=True):
            carried = layer(part + carried)
            made.append(carried)
        y = self.norm(torch.cat([*made, rest], 1))
        x = x + self.b(F.gelu(self.a(y)))
        return self.out(self.last(x)).mean((2, 3))


class Pooled(nn.Module):
    """Means and maxima over the channels of two branches weigh them (CBAM)."""

    def __init__(self, first=6, second=4):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, first, 1), nn.Conv2d(3, second, 3, padding=1)
        self.mask, self.out = nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(first + second, 5, 1)

    def forward(self, x):
        x = torch.cat([self.a(x).relu(), self.b(x).tanh()], 1)
        told = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.out(x * self.mask(told).sigmoid()).mean((2, 3))


class Beside(nn.Module):
    """Two layers beside each other, normalised together."""

    def __init__(self, first=6, second=4, norm=nn.LayerNorm, split=False):
        super().__init__()
        self.a, self.b = nn.Linear(3, first), nn.Linear(3, second)
        self.norm, self.out, self.split = norm(first + second), nn.Linear(first + second, 5), split
        self.first, self.second = nn.Linear(first, 5), nn.Linear(second, 5)

    def forward(self, x):
        x = self.norm(torch.cat([self.a(x), self.b(x).tanh()], -1))
        if not self.split:
            return self.out(x)
        a, b = x.split((self.a.out_features, self.b.out_features), -1)
        return self.first(a) + self.second(b)


class Given(Beside):
    """A part of what is normalised is the user's."""

    def forward(self, x):
        return self.out(self.norm(torch.cat([self.a(x), x], -1)))


def one_group(width):
    return nn.GroupNorm(1, width)


# Model, input, and the group that is joined: units, of how many channels, added at once.
JOINT = {
    "dense": (Dense, PICTURE, ("stem", 2, 7, 2)),
    "dense_alike": (lambda: Dense(4, 4), PICTURE, ("stem", 4, 3, 4)),
    "dense_group_norm": (lambda: Dense(norm=one_group), PICTURE, ("stem", 2, 7, 2)),
    "parts": (Parts, PICTURE, ("stem", 4, 2, 4)),
    "parts_in_halves": (lambda: Parts(8, 2), PICTURE, ("stem", 4, 2, 4)),
    "parts_in_four": (lambda: Parts(12, 4), PICTURE, ("stem", 3, 2, 3)),
    "pooled": (Pooled, PICTURE, ("a", 2, 5, 2)),
    "beside": (Beside, VECTORS, ("a", 2, 5, 2)),
    "beside_split": (lambda: Beside(split=True), VECTORS, ("a", 2, 5, 2)),
    "beside_rms": (lambda: Beside(norm=nn.RMSNorm), VECTORS, ("a", 2, 5, 1)),
}
# Networks where this can't be, and why.
APART = {
    "no_divisor": (lambda: Beside(5, 3), VECTORS, "layer_norm"),
    "given": (lambda: Given(6, 3), VECTORS, "layer_norm"),
}
