"""Networks that reduce over channels: maxima, norms, sums of squares, written in many ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

PICTURE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3))
VECTORS = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(4))


class Told(nn.Module):
    """Features weighed by what ``tell`` makes of all channels at each position."""

    def __init__(self, tell, plain=False):
        super().__init__()
        self.a, self.norm, self.tell = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), tell
        self.mask, self.out = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(6, 5, 1)
        self.plain = plain

    def forward(self, x):
        x = self.a(x) if self.plain else self.norm(self.a(x)).relu()
        return self.out(x * self.mask(self.tell(x)).sigmoid()).mean((2, 3))


class Normed(nn.Module):
    """A stream that is normalised by ``norm`` before every block and at its end."""

    def __init__(self, norm, gain=True):
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(3, 6), nn.Linear(6, 7), nn.Linear(7, 6)
        self.gain = nn.Parameter(torch.ones(6)) if gain else 1.0
        self.norm, self.out = norm, nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.down(F.gelu(self.up(self.norm(x) * self.gain)))
        return self.out(self.norm(x) * self.gain)


class Embedded(nn.Module):
    """Features behind an activation, normalised, then read (SSD)."""

    def __init__(self, norm):
        super().__init__()
        self.a, self.out, self.norm = nn.Linear(3, 6), nn.Linear(6, 5), norm

    def forward(self, x):
        return self.out(self.norm(self.a(x).relu() + 0.1))


class Cosine(nn.Module):
    """Rows of a weight are normalised over what they read."""

    def __init__(self, dim=1):
        super().__init__()
        self.a, self.weight, self.dim = nn.Linear(3, 6), nn.Parameter(torch.ones(5, 6)), dim

    def forward(self, x):
        return F.linear(self.a(x).relu(), F.normalize(self.weight, dim=self.dim))


class Shared(nn.Module):
    """What ``tell`` makes of the columns of a weight scales what it computes."""

    def __init__(self, tell):
        super().__init__()
        self.a, self.weight, self.tell = nn.Linear(3, 6), nn.Parameter(torch.ones(5, 6)), tell

    def forward(self, x):
        return F.linear(self.a(x).relu(), self.weight) * self.tell(self.weight)


class Positions(nn.Module):
    """Where a maximum is decides about what comes out."""

    def __init__(self, second=True):
        super().__init__()
        self.a, self.out, self.second = nn.Linear(3, 6), nn.Linear(6, 5), second

    def forward(self, x):
        x = self.a(x)
        values, indices = x.max(-1, keepdim=True)
        told = indices.double() if self.second else x.argmax(-1, keepdim=True)
        return self.out(x) * values + told


class SecondMode(nn.Module):
    """In training only, positions of maxima are used."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(3, 6), nn.Linear(6, 5)

    def forward(self, x):
        x = self.a(x).relu()
        found = x.max(-1, keepdim=True)
        x = self.out(x) * found[0]
        return x + found[1] if self.training else x


def largest(x):
    return x.max(dim=1, keepdim=True)[0]


def unpacked(x):
    values, _ = torch.max(x, 1, keepdim=True)
    return values


def cbam(x):
    return torch.min(x, 1, keepdim=True).values + x.mean(1, keepdim=True) + largest(x)


def pooled(x):
    flat = x.flatten(2).transpose(1, 2)
    return F.adaptive_max_pool1d(flat, 1).transpose(1, 2).unflatten(2, x.shape[2:])


def spread_of(x):
    return x.std(1, keepdim=True) + x.std(1, unbiased=False, keepdim=True)


def sizes(x):
    return x.norm(dim=1, keepdim=True) + torch.linalg.vector_norm(x, dim=1, keepdim=True)


def summed(x):
    return x.square().sum(1, keepdim=True).sqrt() + torch.sum(x.exp(), 1, keepdim=True).log()


def highest(x):
    return torch.linalg.vector_norm(x, float("inf"), 1, keepdim=True)


# What tells of all channels; all of them stay when every channel is copied, and nothing else.
TOLD = {
    "max": largest,
    "max_unpacked": unpacked,
    "max_min_mean": cbam,
    "max_pool": pooled,
    "deviation": spread_of,
    "norms": sizes,
    "sums": summed,
    "norm_inf": highest,
}


def normalize(x):
    return F.normalize(x, dim=-1)


def divided(x):
    return x / (x.norm(dim=-1, keepdim=True) + 1e-3)


def by_vector_norm(x):
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-6)


def by_sum(x):
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-3)


def by_product(x):
    return x / ((x * x).sum(-1, keepdim=True) + 0.1).sqrt()


def by_sizes(x):
    return x / (x.norm(1, dim=-1, keepdim=True) + 0.1)


# Norms that new zeros leave as they are.
NORMS = {f.__name__: f for f in (normalize, divided, by_vector_norm, by_sum, by_product, by_sizes)}


class Batched(nn.Module):
    """What is normalised over channels comes out of a batch norm."""

    def __init__(self, norm, affine=True):
        super().__init__()
        self.a, self.batch = nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6, affine=affine)
        self.out, self.norm = nn.Linear(6, 5), norm

    def forward(self, x):
        return self.out(self.norm(F.gelu(self.batch(self.a(x.flatten(0, 1))))))


