"""What new entries of an optimizer's state hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import NETWORKS
from optimizing import (
    ADDITIONS,
    COUPLED,
    ELEMENTWISE,
    X,
    by_name,
    net,
    train,
    widened,
)

import fxgrow

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
    factory, example = NETWORKS["language"]
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
