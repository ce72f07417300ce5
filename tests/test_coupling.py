"""Couplings against the definition: one trained vector for each pair of a new and an old row."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from handmade import data, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from fxgrow.coupling import AdamSettings, CouplingSetup
from fxgrow.ir import GrownGroup, GrownSlot
from fxgrow.sites import collect
from fxgrow.swe import adjust

FEW = settings(max_examples=12, deadline=None)


@dataclass(frozen=True)
class Case:
    """A network whose one group has ``old`` and ``new`` units of ``slices`` rows each."""

    kind: str
    old: int
    new: int
    slices: int
    inputs: int
    bias: bool
    seed: int

    @property
    def rows(self):
        return (self.old + self.new) * self.slices

    def module(self):
        torch.manual_seed(self.seed)
        if self.kind == "linear":
            tail = [nn.Linear(self.rows, 3)]
            first = nn.Linear(self.inputs, self.rows, bias=self.bias)
        else:
            make = nn.ConvTranspose2d if self.kind == "transposed" else nn.Conv2d
            first = make(self.inputs, self.rows, 2, bias=self.bias)
            tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.rows, 3)]
        module = nn.Sequential(first, nn.Tanh(), *tail).double()
        with torch.no_grad():
            module[-1].weight[:, torch.from_numpy(self.positions[1].reshape(-1))] = 0
        return module

    @property
    def positions(self):
        """Where the old and the new units lie: anywhere."""
        order = np.random.default_rng(self.seed).permutation(self.rows).reshape(-1, self.slices)
        return order[: self.old], order[self.old :]

    @property
    def rows_dim(self):
        return 1 if self.kind == "transposed" else 0

    def grown(self, module):
        last = f"{len(module) - 1}.weight"
        slots = [("0.weight", self.rows_dim, "producer"), (last, 1, "consumer")]
        slots += [("0.bias", 0, "producer")] if self.bias else []
        made = tuple(GrownSlot(*slot, *self.positions) for slot in slots)
        return GrownGroup("g", self.old, self.new, made)

    def data(self, batches=3):
        shape = (self.inputs,) if self.kind == "linear" else (self.inputs, 3, 3)
        return data(shape, 3, batches, 4, seed=self.seed)


cases = st.builds(
    Case,
    kind=st.sampled_from(["linear", "conv", "transposed"]),
    old=st.integers(1, 7),
    new=st.integers(1, 6),
    slices=st.integers(1, 2),
    inputs=st.integers(1, 4),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
rates = st.floats(1e-3, 0.1)
linear_optimizers = st.one_of(
    st.builds(partial, st.just(torch.optim.SGD), lr=rates, weight_decay=st.floats(0, 0.3)),
    st.builds(
        partial,
        st.just(torch.optim.SGD),
        lr=rates,
        momentum=st.floats(0.1, 0.95),
        nesterov=st.booleans(),
        weight_decay=st.floats(0, 0.3),
    ),
)


def by_definition(case, module, optimizer, epochs):
    """Train D itself: every pair, by loops, with autograd through the folded rows."""
    params = {name: param.detach().clone() for name, param in module.named_parameters()}
    reader = [name for name in params if not name.startswith("0.")]
    for name in reader:
        params[name].requires_grad_()
    pairs = {
        name: torch.zeros(
            case.new, case.old, case.slices, *other.shape, dtype=torch.float64, requires_grad=True
        )
        for name, other in ((n, first_row(case, n, params[n])) for n in params if n not in reader)
    }
    stepper = optimizer([*pairs.values(), *(params[name] for name in reader)])
    for _ in range(epochs):
        for x, y in case.data():
            stepper.zero_grad()
            now = {**params, **{name: folded(case, name, params[name], d)
                                for name, d in pairs.items()}}  # fmt: skip
            nn.functional.cross_entropy(functional_call(module, now, (x,)), y).backward()
            stepper.step()
    with torch.no_grad():
        return {**params, **{n: folded(case, n, params[n], d) for n, d in pairs.items()}}


def first_row(case, name, tensor):
    return tensor.movedim(case.rows_dim if name == "0.weight" else 0, 0)[0]


def folded(case, name, tensor, couplings):
    rows = list(tensor.movedim(case.rows_dim if name == "0.weight" else 0, 0))
    old, new = case.positions
    for j in range(case.new):
        for i in range(case.old):
            for s in range(case.slices):
                rows[new[j, s]] = rows[new[j, s]] + couplings[j, i, s]
                rows[old[i, s]] = rows[old[i, s]] - couplings[j, i, s]
    return torch.stack(rows).movedim(0, case.rows_dim if name == "0.weight" else 0)


def sums(case, name, tensor):
    """Sum over all units, for each of their slices."""
    order = torch.from_numpy(np.concatenate(case.positions))
    return tensor.movedim(case.rows_dim if name == "0.weight" else 0, 0)[order].sum(0)


@FEW
@given(case=cases, optimizer=linear_optimizers, epochs=st.integers(1, 2))
def test_laplacian_is_descent_on_couplings(case, optimizer, epochs):
    module = case.module()
    expected = by_definition(case, module, optimizer, epochs)
    start = {name: param.detach().clone() for name, param in module.named_parameters()}
    grown = [case.grown(module)]
    adjust(module, grown, case.data(), coupling="laplacian", optimizer=optimizer, epochs=epochs)
    for name, param in module.named_parameters():
        torch.testing.assert_close(param.detach(), expected[name].detach(), rtol=0, atol=1e-12)
        if name.startswith("0."):
            assert not torch.equal(param, start[name])
            now, before = (sums(case, name, t.detach()) for t in (param, start[name]))
            torch.testing.assert_close(now, before, rtol=0, atol=1e-12)


@FEW
@given(case=cases, mode=st.sampled_from(["dense", "pairwise"]))
def test_sum_of_rows_stays_under_adam_on_couplings(case, mode):
    module = case.module()
    start = {name: param.detach().clone() for name, param in module.named_parameters()}
    adjust(module, [case.grown(module)], case.data(), coupling=mode)
    for name in [name for name in start if name.startswith("0.")]:
        param = module.get_parameter(name).detach()
        assert not torch.equal(param, start[name])
        now, before = sums(case, name, param), sums(case, name, start[name])
        torch.testing.assert_close(now, before, rtol=0, atol=1e-12)


def adam(tensors):
    return torch.optim.Adam(tensors, lr=1e-3)


@FEW
@given(case=cases)
def test_rows_stepped_in_place_are_rows_and_displacement(case):
    """Without decay no displacement is stored; an optimizer of the caller's gets one."""
    short, long = case.module(), case.module()
    adjust(short, [case.grown(short)], case.data())
    adjust(long, [case.grown(long)], case.data(), optimizer=adam)
    for one, two in zip(short.parameters(), long.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_place_in_other_types(dtype):
    module, grown = mlp(dtype=dtype)
    other = copy.deepcopy(module)
    adjust(module, grown, data())
    adjust(other, grown, data(), optimizer=adam)
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6 if dtype is torch.float32 else 2e-3)


