"""A trained model's function in a wider model of the same architecture."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from checks import calibrated, doubled, errors, randomised, run, step, untrained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import IMAGE, NETWORKS, VECTOR, Residual
from test_random_networks import RECIPES, SIZE, RandomNet, Recipe
from torch import nn

import fxgrow
from fxgrow.errors import NothingToGrow, VerificationError
from fxgrow.ir import AxisMap, IndexMap
from fxgrow.matching import match_units

EXACT = 1e-10
X = doubled(VECTOR)


def mlp(width=8, classes=3, **options):
    return nn.Sequential(nn.Linear(6, width, **options), nn.Tanh(), nn.Linear(width, classes))


class Wide(nn.Module):
    """Convolutions whose widths are arguments: concatenation, shuffle, flattening, shared block."""

    def __init__(self, width=4, inner=6):
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(3, inner, 1)
        self.norm = nn.BatchNorm2d(width + inner)
        self.squeeze = nn.Conv2d(width + inner, 2 * width, 1)
        self.block = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.hidden, self.out = nn.Linear(2 * width * 64, inner), nn.Linear(inner, 3)

    def forward(self, x):
        x = torch.cat([self.stem(x), self.side(x)], 1)
        x = self.squeeze(self.norm(x).relu())
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = x + self.block(self.block(x).tanh())
        return self.out(self.hidden(x.flatten(1)).tanh())


class Stream(nn.Module):
    """Pre-norm blocks with attention by heads; width and heads in proportion, or not."""

    def __init__(self, width=8, heads=2, size=4, hidden=12, norm=nn.LayerNorm):
        super().__init__()
        self.heads, self.size = heads, size
        self.stem, self.place = nn.Linear(6, width), nn.Parameter(torch.zeros(1, 5, width))
        self.norm, self.last = norm(width), norm(width)
        self.qkv = nn.Linear(width, 3 * heads * size)
        self.proj = nn.Linear(heads * size, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x) + self.place
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1) * self.size**-0.5).softmax(-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(n, t, -1))
        x = x + self.down(self.up(self.last(x)).relu())
        return self.head(self.last(x).mean(1))


TOKENS = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}, [
        (m.training, set(m.__dict__)) for m in model.modules()
    ]


def same(a, b):
    tensors = all(torch.equal(a[0][k].nan_to_num(9), b[0][k].nan_to_num(9)) for k in a[0])
    return tensors and a[0].keys() == b[0].keys() and a[1] == b[1]


def transferred(source, target, example, **options):
    """Transfer; check exactness with the tests' own means, and that nothing else changed."""
    before = state(source), state(target)
    growth = fxgrow.transfer(source, target, example, **options)
    assert same(before[0], state(source))
    assert same(before[1], state(target))
    assert max(errors(source, growth.module, example)) <= EXACT
    assert growth.verification.passed
    assert growth.verification.partition
    for name, old in source.named_parameters():
        new = growth.module.get_parameter(name)
        assert not growth.index_map.axes.get(name) or new.shape == target.get_parameter(name).shape
        if not any(g.recipe == "copies" for g in growth.groups):
            assert torch.equal(new[growth.index_map.region(name, old)], old), name
    return growth


# ------------------------------------------------------------------ exactness


def matched(source, example):
    """Groups that a transfer can grow by any step: not streams, whose norms widen() rescales."""
    groups = fxgrow.inspect(source, example).groups
    return [g for g in groups if g.recipe in {"fresh", "copies"}]


@pytest.mark.parametrize("name", NETWORKS)
def test_into_the_widened_network(name):
    factory, example = NETWORKS[name]
    torch.manual_seed(0)
    source, example = randomised(factory()), doubled(example)
    additions = {g.name: step(g) for g in matched(source, example)}
    widened = fxgrow.widen(source, example, additions)
    target = randomised(copy.deepcopy(widened.module), 1)
    growth = transferred(source, target, example)
    assert growth.plan.additions == additions
    assert growth.index_map.axes.keys() == widened.index_map.axes.keys()


