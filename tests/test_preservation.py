"""Widening keeps the function, whatever the network does; new units train."""

from __future__ import annotations

import copy
import pickle

import networks
import numpy as np
import pytest
import torch
from checks import difference, doubled, errors, outputs, randomised, run, step, untrained
from networks import NETWORKS
from oracle import complaints
from torch import nn

import fxgrow
from fxgrow.errors import FxgrowError
from fxgrow.fills import draw
from fxgrow.preserve import _set
from fxgrow.rewrite import rewrite

EXACT = 1e-10
# The oracle compares in eval mode, where auxiliary heads do nothing.
REDUNDANT = ("aux.fc.weight",)
# Tied weights are zero on both sides at first: what reads them has to wait a step.
LATE = ("mix.weight",)
# What must not be left out: layers whose width has to grow.
MUST_GROW = {
    "plain": {"0", "5"},
    "residual": {"stem", "a", "c"},
    "dense": {"stem", "a", "b"},
    "gated": {"a", "b", "c"},
    "grouped": {"a", "b"},
    "depthwise": {"stem", "up", "multiply"},
    "shuffle": {"a", "b", "c"},
    "squeeze": {"stem", "down", "fc1"},
    "tied": {"embed", "mix"},
    "shared": {"stem", "block.0"},
    "flattened": {"a", "fc"},
    "decoder": {"fc", "up"},
    "norms": {"a", "b", "c"},
    "auxiliary": {"a", "b"},
    "parametrised": {"a"},
    "standardised": {"2"},
    "mlp": {"stem", "up"},
    "packed": {"attention.qkv", "up"},
    "separate": {"attention.q", "attention.v", "up"},
    "rotary": {"attention.v", "up"},
    "merging": {"stem", "reduce"},
    "multihead": {"attention"},
    "recurrent": {"b"},
}


def build(name):
    factory, example = NETWORKS[name]
    torch.manual_seed(0)
    return randomised(factory()), doubled(example)


def everything(inspection, units=2):
    return {g.name: step(g, units) for g in inspection.groups}


