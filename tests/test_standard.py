"""Weight standardisation: what is read by standardised weights grows exactly, and trains."""

from __future__ import annotations

import math

import pytest
import torch
from checks import difference, errors, outputs, randomised, step, untrained
from networks_standard import (
    FORMS,
    OWN,
    Line,
    Net,
    One,
    StandardLinear,
    Tied,
    by_std,
    fused,
    over,
    parametrised,
)
from test_optim_ema import averaged
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxgrow
from fxgrow.errors import UnsupportedError, VerificationError
from fxgrow.vote import fill_candidates

EXACT = 1e-10
IMAGE = torch.linspace(-1, 1, 2 * 3 * 7 * 7).reshape(2, 3, 7, 7).double().sin()
FEW = ["fused", "std", "deepmind", "stepwise"]
GROUPS = ("a", "b", "c", "d", "g")


def net(form, gain=True):
    torch.manual_seed(0)
    return randomised(Net(form=form, gain=gain))


def grown(model, names=None, units=2, **options):
    groups = [g for g in fxgrow.inspect(model, IMAGE).groups if names is None or g.name in names]
    return fxgrow.widen(model, IMAGE, {g.name: step(g, units) for g in groups}, **options)


def slot_of(growth, tensor, dim):
    (slot,) = [s for g in growth.groups for s in g.slots if (s.tensor, s.dim) == (tensor, dim)]
    return slot


@pytest.mark.parametrize("gain", [True, False], ids=["gain", "plain"])
@pytest.mark.parametrize("form", FORMS)
def test_all_groups_at_once(form, gain):
    """Every width grows, exactly in both modes, and all that is new trains."""
    model = net(form, gain)
    inspection = fxgrow.inspect(model, IMAGE)
    assert {g.name for g in inspection.groups} == {*GROUPS}
    assert {g.reason.code for g in inspection.frozen} == {"output", "unlabelled", "inner_axis"}
    growth = grown(model)
    assert max(errors(model, growth.module, IMAGE)) <= EXACT
    assert untrained(growth.module, growth.groups, IMAGE) == []


@pytest.mark.parametrize("form", FEW)
@pytest.mark.parametrize("names", [*GROUPS, ("b", "c")], ids=str)
def test_groups_alone_and_two_that_are_read_together(form, names):
    model = net(form)
    assert max(errors(model, grown(model, names, units=3).module, IMAGE)) <= EXACT


@pytest.mark.parametrize("form", FEW)
def test_rows_are_fresh_and_columns_at_the_mean_of_their_row(form):
    """New rows differ; a gain is the mean of the old ones; columns are what centring takes out."""
    growth = grown(net(form))
    own = dict(growth.module.named_parameters())
    rows = own["b.weight"].detach()[slot_of(growth, "b.weight", 0).new.reshape(-1)]
    assert len(rows.unique(dim=0)) == 2
    gain, at = own["b.gain"].detach().reshape(-1), slot_of(growth, "b.gain", 0)
    assert torch.allclose(gain[at.new.reshape(-1)], gain[at.old.reshape(-1)].mean())
    weight, places = own["d.weight"].detach(), growth.index_map.axes["d.weight"][1]
    mean = weight[:, places.old].mean((1, 2, 3), keepdim=True)
    assert torch.allclose(weight[:, places.new], mean.expand_as(weight[:, places.new]))
    # both of what is concatenated: four new columns
    assert len(places.new) == 4


@pytest.mark.parametrize("gain", [True, False], ids=["gain", "plain"])
@pytest.mark.parametrize("form", FEW)
def test_growth_of_a_growth(form, gain):
    model = net(form, gain)
    twice = grown(grown(model).module, units=1, seed=3)
    assert difference(outputs(model, IMAGE), outputs(twice.module, IMAGE)) <= EXACT