PAIRS = {
    "multilayer perceptron": (mlp, lambda: mlp(11), X),
    "from one unit": (lambda: mlp(1), lambda: mlp(3), X),
    "nothing grows": (mlp, mlp, X),
    "everything in one": (Wide, lambda: Wide(6, 7), IMAGE),
    "one of two widths": (Wide, lambda: Wide(4, 9), IMAGE),
    "heads": (Stream, lambda: Stream(heads=5), TOKENS),
    "hidden": (Stream, lambda: Stream(hidden=15), TOKENS),
    "twice the stream": (Stream, lambda: Stream(16, 4, 4, 24), TOKENS),
    "three times the stream": (Stream, lambda: Stream(24), TOKENS),
    "stream under RMSNorm": (
        lambda: Stream(norm=nn.RMSNorm),
        lambda: Stream(16, 3, norm=nn.RMSNorm),
        TOKENS,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("emit", ["module", "graph"])
def test_into_a_wider_class(name, emit):
    narrow, wide, example = PAIRS[name]
    torch.manual_seed(0)
    source, target, example = randomised(narrow()), randomised(wide(), 1), doubled(example)
    growth = transferred(source, target, example, emit=emit)
    assert isinstance(growth.module, torch.fx.GraphModule) == (emit == "graph")
    assert emit == "graph" or type(growth.module) is type(target)
    shapes = {n: p.shape for n, p in growth.module.named_parameters()}
    assert shapes == {n: p.shape for n, p in target.named_parameters()}


def test_new_units_train():
    source, target = randomised(Wide()), randomised(Wide(6, 8), 1)
    growth = transferred(source, target, doubled(IMAGE))
    assert not untrained(growth.module, growth.groups, doubled(IMAGE))


def test_new_units_keep_what_the_target_gave_them():
    source, target = randomised(mlp(3)), randomised(mlp(5), 1)
    growth = transferred(source, target, X)
    slots = {(s.tensor, s.dim): s for g in growth.groups for s in g.slots}
    new = slots["0.weight", 0].new.reshape(-1)
    assert torch.equal(growth.module[0].weight[new], target[0].weight[new])
    assert not growth.module[2].weight[:, slots["2.weight", 1].new.reshape(-1)].any()


def test_statistics_and_counts_are_the_source_s():
    source, target = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
    source, target = nn.Sequential(source, *mlp(4)), nn.Sequential(target, *mlp(5))
    for _ in range(3):
        source(VECTOR)
    growth = fxgrow.transfer(source, target, VECTOR)
    assert growth.module[0].num_batches_tracked == 3
    assert torch.equal(growth.module[0].running_var, source[0].running_var)


def test_target_stays_as_the_user_made_it():
    source, target = randomised(Residual()).train(), randomised(Residual(), 1).eval()
    target.a.weight.requires_grad_(False)
    target.extra = {"any": "thing"}
    growth = transferred(source, target, doubled(IMAGE))
    assert not growth.module.training
    assert not growth.module.a.weight.requires_grad
    assert growth.module.a.bias.requires_grad
    assert growth.module.extra == {"any": "thing"}


def test_tied_weights_stay_tied():
    factory, tokens = NETWORKS["tied"]
    source, target = randomised(factory()), randomised(factory(), 1)
    growth = transferred(source, target, tokens)
    assert growth.module.head.weight is growth.module.embed.weight


def test_other_classes_of_the_same_names():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("0", nn.Linear(6, 12))
            self.add_module("2", nn.Linear(12, 3))

        def forward(self, x):
            return getattr(self, "2")(torch.tanh(getattr(self, "0")(x)))

    target = Own().double()
    assert type(transferred(randomised(mlp()), target, X).module) is Own


def test_compiled_models():
    source, target = mlp(), mlp(12)
    growth = fxgrow.transfer(torch.compile(source), torch.compile(target), VECTOR)
    assert set(growth.sources) == set(dict(source.named_parameters()))
    assert type(growth.module) is nn.Sequential


def test_random_state_is_untouched():
    source, target = Stream(), Stream(16, 4)
    before = torch.get_rng_state()
    fxgrow.transfer(source, target, TOKENS.float())
    assert torch.equal(before, torch.get_rng_state())


def disturbed(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator).to(tensor))
    return model


# What may be refused: their parts are of another size, or mixed, at another width.
MAY_REFUSE = {"grouped", "groupnorm", "layernorm", "prenorm", "prerms"}
HYPOTHESIS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@HYPOTHESIS
@given(recipe=RECIPES, more=st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_random_networks_of_other_widths(recipe: Recipe, more: list[int]) -> None:
    blocks = [(k, size + n) for (k, size), n in zip(recipe.blocks, more, strict=False)]
    wide = Recipe(recipe.width + more[-1], blocks, recipe.head, recipe.seed + 1)
    source = disturbed(RandomNet(recipe).double(), 0)
    target = disturbed(RandomNet(wide).double(), 1)
    generator = torch.Generator().manual_seed(recipe.seed)
    x = torch.randn(3, 2, SIZE, SIZE, generator=generator, dtype=torch.float64)
    try:
        growth = fxgrow.transfer(source, target, x)
    except fxgrow.UnsupportedError as error:
        kinds = {kind for kind, _ in recipe.blocks}
        assert kinds & MAY_REFUSE or recipe.head == "attention", error
        return
    assert max(errors(source, growth.module, x)) <= EXACT


@HYPOTHESIS
@given(recipe=RECIPES, units=st.integers(1, 3))
def test_random_networks_into_widened_ones(recipe: Recipe, units: int) -> None:
    source = disturbed(RandomNet(recipe).double(), 0)
    generator = torch.Generator().manual_seed(recipe.seed)
    x = torch.randn(3, 2, SIZE, SIZE, generator=generator, dtype=torch.float64)
    groups = matched(source, x)
    if not groups:
        return
    widened = fxgrow.widen(source, x, {g.name: units * g.multiple_of for g in groups})
    growth = fxgrow.transfer(source, disturbed(copy.deepcopy(widened.module), 1), x)
    assert growth.plan.additions == widened.plan.additions
    assert max(errors(source, growth.module, x)) <= EXACT


def torchvision_pair(name):
    from torchvision import models

    return {
        "shufflenet": (models.shufflenet_v2_x0_5, models.shufflenet_v2_x1_0),
        "mnasnet": (models.mnasnet0_5, lambda: models.MNASNet(0.75)),
        "densenet": (
            lambda: models.DenseNet(8, (2, 3), 12, num_classes=10),
            lambda: models.DenseNet(10, (2, 3), 12, num_classes=10),
        ),
        "vit": (
            lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10),
            lambda: models.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=10),
        ),
        "swin": (
            lambda: models.SwinTransformer([4, 4], 8, [1, 1], [2, 4], [4, 4], 2.0),
            lambda: models.SwinTransformer([4, 4], 8, [1, 1], [2, 4], [4, 4], 3.0),
        ),
    }[name]