@pytest.mark.parametrize("name", NETWORKS)
def test_all_groups_at_once(name):
    model, example = build(name)
    inspection = fxgrow.inspect(model, example)
    grown = fxgrow.widen(model, example, everything(inspection))
    assert grown.verification.passed
    assert max(errors(model, grown.module, example)) <= EXACT
    assert untrained(grown.module, grown.groups, example, late=LATE if name == "tied" else ()) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_alone(name):
    model, example = build(name)
    inspection = fxgrow.inspect(model, example)
    for group in inspection.groups:
        grown = rewrite(model, inspection, {group.name: step(group, 1)})
        assert max(errors(model, grown.module, example)) <= EXACT, group.name
        assert (
            untrained(grown.module, grown.groups, example, late=LATE if name == "tied" else ())
            == []
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_what_the_oracle_says(name):
    model, example = build(name)
    groups = fxgrow.inspect(model, example).groups
    assert complaints(model, groups, example, omit=4, redundant=REDUNDANT) == []


@pytest.mark.parametrize("name", MUST_GROW)
def test_these_layers_grow(name):
    model, example = build(name)
    inspection = fxgrow.inspect(model, example)
    growing = {
        s.tensor.rpartition(".")[0]
        for g in inspection.groups
        for s in g.slots
        if s.role != "consumer"
    }
    growing |= {layer for g in inspection.groups for layer in g.layers}
    assert MUST_GROW[name] <= growing, [(g.name, g.reason) for g in inspection.frozen]


@pytest.mark.parametrize(
    "name", ["plain", "residual", "dense", "shared", "flattened", "mlp", "tied"]
)
def test_emitting_the_users_own_class(name):
    model, example = build(name)
    inspection = fxgrow.inspect(model, example)
    grown = fxgrow.widen(model, example, everything(inspection), emit="module")
    assert type(grown.module) is type(model)
    assert max(errors(model, grown.module, example)) <= EXACT


@pytest.mark.parametrize("name", NETWORKS)
def test_the_input_model_is_not_touched(name):
    model, example = build(name)
    model.train()
    next(m for m in model.modules() if not list(m.children())).eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    versions = {k: v._version for k, v in model.state_dict(keep_vars=True).items()}
    modes = {k: m.training for k, m in model.named_modules()}
    attributes = {k: set(vars(m)) for k, m in model.named_modules()}
    random_state = torch.get_rng_state()
    inspection = fxgrow.inspect(model, example)
    fxgrow.widen(model, example, everything(inspection, 1))
    assert torch.equal(random_state, torch.get_rng_state())
    assert {k: m.training for k, m in model.named_modules()} == modes
    assert {k: set(vars(m)) for k, m in model.named_modules()} == attributes
    now = model.state_dict(keep_vars=True)
    assert {k: v._version for k, v in now.items()} == versions
    assert all(torch.equal(v, now[k]) for k, v in state.items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_names_dtypes_modes_and_sharing_are_kept(name):
    model, example = build(name)
    inspection = fxgrow.inspect(model, example)
    new = fxgrow.widen(model, example, everything(inspection, 1)).module
    old_state, new_state = model.state_dict(keep_vars=True), new.state_dict(keep_vars=True)
    assert list(old_state) == list(new_state)
    for key, old in old_state.items():
        kept = new_state[key]
        assert (kept.dtype, kept.device, kept.requires_grad) == (
            old.dtype,
            old.device,
            old.requires_grad,
        )
        assert isinstance(kept, nn.Parameter) == isinstance(old, nn.Parameter)

    def sharing(module):
        first: dict[int, str] = {}
        return {
            k: first.setdefault(id(p), k)
            for k, p in module.named_parameters(remove_duplicate=False)
        }

    assert sharing(new) == sharing(model)
    assert {k: m.training for k, m in new.named_modules() if k} == {
        k: m.training for k, m in model.named_modules() if k
    }


@pytest.mark.parametrize(
    "name", ["residual", "auxiliary", "packed", "vision", "shuffle", "decoder", "norms"]
)
def test_other_batch_sizes(name):
    model, example = build(name)
    inspection = fxgrow.inspect(model, example)
    new = fxgrow.widen(model, example, everything(inspection)).module
    for count in (1, 3, 7):
        other = torch.randn(count, *example.shape[1:], dtype=torch.float64)
        gap = difference(outputs(model, other), outputs(new, other))
        assert gap <= EXACT, count


@pytest.mark.parametrize("name", ["residual", "auxiliary", "packed", "keywords", "shared"])
def test_copy_pickle_and_state_dict(name):
    model, example = build(name)
    new = fxgrow.widen(model, example, everything(fxgrow.inspect(model, example))).module
    for twin in (copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        assert max(errors(new, twin, example)) == 0.0
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in new.parameters()}
    other = copy.deepcopy(new)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(new.state_dict())
    assert max(errors(new, other, example)) == 0.0


def test_growing_twice():
    model, example = build("residual")
    once = fxgrow.widen(model, example, 2).module
    twice = fxgrow.widen(once, example, "+25%").module
    assert max(errors(model, twice, example)) <= EXACT
    assert sum(p.numel() for p in twice.parameters()) > sum(p.numel() for p in once.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_other_than_float64(dtype):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    growth = fxgrow.widen(model, networks.VECTOR.to(dtype), {"0": 4})
    assert {p.dtype for p in growth.module.parameters()} == {dtype}
    assert growth.verification.passed


def test_parameters_that_do_not_train_stay_so():
    model, example = randomised(networks.Frozen()), networks.VECTOR.double()
    inspection = fxgrow.inspect(model, example)
    reasons = {g.name: g.reason.code for g in inspection.frozen}
    assert inspection.groups, reasons
    new = fxgrow.widen(model, example, 3).module
    assert not new.a.weight.requires_grad
    assert new.b.weight.requires_grad
    assert not new.norm.training


def test_hooks_survive():
    model, example = build("residual")
    seen = []
    model.a.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    new = fxgrow.widen(model, example, {"a": 3}).module
    seen.clear()
    run(new, example)
    assert seen == [11]


def test_attributes_tell_the_truth():
    model, example = build("grouped")
    new = fxgrow.widen(model, example, everything(fxgrow.inspect(model, example))).module
    for module in new.modules():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels == module.weight.shape[0]
            assert module.in_channels == module.weight.shape[1] * module.groups
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean)


# -- negative controls -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "dense", "squeeze", "flattened", "packed", "shuffle"])
def test_noise_in_the_zero_columns_changes_the_function(name):
    model, example = build(name)
    inspection = fxgrow.inspect(model, example)
    for group in inspection.groups:
        if group.recipe != "fresh":
            continue
        grown = rewrite(model, inspection, {group.name: step(group)})
        tensors = dict(grown.module.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for slot in grown.groups[0].slots:
                if slot.role == "consumer":
                    new = torch.from_numpy(slot.new.reshape(-1))
                    part = tensors[slot.tensor].index_select(slot.dim, new)
                    tensors[slot.tensor].index_copy_(slot.dim, new, torch.randn_like(part))
        assert errors(model, grown.module, example)[0] > 1e-6, group.name


@pytest.mark.parametrize("name", ["residual", "dense", "squeeze", "packed"])
def test_a_slot_left_out_is_noticed(name):
    from dataclasses import replace

    model, example = build(name)
    inspection = fxgrow.inspect(model, example)
    for group in inspection.groups:
        for slot in group.slots:
            less = replace(group, slots=tuple(s for s in group.slots if s is not slot))
            groups = tuple(less if g is group else g for g in inspection.groups)
            with pytest.raises((FxgrowError, ValueError)):
                rewrite(model, replace(inspection, groups=groups), {group.name: step(group)})


@pytest.mark.parametrize("new", [[3, 7, 8, 6], [3, 4, 5, 6], [6, 5, 4, 3]])
def test_new_entries_alone_are_written(new):
    """Also where first and last are as far apart as neighbours in a row would be."""
    tensor = torch.full((10, 4), 5.0)
    _set(tensor, 0, np.array(new), 0.0)
    assert [int(row) for row in (tensor[:, 0] == 0).nonzero()] == sorted(new)
    drawn = torch.full((10, 4), 5.0)
    draw(drawn, 0, np.array(new), 1.0, torch.Generator().manual_seed(0))
    assert [int(row) for row in (drawn[:, 0] != 5).nonzero()] == sorted(new)
