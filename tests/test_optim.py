"""Optimizers outlive a growth: state, options, schedulers, and errors that change nothing."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import NETWORKS
from test_optim_exact import ELEMENTWISE
from torch import nn

import fxgrow
from fxgrow.optim import migrate

X = torch.randn(7, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
ADDITIONS = {"0": 3, "2": 2}


def net(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)]
    return nn.Sequential(*layers).to(dtype)


def widened(model, additions=None, **options):
    like = next(model.parameters())
    return fxgrow.widen(model, X.to(like.dtype), additions or ADDITIONS, **options)


def loss_of(model, x=X):
    return model(x.to(next(model.parameters()).dtype)).pow(2).mean()


def train(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def frozen_copy(value):
    """A deep copy in which tensors are their bytes and identities, for comparisons."""
    if isinstance(value, torch.Tensor):
        numbers = value.detach().clone()
        return id(value), str(numbers.dtype), tuple(numbers.shape), numbers.double().tolist()
    if isinstance(value, dict):
        return {
            id(k) if isinstance(k, torch.Tensor) else k: frozen_copy(v) for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [frozen_copy(v) for v in value]
    return value


def picture(optimizer):
    return frozen_copy([optimizer.param_groups, dict(optimizer.state)])


def by_name(growth, optimizer):
    return {
        name: optimizer.state.get(p, {})
        for name, p in growth.module.named_parameters()
        if any(p is q for group in optimizer.param_groups for q in group["params"])
    }


# ---------------------------------------------------------------- what new entries hold

COUPLED = {
    "adafactor": (torch.optim.Adafactor, {"lr": 1e-2, "weight_decay": 0.0}),
    "muon": (torch.optim.Muon, {"lr": 1e-2, "weight_decay": 0.0}),
}
STILL = {"weight_decay": 0, "lambd": 0.0}


@pytest.mark.parametrize("kind", sorted({**ELEMENTWISE, **COUPLED}))
def test_zero_is_the_state_of_entries_that_never_saw_a_gradient(kind):
    """The same state as that of a wide optimizer that was fed zeros for new entries."""
    make, options = {**ELEMENTWISE, **COUPLED}[kind]
    known = make([torch.ones(2, 2)], **options).defaults
    options = {**options, **{key: value for key, value in STILL.items() if key in known}}
    model = net()
    old = [p for p in model.parameters() if p.ndim == 2 or kind != "muon"]
    growth = widened(model)
    wide = fxgrow.widen(model, X, ADDITIONS).module
    twins = [p for p in wide.parameters() if p.ndim == 2 or kind != "muon"]
    names = [n for n, p in wide.named_parameters() if p.ndim == 2 or kind != "muon"]
    narrow_optimizer = make(old, **options)
    wide_optimizer = make(twins, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for name, p, q in zip(names, old, twins, strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            q.grad = growth.index_map.apply(name, p.grad)
        narrow_optimizer.step()
        wide_optimizer.step()
    growth.migrate(narrow_optimizer)
    got = by_name(growth, narrow_optimizer)
    assert got.keys() == set(names)
    for name, q in zip(names, twins, strict=True):
        wanted = wide_optimizer.state.get(q, {})
        assert got[name].keys() == wanted.keys()
        for key, value in wanted.items():
            mine = got[name][key]
            if value is None:  # SGD without momentum
                assert mine is None
                continue
            assert (mine.dtype, mine.shape) == (value.dtype, value.shape)
            assert mine.stride() == value.stride()
            if key in {"ax"}:  # of the grown module's own values, where new
                new = dict(growth.module.named_parameters())[name]
                mask = torch.ones_like(new, dtype=torch.bool)
                mask[growth.index_map.region(name, growth.sources[name])] = False
                assert torch.equal(mine[mask], new[mask])
                mine, value = mine[~mask], value[~mask]
            assert torch.allclose(mine, value, rtol=1e-12, atol=0), (name, key)


SCALES = {
    "adam amsgrad": ["exp_avg_sq", "max_exp_avg_sq"],
    "rmsprop centered": ["square_avg"],
    "adagrad": ["sum"],
    "adadelta": ["square_avg", "acc_delta"],
    "adamax": ["exp_inf"],
    "rprop": ["step_size"],
    "radam": ["exp_avg_sq"],
    "nadam": ["exp_avg_sq"],
    "adafactor": ["row_var", "variance"],
}


@pytest.mark.parametrize("kind", sorted(SCALES))
def test_mean_fills_scales_with_the_mean_over_old_units(kind):
    make, options = {**ELEMENTWISE, **COUPLED}[kind]
    model = net()
    optimizer = make(model.parameters(), **options)
    train(model, optimizer)
    old = {n: dict(optimizer.state[p]) for n, p in model.named_parameters()}
    growth = widened(model)
    growth.migrate(optimizer, fill="mean")
    got = by_name(growth, optimizer)
    for name, axes in growth.index_map.axes.items():
        for key, value in got[name].items():
            if value.ndim != len(growth.sources[name].shape):
                assert torch.equal(value, old[name][key])
                continue
            wanted = old[name][key]
            for dim, axis in sorted(axes.items()):
                if wanted.shape[dim] != len(axis.old):
                    continue
                mean = wanted.mean(dim, keepdim=True) if key in SCALES[kind] else 0 * wanted
                shape = [axis.size if d == dim else n for d, n in enumerate(wanted.shape)]
                spread = (
                    mean.expand(shape).clone() if key in SCALES[kind] else mean.new_zeros(shape)
                )
                spread.index_copy_(dim, torch.from_numpy(axis.old), wanted)
                wanted = spread
            if key == "col_var":
                continue
            assert torch.allclose(value, wanted, rtol=1e-12, atol=0), (name, key)


def test_first_steps_of_new_entries():
    """Zero moments make them 3 times those of old ones; the mean does not."""
    sizes = {}
    for fill in ("zero", "mean"):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(300):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            optimizer.step()
        growth = widened(model)
        growth.migrate(optimizer, fill=fill)
        weight = growth.module.get_parameter("2.weight")
        weight.grad = torch.ones_like(weight)
        before = weight.detach().clone()
        optimizer.step()
        change = (weight.detach() - before).abs()
        new = growth.index_map.axes["2.weight"][1].new
        sizes[fill] = float(change[:, new].mean()) / 1e-3
    assert sizes["zero"] == pytest.approx(0.1 * (1 - 0.999**301) ** 0.5 / 0.001**0.5)
    assert sizes["mean"] < 0.2


def test_reset_drops_the_state_of_grown_parameters_only():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    kept = optimizer.state[model[4].bias]
    growth = widened(model)
    growth.migrate(optimizer, fill="reset")
    state = by_name(growth, optimizer)
    assert state["4.bias"] is kept
    assert {name for name, s in state.items() if s} == {"4.bias"}
    train(growth.module, optimizer, 1)
    assert state["4.bias"]["step"] == 4
    assert by_name(growth, optimizer)["0.weight"]["step"] == 1


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_copies_have_the_state_of_the_units_they_copy(fill):
    factory, example = NETWORKS["mlp"]
    torch.manual_seed(0)
    model = factory()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        model(example).pow(2).mean().backward()
        optimizer.step()
    group = next(g for g in fxgrow.inspect(model, example).groups if g.recipe == "copies")
    old = {n: optimizer.state[p]["exp_avg"].clone() for n, p in model.named_parameters()}
    growth = fxgrow.widen(model, example, {group.name: 2 * group.width})
    growth.migrate(optimizer, fill=fill)
    checked = 0
    for slot in growth.groups[0].slots:
        if slot.tensor not in growth.sources:
            continue
        mine = by_name(growth, optimizer)[slot.tensor]["exp_avg"]
        templates = np.repeat(np.arange(group.width), 2)
        copies = mine.index_select(slot.dim, torch.from_numpy(slot.new.reshape(-1)))
        units = old[slot.tensor].index_select(slot.dim, torch.from_numpy(templates))
        assert torch.equal(copies, units)
        assert units.any()
        checked += 1
    assert checked > 5
    optimizer.step()


# ---------------------------------------------------------------- what stays as it was


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
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    assert model[2].weight not in optimizer.state
    growth = widened(model)
    growth.migrate(optimizer)
    assert growth.module.get_parameter("2.weight") not in optimizer.state
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


class Master(torch.optim.Optimizer):
    """Momentum in float32, whatever the parameters are; steps counted in Python."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                buffer = state.setdefault("buffer", torch.zeros(p.shape, dtype=torch.float32))
                state["count"] = state.get("count", 0) + 1
                buffer.mul_(0.9).add_(p.grad)
                p.sub_((group["lr"] * buffer).to(p.dtype))


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