@pytest.mark.parametrize("name", ["shufflenet", "mnasnet", "densenet", "vit", "swin"])
def test_torchvision(name):
    narrow, wide = torchvision_pair(name)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    torch.manual_seed(0)
    growth = transferred(calibrated(randomised(narrow()), x), randomised(wide(), 1), x)
    assert growth.groups


# -------------------------------------------------------------------- results


def test_plan_and_report():
    growth = transferred(randomised(Wide()), randomised(Wide(6, 7), 1), doubled(IMAGE))
    assert growth.plan.additions == {"stem": 2, "side": 1, "squeeze": 4, "hidden": 1}
    assert growth.plan.spent == sum(g.added for g in growth.groups)
    totals = growth.report["totals"]
    assert totals["new_params"] == sum(p.numel() for p in growth.module.parameters())
    assert totals["groups_grown"] == totals["groups"] == 4
    rows = {row["name"]: (row["width"], row["new_width"]) for row in growth.report["groups"]}
    assert rows == {"stem": (4, 6), "side": (6, 7), "squeeze": (8, 12), "hidden": (6, 7)}
    assert growth.votes is None
    assert growth.report["verification"]["passed"]


class Shuffles(nn.Module):
    """Halves go through convolutions and are shuffled, several times, as in ShuffleNet."""

    def __init__(self, width, times=2):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 2 * width, 1), nn.BatchNorm2d(2 * width)
        self.work = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(times))
        self.fc = nn.Linear(2 * width, 3)

    def forward(self, x):
        x = self.stem(x)
        n, c, h, w = x.shape
        for layer in self.work:
            keep, work = x.chunk(2, 1)
            x = torch.cat([keep, layer(work).tanh()], 1)
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(self.norm(x).relu().mean((2, 3)))