class OneHead(nn.Module):
    """Attention with a single head, whose queries and keys are batch normalised (SHViT)."""

    def __init__(self, fused, affine=(True, True), width=4):
        super().__init__()
        self.q, self.k, self.v = (nn.Conv1d(3, n, 1, bias=False) for n in (width, width, 6))
        self.nq, self.nk = (nn.BatchNorm1d(width, affine=own) for own in affine)
        self.out, self.fused = nn.Conv1d(6, 5, 1), fused

    def forward(self, x):
        x = x.transpose(1, 2)
        q, k, v = self.nq(self.q(x)), self.nk(self.k(x)), self.v(x)
        if self.fused:
            own = (t.transpose(1, 2).unsqueeze(1) for t in (q, k, v))
            return self.out(F.scaled_dot_product_attention(*own).squeeze(1).transpose(1, 2))
        scores = (q.transpose(1, 2) @ k * 0.5).softmax(-1)
        return self.out(v @ scores.transpose(1, 2))


class Eca(nn.Module):
    """A convolution along the channels weighs them (ECA); ``order`` of theirs first."""

    def __init__(self, kernel=3, padding=1, circular=False, order=None, back=None):
        super().__init__()
        mode = "circular" if circular else "zeros"
        self.conv = nn.Conv1d(1, 1, kernel, padding=padding, bias=False, padding_mode=mode)
        self.order, self.back = order or (lambda x: x), back or (lambda x: x)

    def forward(self, x):
        y = self.order(x).mean((2, 3)).squeeze(-1).view(x.shape[0], 1, -1)
        y = self.back(self.conv(y).sigmoid().view(x.shape[0], -1, 1, 1))
        return x * y.expand_as(x)


class EcaBlocks(nn.Module):
    """Residual blocks whose branches end in what weighs channels by their neighbours."""

    def __init__(self, eca=Eca, affine=True, first=None, act=F.relu):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.first = nn.Identity() if first is None else first()
        self.conv = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6, affine=affine) for _ in range(2))
        self.eca, self.act = nn.ModuleList(eca() for _ in range(2)), act
        self.out = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        x = self.act(self.first(self.norm(self.stem(x))))
        for conv, norm, eca in zip(self.conv, self.norms, self.eca, strict=True):
            x = self.act(x + eca(norm(conv(x))))
        return self.out(x).mean((2, 3))


class EcaBetween(nn.Module):
    """Activations of ``act`` are weighed by their neighbours, then read."""

    def __init__(self, act, eca=Eca, batch=True):
        super().__init__()
        self.a, self.b, self.eca, self.act = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), eca(), act
        self.norm = nn.BatchNorm2d(6) if batch else nn.Identity()

    def forward(self, x):
        return self.b(self.eca(self.act(self.norm(self.a(x))))).mean((2, 3))


class EcaJoined(nn.Module):
    """Two layers beside each other."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.eca = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 1), Eca()
        self.out = nn.Conv2d(10, 5, 1)

    def forward(self, x):
        return self.out(self.eca(torch.cat([self.a(x), self.b(x)], 1))).mean((2, 3))


def turned(x):
    return x.flip(1)


# What grows beside (recipe of its channels): zeros in a branch, or everywhere.
ECA = {
    "branches": (EcaBlocks, "stem", "fresh"),
    "branches_dilated": (lambda: EcaBlocks(lambda: Eca(5, 2)), "stem", "fresh"),
    "silu": (lambda: EcaBetween(F.silu), "a", "zero"),
    "no_batch_norm": (lambda: EcaBetween(F.gelu, batch=False), "a", "zero"),
}
# Where this can't be, and why.
NO_ECA = {
    "relu": (lambda: EcaBetween(F.relu), "local"),
    "joined": (EcaJoined, "local"),
    "circular": (lambda: EcaBetween(F.silu, lambda: Eca(circular=True)), "unlabelled"),
    "another_order": (lambda: EcaBetween(F.silu, lambda: Eca(order=turned)), "local"),
    "turned": (lambda: EcaBetween(F.silu, lambda: Eca(order=turned, back=turned)), "local"),
    "not_aligned": (lambda: EcaBetween(F.silu, lambda: Eca(order=lambda x: x.roll(1, 1))), "local"),
    "without_weights": (lambda: EcaBlocks(affine=False), "local"),
    "everywhere": (lambda: EcaBlocks(first=Eca), "local"),
}


class Heads(OneHead):
    """Several heads, of batch normalised queries and keys (LeViT)."""

    def forward(self, x):
        x = x.transpose(1, 2)
        q, k = (n(f(x)) for n, f in ((self.nq, self.q), (self.nk, self.k)))
        q, k, v = (t.unflatten(1, (2, -1)) for t in (q, k, self.v(x)))
        scores = (q.transpose(2, 3) @ k * 0.5).softmax(-1)
        return self.out((v @ scores.transpose(2, 3)).flatten(1, 2))
