"""What can't be carried over is refused, and nothing has changed then."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from optimizing import (
    Master,
    closure_of,
    loss_of,
    net,
    picture,
    train,
    widened,
)
from torch import nn

import fxgrow
from fxgrow.optim import migrate


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
