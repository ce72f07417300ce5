"""Streams that are normalised over their channels grow by any number of units, exactly."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from checks import difference, doubled, errors, outputs, randomised, run, step, untrained
from hypothesis import given, settings
from networks_streams import (
    IMAGE,
    STREAMS,
    TOKENS,
    WORDS,
    FunctionNorm,
    HandRms,
    PreNorm,
    SizelessNorm,
    TiedPostNorm,
    layer_norm,
    transform,
)
from test_optim_ema import averaged
from torch import nn

import fxgrow
from fxgrow.errors import UnsupportedError
from fxgrow.fills import fill_streams
from fxgrow.ir import Filling, GrownGroup, GrownSlot

EXACT = 1e-10
ANY = [name for name, (_, _, recipe) in STREAMS.items() if recipe != "copies"]
# The last block of a tied model is read by new columns of the embedding only, which are zero.
LATE = {"tied llama": ("down.", "words.")}


def build(name):
    factory, example, recipe = STREAMS[name]
    torch.manual_seed(0)
    return randomised(factory()), doubled(example), recipe


def stream(inspection, recipe):
    """The one group with this recipe."""
    (group,) = [g for g in inspection.groups if g.recipe == recipe]
    return group


@pytest.mark.parametrize("name", STREAMS)
def test_recipe(name):
    """Exact recipes where they are exact, copies elsewhere, and steps of one unit."""
    model, example, recipe = build(name)
    group = stream(fxgrow.inspect(model, example), recipe)
    assert group.multiple_of == (group.width if recipe == "copies" else 1)


class Added(nn.Module):
    """The norm's result is used beside the head that is tied."""

    def __init__(self, use):
        super().__init__()
        self.use, self.out = use, nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.use(x))


def test_dropout_in_front_of_a_tied_head():
    model = TiedPostNorm(transform(), dropout=0.1)
    assert stream(fxgrow.inspect(model, WORDS), "copies").multiple_of == 8


@pytest.mark.parametrize(
    "use",
    [torch.tanh, torch.square, lambda x: x + 1, lambda x: x.add_(1), lambda x: x + x.mean(1, True)],
)
def test_tied_heads_share_their_norm_with_nothing_else(use):
    """Shares of a norm's result would change what is not linear in each unit alone."""
    inspection = fxgrow.inspect(randomised(TiedPostNorm(beside=Added(use))), WORDS)
    assert not inspection.groups
    assert "layer_norm" in {group.reason.code for group in inspection.frozen}


class Changed(nn.Module):
    """The mean is that of other values than those from which it is taken."""

    def __init__(self, change):
        super().__init__()
        self.change, self.stem, self.out = change, nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        mean = x.mean(-1, keepdim=True)
        x = self.change(x) - mean
        return self.out(x / (x.pow(2).mean(-1, keepdim=True) + 0.1).sqrt())


