"""Starts of new units: active rows, copies, pairs. All keep the function."""

from __future__ import annotations

import copy

import pytest
import torch
from checks import difference, doubled, no_dropout, outputs, step
from handmade import IMAGES, convnet, data, mlp
from networks import NETWORKS
from torch import nn

import fxgrow
from fxgrow.extenders import EXTENDERS, ExtendOptions
from fxgrow.initialisers import copy_units, pair_units
from fxgrow.rows import activate_rows

EXACT = sorted(EXTENDERS.keys() - {"swe"})


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("network", NETWORKS)
def test_function_is_kept(name, network):
    make, example = NETWORKS[network]
    model = no_dropout(make()).double()
    example = doubled(example)
    inspection = fxgrow.inspect(model, example)
    additions = {g.name: step(g, 3) for g in inspection.groups if g.recipe == "fresh"}
    growth = fxgrow.widen(model, example, additions)
    # Copies have the statistics of what they copy; no other mode would be comparable.
    before = outputs(model, example)
    EXTENDERS[name](growth.module, growth.groups, None, None, ExtendOptions(), None)
    assert difference(before, outputs(growth.module, example)) <= 1e-10


def test_active_rows_are_on_for_half_of_the_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias += 3  # far from the data's middle
    x = torch.randn(1024, 6) + 2
    batches = list(zip(x.split(128), torch.zeros(1024).long().split(128), strict=True))
    growth = fxgrow.widen(model, x[:2], {"0": 8, "2": 8})
    before = growth.module(x)
    named = activate_rows(growth.module, growth.groups, batches)
    assert set(named) == {"0.bias", "2.bias"}
    torch.testing.assert_close(growth.module(x), before)
    hidden = x
    for index in (0, 2):
        layer = growth.module.get_submodule(str(index))
        hidden = layer(hidden)
        new = growth.groups[index // 2].slots[0].new.reshape(-1)
        shares = (hidden[:, new] > 0).double().mean(0)
        assert (shares - 0.5).abs().max() < 0.02
        norms = layer.weight[:, : model[index].in_features].norm(dim=1)
        old = [i for i in range(len(norms)) if i not in new]
        torch.testing.assert_close(norms[new], norms[old].mean().expand(len(new)))
        hidden = hidden.relu()


@pytest.mark.parametrize("on", [0.2, 0.8, None])
def test_active_rows_for_other_shares(on):
    module, grown = mlp(inputs=6, added=(9, 2))
    batches = data(shape=(6,), batches=8, size=64)
    activate_rows(module, grown, batches, on=on)
    inputs = torch.cat([x for x, _ in batches])
    values = module[0](inputs)[:, torch.from_numpy(grown[0].slots[0].new.ravel())]
    if on is None:
        assert values.mean(0).abs().max() < 1e-9
    else:
        assert ((values > 0).double().mean(0) - on).abs().max() < 0.02


def test_active_rows_leave_biases_before_norms_alone():
    module, grown = convnet()
    before = copy.deepcopy(module.state_dict())
    assert activate_rows(module, grown, data(**IMAGES)) == ("6.bias",)
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"0.weight", "3.weight", "6.weight", "6.bias"}


def test_active_rows_do_not_depend_on_the_split_into_batches():
    results = []
    for size in (2, 8):
        module, grown = mlp()
        inputs = torch.cat([x for x, _ in data(batches=8, size=2)])
        batches = [(part, torch.zeros(len(part)).long()) for part in inputs.split(size)]
        activate_rows(module, grown, batches)
        results.append(module.state_dict())
    for a, b in zip(*(r.values() for r in results), strict=True):
        torch.testing.assert_close(a, b)


def test_copies_are_copies():
    module, grown = mlp()
    copy_units(module, grown)
    for group in grown:
        rows = dict(module.named_parameters())[group.slots[0].tensor]
        old = rows[torch.from_numpy(group.slots[0].old.reshape(-1))]
        for row in rows[torch.from_numpy(group.slots[0].new.reshape(-1))]:
            assert (old == row).all(dim=1).any()


def test_pairs_cancel_and_both_sides_have_gradients():
    module, grown = mlp(added=(4, 3))
    pair_units(module, grown)
    inputs, targets = data()[0]
    torch.nn.functional.cross_entropy(module(inputs), targets).backward()
    tensors = dict(module.named_parameters())
    for group in grown:
        for slot in group.slots:
            new = torch.from_numpy(slot.new.reshape(-1))[: group.added // 2]
            tensor = tensors[slot.tensor]
            value, grad = (t.index_select(slot.dim, new) for t in (tensor, tensor.grad))
            assert value.any() or slot.role != "consumer"
            assert grad.any()


def test_expand_with_every_extender():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    batches = [(x.float(), y) for x, y in data()]
    for name in EXTENDERS:
        growth = fxgrow.expand(model, batches, budget=4, distributor="uniform", extender=name)
        assert growth.module.get_submodule("0").out_features == 12
    growth = fxgrow.expand(model, batches, budget=4, rows="active")
    assert growth.verification.passed
    with pytest.raises(fxgrow.errors.InputError, match="active, auto, gradmax, kaiming"):
        fxgrow.expand(model, batches, budget=4, rows="best")