def train(model, example, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        run(model.train(), example).square().mean().backward()
        optimizer.step()


MIGRATING = {
    "perceptron": lambda: (randomised(mlp()), randomised(mlp(12), 1), X),
    "wide": lambda: (randomised(Wide()), randomised(Wide(6, 7), 1), doubled(IMAGE)),
    "shuffled": lambda: (randomised(Shuffles(4)), randomised(Shuffles(8), 1), doubled(IMAGE)),
}


@pytest.mark.parametrize("name", MIGRATING)
@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_the_source_s_optimizer_goes_on(name, fill):
    source, target, example = MIGRATING[name]()
    optimizer = torch.optim.Adam(source.parameters(), lr=1e-3)
    train(source, example, optimizer)
    growth = transferred(source, target, example)
    ungrown = copy.deepcopy(source)
    other = torch.optim.Adam(ungrown.parameters(), lr=1e-3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    growth.migrate(optimizer, fill=fill)
    train(ungrown, example, other, 1)
    train(growth.module, example, optimizer, 1)
    for key, p in ungrown.named_parameters():
        new = growth.module.get_parameter(key)
        held = optimizer.state[new]
        assert held["step"] == 3
        region = growth.index_map.region(key, p)
        assert torch.allclose(new[region], p, rtol=0, atol=1e-9), key
        assert torch.isfinite(held["exp_avg_sq"]).all()
        assert torch.allclose(held["exp_avg"][region], other.state[p]["exp_avg"], atol=1e-9)


def test_copies_take_their_moments_along():
    source, target = randomised(Stream()), randomised(Stream(16, 4), 1)
    optimizer = torch.optim.Adam(source.parameters())
    train(source, TOKENS, optimizer)
    before = optimizer.state[source.stem.bias]["exp_avg"].clone()
    growth = transferred(source, target, TOKENS)
    growth.migrate(optimizer)
    after = optimizer.state[growth.module.stem.bias]["exp_avg"]
    assert torch.equal(after, before.repeat(2)) or torch.allclose(after.sum(), before.sum())
    train(growth.module, TOKENS, optimizer)


def test_averages_go_on():
    source, target, example = MIGRATING["wide"]()
    averaged = torch.optim.swa_utils.AveragedModel(source)
    train(source, example, torch.optim.SGD(source.parameters(), lr=0.1))
    averaged.update_parameters(source)
    growth = transferred(source, target, example)
    wide = growth.migrate_ema(averaged)
    assert max(errors(averaged.module, wide.module, example)) <= EXACT


@pytest.mark.parametrize("emit", ["module", "graph"])
def test_saved_and_loaded_onto_the_target(tmp_path, emit):
    growth = fxgrow.transfer(Wide(), Wide(6, 7), IMAGE, emit=emit)
    growth.save(tmp_path / "a.safetensors")
    base = Wide(6, 7)
    loaded = fxgrow.load(tmp_path / "a.safetensors", base=base)
    assert isinstance(loaded.module, torch.fx.GraphModule) == (emit == "graph")
    assert torch.equal(loaded.module.eval()(IMAGE), growth.module.eval()(IMAGE))
    assert loaded.plan == growth.plan
    assert loaded.verification == growth.verification
    assert not torch.equal(base.stem.weight, loaded.module.stem.weight)
    with pytest.raises(fxgrow.FileError, match="does not belong to this base model"):
        fxgrow.load(tmp_path / "a.safetensors", base=Wide())


# ------------------------------------------------------------------- refusals


def seq(*layers):
    return nn.Sequential(*layers)


def convs(groups, width, kernel=1):
    return seq(nn.Conv2d(3, width, 1), nn.Conv2d(width, width, kernel, groups=groups),
               nn.Conv2d(width, 2, 1))  # fmt: skip


def normed(groups, width):
    return seq(nn.Conv2d(3, width, 1), nn.GroupNorm(groups, width), nn.Conv2d(width, 2, 1))


def flat(pool):
    return seq(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(pool), nn.Flatten(),
               nn.Linear(4 * pool**2, 2))  # fmt: skip


def unused(size):
    module = mlp()
    module.register_parameter("spare", nn.Parameter(torch.zeros(size)))
    return module


def broken():
    module = mlp(9)
    nn.init.constant_(module[0].bias, float("nan"))
    return module


def longer():
    target = Stream()
    target.place = nn.Parameter(torch.zeros(1, 7, 8))
    return target


class Shared(nn.Module):
    def __init__(self, tie):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        if tie:
            self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x).tanh())


