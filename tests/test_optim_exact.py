"""After growth the next optimizer step changes old entries as it would have without growth."""

from __future__ import annotations

import copy

import pytest
import torch
from checks import doubled, randomised, run, step, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import NETWORKS
from optimizing import ELEMENTWISE, SAME_BITS
from test_random_networks import RECIPES, SIZE, RandomNet

import fxgrow

TOLERANCE = 1e-12


def backward(model, example, seed):
    """Gradients of a random projection of the outputs, in train mode."""
    model.train()
    model.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=torch.float64)
    for out in tensors(run(model, example)):
        if out.is_floating_point() and out.requires_grad:
            target = torch.randn(out.shape, generator=generator, dtype=torch.float64)
            loss = loss + ((out - target) ** 2).mean()
    (loss / loss.detach()).backward()  # of size 1, whatever the net


def trained(model, example, optimizer, steps=3):
    for seed in range(steps):
        backward(model, example, seed)
        optimizer.step()


def region(growth, name, like):
    return growth.index_map.region(name, like) if name in growth.index_map.axes else ...


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def check_gradients(growth, old):
    """Gradients of old entries are those of the ungrown model; where they are to the digit."""
    new = dict(growth.module.named_parameters(remove_duplicate=False))
    largest = max(p.grad.abs().max() for p in old.values() if p.grad is not None)
    same = {}
    for name, p in old.items():
        if p.grad is None:
            assert new[name].grad is None or not new[name].grad.any()
            continue
        grad = new[name].grad[region(growth, name, p)]
        assert (grad - p.grad).abs().max() <= TOLERANCE * largest, name
        same[name] = (grad - p.grad).abs() <= 1e-13 * p.grad.abs()
    return same


def check_steps(growth, old, before, after, where=None):
    """The grown run's steps on old entries are the ungrown run's, entry by entry."""
    new = dict(growth.module.named_parameters(remove_duplicate=False))
    for name, p in old.items():
        place = region(growth, name, p)
        wanted = p.detach() - before[name]
        got = (new[name].detach() - after[name])[place]
        error = (got - wanted).abs()
        # A step is a difference of weights: their last digits are all that it can differ by.
        slack = TOLERANCE * wanted.abs() + 4e-16 * before[name].abs()
        mask = torch.ones_like(error, dtype=torch.bool) if where is None else where.get(name)
        if mask is not None:
            assert (error <= slack)[mask].all(), (name, float(error[mask].max()))


def compare(model, growth, optimizer, example, fill="zero", seed=100):
    """Step the ungrown model and a migrated twin of its optimizer, twice.

    First each with its own gradients: compared where rounding has left them alike. Then with
    the same gradients on old entries: compared everywhere.
    """
    old = dict(model.named_parameters())
    new = dict(growth.module.named_parameters(remove_duplicate=False))
    twin = copy.deepcopy(optimizer, {id(p): p for p in old.values()})
    growth.migrate(twin, fill=fill)
    backward(model, example, seed)
    backward(growth.module, example, seed)
    same = check_gradients(growth, old)
    before, after = snapshot(model), snapshot(growth.module)
    states = [copy.deepcopy(o.state_dict()) for o in (optimizer, twin)]
    optimizer.step()
    twin.step()
    check_steps(growth, old, before, after, same)
    share = sum(m.sum() for m in same.values()) / sum(m.numel() for m in same.values())
    for o, state in zip((optimizer, twin), states, strict=True):
        o.load_state_dict(state)
    with torch.no_grad():
        for name, p in old.items():
            p.copy_(before[name])
            new[name].copy_(after[name])
            if p.grad is not None:
                new[name].grad[region(growth, name, p)] = p.grad
    optimizer.step()
    twin.step()
    check_steps(growth, old, before, after)
    return float(share)


def random_net(recipe):
    model = RandomNet(recipe).double()
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.rand(p.shape, generator=generator, dtype=torch.float64) * 0.3)
    x = torch.randn(3, 2, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return model, x


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    recipe=RECIPES,
    kind=st.sampled_from(SAME_BITS),
    units=st.integers(1, 3),
    steps=st.integers(0, 6),
)
def test_old_entries_step_as_without_growth(recipe, kind, units, steps):
    model, x = random_net(recipe)
    inspection = fxgrow.inspect(model, x)
    additions = {g.name: units * g.multiple_of for g in inspection.groups if g.recipe == "fresh"}
    if not additions:
        return
    make, options = ELEMENTWISE[kind]
    optimizer = make(model.parameters(), **options)
    trained(model, x, optimizer, steps)
    compare(model, fxgrow.widen(model, x, additions, verify=False), optimizer, x)


@pytest.mark.parametrize("kind", sorted(ELEMENTWISE))
def test_every_optimizer_goes_on(kind):
    """Most entries are compared, and all with the same gradients."""
    make, options = ELEMENTWISE[kind]
    factory, example = NETWORKS["residual"]
    torch.manual_seed(0)
    model, example = randomised(factory()), doubled(example)
    optimizer = make(model.parameters(), **options)
    trained(model, example, optimizer)
    additions = {g.name: step(g) for g in fxgrow.inspect(model, example).groups}
    emit = "graph" if len(kind) % 2 else "module"
    growth = fxgrow.widen(model, example, additions, emit=emit, verify=False)
    assert compare(model, growth, optimizer, example) > 0.5