def test_laplacian_stores_nothing_beside_the_optimizers_state():
    module, grown = mlp()
    setup = CouplingSetup(AdamSettings(), torch.Generator(), in_place=True)
    sites = collect(module, grown[0], (), "laplacian", setup, {})
    assert [site.name for site in sites if site.turned] == ["0.weight", "0.bias"]
    assert all(site.base is site.param and not site.views for site in sites)
    decay = CouplingSetup(AdamSettings(weight_decay=0.1), torch.Generator())
    assert all(site.views for site in collect(module, grown[0], (), "laplacian", decay, {})[:2])


class Fork(nn.Module):
    """Positive batches go through ``way``, the others past it."""

    def __init__(self):
        super().__init__()
        self.way, self.read, self.past = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(5, 4)

    def forward(self, x):
        return self.read(self.way(x).tanh()) if x.sum() > 0 else self.past(x)


@pytest.mark.parametrize("optimizer", [None, adam])
def test_batches_that_pass_by_step_nothing(optimizer):
    torch.manual_seed(0)
    module = Fork().double()
    rows = np.arange(8).reshape(-1, 1)
    spans = [("way.weight", 0, "producer"), ("read.weight", 1, "consumer")]
    grown = [GrownGroup("g", 5, 3, tuple(GrownSlot(*s, rows[:5], rows[5:]) for s in spans))]
    through = [(x.abs(), y) for x, y in data()]
    both = [through[0], (-through[1][0], through[1][1]), *through[1:]]
    other = copy.deepcopy(module)
    adjust(module, grown, both, optimizer=optimizer)
    report = adjust(other, grown, through, optimizer=optimizer)
    assert not report.groups[0].skipped
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