def test_the_constant_of_a_gain_is_that_of_a_model_built_so_wide():
    """``scale`` is 1 / sqrt(fan-in) in timm's layers; parameters keep their values."""
    model = net("fused")
    for emit in ("graph", "module"):
        growth = grown(model, emit=emit)
        layer = growth.module.get_submodule("d")
        assert math.isclose(layer.scale, layer.weight[0].numel() ** -0.5)
        assert math.isclose(layer.eps, model.d.eps * 12 / 16)
        old = slot_of(growth, "d.gain", 0).old.reshape(-1)
        assert torch.equal(layer.gain.detach()[old], model.d.gain.detach())
        assert max(errors(model, growth.module, IMAGE)) <= EXACT


@pytest.mark.parametrize("form", OWN)
def test_the_users_class_where_nothing_counts(form):
    model = net(form)
    growth = grown(model, emit="module")
    assert type(growth.module) is Net
    assert max(errors(model, growth.module, IMAGE)) <= EXACT


@pytest.mark.parametrize("form", [form for form in FORMS if form not in {"fused", *OWN}])
def test_what_only_a_graph_makes_up_for_is_refused_in_the_users_class(form):
    with pytest.raises(UnsupportedError, match="emit='graph'"):
        grown(net(form), emit="module")


def test_shares_in_the_users_class_leave_out_what_it_can_not_do():
    assert set(fxgrow.widen(net("fused"), IMAGE, "+50%", emit="module").plan.additions) == {*GROUPS}
    plan = fxgrow.widen(net("fused", gain=False), IMAGE, "+50%", emit="module").plan
    assert set(plan.additions) == {"g"}  # the head, which reads it, is plain


@pytest.mark.parametrize("form", FEW)
def test_inner_widths(form):
    model = net(form)
    inspection = fxgrow.inspect(model, IMAGE, inner=["e"])
    (inner,) = [g for g in inspection.groups if g.name.endswith(":inner")]
    growth = fxgrow.widen(model, IMAGE, {inner.name: inner.multiple_of}, inner=["e"])
    assert max(errors(model, growth.module, IMAGE)) <= EXACT


@pytest.mark.parametrize("form", ["fused", "std", "deepmind", "var_mean"])
def test_parametrisations(form):
    torch.manual_seed(0)
    model = randomised(parametrised(form))
    growth = grown(model)
    assert set(growth.plan.additions) == {"0", "2", "4"}
    assert max(errors(model, growth.module, IMAGE)) <= EXACT
    assert untrained(growth.module, growth.groups, IMAGE) == []


def test_linear_layers():
    parts = StandardLinear(5, 8), nn.Tanh(), StandardLinear(8, 6), nn.Tanh(), nn.Linear(6, 2)
    model, x = randomised(nn.Sequential(*parts)), torch.randn(3, 5).double()
    growth = fxgrow.widen(model, x, {"0": 3, "2": 2})
    assert max(errors(model, growth.module, x)) <= EXACT


