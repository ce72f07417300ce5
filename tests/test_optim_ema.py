"""Averages of weights outlive a growth, and compute what they did."""

from __future__ import annotations

import copy

import pytest
import torch
from checks import difference, doubled, outputs, randomised, step
from networks import NETWORKS
from optimizing import ADDITIONS, X, net, train, widened
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import fxgrow
from fxgrow.optim import migrate_ema


def averaged(model, updates=3, **options):
    """An average over random walks of the model's weights; the model walks."""
    options = {"multi_avg_fn": get_ema_multi_avg_fn(0.5), **options}
    mean = AveragedModel(model, **options)
    generator = torch.Generator().manual_seed(5)
    for _ in range(updates):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
            for name, b in model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    b.add_(0.1 * torch.rand(b.shape, generator=generator, dtype=b.dtype))
        mean.update_parameters(model)
    return mean


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_function_of_the_average_is_kept(name):
    """All recipes, copies included."""
    factory, example = NETWORKS[name]
    torch.manual_seed(0)
    model, example = randomised(factory()), doubled(example)
    mean = averaged(model, use_buffers=True)
    groups = fxgrow.inspect(model, example).groups
    growth = fxgrow.widen(model, example, {g.name: step(g) for g in groups}, seed=3)
    grown = growth.migrate_ema(mean)
    for training in (False, True):
        before = outputs(mean, example, training=training)
        assert difference(before, outputs(grown, example, training=training)) <= 1e-10
    now = outputs(growth.module, example, training=False)
    assert difference(now, outputs(grown, example)) > 1e-4  # an average, not the module


@pytest.mark.parametrize("emit", ["graph", "module"])
@pytest.mark.parametrize(
    "options",
    [
        {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
        {"multi_avg_fn": None, "avg_fn": get_ema_avg_fn(0.7)},
        {"multi_avg_fn": None},
        {"use_buffers": True, "device": "cpu"},
    ],
)
def test_averaging_goes_on(options, emit):
    """Old entries are averaged as without growth; options, count and modes are kept."""
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()
    mean = averaged(model, **options).eval()
    mean.module[1].train()
    mean.requires_grad_(False)
    growth = widened(model, {"0": 3}, emit=emit)
    grown = migrate_ema(growth, mean)
    assert type(grown) is AveragedModel
    assert (grown.avg_fn, grown.multi_avg_fn) == (mean.avg_fn, mean.multi_avg_fn)
    assert (grown.use_buffers, int(grown.n_averaged)) == (mean.use_buffers, 3)
    assert not grown.training
    assert grown.module.get_submodule("1").training
    assert not grown.module.get_submodule("3").training
    assert not any(p.requires_grad for p in grown.parameters())
    own = {id(t) for t in (*growth.module.parameters(), *growth.module.buffers())}
    assert own.isdisjoint(id(t) for t in (*grown.parameters(), *grown.buffers()))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
        for name, q in growth.module.named_parameters():
            q[growth.index_map.region(name, growth.sources[name])] = growth.sources[name]
    mean.update_parameters(model)
    grown.update_parameters(growth.module)
    for name, t in (*mean.module.named_parameters(), *mean.module.named_buffers()):
        q = dict((*grown.module.named_parameters(), *grown.module.named_buffers()))[name]
        place = growth.index_map.region(name, t) if name in growth.index_map.axes else ...
        assert torch.allclose(q[place], t, rtol=1e-12), name


def test_new_entries_are_those_of_the_grown_module():
    model = net()
    mean = averaged(model)
    growth = widened(model)
    grown = growth.migrate_ema(mean)
    for name, axes in growth.index_map.axes.items():
        own, ours = growth.module.get_parameter(name), grown.module.get_parameter(name)
        for dim, axis in axes.items():
            new = torch.from_numpy(axis.new)
            assert torch.equal(own.index_select(dim, new), ours.index_select(dim, new)), name


def test_function_is_kept_after_adjusting():
    """What reads new units has settled in the module, and starts at zero in its average."""
    model = net()
    mean = averaged(model)
    data = [(X, torch.randn(7, 3, dtype=torch.float64)) for _ in range(4)]
    growth = fxgrow.expand(model, data, budget=5, distributor="uniform", adjust_epochs=1)
    new = growth.index_map.axes["2.weight"][1].new
    assert growth.module.get_parameter("2.weight")[:, new].any()
    grown = growth.migrate_ema(mean)
    assert not grown.module.get_parameter("2.weight")[:, new].any()
    assert difference(outputs(mean, X), outputs(grown, X)) <= 1e-12


def test_precision_of_the_average_is_kept():
    """Also where streams are means, in float64, of a float32 model."""
    factory, example = NETWORKS["mlp"]
    torch.manual_seed(0)
    model = factory()
    mean = averaged(model).double()
    groups = fxgrow.inspect(model, example).groups
    assert {g.recipe for g in groups} == {"fresh", "mean"}
    growth = fxgrow.widen(model, example, {g.name: step(g) for g in groups})
    grown = growth.migrate_ema(mean)
    assert {p.dtype for p in grown.parameters()} == {torch.float64}
    example = doubled(example)
    assert difference(outputs(mean, example), outputs(grown, example)) <= 1e-12


def test_tied_averages_stay_tied():
    factory, example = NETWORKS["tied"]
    torch.manual_seed(0)
    model = factory().double()
    grown = fxgrow.widen(model, example, 2).migrate_ema(averaged(model))
    assert grown.module.head.weight is grown.module.embed.weight


def test_asgd_keeps_its_average_too():
    """Swapping the average in gives the function that the old average had."""
    factory, example = NETWORKS["mlp"]
    torch.manual_seed(0)
    model, example = randomised(factory()), doubled(example)
    optimizer = torch.optim.ASGD(model.parameters(), lr=1e-4, t0=1)
    for _ in range(4):
        optimizer.zero_grad()
        model(example).pow(2).mean().backward()
        optimizer.step()
    groups = fxgrow.inspect(model, example).groups
    growth = fxgrow.widen(model, example, {g.name: step(g) for g in groups})
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            q.copy_(optimizer.state[p]["ax"])
    before = outputs(twin, example)
    growth.migrate(optimizer)
    with torch.no_grad():
        for p in growth.module.parameters():
            p.copy_(optimizer.state[p]["ax"])
    assert difference(before, outputs(growth.module, example)) <= 1e-11


def test_mistakes_are_named():
    model = net()
    growth = widened(model)
    with pytest.raises(fxgrow.InputError, match="Sequential, no AveragedModel"):
        growth.migrate_ema(model)
    with pytest.raises(fxgrow.InputError, match=r"'0.weight' is \(9, 5\) in the averaged model"):
        growth.migrate_ema(AveragedModel(growth.module))
    with pytest.raises(fxgrow.InputError, match="very model that was grown"):
        growth.migrate_ema(AveragedModel(nn.Sequential(net(), nn.Tanh())))
    assert growth.plan.additions == ADDITIONS


def test_nothing_is_shared_with_the_old_average():
    model = net()
    mean = averaged(model)
    before = copy.deepcopy(mean.state_dict())
    growth = widened(model)
    grown = growth.migrate_ema(mean)
    optimizer = torch.optim.Adam(model.parameters())
    growth.migrate(optimizer)
    for _ in range(2):
        train(growth.module, optimizer, 1)
        grown.update_parameters(growth.module)
    assert int(grown.n_averaged) == 5
    assert all(torch.equal(v, before[k]) for k, v in mean.state_dict().items())