CHANGES = [
    lambda x: x.mul_(2),
    lambda x: x.add_(x),
    lambda x: x.add_(1),
    lambda x: 2 * x,
    torch.neg,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_mean_of_other_values_is_not_taken_away(change):
    model, example = randomised(Changed(change)), doubled(TOKENS)
    inspection = fxgrow.inspect(model, example)
    assert "mean" not in {group.recipe for group in inspection.groups}
    for group in inspection.groups:
        growth = fxgrow.widen(model, example, {group.name: step(group, 2)}, verify=False)
        assert max(errors(model, growth.module, example)) <= EXACT


@pytest.mark.parametrize("units", [1, 3, 8])
@pytest.mark.parametrize("name", ANY)
def test_stream_alone(name, units):
    model, example, recipe = build(name)
    group = stream(fxgrow.inspect(model, example), recipe)
    growth = fxgrow.widen(model, example, {group.name: units})
    assert max(errors(model, growth.module, example)) <= EXACT
    late = LATE.get(name, ())
    assert untrained(growth.module, growth.groups, example, late=late) == []


@pytest.mark.parametrize("name", STREAMS)
def test_all_at_once_and_twice(name):
    """The second time, too, the stream has the recipe that it had."""
    model, example, recipe = build(name)
    wide = model
    for units in (3, 1):
        inspection = fxgrow.inspect(wide, example)
        assert stream(inspection, recipe)
        growth = fxgrow.widen(wide, example, {g.name: step(g, units) for g in inspection.groups})
        wide = growth.module
    assert max(errors(model, wide, example)) <= EXACT
    assert untrained(wide, growth.groups, example, late=LATE.get(name, ())) == []


@pytest.mark.parametrize("name", ANY)
def test_two_steps_move_every_new_entry(name):
    """Writers at the first step, what reads them at the second; no two units stay alike."""
    model, example, recipe = build(name)
    group = stream(fxgrow.inspect(model, example), recipe)
    module = (growth := fxgrow.widen(model, example, {group.name: 3})).module
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        sum((out - 1).pow(2).mean() for out in [run(module, example)]).backward()
        optimizer.step()
    parameters = dict(module.named_parameters())
    for slot in growth.groups[0].slots:
        if slot.tensor in parameters:
            new = torch.from_numpy(slot.new.reshape(-1))
            now = parameters[slot.tensor].detach().index_select(slot.dim, new)
            moved = now != before[slot.tensor].index_select(slot.dim, new)
            assert moved.movedim(slot.dim, 0).reshape(slot.new.size, -1).any(1).all(), slot.tensor
            if parameters[slot.tensor].ndim > 1 and slot.role == "producer":
                assert torch.unique(now, dim=slot.dim).shape[slot.dim] == slot.new.size


@pytest.mark.parametrize("name", ANY)
def test_average_keeps_its_function(name):
    model, example, recipe = build(name)
    mean = averaged(model)
    group = stream(fxgrow.inspect(model, example), recipe)
    growth = fxgrow.widen(model, example, {group.name: 5})
    grown = growth.migrate_ema(mean)
    for training in (False, True):
        wanted = outputs(mean, example, training=training)
        assert difference(wanted, outputs(grown, example, training=training)) <= EXACT
    assert difference(outputs(growth.module, example), outputs(grown, example)) > 1e-4


@pytest.mark.parametrize("name", ["pre-norm", "rms by hand", "grn"])
def test_files(name, tmp_path):
    model, example, recipe = build(name)
    group = stream(fxgrow.inspect(model, example), recipe)
    growth = fxgrow.widen(model, example, {group.name: 3})
    growth.save(str(tmp_path / "wide.safetensors"))
    loaded = fxgrow.load(str(tmp_path / "wide.safetensors"), base=model)
    for training in (False, True):
        wanted = outputs(growth.module, example, training=training)
        assert difference(wanted, outputs(loaded.module, example, training=training)) <= 1e-14


@pytest.mark.parametrize("norm", [layer_norm, FunctionNorm, SizelessNorm])
def test_own_class(norm):
    """eps and shape follow in attributes as in graphs."""
    torch.manual_seed(0)
    model = randomised(PreNorm(norm, attention=lambda: nn.Linear(8, 8)))
    example = doubled(TOKENS)
    growth = fxgrow.widen(model, example, {"stem": 3}, emit="module")
    assert type(growth.module) is PreNorm
    assert max(errors(model, growth.module, example)) <= EXACT
    assert growth.module.n1.eps == pytest.approx(model.n1.eps * 8 / 11)
    assert list(growth.module.n1.normalized_shape) == [8 if norm is SizelessNorm else 11]
    assert model.n1.weight.shape == (8,)


def test_means_by_hand_are_refused_in_own_classes():
    model, example, _ = build("grn")
    with pytest.raises(UnsupportedError, match="emit='graph'"):
        fxgrow.widen(model, example, {"up": 3}, emit="module")


def test_dropout_does_not_matter():
    """Wherever masks lie: on the stream, on what is added to it, on what is read."""

    class Dropping(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.stem, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 10), nn.Linear(10, 8)
            self.n1, self.n2, self.out = norm(), norm(), nn.Linear(8, 3)
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            x = self.drop(self.stem(x))
            x = x + self.drop(self.down(self.drop(self.up(self.n1(x)))))
            return self.out(self.drop(self.n2(x)))

    for norm, recipe in ((layer_norm, "mean"), (HandRms, "zero")):
        group = stream(fxgrow.inspect(Dropping(norm), TOKENS), recipe)
        growth = fxgrow.widen(Dropping(norm).double(), doubled(TOKENS), {group.name: 3})
        assert growth.verification.eval_error <= EXACT
        assert growth.verification.train_error <= EXACT


class Product(nn.Module):
    """One mean over two widths."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(*s) for s in ((8, 5), (8, 7), (5, 3), (7, 3)))

    def forward(self, x):
        u, v = nn.functional.gelu(self.a(x)), nn.functional.gelu(self.b(x))
        mean = (u[..., :, None] * v[..., None, :]).mean((-1, -2))
        return self.c(u) * mean[..., None] + self.d(v)


def test_one_mean_over_two_widths():
    torch.manual_seed(0)
    model, example = randomised(Product()), doubled(TOKENS)
    assert {g.recipe for g in fxgrow.inspect(model, example).groups} == {"zero"}
    for additions in ({"a": 3, "b": 2}, {"a": 3}, {"b": 2}):
        growth = fxgrow.widen(model, example, additions)
        assert max(errors(model, growth.module, example)) <= EXACT


class Shared(nn.Module):
    """One norm for two streams makes one group of them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(8, 6), nn.Linear(8, 6), nn.LayerNorm(6, eps=0.1)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.norm(self.a(x))) + self.out(self.norm(self.b(x.flip(1))))


