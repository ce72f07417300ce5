"""Groups that an operation mixes with each other grow jointly."""

from __future__ import annotations

import pytest
import torch
from checks import doubled, errors, randomised, step
from exactly import EXACT, grows_exactly
from networks_joint import APART, JOINT

import fxgrow


def built(name, table=JOINT):
    make, example, wanted = table[name]
    torch.manual_seed(0)
    return randomised(make()), doubled(example), wanted


@pytest.mark.parametrize("name", JOINT)
def test_the_groups_are_one(name):
    """Its units are parts of all of them: counted, and grown in the steps that are exact."""
    model, example, (first, units, rows, many) = built(name)
    inspection = fxgrow.inspect(model, example)
    group = inspection.group(first)
    assert (group.width, group.rows_per_unit, group.multiple_of) == (units, rows, many)
    assert {g.reason.code for g in inspection.frozen} <= {"output", "unlabelled"}


@pytest.mark.parametrize("name", JOINT)
def test_growth_is_exact_and_trains(name):
    model, example, _ = built(name)
    grows_exactly(model, example)


@pytest.mark.parametrize("name", JOINT)
def test_again_and_in_the_users_class(name, tmp_path):
    model, example, (first, *_) = built(name)
    growth = fxgrow.widen(
        model, example, {first: step(fxgrow.inspect(model, example).group(first))}
    )
    growth.save(tmp_path / "grown.safetensors")
    loaded = fxgrow.load(tmp_path / "grown.safetensors", base=model)
    assert max(errors(growth.module, loaded.module, example)) == 0.0
    again = fxgrow.inspect(growth.module, example).group(first)
    more = fxgrow.widen(growth.module, example, {first: step(again)})
    assert max(errors(model, more.module, example)) <= EXACT
    own = fxgrow.widen(model, example, growth.plan.additions, emit="module")
    assert type(own.module) is type(model)
    assert max(errors(model, own.module, example)) <= EXACT


@pytest.mark.parametrize("name", APART)
def test_what_can_not_be_joined_is_frozen(name):
    """No common divisor, or a part that is the user's."""
    model, example, code = built(name, APART)
    inspection = fxgrow.inspect(model, example)
    assert code in {g.reason.code for g in inspection.frozen}
    assert not {"a", "b"} & {g.name for g in inspection.groups}


def test_a_budget_buys_whole_steps():
    model, example, (first, _, rows, many) = built("dense")
    plan = fxgrow.expand(
        model, [(example, torch.tensor([0, 1]))] * 2, budget=rows * many + 3, include=[first]
    ).plan
    assert dict(plan.additions) == {first: many}
    assert plan.spent == rows * many
