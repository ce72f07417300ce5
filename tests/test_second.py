"""The second mode's graph: computed again only where it differs from the first."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxgrow
from fxgrow.copying import copy_module


class Dropping(nn.Module):
    """Norms, a shuffle and a flattened layer behind a dropout that only training has."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 1)
        self.inner = inner
        self.last = nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        if self.training:
            x = x * torch.ones(x.shape[0], 1, 1, 1)
        x = x + F.dropout(self.second(x), 0.1, self.training)
        return self.last(self.inner(x).flatten(1))


class Auxiliary(nn.Module):
    """A head that only training has."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.extra = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.body(x))
        return (self.head(x), self.extra(x)) if self.training else self.head(x)


INNER = {
    "shuffle": lambda: nn.ChannelShuffle(2),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "in place": lambda: nn.ReLU(inplace=True),
}


def flops_of(model, x):
    """Multiply-adds of convolutions and linear layers, seen by hooks in eval mode."""
    found = []

    def hook(module, args, out):
        positions = out[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        found.append(2 * module.weight.numel() * positions * len(out))

    own = copy.deepcopy(model).eval()
    for part in own.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            part.register_forward_hook(hook)
    own(x)
    return sum(found)


@pytest.mark.parametrize("inner", INNER)
def test_flops_count_once_though_there_are_two_graphs(inner):
    model, x = Dropping(INNER[inner]()), torch.randn(2, 3, 4, 4)
    found = fxgrow.inspect(model, x)
    assert len(found.analysis.traced.distinct) == 2
    assert found.flops == flops_of(model, x)


@pytest.mark.parametrize("inner", INNER)
def test_both_graphs_grow(inner):
    model, x = Dropping(INNER[inner]()).double(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    growth = fxgrow.widen(model, x, 2, verify=True)
    assert growth.index_map
    for training in (False, True):
        model.train(training)
        growth.module.train(training)
        with torch.no_grad():
            torch.manual_seed(0)
            before = model(x)
            torch.manual_seed(0)
            after = growth.module(x)
        assert before.shape == after.shape
        if not training:
            torch.testing.assert_close(before, after)


def test_what_only_training_has_is_found():
    model, x = Auxiliary(), torch.randn(2, 6)
    found = fxgrow.inspect(model, x)
    (body,) = found.groups
    assert {slot.tensor for slot in body.slots} >= {"head.weight", "extra.weight"}
    assert found.flops == 2 * 2 * (6 * 8 + 8 * 3 + 8 * 4)


def test_copies_share_what_the_original_shared():
    model = nn.Module()
    whole = torch.arange(6.0)
    for name, value in {"a": whole, "b": whole, "view": whole[:3], "other": whole.clone()}.items():
        model.register_buffer(name, value)
    twin = copy_module(model)
    twin.a[0] = 7.0
    assert (twin.b[0], twin.view[0], twin.other[0]) == (7.0, 7.0, 0.0)
    assert whole[0] == 0.0