ODD = {
    "each position of the kernel alone": (One(over((1,))), {"a", "w"}, {}),
    "rows of a transposed convolution": (One(over((0, 2, 3)), transposed=True), {"a", "w"}, {}),
    "over what it writes": (One(by_std, transposed=True), {"w"}, {"a": "product"}),
    "over what it writes, fused": (One(fused, transposed=True), set(), {"w": "weight_norm"}),
    "a deviation over less than the mean": (One(over((1, 2, 3), (1,))), {"w"}, {"a": "std"}),
    "never centred": (One(lambda w: w / w.std((1, 2, 3), keepdim=True)), {"w"}, {"a": "std"}),
    "centred by another mean": (
        One(lambda w: w - 2 * w.mean((1, 2, 3), keepdim=True)),
        {"w"},
        {"a": "product"},
    ),
    "read as it is, too": (Tied(), {"w"}, {"a": "weight_norm"}),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_frozen_and_why(name):
    model, grows, frozen = ODD[name]
    model = randomised(model)
    inspection = fxgrow.inspect(model, IMAGE)
    assert {g.name for g in inspection.groups} == grows
    reasons = {g.name: g.reason.code for g in inspection.frozen}
    assert frozen.items() <= reasons.items()
    if grows:
        assert max(errors(model, grown(model).module, IMAGE)) <= EXACT


class Powers(nn.Module):
    """Weights with weights for exponents, and one that is centred but no sum's weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)
        self.base, self.exponent = nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(6))

    def forward(self, x):
        x = self.a(x) * torch.pow(self.base, self.exponent) + torch.pow(2.0, self.exponent)
        return self.b(torch.relu(x) * (self.base - self.base.mean()))


def test_what_is_centred_and_weighs_no_sum_is_mixed_as_before():
    model, x = randomised(Powers()), torch.randn(2, 5).double()
    (group,) = fxgrow.inspect(model, x).groups
    assert group.recipe == "copies"
    assert max(errors(model, fxgrow.widen(model, x, {"a": 6}).module, x)) <= EXACT


@pytest.mark.parametrize("form", ["deepmind", "std"])
def test_transfer(form):
    """Exact where nothing depends on the count (``var * fan_in``), refused elsewhere."""
    torch.manual_seed(0)
    narrow, wide = (randomised(Line(width, form=form)) for width in (6, 9))
    if form == "std":
        with pytest.raises(VerificationError, match="another function"):
            fxgrow.transfer(narrow, wide, IMAGE)
        return
    growth = fxgrow.transfer(narrow, wide, IMAGE)
    assert max(errors(narrow, growth.module, IMAGE)) <= EXACT


@pytest.mark.parametrize("form", ["fused", "std", "layer norm"])
@pytest.mark.parametrize("gain", [True, False], ids=["gain", "plain"])
def test_optimizer_average_and_file(form, gain, tmp_path):
    model = net(form, gain)
    optimizer, average = torch.optim.Adam(model.parameters()), averaged(model)
    model(IMAGE).square().mean().backward()
    optimizer.step()
    growth = grown(model)
    growth.migrate(optimizer)
    growth.module(IMAGE).square().mean().backward()
    optimizer.step()
    growth = grown(model)
    wider = growth.migrate_ema(average)
    assert difference(outputs(average, IMAGE), outputs(wider, IMAGE)) <= EXACT
    growth.save(tmp_path / "net.safetensors")
    loaded = fxgrow.load(tmp_path / "net.safetensors", base=model).module
    assert difference(outputs(growth.module, IMAGE), outputs(loaded, IMAGE)) == 0


@pytest.mark.parametrize("form", FEW)
@pytest.mark.parametrize("gain", [True, False], ids=["gain", "plain"])
def test_expand(form, gain):
    """Votes of all groups, growth, and adjusting that moves new rows and new columns."""
    model = net(form, gain)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, 7, 7, generator=generator, dtype=torch.float64)
    data = DataLoader(TensorDataset(x, x[:, 0, 0, :4].argmax(1)), 8)
    growth = fxgrow.expand(model, data, budget=8)
    votes = growth.votes.values
    assert set(votes) == {*GROUPS}
    assert all((values != 0).all() and (values == values).all() for values in votes.values())
    assert growth.plan.spent == 8
    for group in growth.groups:
        for slot in group.slots:
            if slot.filling.kind == "centre":
                weight = growth.module.get_parameter(slot.tensor).detach()
                new = torch.from_numpy(slot.new.reshape(-1))
                columns = weight.index_select(slot.dim, new)
                rest = growth.index_map.axes[slot.tensor][slot.dim].old
                mean = weight.index_select(slot.dim, torch.from_numpy(rest)).mean((1, 2, 3))
                assert not torch.allclose(columns.mean((1, 2, 3)), mean)


def test_candidates_are_drawn_around_the_mean():
    """Else the statistics of their rows would shift with them."""
    growth = grown(net("std"))
    slot, rest = slot_of(growth, "g.weight", 1), slot_of(growth, "g.weight", 0)
    before = growth.module.get_parameter("g.weight").detach().clone()
    fill_candidates(growth.module, growth.groups, torch.Generator().manual_seed(0))
    moved = (growth.module.get_parameter("g.weight") - before).detach()
    new, rows = (torch.from_numpy(p.reshape(-1)) for p in (slot.new, rest.old))
    assert 0 < moved.index_select(1, new)[rows].abs().max() <= 1e-2
