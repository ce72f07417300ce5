"""Convolutions whose weights are standardised, in the ways that people write it."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

EPS = 1e-2  # so large that it counts


def fused(w, gain=None, scale=0.5, eps=EPS):
    """As timm has it: batch norm of the rows, whose weight is the gain."""
    factor = None if gain is None else (gain * scale).view(-1)
    rows = w.reshape(1, w.shape[0], -1)
    out = F.batch_norm(rows, None, None, weight=factor, training=True, momentum=0.0, eps=eps)
    return out.reshape_as(w)


def by_std(w, gain=None, scale=0.5, eps=EPS, unbiased=True):
    dims = tuple(range(1, w.ndim))
    deviation = w.std(dims, keepdim=True, unbiased=unbiased) + eps
    w = (w - w.mean(dims, keepdim=True)) / deviation
    return w if gain is None else w * gain


def by_var(w, gain=None, scale=0.5, eps=EPS, unbiased=True):
    variance = torch.var(w, dim=(1, 2, 3), keepdim=True, unbiased=unbiased)
    w = (w - torch.mean(w, (1, 2, 3), True)) * (variance + eps).rsqrt()
    return w if gain is None else gain * w


def by_both(w, gain=None, scale=0.5, eps=EPS):
    variance, mean = torch.var_mean(w, dim=(1, 2, 3), keepdim=True)
    w = (w - mean) / torch.sqrt(variance + eps)
    return w if gain is None else w * gain


def deepmind(w, gain=None, scale=0.5, eps=EPS):
    """As NFNet has it: the variance times the fan-in, and the mean subtracted last."""
    fan_in = w[0].numel()
    mean = w.mean((1, 2, 3), keepdim=True)
    variance = w.var((1, 2, 3), keepdim=True, unbiased=False)
    factor = torch.rsqrt(torch.maximum(variance * fan_in, torch.tensor(eps, dtype=w.dtype)))
    factor = factor if gain is None else factor * gain
    return w * factor - mean * factor


def stepwise(w, gain=None, scale=0.5, eps=EPS):
    """As the paper's authors have it: means one dimension after another, and expand_as."""
    mean = w.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
    w = w - mean
    std = w.view(w.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + eps
    w = w / std.expand_as(w)
    return w if gain is None else w * gain


def in_place(w, gain=None, scale=0.5, eps=EPS):
    w = w.clone()
    w -= w.mean((1, 2, 3), keepdim=True)
    w /= w.std((1, 2, 3), keepdim=True) + eps
    return w if gain is None else w * gain


def by_squares(w, gain=None, scale=0.5, eps=EPS):
    mean = w.mean((1, 2, 3), keepdim=True)
    variance = ((w - mean) ** 2).mean((1, 2, 3), keepdim=True)
    w = (w - mean) * torch.rsqrt(variance + eps)
    return w if gain is None else w * gain


def by_layer_norm(w, gain=None, scale=0.5, eps=EPS):
    w = F.layer_norm(w.flatten(1), (w[0].numel(),), eps=eps).view_as(w)
    return w if gain is None else w * gain


def by_sum(w, gain=None, scale=0.5, eps=EPS):
    """Nothing here divides by a count but the mean."""
    w = w - w.mean((1, 2, 3), keepdim=True)
    w = w / ((w * w).sum((1, 2, 3), keepdim=True) + eps).sqrt()
    return w if gain is None else w * gain


def by_norm(w, gain=None, scale=0.5, eps=EPS):
    w = w - w.mean((1, 2, 3), keepdim=True)
    w = w / (w.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + eps)
    return w if gain is None else w * gain


FORMS = {
    "fused": fused,
    "std": by_std,
    "std, biased": partial(by_std, unbiased=False),
    "var": by_var,
    "var, biased": partial(by_var, unbiased=False),
    "var_mean": by_both,
    "deepmind": deepmind,
    "stepwise": stepwise,
    "in place": in_place,
    "squares": by_squares,
    "layer norm": by_layer_norm,
    "sum of squares": by_sum,
    "norm": by_norm,
}
OWN = ("sum of squares", "norm")  # nothing has to be made up for


class Standard(nn.Conv2d):
    """A convolution with a standardised weight."""

    def __init__(self, inside, outside, kernel=3, *, form="fused", gain=True, **options):
        super().__init__(inside, outside, kernel, padding=kernel // 2, **options)
        self.gain = nn.Parameter(torch.rand(outside, 1, 1, 1) + 0.5) if gain else None
        self.scale, self.eps, self.form = self.weight[0].numel() ** -0.5, EPS, FORMS[form]

    def forward(self, x):
        w = self.form(self.weight, self.gain, self.scale, self.eps)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Net(nn.Module):
    """Two groups that one convolution reads, groups of channels, kernels of one and three."""

    def __init__(self, **options):
        super().__init__()
        self.a = Standard(3, 6, **options)
        self.b, self.c = Standard(6, 8, 1, **options), Standard(6, 4, **options)
        self.d = Standard(12, 8, **options)
        self.e = Standard(8, 8, groups=4, **options)
        self.f = Standard(8, 8, groups=8, **options)
        self.g = Standard(8, 5, **options)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = F.silu(self.a(x))
        x = torch.cat([F.silu(self.b(x)), F.silu(self.c(x))], 1)
        x = F.silu(self.d(x))
        x = F.silu(self.f(x + F.silu(self.e(x))))
        return self.head(F.silu(self.g(x)).mean((2, 3)))


class Line(nn.Module):
    """Two standardised convolutions of one width."""

    def __init__(self, width, **options):
        super().__init__()
        self.a, self.b = Standard(3, width, **options), Standard(width, width, **options)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(F.silu(self.b(F.silu(self.a(x)))).mean((2, 3)))


class StandardLinear(nn.Linear):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + EPS)
        return F.linear(x, w, self.bias)


class Of(nn.Module):
    """A parametrisation."""

    def __init__(self, form):
        super().__init__()
        self.form = FORMS[form]

    def forward(self, w):
        return self.form(w)


def parametrised(form):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.SiLU(), nn.Conv2d(6, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 1),
        nn.Flatten(), nn.Linear(36, 2),
    )  # fmt: skip
    for place in (0, 2, 4):
        parametrize.register_parametrization(model[place], "weight", Of(form), unsafe=True)
    return model


class One(nn.Module):
    """A convolution whose weight a function makes, between two plain ones."""

    def __init__(self, weight_of, *, transposed=False):
        super().__init__()
        self.weight_of = weight_of
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.w = nn.Parameter(torch.randn(6, 5, 3, 3) if transposed else torch.randn(5, 6, 3, 3))
        self.run = F.conv_transpose2d if transposed else F.conv2d
        self.o = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        return self.o(F.silu(self.run(F.silu(self.a(x)), self.weight_of(self.w))))


class Tied(nn.Module):
    """One weight, read as it is and standardised: no new column is nothing in both."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(5, 2, 1)
        self.w = nn.Parameter(torch.randn(5, 6, 3, 3))

    def forward(self, x):
        x = F.silu(self.a(x))
        return self.o(F.silu(F.conv2d(x, by_std(self.w)) + F.conv2d(x, self.w)))


def over(dims, deviation=None):
    """Weights standardised over some dimensions."""

    def form(w):
        std = w.std(deviation or dims, keepdim=True)
        return (w - w.mean(dims, keepdim=True)) / (std + EPS)

    return form