# ---------------------------------------------------------------- coupled optimizers


@pytest.mark.parametrize(("kind", "tolerance"), [("adafactor", 1e-12), ("muon", 2e-2)])
def test_coupled_optimizers_keep_the_direction_of_producers(kind, tolerance):
    """They scale by the whole tensor, so old rows of a producer move by one factor more or less.

    Muon computes in bfloat16. Tensors that read new units are another matrix: no claim.
    """
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


# ---------------------------------------------------------------- LBFGS


def closure_of(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    return closure


def test_lbfgs_is_carried_without_history_only():
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    fresh = widened(model)
    fresh.migrate(copy.deepcopy(optimizer, {id(p): p for p in model.parameters()}))
    optimizer.step(closure_of(model, optimizer))
    growth = widened(model)
    before = picture(optimizer)
    with pytest.raises(fxgrow.UnsupportedError, match=r"LBFGS has a history.*fill='reset'"):
        growth.migrate(optimizer)
    with pytest.raises(fxgrow.UnsupportedError, match="one param group"):
        growth.migrate(optimizer, fill="reset", new_options={"lr": 1.0})
    assert picture(optimizer) == before
    growth.migrate(optimizer, fill="reset")
    first = float(loss_of(growth.module).detach())
    optimizer.step(closure_of(growth.module, optimizer))
    assert float(loss_of(growth.module).detach()) < first


# ---------------------------------------------------------------- errors change nothing


class Odd(Master):
    """State of a shape of its own."""

    def step(self):
        super().step()
        for state in self.state.values():
            state["odd"] = torch.ones(4)


class Nested(Master):
    def step(self):
        super().step()
        for state in self.state.values():
            state["odd"] = [{"deep": torch.ones(())}]


@pytest.mark.parametrize("kind", [Odd, Nested])
def test_odd_state_is_refused(kind):
    model = net()
    optimizer = kind(model.parameters())
    train(model, optimizer, 1)
    growth = widened(model, {"0": 1})
    before = picture(optimizer)
    with pytest.raises(
        fxgrow.UnsupportedError, match=f"{kind.__name__} keeps 'odd' for parameter '0.weight'"
    ):
        growth.migrate(optimizer)
    assert picture(optimizer) == before
    growth.migrate(optimizer, fill="reset")
    assert "odd" in optimizer.state[growth.module.get_parameter("4.weight")]
    train(growth.module, optimizer, 1)


def mistakes():
    model, other = net(), net(1)
    growth = widened(model)
    yield "fill", growth, model, {"fill": "ones"}, "fill is 'ones'; take 'zero'"
    yield "another model", growth, other, {}, "holds no parameter of the model"
    yield "done", growth, growth.module, {}, "grown module's parameters already"
    yield "loaded", replace(growth, sources={}), model, {}, "pass model="
    yield "wrong model", growth, model, {"model": nn.Linear(2, 2)}, "not the model that was grown"
    wide = widened(other, {"0": 1}).module
    yield "wide model", growth, wide, {"model": wide}, "is not the model that was grown"
    yield "option", growth, model, {"new_options": {"rate": 1}}, "'rate' is no option.*'lr'"
    yield "params", growth, model, {"new_options": {"params": []}}, "'params' is no option"
    yield "rate", growth, model, {"new_options": {"lr": -1.0}}, "lr is -1.0; it must be"


MISTAKES = {name: rest for name, *rest in mistakes()}


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_mistakes_are_named_and_change_nothing(name):
    growth, model, options, message = MISTAKES[name]
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    before = picture(optimizer)
    with pytest.raises(fxgrow.InputError, match=message):
        migrate(growth, optimizer, **options)
    assert picture(optimizer) == before


def test_a_loaded_growth_takes_the_model(tmp_path):
    model = net()
    widened(model).save(str(tmp_path / "grown.safetensors"))
    growth = fxgrow.load(tmp_path / "grown.safetensors", base=net(1))
    assert not growth.sources
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    growth.migrate(optimizer, model=model)
    train(growth.module, optimizer, 1)
