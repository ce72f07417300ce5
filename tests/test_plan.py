"""Budgets, prices, plans and distributors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxgrow
from fxgrow.distributors import DISTRIBUTORS, distribute
from fxgrow.errors import BudgetError, InputError, NothingToGrow
from fxgrow.ir import Group, Reason, Slot, Votes
from fxgrow.plan import CostModel, make_plan


def chain(widths, rows=None, multiples=None, inputs=7, outputs=5):
    """An MLP's groups: rows per unit r means r rows (and columns of the reader) per unit."""
    rows, multiples = rows or [1] * len(widths), multiples or [1] * len(widths)
    sizes = [inputs, *(w * r for w, r in zip(widths, rows, strict=True)), outputs]
    shapes, flops, groups = {}, {}, []
    for i, (rows_in, rows_out) in enumerate(itertools.pairwise(sizes)):
        shapes[f"{i}.weight"], shapes[f"{i}.bias"] = (rows_out, rows_in), (rows_out,)
        flops[f"{i}.weight"] = 2 * rows_out * rows_in
    for i, (width, r) in enumerate(zip(widths, rows, strict=True)):
        at = np.arange(width * r).reshape(width, r)
        slots = (
            Slot(f"{i}.weight", 0, "producer", at),
            Slot(f"{i}.bias", 0, "producer", at),
            Slot(f"{i + 1}.weight", 1, "consumer", at),
            Slot(f"{i}.running_mean", 0, "norm", at),
        )
        params = r * (sizes[i] + 1 + sizes[i + 2])
        each = 2 * r * (sizes[i] + sizes[i + 2])
        groups.append(Group(f"g{i}", width, multiples[i], r, params, each, (), slots))
    return groups, CostModel(shapes, flops)


def brute(widths, additions, rows, inputs=7, outputs=5):
    """Parameters added, by building both shapes."""

    def count(ws):
        sizes = [inputs, *(w * r for w, r in zip(ws, rows, strict=True)), outputs]
        return sum(a * b + b for a, b in itertools.pairwise(sizes))

    wide = [w + additions.get(f"g{i}", 0) for i, w in enumerate(widths)]
    return count(wide) - count(widths)


def votes(*counts):
    return Votes({}, {f"g{i}": count for i, count in enumerate(counts)})


def test_prices_are_joint_and_exact():
    groups, costs = chain([6, 4], rows=[1, 3])
    both = {"g0": 2, "g1": 5}
    assert costs.params(groups, both) == brute([6, 4], both, [1, 3])
    single = costs.params(groups, {"g0": 2}) + costs.params(groups, {"g1": 5})
    assert costs.params(groups, both) == single + 2 * 15
    assert costs.neurons(groups, both) == 2 + 15
    biases = 2 + 15
    assert costs.flops(groups, both) == 2 * (costs.params(groups, both) - biases)
    assert costs.cost("params", groups, {}) == 0


def test_products_of_activations_grow_with_their_groups():
    groups, costs = chain([6, 4])
    costs = CostModel(costs.shapes, {}, ((100, ("g0", "g1")), (9, ("g1",)), (7, ())))
    assert costs.flops(groups, {"g0": 3}) == 50
    assert costs.flops(groups, {"g0": 3, "g1": 2}) == 125 + math.ceil(4.5)


@pytest.mark.parametrize(
    ("counts", "budget", "expected"),
    [
        ((9, 1, 0), 10, {"g0": 9, "g1": 1}),  # the recorded run
        ((1, 1, 1), 10, {"g0": 4, "g1": 3, "g2": 3}),  # remainder given in order of votes
        ((3, 3, 1), 2, {"g0": 1, "g1": 1}),
        ((1, 1, 0), 3, {"g0": 1, "g1": 2}),  # round(1.5) is 2 twice: one is taken
        ((5, 3, 2), 5, {"g0": 2, "g1": 2, "g2": 1}),
        ((0, 0, 0), 6, {"g0": 2, "g1": 2, "g2": 2}),  # nobody voted
        ((0, 1, 0), 7.9, {"g1": 7}),
    ],
)
def test_the_papers_rule(counts, budget, expected):
    groups, costs = chain([12, 12, 12])
    plan = make_plan(groups, votes(*counts), costs, budget=budget)
    assert plan.additions == expected
    assert plan.spent == int(budget) and plan.unspent_reason == ""


