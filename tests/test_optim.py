"""Optimizers outlive a growth: options, flags, state, whatever they are used with."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import NETWORKS
from optimizing import (
    COUPLED,
    Master,
    X,
    closure_of,
    loss_of,
    net,
    train,
    widened,
)
from torch import nn

import fxgrow


def test_groups_options_order_and_flags_stay():
    model = net()
    extra = nn.Parameter(torch.ones(3, dtype=torch.float64))
    rate = torch.tensor(1e-3)
    optimizer = torch.optim.Adam(
        [
            {"params": [("c", model[4].weight), ("x", extra), ("a", model[0].weight)], "lr": rate},
            {"params": [("b", model[2].bias)], "weight_decay": 0.1, "betas": (0.8, 0.9)},
        ],
        foreach=False,
        differentiable=False,
    )
    (loss_of(model) + extra.sum()).backward()
    optimizer.step()
    before = optimizer.state[extra]
    optimizer.param_groups[1].update(capturable=True, fused=True, foreach=True)
    groups = list(optimizer.param_groups)
    options = [{k: v for k, v in g.items() if k != "params"} for g in groups]
    growth = widened(model)
    assert growth.migrate(optimizer) is optimizer
    new = growth.module.get_parameter
    expected = [[new("4.weight"), extra, new("0.weight")], [new("2.bias")]]
    for group, same, option, wanted in zip(
        optimizer.param_groups, groups, options, expected, strict=True
    ):
        assert group is same
        assert [id(p) for p in group["params"]] == [id(p) for p in wanted]
        assert {k: v for k, v in group.items() if k != "params"} == option
    assert groups[0]["lr"] is rate
    assert optimizer.state[extra] is before  # of another model: untouched
    held = {id(p) for p in optimizer.state}
    assert held == {id(p) for wanted in expected for p in wanted}  # nothing else moved in


def test_parameters_without_state():
    """Never stepped, or frozen."""
    model = net()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    assert model[0].weight not in optimizer.state
    growth = widened(model)
    growth.migrate(optimizer)
    assert growth.module.get_parameter("0.weight") not in optimizer.state
    train(growth.module, optimizer, 1)
    fresh = torch.optim.Adam(model.parameters())
    assert not growth.migrate(fresh).state
    train(growth.module, fresh, 1)


def test_tied_weights_are_one_parameter():
    factory, example = NETWORKS["tied"]
    torch.manual_seed(0)
    model = factory().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def fit(module):
        optimizer.zero_grad()
        module(example).pow(2).mean().backward()
        optimizer.step()

    fit(model)
    growth = fxgrow.widen(model, example, 2)
    growth.migrate(optimizer)
    ids = [id(p) for p in optimizer.param_groups[0]["params"]]
    assert ids == [id(p) for p in growth.module.parameters()]
    assert growth.module.head.weight is growth.module.embed.weight
    assert optimizer.state[growth.module.embed.weight]["exp_avg"].shape == (9, 8)
    fit(growth.module)


@pytest.mark.parametrize("emit", ["graph", "module"])
def test_growing_twice(emit):
    """Old entries of a run that grows twice move as in one that never does."""
    plain, model = net(), net()
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (plain, model)]
    train(plain, optimizers[0], 2)
    train(model, optimizers[1], 2)
    first = widened(model, emit=emit)
    first.migrate(optimizers[1])
    second = widened(first.module, {"0": 1, "2": 3}, emit=emit)
    second.migrate(optimizers[1])
    train(plain, optimizers[0], 1)
    train(second.module, optimizers[1], 1)
    assert optimizers[1].state[second.module.get_parameter("0.bias")]["step"] == 3
    for name, p in plain.named_parameters():
        q = second.module.get_parameter(name)
        for growth in (second, first):
            if name in growth.index_map.axes:
                axes = growth.index_map.axes[name]
                for dim, axis in axes.items():
                    q = q.index_select(dim, torch.from_numpy(axis.old))
        assert torch.allclose(p, q, rtol=1e-11, atol=1e-14)


def test_state_dict_round_trip():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True)
    train(model, optimizer)
    growth = widened(model)
    growth.migrate(optimizer)
    twin = copy.deepcopy(growth.module)
    again = torch.optim.AdamW(twin.parameters(), lr=0.5)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(growth.module, optimizer, 3)
    train(twin, again, 3)
    for p, q in zip(growth.module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_bf16_parameters_with_float32_state():
    model = net(dtype=torch.bfloat16)
    optimizer = Master(model.parameters())
    train(model, optimizer)
    old = optimizer.state[model[2].weight]["buffer"].clone()
    growth = widened(model)
    growth.migrate(optimizer)
    weight = growth.module.get_parameter("2.weight")
    state = optimizer.state[weight]
    assert (weight.dtype, state["buffer"].dtype, state["count"]) == (
        torch.bfloat16,
        torch.float32,
        3,
    )
    wanted = growth.index_map.apply("2.weight", old)
    assert torch.equal(state["buffer"], wanted)
    train(growth.module, optimizer, 1)
    adam = torch.optim.Adam(model.parameters())
    train(model, adam)
    widened(model).migrate(adam)
    assert {v.dtype for s in adam.state.values() for k, v in s.items() if k != "step"} == {
        torch.bfloat16
    }


@pytest.mark.parametrize("flag", ["fused", "foreach"])
def test_channels_last_stays(flag):
    """Fused kernels read state by the parameter's strides: both must stay alike."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    model = model.to(memory_format=torch.channels_last).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, **{flag: True})

    def fit(module, opt):
        opt.zero_grad()
        module(x).pow(2).mean().backward()
        opt.step()

    fit(model, optimizer)
    growth = fxgrow.widen(model, x, {"0": 3, "2": 2})
    twin = copy.deepcopy(optimizer, {id(p): p for p in model.parameters()})
    growth.migrate(twin)
    for name in ("0.weight", "2.weight"):
        weight = growth.module.get_parameter(name)
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
        assert twin.state[weight]["exp_avg"].stride() == weight.stride()
    fit(model, optimizer)
    fit(growth.module, twin)
    for name, p in model.named_parameters():
        q = growth.module.get_parameter(name)
        place = growth.index_map.region(name, p) if name in growth.index_map.axes else ...
        assert torch.allclose(q[place], p, rtol=1e-10, atol=1e-13), name


