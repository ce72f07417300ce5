"""GradMax: rows whose outgoing entries have the largest gradients; the function is kept."""

from __future__ import annotations

import copy

import pytest
import torch
from checks import difference, doubled, no_dropout, outputs, step
from handmade import IMAGES, convnet, data, mlp
from networks import NETWORKS
from torch import nn

import fxgrow
from fxgrow.data import main_output
from fxgrow.gradmax import maximise_gradients
from fxgrow.rows import activate_rows


def outgoing(module, grown, batches):
    """Norm of the gradient of all new outgoing entries, by group, in eval mode."""
    module.eval().zero_grad()
    for inputs, targets in batches:
        nn.functional.cross_entropy(module(inputs), targets).backward()
    tensors = dict(module.named_parameters())
    return {
        group.name: sum(
            tensors[s.tensor].grad.index_select(s.dim, torch.from_numpy(s.new.ravel())).norm() ** 2
            for s in group.slots
            if s.role == "consumer"
        )
        for group in grown
    }


def relu(module):
    """The same network with ReLUs."""
    return nn.Sequential(*(nn.ReLU() if isinstance(m, nn.Tanh) else m for m in module))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [mlp, lambda **k: (relu(mlp(**k)[0]), mlp(**k)[1])])
def test_gradients_are_larger_than_those_of_random_rows(make, seed):
    batches = data()
    module, grown = make(seed=seed)
    other = copy.deepcopy(module)
    activate_rows(other, grown, batches)
    assert set(maximise_gradients(module, grown, batches)) == {group.name for group in grown}
    ours, random = (outgoing(m, grown, batches) for m in (module, other))
    assert all(ours[group.name] > 1.2 * random[group.name] for group in grown)


def test_linear_units_get_the_leading_singular_vectors():
    module, (group,) = mlp(widths=(6,), added=(2,))
    module = nn.Sequential(*(m for m in module if isinstance(m, nn.Linear)))
    slots = [
        fxgrow.ir.GrownSlot(s.tensor.replace("2.", "1."), s.dim, s.role, s.old, s.new)
        for s in group.slots
    ]
    group = fxgrow.ir.GrownGroup(group.name, group.width, group.added, tuple(slots))
    batches = data()
    # With outgoing entries of zero G(u) = M [u, b]: read M off by unit rows.
    columns = []
    new = torch.from_numpy(group.slots[0].new.ravel())
    inputs, targets = (torch.cat(each) for each in zip(*batches, strict=True))
    out = module(inputs).detach().requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(out, targets), out)
    columns = slope.T @ torch.cat([inputs, torch.ones(len(inputs), 1).double()], 1)
    maximise_gradients(module, [group], batches, steps=60)
    rows = torch.cat([module[0].weight[new], module[0].bias[new, None]], 1).detach()
    found = (columns @ (rows / rows.norm(dim=1, keepdim=True)).T).square().sum()
    best = torch.linalg.svdvals(columns)[:2].square().sum()
    torch.testing.assert_close(found, best, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize(("make", "batches"), [(mlp, data()), (convnet, data(**IMAGES))])
def test_function_gradients_and_modes_are_kept(make, batches):
    module, grown = make()
    module.train()
    before, state = module.eval()(batches[0][0]), copy.deepcopy(module.state_dict())
    module.train()
    assert maximise_gradients(module, grown, batches)
    assert all(part.training for part in module.modules())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    torch.testing.assert_close(module.eval()(batches[0][0]), before)
    rows = {s.tensor for g in grown for s in g.slots if s.role == "producer"}
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, state[k])}
    assert changed and changed <= rows


@pytest.mark.parametrize("network", NETWORKS)
def test_function_is_kept_on_any_graph(network):
    make, example = NETWORKS[network]
    model, example = no_dropout(make()).double(), doubled(example)
    inspection = fxgrow.inspect(model, example)
    additions = {g.name: step(g, 3) for g in inspection.groups if g.recipe == "fresh"}
    growth = fxgrow.widen(model, example, additions)
    batches = [(example, None)] * 2
    maximise_gradients(
        growth.module, growth.groups, batches, lambda out, _: main_output(out).square().mean()
    )
    assert difference(outputs(model, example), outputs(growth.module, example)) <= 1e-10


def test_rows_have_the_norm_of_the_old_ones_and_are_orthogonal():
    module, grown = mlp()
    maximise_gradients(module, grown, data())
    tensors = dict(module.named_parameters())
    for group in grown:
        weight, bias = (tensors[s.tensor] for s in group.slots if s.role == "producer")
        rows = torch.cat([weight, bias[:, None]], 1).detach()
        old, new = rows[: group.width], rows[group.width :]
        wanted = old.norm(dim=1).mean() ** 2 * torch.eye(group.added).double()
        torch.testing.assert_close(new @ new.T, wanted)


def test_more_units_than_entries_and_no_data():
    module, grown = mlp(inputs=2, added=(7, 2))
    state = copy.deepcopy(module.state_dict())
    assert maximise_gradients(module, grown, None) == ()
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    batches = [(x[:, :2], y) for x, y in data()]
    maximise_gradients(module, grown, batches)
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert all(v > 0 for v in outgoing(module, grown, batches).values())


def test_frozen_parameters_stay_frozen_and_still_get_rows():
    module, grown = mlp()
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    maximise_gradients(module, grown, data())
    assert not module[0].weight.requires_grad
    assert not torch.equal(module[0].weight, before)


@pytest.mark.parametrize("epochs", [0, 1])
def test_expand_starts_from_these_rows_by_default(epochs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].bias -= 1  # units drawn as for an untrained layer would hardly be on
    batches = [(x.float(), y) for x, y in data(batches=8)]
    options = {"budget": 6, "distributor": "uniform", "adjust_epochs": epochs}
    growth = fxgrow.expand(model, batches, **options)
    named = fxgrow.expand(model, batches, rows="gradmax", **options)
    assert all(
        torch.equal(a, b)
        for a, b in zip(growth.module.parameters(), named.module.parameters(), strict=True)
    )
    (group,) = fxgrow.activity(growth, batches).groups
    assert group.to_dict()["new_inactive"] == 0
    x = batches[0][0]
    same = torch.allclose(growth.module(x), model(x), atol=1e-6)
    assert same == (epochs == 0)


def test_rows_behind_norms_are_drawn_by_default():
    """No search where a norm has an entry for each unit; one for the units without."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU()),
        nn.Linear(6, 4),
    )
    batches = [(x.float(), y) for x, y in data(batches=8)]
    options = {"budget": 8, "distributor": "uniform", "adjust_epochs": 0}
    rows = {
        kind: [dict(g.module.named_parameters())[f"{layer}.weight"][-4:] for layer in (0, 3)]
        for kind in ("auto", "kaiming", "gradmax")
        for g in [fxgrow.expand(model, batches, rows=kind, **options)]
    }
    assert torch.equal(rows["auto"][0], rows["kaiming"][0])
    assert not torch.equal(rows["auto"][1], rows["kaiming"][1])
    assert not torch.equal(rows["gradmax"][0], rows["kaiming"][0])


def test_paper_and_kaiming_rows_are_as_drawn():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    batches = [(x.float(), y) for x, y in data()]
    options = {"budget": 6, "distributor": "uniform", "adjust_epochs": 0}
    drawn = fxgrow.widen(model, batches[0][0], {"0": 6}).module.state_dict()
    for extra in ({"paper": True}, {"rows": "kaiming"}):
        grown = fxgrow.expand(model, batches, **options, **extra).module.state_dict()
        assert all(torch.equal(value, drawn[key]) for key, value in grown.items())