REFUSED = {
    "deeper": (mlp(), seq(*mlp(), nn.Tanh(), nn.Linear(3, 3)), X,
               r"not of one architecture: the source lacks 4\.weight, 4\.bias; give both the same"),
    "other names": (mlp(), nn.Sequential(), X, r"the target lacks 0\.weight, 0\.bias, 2\.weight "
                    r"and 1 more"),
    "no bias": (mlp(), mlp(9, bias=False), X, r"the target lacks 0\.bias"),
    "wrapped": (seq(mlp()), mlp(9), X, r"one of both is wrapped: pass its \.0"),
    "tied": (Shared(True), Shared(False), X, r"lacks b\.weight.*tie or untie them alike"),
    "narrower": (mlp(9), mlp(8), X, r"narrower than the source: 0\.weight \(dim 0: 9 in the "
                 r"source, 8 in the target\), .*2\.weight \(dim 1.*; a transfer only widens"),
    "another dtype": (mlp().float(), mlp(9).double(), VECTOR,
                      r"0\.weight \(float32 on cpu and float64 on cpu\).*target\.to"),
    "other dimensions": (seq(nn.Conv1d(3, 4, 1)), seq(nn.Conv2d(3, 4, 1)), IMAGE,
                         r"0\.weight \(3 and 4\)"),
    "not initialised": (mlp(), broken(), X, r"not finite: 0\.bias"),
    "more classes": (mlp(), mlp(8, 4), X, r"'2' growing from 3 to 4 units \(2\.bias dim 0, "
                     r"2\.weight dim 0\): the units reach the model's outputs.*the source's size"),
    "wider groups": (convs(2, 4), convs(2, 8), IMAGE,
                     r"units of '0', which have 2 entries each along dim 0 of 0\.bias and 4 in the "
                     r"target; keep the size of heads, convolution groups"),
    "wider norm groups": (normed(2, 4), normed(2, 8), IMAGE, r"units of '0', which have 2 entries"),
    "kernel": (convs(1, 4), convs(1, 5, kernel=3), IMAGE,
               r"1\.weight, which has 1 entries along dim 2 and 3 in the target: a kernel"),
    "positions": (flat(2), flat(3), IMAGE, r"units of '0'.*have 4 entries each.*and 9 in"),
    "stream": (Stream(), Stream(12), TOKENS,
               r"'stem' growing from 8 to 12 units.*only whole multiples are exact; take 8 or 16"),
    "head size": (Stream(), Stream(size=6), TOKENS, r"units of 'qkv', which have 4 entries each "
                  r"along dim 1 of proj\.weight and 6 in the target"),
    "width of one": (Wide(1, 1), Wide(3, 2), IMAGE,
                     r"a width of 1 in the source \(.*\) is not told from no width"),
    "unused": (unused(3), unused(4), X, r"spare.*nothing uses it on the example inputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    source, target, example, words = REFUSED[name]
    kinds = [model.double() for model in (source, target) if name != "another dtype"]
    example = doubled(example) if kinds else example
    before = state(source), state(target)
    with pytest.raises(fxgrow.UnsupportedError, match=words) as caught:
        fxgrow.transfer(source, target, example)
    assert not isinstance(caught.value, NothingToGrow)
    assert same(before[0], state(source))
    assert same(before[1], state(target))


@pytest.mark.parametrize(
    ("widths", "times", "words"),
    [
        ((6, 7), 3, r"2 units of 'work\.0#2', for the target has only 1 that are coupled alike"),
        (
            (5, 9),
            5,
            r"no unit of the target has slices in the same tensors \(.*work\.4\.weight dim 1",
        ),
    ],
)
def test_ways_through_shuffles_that_the_wide_model_lacks(widths, times, words):
    source, target = (Shuffles(width, times) for width in widths)
    with pytest.raises(fxgrow.UnsupportedError, match=words):
        fxgrow.transfer(source, target, IMAGE)


@pytest.mark.parametrize("widths", [(3, 5), (3, 8), (4, 6), (5, 8), (6, 10)])
@pytest.mark.parametrize("times", [2, 3])
def test_shuffles(widths, times):
    source, target = (randomised(Shuffles(width, times), width) for width in widths)
    growth = transferred(source, target, doubled(IMAGE))
    assert growth.report["totals"]["groups_grown"] == len(growth.groups)
    optimizer = torch.optim.Adam(source.parameters())
    train(source, doubled(IMAGE), optimizer)
    growth.migrate(optimizer, fill="mean")  # units unlike any old one have no mean
    assert all(torch.isfinite(s["exp_avg_sq"]).all() for s in optimizer.state.values())


def test_another_function():
    target = seq(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    with pytest.raises(VerificationError, match=r"another function.*activations, strides, eps"):
        fxgrow.transfer(mlp().double(), target, X)


def test_inputs_that_do_not_fit():
    with pytest.raises(fxgrow.DataError, match="source: the model does not run"):
        fxgrow.transfer(mlp(), mlp(9), torch.zeros(1, 5))
    with pytest.raises(fxgrow.DataError, match="target: the model does not run"):
        fxgrow.transfer(Stream(), longer(), TOKENS.float())
    with pytest.raises(fxgrow.InputError, match="take 'module' or 'graph'"):
        fxgrow.transfer(mlp(), mlp(9), VECTOR, emit="onnx")


def tampered(matching, name, dim, positions):
    axes = {k: dict(v) for k, v in matching.index_map.axes.items()}
    axes[name][dim] = AxisMap(axes[name][dim].size, positions)
    return replace(matching, index_map=IndexMap(axes))


@pytest.mark.parametrize("positions", [[1, 0, 2], [0, 1, 3], [0, 0, 2]])
def test_partition_check_sees_one_wrong_axis(positions):
    from fxgrow.alike import lasting_tensors
    from fxgrow.transfer import check_units

    models = mlp(3), mlp(5)
    narrow, wide = (fxgrow.inspect(model, VECTOR) for model in models)
    shapes = [{n: tuple(t.shape) for n, t in lasting_tensors(m).items()} for m in models]
    matching = match_units(narrow, wide, *shapes)
    check_units(narrow, wide, matching)
    with pytest.raises(VerificationError, match="slices of one unit"):
        check_units(narrow, wide, tampered(matching, "2.weight", 1, np.array(positions)))