class Reused(nn.Module):
    """The weight of the norm also multiplies something else: it can't be scaled."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.out = nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.out(self.norm(x)) + self.out(x * self.norm.weight)


class Scaled(nn.Module):
    """One layer writes with two different scales: no row is the mean for both."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.out = nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.u, self.v = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))

    def forward(self, x):
        x = self.stem(x) * self.u + self.stem(x.flip(1)) * self.v
        return self.out(self.norm(x))


class Activated(nn.Module):
    """What is normalised is no sum of products of weights any more."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.out = nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.norm(self.stem(x).tanh()))


class Spatial(nn.Module):
    """One norm group over channels and pixels: means of single pixels are not its mean."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.out = nn.Conv2d(3, 6, 1), nn.GroupNorm(1, 6), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        return self.out(self.norm(self.stem(x)))


@pytest.mark.parametrize(
    ("factory", "example", "recipe"),
    [
        (Shared, TOKENS, "mean"),
        (Reused, TOKENS, "copies"),
        (Scaled, TOKENS, "copies"),
        (Activated, TOKENS, "copies"),
        (Spatial, IMAGE, "copies"),
    ],
)
def test_uses_that_contradict(factory, example, recipe):
    torch.manual_seed(0)
    model, example = randomised(factory()), doubled(example)
    inspection = fxgrow.inspect(model, example)
    group = stream(inspection, recipe)
    growth = fxgrow.widen(model, example, {group.name: step(group, 1)})
    assert max(errors(model, growth.module, example)) <= EXACT


@pytest.mark.parametrize(
    ("name", "dtype", "recipe"),
    [
        ("pre-norm", torch.bfloat16, "copies"),
        ("pre-norm", torch.float32, "mean"),
        ("rms", torch.float16, "copies"),
        ("grn", torch.bfloat16, "zero"),
        ("llama", torch.bfloat16, "zero"),
    ],
)
def test_half_precision_is_too_coarse_for_roots_and_means(name, dtype, recipe):
    """Zeros, and numbers in the graph, are exact in any precision."""
    factory, example, _ = STREAMS[name]
    torch.manual_seed(0)
    model = factory().to(dtype)
    example = example.to(dtype) if example.is_floating_point() else example
    group = stream(fxgrow.inspect(model, example), recipe)
    if recipe != "copies":
        growth = fxgrow.widen(model, example, {group.name: 3})
        assert growth.verification.passed
        assert growth.verification.eval_error < 1e-5


@pytest.mark.parametrize("name", ["pre-norm", "llama", "grn"])
def test_votes_and_couplings(name):
    """Streams take part in votes, and are settled in as fresh units are."""
    model, example, recipe = build(name)
    target = outputs(model, example)[0] + 1
    data = [(example, target)] * 40
    name = stream(fxgrow.inspect(model, example), recipe).name
    votes = fxgrow.vote(model, data[:3], budget=4)
    assert np.isfinite(votes.values[name]).all()
    assert votes.values[name].any()
    growth = fxgrow.expand(model, data, budget=6, distributor="uniform", include=[name])
    adjusted = {g["name"]: g for g in growth.report["adjusting"]["groups"]}[name]
    assert adjusted["coupled"]
    assert adjusted["trained"]
    assert not adjusted["skipped"]
    with torch.no_grad():
        before, after = (
            nn.functional.mse_loss(run(m, example), target) for m in (model, growth.module)
        )
    assert after < before


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(2, 6), added=st.integers(1, 9), zero=st.booleans(), seed=st.integers(0, 999)
)
def test_means_of_products_are_products(width, added, zero, seed):
    """The new row times the new scale is the mean of rows times scales, for any scales."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(width + added, 3, generator=generator, dtype=torch.float64)
    scale = torch.randn(width + added, generator=generator, dtype=torch.float64) * (not zero)
    wanted = (rows * scale[:, None])[:width].mean(0)
    old, new = np.arange(width)[:, None], np.arange(width, width + added)[:, None]
    slots = (
        GrownSlot("rows", 0, "producer", old, new, Filling("mean", (("scale", 0),))),
        GrownSlot("scale", 0, "per_unit", old, new, Filling("scale")),
    )
    group = GrownGroup("g", width, added, slots, "mean")
    fill_streams([group], {"rows": rows, "scale": scale}, None)
    for unit in range(width, width + added):
        assert torch.allclose(rows[unit] * scale[unit], wanted, rtol=1e-12)
        assert rows[unit].abs().max() <= rows[:width].abs().max() * width**0.5
