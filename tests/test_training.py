"""Grown modules train: every new unit comes to life, from the loss's own gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from checks import doubled, new_entries, outputs, randomised, step
from networks import NETWORKS

import fxgrow

NAMES = ["plain", "residual", "depthwise", "flattened", "packed", "mlp"]


def grown(name, emit="graph"):
    factory, example = NETWORKS[name]
    torch.manual_seed(0)
    model, example = randomised(factory()), doubled(example)
    inspection = fxgrow.inspect(model, example)
    additions = {g.name: step(g, 4) for g in inspection.groups}
    return model, fxgrow.widen(model, example, additions, emit=emit), example


def train(module, example, steps=8, lr=1e-2):
    """Fit random targets; return the losses."""
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    target = None
    losses = []
    for _ in range(steps):
        out = module(example)
        if target is None:
            generator = torch.Generator().manual_seed(0)
            target = torch.randn(out.shape, generator=generator, dtype=out.dtype)
        loss = F.mse_loss(out, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on(name):
    """Losses fall, from the value they had before growth, and all new entries move."""
    model, growth, example = grown(name)
    module = growth.module
    every = {"producer", "consumer", "norm", "per_unit"}
    before = [
        (w, p, p.detach().clone()) for w, p, _, _ in new_entries(module, growth.groups, every)
    ]
    places = [(d, new) for _, _, d, new in new_entries(module, growth.groups, every)]
    losses = train(module, example)
    narrow = train(copy.deepcopy(model), example, steps=1)
    assert losses[0] == pytest.approx(narrow[0], rel=1e-9)
    assert losses[-1] < losses[0]
    for (where, p, old), (dim, new) in zip(before, places, strict=True):
        moved = p.detach().index_select(dim, new) != old.index_select(dim, new)
        assert moved.any(), where


@pytest.mark.parametrize("name", ["residual", "mlp"])
def test_both_forms_train_alike(name):
    """The graph and the user's own class compute the same gradients."""
    _, graph, example = grown(name)
    _, module, _ = grown(name, emit="module")
    ours = train(graph.module, example, steps=3)
    theirs = train(module.module, example, steps=3)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_switching_modes_while_training():
    """Eval after training uses running statistics and leaves auxiliary heads out."""
    factory, example = NETWORKS["auxiliary"]
    torch.manual_seed(0)
    model, example = factory(), example
    module = fxgrow.widen(model, example, 2).module
    assert "aux" in module.train()(example)
    assert "aux" not in module.eval()(example)
    # The original's dropout is a plain function of the training flag: so is ours.
    torch.manual_seed(0)
    first = module.train()(example)["out"]
    torch.manual_seed(1)
    assert not torch.equal(first, module(example)["out"])
    module.eval()
    assert torch.equal(module(example)["out"], module(example)["out"])


def test_training_the_result_leaves_the_original_alone():
    model, growth, example = grown("residual")
    state = {k: v.clone() for k, v in model.state_dict().items()}
    reference = outputs(model, example)
    train(growth.module, example, steps=2)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert torch.equal(reference[0], outputs(model, example)[0])