def test_heads_cost_their_rows():
    groups, costs = chain([4, 20], rows=[8, 1])
    plan = make_plan(groups, votes(1, 8), costs, budget=16)
    assert plan.additions == {"g0": 1, "g1": 8}
    plan = make_plan(groups, votes(1, 0), costs, budget=19)
    assert plan.additions == {"g0": 2} and plan.spent == 16
    assert "3 neurons are left" in plan.unspent_reason and "'g0'" in plan.unspent_reason
    # the voted group is too dear, the other one is not
    assert make_plan(groups, votes(1, 0), costs, budget=5).additions == {"g1": 5}


def test_round_to_makes_new_widths_multiples():
    groups, costs = chain([12, 10, 16], multiples=[1, 2, 3])
    plan = make_plan(groups, votes(2, 2, 2), costs, budget=100, round_to=8)
    for group in groups:
        added = plan.additions[group.name]
        assert (group.width + added) % 8 == 0 and added % group.multiple_of == 0
    # 5 + 2k is never a multiple of 4: multiple_of alone holds
    groups, costs = chain([5], multiples=[2])
    assert make_plan(groups, votes(1), costs, budget=7, round_to=4).additions == {"g0": 6}


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_budgets_are_never_exceeded(data):
    count = data.draw(st.integers(1, 4))
    few = st.lists(st.integers(1, 4), min_size=count, max_size=count)
    widths = data.draw(st.lists(st.integers(1, 40), min_size=count, max_size=count))
    groups, costs = chain(widths, data.draw(few), data.draw(few))
    unit = data.draw(st.sampled_from(["neurons", "params", "flops"]))
    round_to = data.draw(st.sampled_from([1, 2, 8]))
    budget = data.draw(st.floats(0.5, 20_000))
    slopes = data.draw(st.sampled_from([None, 0, 1]))
    counts = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    values = {}
    if slopes is not None:
        rng = np.random.default_rng(slopes)
        values = {g.name: rng.normal(size=n) for g, n in zip(groups, counts, strict=True)}
    cast = Votes(values, {g.name: n for g, n in zip(groups, counts, strict=True)})
    try:
        plan = make_plan(groups, cast, costs, budget=budget, unit=unit, round_to=round_to)
    except BudgetError as error:
        cheapest = "the cheapest step"
        assert cheapest in str(error)
        return
    assert plan.spent == costs.cost(unit, groups, plan.additions) <= budget
    assert plan.additions and all(plan.additions.values())
    assert bool(plan.unspent_reason) == (plan.spent < math.floor(budget))
    for group in groups:
        assert plan.additions.get(group.name, 0) % group.multiple_of == 0
    if round_to == 1 and unit == "neurons" and all(g.rows_per_unit == 1 for g in groups):
        steps = [g.multiple_of for g in groups if g.name in plan.additions]
        assert math.floor(budget) - plan.spent < min(steps)


def test_params_go_to_the_steepest_per_price():
    groups, costs = chain([6, 6, 6])
    slopes = {"g0": np.array([-1.0, 3.0]), "g1": np.array([-9.0, -5.0]), "g2": np.array([-2.0])}
    cast = Votes(slopes, {"g0": 1, "g1": 2, "g2": 1})
    one = costs.params(groups, {"g1": 1})
    assert make_plan(groups, cast, costs, budget=one, unit="params").additions == {"g1": 1}
    three = costs.params(groups, {"g1": 2, "g2": 1})
    plan = make_plan(groups, cast, costs, budget=three, unit="params")
    assert plan.additions == {"g1": 2, "g2": 1} and plan.spent == three
    # when the candidates run out, the order starts again
    plan = make_plan(groups, cast, costs, budget=10 * three, unit="params")
    assert plan.additions["g1"] == pytest.approx(2 * plan.additions["g0"], abs=2)


