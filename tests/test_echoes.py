"""Tensors that only repeat themselves along a dimension are as long there as what they meet."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checks import errors, randomised, step, untrained
from torch import nn

import fxgrow
from fxgrow.echoes import without
from fxgrow.planes import Plane

EXACT = 1e-10
PICTURE = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """``way`` says what becomes of the features between two convolutions."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.one = nn.Parameter(torch.ones(1))
        self.weight = nn.Parameter(torch.randn(1, 6, 7))
        self.token, self.out = nn.Parameter(torch.randn(1, 1, 6)), nn.Linear(6, 5)

    def forward(self, x):
        return WAYS[self.way](self, x, self.a(x))


def tokens(y):
    return y.flatten(2).transpose(1, 2)


def pooled(y):
    return y.mean((2, 3), keepdim=True).expand(-1, -1, 6, 6)


WAYS = {
    "number": lambda net, x, y: net.b(y + net.one.view(1, 1, 1, 1).expand(1, 6, 1, 1)),
    "number_all_over": lambda net, x, y: net.b(y * net.one.expand(x.shape[0], 6, 6, 6)),
    "mask": lambda net, x, y: net.b(y * (x[:, :1] > 0).expand(-1, 6, -1, -1)),
    "repeated_mask": lambda net, x, y: net.b(y * x[:, :1].repeat(1, 6, 1, 1)),
    "chosen": lambda net, x, y: net.b(torch.where((x[:, :1] > 0).expand(2, 6, 6, 6), y, net.one)),
    "ramp": lambda net, x, y: net.b(y + torch.linspace(0, 1, 6).to(y).expand(1, 6, 6, 6)),
    "less_the_mean": lambda net, x, y: net.b(y - y.mean(1, keepdim=True).expand(-1, 6, -1, -1)),
    "pooled": lambda net, x, y: net.b(F.max_pool2d(y * pooled(y), 2)),
    "token": lambda net, x, y: net.out(torch.cat([net.token.repeat(2, 1, 1), tokens(y)], 1)),
    "in_a_batch": lambda net, x, y: torch.bmm(tokens(y), net.weight.expand(2, -1, -1)),
    "stacked": lambda net, x, y: net.b(torch.stack([y, y.mean(1, True).expand(2, 6, 6, 6)]).sum(0)),
}


@pytest.mark.parametrize("way", WAYS)
def test_channels_grow(way):
    torch.manual_seed(0)
    model = randomised(Net(way))
    group = fxgrow.inspect(model, PICTURE).group("a")
    assert group.width == 6
    growth = fxgrow.widen(model, PICTURE, {"a": step(group)})
    assert max(errors(model, growth.module, PICTURE)) <= EXACT
    assert untrained(growth.module, growth.groups, PICTURE) == []


@pytest.mark.parametrize("way", ["mask", "repeated_mask"])
def test_a_number_in_the_users_own_code_is_named(way):
    torch.manual_seed(0)
    with pytest.raises(fxgrow.UnsupportedError, match="the number 6 would have to become 7"):
        fxgrow.widen(randomised(Net(way)), PICTURE, {"a": 1}, emit="module")


def test_inputs_that_are_repeated_stay_the_users():
    """One channel of an image, three times: nothing would be gained by a fourth."""

    class Grey(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x):
            return self.b(self.a(x.expand(-1, 3, -1, -1)))

    inspection = fxgrow.inspect(Grey(), torch.randn(2, 1, 5, 5))
    assert {g.name: g.width for g in inspection.groups} == {"a": 6}
    assert {g.width: g.reason.code for g in inspection.frozen} == {3: "input", 4: "output"}


def test_sums_over_what_is_repeated_hold_it():
    """The sum would be another one if there were more of them."""

    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 4)
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, x):
            same = self.one.expand(6)
            return self.b(self.a(x) * same) + same.sum()

    inspection = fxgrow.inspect(Summed(), torch.randn(2, 3))
    assert "a" not in {g.name for g in inspection.groups}


def test_labels_of_nothing_are_no_echo():
    """Detectors may select none of their boxes beside masks that are repeated."""
    book, nothing = SimpleNamespace(echoes={3}), np.zeros((0, 4), dtype=np.int64)
    some = np.full((1, 4), 3)
    (kept,) = without(book, [Plane(nothing), Plane(some)])
    assert kept.labels is nothing
