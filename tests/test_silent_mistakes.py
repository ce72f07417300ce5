"""Where pruning tools of the same kind are known to be silently wrong: here, each is right."""

from __future__ import annotations

import math

import pytest
import torch
from checks import difference, errors, outputs, randomised, step
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import IMAGE, NETWORKS, Shuffle
from networks_attention import TOKENS, Block, Merging, Rotary
from oracle import complaints
from torch import nn

import fxgrow


def grown(model, example, units=3, only=()):
    """The randomised model and its grown version, which computes the same."""
    model = randomised(model)
    groups = [g for g in fxgrow.inspect(model, example).groups if g.name in only or not only]
    assert groups
    growth = fxgrow.widen(model, example, {g.name: step(g, units) for g in groups})
    assert max(errors(model, growth.module, example)) <= 1e-10
    return model, growth.module


def assert_units_are_whole(module, example):
    """No unit of the grown model is torn: with all weights random, units can be permuted."""
    module = randomised(module, seed=1)
    groups = fxgrow.inspect(module, example).groups
    assert groups
    assert complaints(module, groups, example, omit=0) == []


def test_channel_shuffle():
    """Channels keep their order through shuffles into 3 and 2, also when 12 + 5 of them."""
    image = IMAGE.double()
    model, new = grown(Shuffle(), image, units=5)
    assert new.b.out_channels > model.b.out_channels
    other = torch.randn(3, 3, 12, 10, dtype=torch.float64)
    assert difference(outputs(model, other), outputs(new, other)) <= 1e-10
    assert_units_are_whole(new, image)


def test_patch_merging():
    """Four columns of the reduction belong to each channel, one per neighbour."""
    image = IMAGE.double()
    model, new = grown(Merging(), image, units=2, only=("stem",))
    assert new.stem.out_features == 8
    columns = new.reduce.weight.detach().unflatten(1, (4, 8))
    assert torch.equal(columns[..., :6], model.reduce.weight.detach().unflatten(1, (4, 6)))
    assert not columns[..., 6:].any()
    assert_units_are_whole(new, image)


def test_rotate_half():
    """Rows that are rotated in pairs grow as whole heads, never as a longer half."""
    tokens = TOKENS.double()
    model, new = grown(Block(Rotary()), tokens, units=2)
    old, now = model.attention, new.attention
    assert now.v.out_features > old.v.out_features
    assert now.q.out_features % old.size == 0 == now.k.out_features % old.size
    # Norms see the scale of the tokens alone, so another scale is another test.
    assert difference(outputs(model, 3 * tokens), outputs(new, 3 * tokens)) <= 1e-10


def test_weight_sharing():
    """A tied weight stays one tensor, and what both of its users compute is kept."""
    factory, tokens = NETWORKS["tied"]
    _, new = grown(factory(), tokens, units=4)
    assert new.head.weight is new.embed.weight
    assert new.embed.weight.shape == (9, 10)
    assert sum(p is new.embed.weight for p in new.parameters()) == 1


class Reshaped(nn.Module):
    """Channels split into any shape, between two layers.

    The second layer reads all of it, or (``keep``) its mean over all axes but one.
    """

    def __init__(self, shape, keep=None):
        super().__init__()
        self.shape = shape
        self.rest = [] if keep is None else [i + 1 for i in range(len(shape)) if i != keep]
        self.write = nn.Linear(4, math.prod(shape))
        self.read = nn.Linear(math.prod(shape) if keep is None else shape[keep], 2)

    def forward(self, x):
        x = self.write(x).reshape(-1, *self.shape).tanh()
        return self.read((x.mean(self.rest) if self.rest else x).flatten(1))


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=5)
SAMPLES = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(SHAPES, st.integers(1, 3))
def test_reshape_of_any_rank(shape, units):
    """Axes of one channel change nothing; a true grid is frozen when nothing says which way."""
    long = sum(size > 1 for size in shape)
    model = Reshaped(tuple(shape))
    if long == 1:
        model, new = grown(model, SAMPLES, units)
        assert new.read.in_features == model.read.in_features + units
    else:
        inspection = fxgrow.inspect(model.double(), SAMPLES)
        assert inspection.groups == ()
        assert long == 0 or "reshape" in {g.reason.code for g in inspection.frozen}


@settings(derandomize=True, deadline=None, max_examples=40)
@given(SHAPES.filter(lambda shape: max(shape) > 1), st.integers(1, 3))
def test_reshape_of_any_rank_read_along_one_axis(shape, units):
    """A grid that is averaged over all axes but one grows along that one, in slabs."""
    keep = shape.index(max(shape))
    _, new = grown(Reshaped(tuple(shape), keep), SAMPLES, units)
    slab = math.prod(shape) // shape[keep]
    assert new.read.in_features == shape[keep] + units
    assert new.write.out_features == (shape[keep] + units) * slab
    assert_units_are_whole(new, SAMPLES)


class Flattened(nn.Module):
    """Channels in front, any number of positions behind them, flattened for a layer."""

    def __init__(self, rank):
        super().__init__()
        self.write, self.read = nn.Linear(4, 5), nn.Linear(5 * 2 ** (rank - 2), 3)

    def forward(self, x):
        return self.read(self.write(x).movedim(-1, 1).flatten(1))


@pytest.mark.parametrize("rank", [2, 3, 4, 5, 6])
def test_flatten_of_any_rank(rank):
    """Each channel owns as many columns as it had positions, in the right places."""
    example = torch.randn(3, *[2] * (rank - 2), 4, dtype=torch.float64)
    model, new = grown(Flattened(rank), example, units=2)
    columns = new.read.weight.detach().unflatten(1, (7, -1))
    assert columns.shape[2] == 2 ** (rank - 2)
    assert torch.equal(columns[:, :5], model.read.weight.detach().unflatten(1, (5, -1)))
    assert not columns[:, 5:].any()


class OneUnitOut(nn.Module):
    """One unit of a stream is an output of its own; ``mix`` mixes it with the others."""

    def __init__(self, unit, mix):
        super().__init__()
        self.unit, self.mix = unit, mix
        self.a, self.b, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.a(x)
        unit = x[:, self.unit]
        return self.out(self.mix(x + self.b(self.mix(x)))), unit


@pytest.mark.parametrize("unit", [0, 3, 7])
@pytest.mark.parametrize(
    "mix",
    [
        nn.LayerNorm(8),
        nn.RMSNorm(8),
        lambda x: x - x.mean(1, keepdim=True),
        lambda x: x - x.amax(1, keepdim=True),
        lambda x: x / x.norm(dim=1, keepdim=True),
    ],
    ids=["layer norm", "RMS norm", "mean", "maximum", "norm"],
)
def test_units_beside_one_that_stays_are_mixed_with_it(unit, mix):
    """What is mixed with a unit that is the user's can't grow by a recipe for all units."""
    model, example = randomised(OneUnitOut(unit, mix)), torch.randn(2, 4, dtype=torch.float64)
    inspection = fxgrow.inspect(model, example)
    for group in inspection.groups:
        growth = fxgrow.widen(model, example, {group.name: step(group, 2)}, verify=False)
        assert max(errors(model, growth.module, example)) <= 1e-10