def test_sparse_adam():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Tanh(), nn.Linear(4, 2))
    tokens = torch.tensor([[1, 2], [5, 2]])
    optimizer = torch.optim.SparseAdam([model[0].weight], lr=1e-2)
    model(tokens).pow(2).mean().backward()
    optimizer.step()
    old = optimizer.state[model[0].weight]["exp_avg"].clone()
    growth = fxgrow.widen(model, tokens, {"0": 3})
    growth.migrate(optimizer)
    weight = growth.module.get_parameter("0.weight")
    state = optimizer.state[weight]
    assert state["step"] == 1
    assert torch.equal(state["exp_avg"], growth.index_map.apply("0.weight", old))
    before = weight.detach().clone()
    growth.module(tokens).pow(2).mean().backward()
    optimizer.step()
    assert (weight != before).any(1).tolist() == [n in (1, 2, 5) for n in range(9)]


def test_gradient_scaler_goes_on():
    model = net(dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)

    def fit(module):
        optimizer.zero_grad()
        scaler.scale(loss_of(module)).backward()
        scaler.step(optimizer)
        scaler.update()

    fit(model)
    growth = widened(model)
    growth.migrate(optimizer)
    before = growth.module.get_parameter("0.weight").detach().clone()
    fit(growth.module)
    assert scaler.get_scale() == 128.0
    assert (growth.module.get_parameter("0.weight") != before).any()
    scaler.scale(loss_of(growth.module) * float("inf")).backward()
    kept = growth.module.get_parameter("0.weight").detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 64.0
    assert torch.equal(growth.module.get_parameter("0.weight"), kept)