def test_large_networks_are_planned_quickly():
    groups, costs = chain([512] * 60)
    cast = distribute("proportional", groups, budget=1)
    plan = make_plan(groups, cast, costs, budget=3e9, unit="flops", round_to=8)
    assert 0 <= 3e9 - plan.spent < 1e5
    assert len(set(plan.additions.values())) <= 3


@pytest.mark.parametrize("budget", [0, -3, math.nan, math.inf])
def test_budgets_that_are_no_budgets(budget):
    groups, costs = chain([6])
    with pytest.raises(BudgetError, match="positive"):
        make_plan(groups, votes(1), costs, budget=budget)


def test_budgets_that_buy_nothing_or_too_much():
    groups, costs = chain([6, 6], rows=[4, 8])
    with pytest.raises(BudgetError, match=r"buys nothing.*'g0' for 4 neurons"):
        make_plan(groups, votes(1, 1), costs, budget=3)
    with pytest.raises(BudgetError, match="limit"):
        make_plan(groups, votes(1, 1), costs, budget=1e12)
    free = CostModel(costs.shapes, {})
    with pytest.raises(BudgetError, match="another unit"):
        make_plan(groups, votes(1, 1), free, budget=10, unit="flops")


def test_nothing_to_grow_and_bad_arguments():
    groups, costs = chain([6])
    frozen = Group("f", 3, 1, 1, 1, 1, (), (), Reason("output", "it is the output"))
    with pytest.raises(NothingToGrow):
        make_plan([frozen], votes(1), costs, budget=3)
    with pytest.raises(NothingToGrow):
        distribute("uniform", [frozen], budget=3)
    assert make_plan([frozen, *groups], votes(1), costs, budget=3).additions == {"g0": 3}
    with pytest.raises(InputError, match="round_to"):
        make_plan(groups, votes(1), costs, budget=3, round_to=0)
    with pytest.raises(InputError, match="neurons, params, flops"):
        make_plan(groups, votes(1), costs, budget=3, unit="watts")


def test_distributors():
    groups, costs = chain([8, 16])
    names = {"gain", "proportional", "random", "svod", "uniform"}
    assert set(DISTRIBUTORS) == names
    found = {n: distribute(n, groups, budget=30, seed=1, votes=votes(3, 0)) for n in names}
    assert {n: v.distributor for n, v in found.items()} == {n: n for n in names}
    spent = {n: dict(make_plan(groups, v, costs, budget=30).additions) for n, v in found.items()}
    assert spent["uniform"] == {"g0": 15, "g1": 15}
    assert spent["proportional"] == {"g0": 10, "g1": 20}
    assert spent["svod"] == {"g0": 30}
    assert distribute("random", groups, budget=30, seed=1).counts == found["random"].counts
    assert distribute("random", groups, budget=30, seed=2).counts != found["random"].counts
    with pytest.raises(InputError, match="pass data"):
        distribute("svod", groups, budget=30)
    with pytest.raises(InputError, match="gain, proportional, random, svod, uniform"):
        distribute("fair", groups, budget=30)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # torch says it of all
def test_a_layer_without_units_costs_nothing_and_grows():
    """``width // reduction`` is zero in small nets; its reader still has a bias."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 0), nn.Linear(0, 8), nn.Linear(8, 2)).double()
    example = torch.randn(4, 6, dtype=torch.float64)
    groups = fxgrow.inspect(net, example).groups
    assert [g.name for g in groups] == ["0", "2"]
    growth = fxgrow.widen(net, example, {g.name: 2 for g in groups})
    assert torch.allclose(growth.module(example), net(example), rtol=1e-12)
