"""While a model is traced, torch.nn.Module and the model stay what they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxgrow
from fxgrow.taps import tapped


class Watching(nn.Module):
    """Looks at ``torch.nn.Module`` while it is traced."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        SEEN.append((nn.Module.__call__, nn.Module.__getattr__))
        return self.last(self.first(x) * self.scale)


SEEN = []


def test_the_class_is_not_patched():
    SEEN.clear()
    model, before = Watching(), (nn.Module.__call__, nn.Module.__getattr__)
    found = fxgrow.inspect(model, torch.zeros(1, 4))
    assert set(SEEN) == {before}
    assert [(g.name, g.width) for g in found.groups] == [("first", 8)]
    assert "scale" in {slot.tensor for slot in found.groups[0].slots}
    root = found.analysis.traced.root
    for module in (*model.modules(), *root.modules()):
        assert "_compiled_call_impl" not in module.__dict__
        assert type(module._parameters) is type(nn.Linear(1, 1)._parameters)


class MakesLayers(nn.Module):
    """Layers without weights are made in the forward pass."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return nn.Softmax(-1)(self.last(nn.ReLU()(self.first(x))))


def test_layers_that_are_made_in_forward():
    found = fxgrow.inspect(MakesLayers(), torch.zeros(1, 4))
    assert not found.analysis.traced.obstacle
    assert [(g.name, g.width) for g in found.groups] == [("first", 8)]
    assert fxgrow.widen(MakesLayers(), torch.zeros(1, 4), {"first": 3}).verification.passed


def test_calls_and_reads_are_told_and_all_is_undone():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    own = [(m._parameters, m._buffers) for m in model]
    calls, reads = [], []

    def called(module, *args):
        calls.append(type(module).__name__)
        return module._call_impl(*args)

    def read(name, value):
        reads.append(name)
        return value

    with pytest.raises(ZeroDivisionError), tapped(model, called, read):
        model(torch.zeros(4, 2))
        model[0].bias = nn.Parameter(torch.ones(3))
        raise ZeroDivisionError
    assert calls == ["Sequential", "Linear", "BatchNorm1d"]
    assert {"weight", "bias", "running_mean"} <= set(reads)
    for module, (parameters, buffers) in zip(model, own, strict=True):
        assert module._parameters is parameters
        assert module._buffers is buffers
    assert model[0].bias.sum() == 3  # the code's own change stays
    count = len(reads)
    model(torch.zeros(4, 2))
    assert len(reads) == count