def test_expand_on_a_device_knows_the_callers_parameters():
    model = net(dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    data = [(X.float(), torch.zeros(7, 3))]
    growth = fxgrow.expand(model, data, budget=3, device="cpu", distributor="uniform")
    assert growth.sources["0.weight"] is model[0].weight
    growth.migrate(optimizer)
    train(growth.module, optimizer, 1)


def test_state_follows_to_another_device():
    """Step counts stay on the CPU, as torch has them."""
    model = net()
    optimizer = torch.optim.NAdam(model.parameters())
    train(model, optimizer)
    growth = widened(model)
    growth.module.to("meta")
    growth.migrate(optimizer, fill="mean")
    for p in growth.module.parameters():
        state = optimizer.state[p]
        assert (state["step"].device.type, float(state["step"])) == ("cpu", 3.0)
        for key in ("exp_avg", "exp_avg_sq"):
            assert (state[key].device.type, state[key].shape) == ("meta", p.shape)


class PassesOn(torch.optim.Optimizer):
    """Like Accelerate's: holds the real optimizer and passes everything on."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)
    defaults = property(lambda self: self.optimizer.defaults)


def test_wrapped_optimizers():
    model = net()
    inner = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(inner, 0.9)
    train(model, inner)
    scheduler.step()
    growth = widened(model)
    wrapper = PassesOn(inner)
    options = {"new_options": {"lr": 0.001}, "schedulers": [scheduler]}
    assert growth.migrate(wrapper, **options) is wrapper
    train(growth.module, inner, 1)
    scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.0081, 0.0009])
    lbfgs = torch.optim.LBFGS(model.parameters())
    lbfgs.step(closure_of(model, lbfgs))
    with pytest.raises(fxgrow.UnsupportedError, match="LBFGS has a history"):
        growth.migrate(PassesOn(lbfgs))


# ---------------------------------------------------------------- coupled optimizers


@pytest.mark.parametrize("kind", COUPLED)
def test_coupled_optimizers_keep_the_direction_of_producers(kind):
    """They scale by the whole tensor, so old rows of a producer move by one factor more or less.

    Muon computes in bfloat16. Tensors that read new units are another matrix: no claim.
    """
    tolerance = 2e-2 if kind == "muon" else 1e-12
    make, options = COUPLED[kind]
    plain, model = net(), net()
    runs = []
    for m in (plain, model):
        runs.append(make([p for p in m.parameters() if p.ndim == 2], **options))
        train(m, runs[-1])
    growth = widened(model, {"0": 3})
    growth.migrate(runs[1])
    before = plain[0].weight.detach().clone()
    grown = growth.module.get_parameter("0.weight")
    after = grown.detach().clone()
    plain.zero_grad()
    train(plain, runs[0], 1)
    train(growth.module, runs[1], 1)
    rows = torch.from_numpy(growth.index_map.axes["0.weight"][0].old)
    mine = (grown.detach() - after)[rows].flatten()
    theirs = (plain[0].weight.detach() - before).flatten()
    factor = (mine @ theirs) / (theirs @ theirs)
    assert (mine - factor * theirs).norm() <= tolerance * mine.norm()
    assert 0.3 < factor < 3
    kept = growth.module.get_parameter("4.weight")  # not grown: the very same step
    assert torch.allclose(kept, plain[4].weight, rtol=1e-10, atol=1e-13)


def test_adafactor_of_vectors_in_convolutions():
    """Factors run over kernel axes; rows and columns both grow."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 1)
    )
    x = torch.randn(2, 1, 7, 7)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(x).pow(2).mean().backward()
    optimizer.step()
    growth = fxgrow.widen(model, x, {"0": 2, "2": 1})
    growth.migrate(optimizer)
    state = optimizer.state[growth.module.get_parameter("2.weight")]
    assert (tuple(state["row_var"].shape), tuple(state["col_var"].shape)) == (
        (5, 5, 3, 1),
        (5, 5, 1, 3),
    )
    growth.module(x).pow(2).mean().backward()
    optimizer.step()
