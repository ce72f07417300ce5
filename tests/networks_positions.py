"""Small networks that add values of a fixed width to a stream: positions and their like."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from networks_attention import Packed
from torch import nn

WIDTH = 8
TOKENS = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[1, 1, 1, 0, 1, 1], [1, 0, 1, 1, 1, 0]]).bool()
IMAGE = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(2))
VIDEO = torch.randn(2, 3, 2, 3, 4, generator=torch.Generator().manual_seed(3))


def table(length, width, base=100):
    """Sines and cosines of positions, as many papers have them."""
    steps = torch.arange(width // 2) / (width // 2 - 1)
    angles = torch.arange(length)[:, None] / base ** steps[None, :]
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def filled(length, width, **kind):
    """The table of the tutorials: zeros, into which sines and cosines are written."""
    encoding = torch.zeros(length, width, **kind)
    position = torch.arange(length).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(100.0) / width))
    encoding[:, 0::2] = torch.sin(position * rate)
    encoding[:, 1::2] = torch.cos(position * rate)
    return encoding


def plane(height, width, dim):
    """Positions in two dimensions, as simple ViTs have them."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    assert dim % 4 == 0, "sines and cosines, in two dimensions"
    omega = 100 ** -(torch.arange(dim // 4) / (dim // 4 - 1))
    y, x = y.flatten()[:, None] * omega[None, :], x.flatten()[:, None] * omega[None, :]
    return torch.cat((x.sin(), x.cos(), y.sin(), y.cos()), dim=1)


def volume(patches):
    """Positions in three dimensions, padded where six parts do not fill the width."""
    _, f, h, w, dim = patches.shape
    axes = torch.meshgrid(torch.arange(f), torch.arange(h), torch.arange(w), indexing="ij")
    part = dim // 6
    omega = 100 ** -(torch.arange(part) / max(part - 1, 1) + 0.1)
    angles = [axis.flatten()[:, None] * omega[None, :] for axis in axes]
    waves = [wave for a in angles for wave in (a.sin(), a.cos())]
    return F.pad(torch.cat(waves, dim=1), (0, dim - part * 6)).type(patches.dtype)


class Stream(nn.Module):
    """A stem, positions, a block, a norm and a head."""

    def __init__(self, norm=nn.LayerNorm, *, width=WIDTH):
        super().__init__()
        self.width = width
        self.stem = nn.Linear(4, width)
        self.n1, self.n2, self.n3 = norm(width), norm(width), norm(width)
        self.up, self.down = nn.Linear(width, 10), nn.Linear(10, width)
        self.drop = nn.Dropout(0.0)
        self.head = nn.Linear(width, 3)

    def positions(self, x):
        return table(x.shape[1], x.shape[2])

    def join(self, x):
        return x + self.positions(x)

    def forward(self, x):
        x = self.join(self.stem(x))
        x = x + self.down(torch.tanh(self.up(self.n1(x))))
        return self.head(self.n3(x).mean(1))


class OfSize(Stream):
    """Sizes by ``size()``, a batch that is repeated, a type that the stream tells."""

    def positions(self, x):
        batch, length, width = x.size(0), x.size(1), x.size(-1)
        return table(length, width).type_as(x).unsqueeze(0).expand(batch, -1, -1)


class OfAttribute(Stream):
    """The width is an attribute of the module."""

    def positions(self, x):
        return table(x.shape[1], self.width).to(x)


class Filled(Stream):
    """Zeros of the input's type, that are written into."""

    def positions(self, x):
        return filled(x.shape[1], x.shape[2], dtype=x.dtype, device=x.device)


class FilledOfAttribute(Stream):
    def positions(self, x):
        return filled(x.shape[1], self.width)


class FilledAnew(Stream):
    """Zeros, and ones, that take type and device from the stream."""

    def positions(self, x):
        encoding = x.new_zeros((x.shape[1], x.shape[2]))
        encoding[:, 1::2] = table(x.shape[1], x.shape[2] // 2).to(encoding)
        return encoding + x.new_ones(x.shape[2])


class Doubles(Stream):
    """Positions of another type than the stream."""

    def positions(self, x):
        return table(x.shape[1], x.shape[2]).float()


class Fixed(Stream):
    """A tensor that only the code holds, looked up for the input's length."""

    def positions(self, x):
        return F.embedding(torch.arange(x.shape[1], device=x.device), TABLE)


TABLE = table(9, WIDTH)


class Buffer(Stream):
    """Whisper's: a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", table(9, WIDTH))

    def positions(self, x):
        return self.table[: x.shape[1]]


class LookedUp(Buffer):
    """Fairseq's: the rows of a buffer are looked up, as words are."""

    def positions(self, x):
        return F.embedding(torch.arange(x.shape[1], device=x.device), self.table)


class Scaled(Stream):
    """A learned factor for all positions, and dropout on them."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))

    def positions(self, x):
        return self.drop(self.alpha * table(x.shape[1], x.shape[2]))


class InPlace(Stream):
    def join(self, x):
        x = x * math.sqrt(x.shape[-1])
        x += self.positions(x)
        return x


class Reversed(Stream):
    def join(self, x):
        return torch.add(self.positions(x), x)


class Subtracted(Stream):
    def join(self, x):
        return self.drop(x) - self.positions(x)


class Twice(Stream):
    """The same positions before both blocks."""

    def forward(self, x):
        x = self.stem(x)
        where = self.positions(x)
        x = x + where
        x = x + self.down(torch.tanh(self.up(self.n1(x))))
        x = x + 0.5 * where
        x = x + self.down(torch.tanh(self.up(self.n2(x))))
        return self.head(self.n3(x).mean(1))


class Queries(Stream):
    """DETR's: added to what attention compares, behind the norm."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(WIDTH, 6), nn.Linear(WIDTH, 6)

    def forward(self, x):
        x = self.stem(x)
        where = self.positions(x)
        y = self.n1(x)
        scores = self.q(y + where) @ self.k(y + where).transpose(1, 2)
        x = x + self.down(scores.softmax(-1) @ self.up(y))
        return self.head(self.n3(x).mean(1))


class Masked(Stream):
    """DETR's: how many tokens of a mask come before."""

    def forward(self, x, mask):
        x = self.stem(x)
        steps = torch.arange(x.shape[-1], device=x.device)
        angles = mask.cumsum(1)[..., None] / 100 ** (steps // 2 * 2 / x.shape[-1])
        waves = torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=3).flatten(2)
        x = x + waves
        x = x + self.down(torch.tanh(self.up(self.n1(x))))
        return self.head(self.n3(x).mean(1))


class Plain(Stream):
    """No norm at all."""

    def forward(self, x):
        x = self.join(self.stem(x))
        return self.head(torch.relu(self.down(torch.tanh(self.up(x)))).mean(1))


class Modes(Stream):
    """Another graph in training."""

    def forward(self, x):
        x = F.dropout(self.join(self.stem(x)), 0.0, self.training)
        x = x + self.down(torch.tanh(self.up(self.n1(x))))
        if self.training:
            x = x * 1.0
        return self.head(self.n3(x).mean(1))


class Image(nn.Module):
    """Pixels as tokens."""

    def __init__(self, dims=2):
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.stem, self.attention = conv(3, WIDTH, 1), Packed(WIDTH)
        self.n1, self.n2, self.head = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.stem(x).movedim(1, -1)
        where = plane(*x.shape[1:]) if x.ndim == 4 else volume(x)
        x = x.flatten(1, -2) + where
        x = x + self.attention(self.n1(x))
        return self.head(self.n2(x).mean(1))


class Maps(nn.Module):
    """Coordinates are added to the channels of an image; batch norm, and a pool."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.conv, self.head = nn.Conv2d(WIDTH, 5, 3), nn.Linear(5, 3)

    def forward(self, x):
        x = self.norm(self.stem(x))
        height, width = x.shape[-2:]
        where = plane(height, width, x.shape[1]).t().reshape(1, -1, height, width)
        return self.head(F.relu(self.conv(F.relu(x + where))).mean((2, 3)))


class Joined(nn.Module):
    """Two streams side by side, of which each can grow."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.mid = nn.Linear(4, 3), nn.Linear(4, 5), nn.Linear(WIDTH, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.cat((torch.tanh(self.a(x)), self.b(x)), dim=-1)
        x = x + table(x.shape[1], x.shape[2])
        return self.head(torch.tanh(self.mid(torch.tanh(x))).mean(1))


class Both(nn.Module):
    """Layers mix the tokens, too: what is added lies beside units in both directions."""

    def __init__(self):
        super().__init__()
        self.stem, self.tokens = nn.Linear(4, WIDTH), nn.Linear(6, 5)
        self.back, self.head = nn.Linear(5, 2), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.tokens(torch.tanh(self.stem(x)).transpose(1, 2)).transpose(1, 2)
        x = torch.tanh(x + table(x.shape[1], x.shape[2]))
        return self.head(torch.tanh(self.back(x.transpose(1, 2)).transpose(1, 2)).mean(1))


class HalfNorm(nn.Module):
    """Only the first part of what positions are added to is normalised."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.up, self.head = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.cat((self.a(x), self.b(x)), dim=-1)
        x = x + table(x.shape[1], x.shape[2])
        first, second = x.chunk(2, dim=-1)
        return self.head(torch.tanh(self.up(self.norm(first)) * second).mean(1))


class Softened(Stream):
    """A softmax over the channels, which keeps the stream from growing by single units."""

    def forward(self, x):
        x = self.join(self.stem(x))
        y = x - x.amax(-1, keepdim=True)
        x = torch.tanh(y / (x.var(-1, keepdim=True) + 1))
        return self.head(x.mean(1))


class Slopes(Stream):
    """ALiBi: slopes of the heads, made in the code."""

    def __init__(self):
        super().__init__()
        self.attention = Packed(WIDTH)

    def forward(self, x):
        x = self.stem(x)
        q, k, v = (
            part.unflatten(-1, (2, -1)).transpose(1, 2)
            for part in self.attention.qkv(self.n1(x)).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-1, -2) / 2
        where = torch.arange(scores.shape[-1])
        slopes = 2.0 ** -torch.arange(1, scores.shape[1] + 1)
        scores = scores + slopes[:, None, None] * (where[None, :] - where[:, None])
        x = x + self.attention.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return self.head(self.n3(x).mean(1))


class Counted(Stream):
    """Positions that depend on how many numbers there are: the width is part of them."""

    def positions(self, x):
        return table(x.shape[1], x.shape[2]) * x.numel()


class Tokens(Stream):
    """Batch norm takes tokens for channels: its statistics are those of all units."""

    def __init__(self):
        super().__init__(lambda width: nn.BatchNorm1d(6))


class Inputs(Stream):
    """The user's own data are what the stream begins with."""

    def __init__(self):
        super().__init__(width=4)

    def forward(self, x):
        x = x + self.down(torch.tanh(self.up(x)))
        x = x + self.down(torch.tanh(self.up(self.n1(x))))
        return self.head(self.n3(x).mean(1))


class OfData(Stream):
    """What is added is computed from the input."""

    def positions(self, x):
        return x.mean(-1, keepdim=True) * table(x.shape[1], x.shape[2])


class Written(Stream):
    """Part of what is added has been computed by weights."""

    def positions(self, x):
        where = filled(x.shape[1], x.shape[2])
        where[:, :4] = self.up.weight[: x.shape[1], :4]
        return where


def rms(width):
    return nn.RMSNorm(width, eps=0.1)


# Factory, example, recipe of the stream.
NETWORKS = {
    "of shape": (Stream, TOKENS, "mean"),
    "of size": (OfSize, TOKENS, "mean"),
    "of an attribute": (OfAttribute, TOKENS, "mean"),
    "filled": (Filled, TOKENS, "mean"),
    "filled, of an attribute": (FilledOfAttribute, TOKENS, "mean"),
    "filled anew": (FilledAnew, TOKENS, "mean"),
    "of another type": (Doubles, TOKENS, "mean"),
    "fixed": (Fixed, TOKENS, "mean"),
    "buffer": (Buffer, TOKENS, "mean"),
    "looked up": (LookedUp, TOKENS, "mean"),
    "scaled": (Scaled, TOKENS, "mean"),
    "in place": (InPlace, TOKENS, "mean"),
    "reversed": (Reversed, TOKENS, "mean"),
    "subtracted": (Subtracted, TOKENS, "mean"),
    "twice": (Twice, TOKENS, "mean"),
    "queries": (Queries, TOKENS, "mean"),
    "masked": (Masked, (TOKENS, MASK), "mean"),
    "modes": (Modes, TOKENS, "mean"),
    "pixels": (Image, IMAGE, "mean"),
    "video": (lambda: Image(dims=3), VIDEO, "mean"),
    "under rms": (lambda: Stream(rms), TOKENS, "zero"),
    "plain": (Plain, TOKENS, "fresh"),
    "maps": (Maps, IMAGE, "fresh"),
    "joined": (Joined, TOKENS, "fresh"),
    "both ways": (Both, TOKENS, "fresh"),
    "half a norm": (HalfNorm, TOKENS, "fresh"),
    "softened": (Softened, TOKENS, "copies"),
}
# What stays as it is, with the group that does and the reason.
HELD = {
    "slopes": (Slopes, TOKENS, "attention.qkv", "unlabelled"),
    "counted": (Counted, TOKENS, "stem", "unlabelled"),
    "tokens": (Tokens, TOKENS, "stem", "batch_norm"),
    "inputs": (Inputs, TOKENS, "down", "unlabelled"),
    "of data": (OfData, TOKENS, "stem", "unlabelled"),
    "written": (Written, TOKENS, "stem", "unlabelled"),
}
