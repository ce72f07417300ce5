"""Models whose code converts or writes into their own parameters: those of the user stay."""

from __future__ import annotations

import copy

import pytest
import torch
from checks import errors
from torch import nn

import fxgrow
from fxgrow.errors import TraceError
from fxgrow.propagate import LABELS_KEY

EXACT = 1e-10


class Converted(nn.Module):
    """Its gate is always single precision, whatever the rest is."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 5), nn.Linear(4, 6), nn.Linear(6, 2)
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        self.gate = self.gate.to(torch.float32)
        gate = self.gate(x.to(torch.float32)).to(x.dtype)
        return self.down(self.up(x).relu()) * self.last(gate).sigmoid()


class Written(nn.Module):
    """Writes into a weight in every forward."""

    def __init__(self, write):
        super().__init__()
        self.write = write
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        self.write(self.up.weight)
        return self.down(self.up(x).relu())


def halve(weight):
    weight.mul_(0.5)


def halve_rows(weight):
    torch.mul(weight[:3], 0.5, out=weight[:3])


def halve_several(weight):
    torch._foreach_mul_([weight], 0.5)


def clamp(weight):
    weight.data.clamp_(min=0)


def held(model):
    return {n: (p.dtype, p.data_ptr(), p.clone()) for n, p in model.named_parameters()}


def same(model, before):
    assert not any(LABELS_KEY in p.__dict__ for p in model.parameters())
    for name, parameter in model.named_parameters():
        dtype, place, values = before[name]
        assert (parameter.dtype, parameter.data_ptr()) == (dtype, place), name
        assert torch.equal(parameter, values), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_converts_itself_grows_and_is_not_converted(dtype):
    torch.manual_seed(0)
    model, x = Converted().to(dtype), torch.randn(3, 4, dtype=dtype)
    before = held(model)
    inspection = fxgrow.inspect(model, x)
    same(model, before)
    assert {g.name for g in inspection.groups} == {"gate", "up"}
    growth = fxgrow.widen(model, x, {"gate": 2, "up": 3})
    same(model, before)
    assert {p.dtype for p in growth.module.parameters()} == {dtype}
    if dtype == torch.float64:
        assert max(errors(model, growth.module, x)) <= EXACT
    # As it is, too: the checks take its casts away.
    rounding = {torch.float64: 1e-5, torch.bfloat16: 0.05}[dtype]
    assert torch.allclose(copy.deepcopy(model)(x), growth.module(x), rtol=rounding)


@pytest.mark.parametrize("write", [halve, halve_rows])
def test_what_writes_into_its_weights_is_refused_before_anything_changes(write):
    model, x = Written(write).double().requires_grad_(False), torch.randn(3, 4).double()
    before = held(model)
    with pytest.raises(TraceError, match="writes into its own parameters"):
        fxgrow.inspect(model, x)
    same(model, before)


@pytest.mark.parametrize("write", [clamp, halve_several])
def test_what_is_written_past_autograd_stays(write):
    torch.manual_seed(0)
    model, x = Written(write).double().requires_grad_(False), torch.randn(3, 4).double()
    before = held(model)
    inspection = fxgrow.inspect(model, x)
    same(model, before)
    if [g.name for g in inspection.groups] == ["up"]:  # what several are given is not known
        fxgrow.widen(model, x, {"up": 2})
        same(model, before)
