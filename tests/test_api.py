"""The public functions: what they accept, and what they say when something is off."""

from __future__ import annotations

import re

import pytest
import torch
from networks import IMAGE, NETWORKS, VECTOR
from torch import nn

import fxgrow
from fxgrow.errors import (
    BudgetError,
    FxgrowError,
    InputError,
    NothingToGrow,
    UnsupportedError,
)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(torch.fft.fft(self.a(x), dim=0).real)


class Looping(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x):
        while float(x.sum()) > 1:
            x = self.a(x)
        return x


def batches(count=3):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(count)
    ]


def test_groups_of_a_small_network():
    inspection = fxgrow.inspect(mlp(), VECTOR)
    assert [(g.name, g.width, g.multiple_of, g.rows_per_unit) for g in inspection.groups] == [
        ("0", 8, 1, 1),
        ("2", 8, 1, 1),
    ]
    assert inspection.group("0").params_per_unit == 6 + 1 + 8
    assert inspection.group("0").flops_per_unit == 2 * (6 + 8) * len(VECTOR)
    assert [(s.tensor, s.dim, s.role) for s in inspection.group("0").slots] == [
        ("0.weight", 0, "producer"),
        ("0.bias", 0, "producer"),
        ("2.weight", 1, "consumer"),
    ]
    assert inspection.coverage == pytest.approx(
        1 - 3 / (7 * 8 + 9 * 8 + 9 * 3)
    )  # but for the last bias
    assert inspection.unsupported == ()


@pytest.mark.parametrize("example", [VECTOR, (VECTOR,), {"input": VECTOR}])
def test_forms_of_example_inputs(example):
    assert len(fxgrow.inspect(mlp(), example).groups) == 2


def test_example_inputs_of_another_type():
    with pytest.raises(InputError, match="tensor, a tuple of positional arguments or a dict"):
        fxgrow.inspect(mlp(), "images")


def test_wrong_input_shape_names_the_place():
    with pytest.raises(FxgrowError, match="shape") as error:
        fxgrow.inspect(mlp(), torch.zeros(2, 7))
    assert "does not run on the example inputs" in str(error.value)


def test_nothing_to_grow():
    with pytest.raises(NothingToGrow, match="no group can grow"):
        fxgrow.widen(nn.Linear(6, 3), VECTOR, 2)
    with pytest.raises(NothingToGrow, match="no group can grow"):
        fxgrow.expand(nn.Linear(6, 3), batches(), budget=4)


def test_a_model_that_cannot_be_traced():
    assert "no graph of Looping" in fxgrow.inspect(Looping(), VECTOR).analysis.traced.obstacle
    with pytest.raises(NothingToGrow):
        fxgrow.expand(Looping(), batches(), budget=4)


def test_unknown_group_suggests_near_names():
    model, example = NETWORKS["residual"][0](), IMAGE
    with pytest.raises(InputError, match="no group is called 'stemm'; did you mean stem"):
        fxgrow.widen(model, example, {"stemm": 1})


def test_frozen_group_says_why():
    frozen = fxgrow.inspect(mlp(), VECTOR).frozen
    output = next(g for g in frozen if g.reason.code == "output")
    with pytest.raises(InputError, match=r"can't grow: .*outputs"):
        fxgrow.widen(mlp(), VECTOR, {output.name: 1})


@pytest.mark.parametrize(
    ("additions", "message"),
    [
        ({"0": -1}, "whole number of units"),
        ({"0": 1.5}, "whole number of units"),
        ({"0": True}, "whole number of units"),
        ({}, "name no group"),
        ({"0": 0}, "name no group"),
        (0, "1 or more"),
        ("12.5", "share like"),
        ("-5%", "share like"),
        ("lots", "share like"),
    ],
)
def test_bad_additions(additions, message):
    with pytest.raises(InputError, match=message):
        fxgrow.widen(mlp(), VECTOR, additions)


def test_additions_respect_multiples():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(1, 8), nn.Conv2d(8, 2, 1))
    group = fxgrow.inspect(model, IMAGE).groups[0]
    assert group.multiple_of == 8
    with pytest.raises(InputError, match="multiples of 8 units, not by 3"):
        fxgrow.widen(model, IMAGE, {group.name: 3})


@pytest.mark.parametrize(
    ("additions", "width"), [(3, 11), ("+25%", 10), ("+1%", 9), ({"0": 5}, 13)]
)
def test_additions(additions, width):
    growth = fxgrow.widen(mlp(), VECTOR, additions)
    assert growth.module.get_submodule("0").out_features == width
    assert growth.verification.passed
    assert growth.plan.additions["0"] == width - 8


def test_a_plan_may_be_passed_on():
    plan = fxgrow.widen(mlp(), VECTOR, {"2": 3}).plan
    assert fxgrow.widen(mlp(), VECTOR, plan).plan.additions == {"2": 3}


def test_emit_is_checked():
    with pytest.raises(InputError, match="'graph' or 'module'"):
        fxgrow.widen(mlp(), VECTOR, 1, emit="onnx")


def test_the_seed_decides_the_new_rows():
    first, second, other = (fxgrow.widen(mlp(), VECTOR, 2, seed=s).module for s in (0, 0, 1))
    key = "0.weight"
    assert torch.equal(first.state_dict()[key], second.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


def test_unknown_operations_freeze_or_raise():
    inspection = fxgrow.inspect(Spectral(), VECTOR)
    assert inspection.unsupported
    first = inspection.unsupported[0]
    assert first.source.split(":")[0].endswith("test_api.py")
    assert inspection.groups == ()
    with pytest.raises(UnsupportedError) as error:
        fxgrow.inspect(Spectral(), VECTOR, strict=True)
    for unknown in inspection.unsupported:
        assert unknown.op in str(error.value)
    assert re.search(r"test_api\.py:\d+", str(error.value))
    assert "strict=True" in str(error.value)


def test_include_and_exclude():
    # A pattern matches names and layers: layer 4 only reads group 2.
    assert [g.name for g in fxgrow.inspect(mlp(), VECTOR, include=["4"]).groups] == ["2"]
    inspection = fxgrow.inspect(mlp(), VECTOR, exclude=["0"])
    assert [g.name for g in inspection.groups] == ["2"]
    assert [g.name for g in inspection.frozen if g.reason.code == "excluded"] == ["0"]
    with pytest.raises(InputError, match="'conv\\*' matches no group"):
        fxgrow.inspect(mlp(), VECTOR, include=["conv*"])


@pytest.mark.parametrize("budget", [0, -3, float("nan"), float("inf")])
def test_bad_budgets(budget):
    with pytest.raises(BudgetError, match="must be a positive number"):
        fxgrow.expand(mlp(), batches(), budget=budget)


@pytest.mark.parametrize("unit", ["neurons", "params", "flops"])
@pytest.mark.parametrize("distributor", ["svod", "gain", "uniform", "proportional", "random"])
@pytest.mark.parametrize("budget", [5, 37, 1000])
def test_plans_never_exceed_budgets(unit, distributor, budget):
    if unit == "flops":
        budget *= 50
    model = mlp()
    try:
        inspection, _, plan = fxgrow.plan_for(
            model, batches(), budget=budget, unit=unit, distributor=distributor
        )
    except BudgetError:
        cheapest = min(fxgrow.inspect(model, VECTOR).groups, key=lambda g: g.params_per_unit)
        assert (unit == "params" and budget < cheapest.params_per_unit) or unit == "flops"
        return
    assert plan.spent <= budget
    price = getattr(inspection.costs, unit)
    assert price(inspection.groups, plan.additions) == plan.spent
    growth = fxgrow.widen(model, VECTOR, plan)
    added = sum(p.numel() for p in growth.module.parameters()) - sum(
        p.numel() for p in model.parameters()
    )
    if unit == "params":
        assert added == plan.spent


def test_adjusting_nothing_keeps_the_function():
    model = mlp()
    growth = fxgrow.expand(model, batches(), budget=6, adjust_epochs=0)
    assert growth.verification.passed
    with torch.no_grad():
        assert torch.allclose(growth.module(VECTOR), model(VECTOR), atol=1e-6)
    assert sum(growth.plan.additions.values()) == 6


def test_expanding_without_data_needs_inputs_and_a_distributor():
    with pytest.raises(InputError, match="example_inputs"):
        fxgrow.expand(mlp(), None, budget=4, distributor="uniform")
    for distributor in ("svod", "gain"):
        with pytest.raises(InputError, match=f"'{distributor}' needs data to vote"):
            fxgrow.expand(mlp(), None, budget=4, example_inputs=VECTOR, distributor=distributor)
    growth = fxgrow.expand(mlp(), None, budget=4, example_inputs=VECTOR, distributor="uniform")
    assert growth.plan.spent == 4


def test_the_coupling_graph_names_what_couples():
    model, example = NETWORKS["residual"][0](), IMAGE
    inspection = fxgrow.inspect(model, example)
    graph = inspection.graph
    assert ("stem.weight", 0) in graph
    causes = {d["node"] for _, _, d in graph.edges(data=True) if d["kind"] == "coupling"}
    assert any("add" in c for c in causes)


def test_reports_are_plain_data(tmp_path):
    import json

    inspection = fxgrow.inspect(mlp(), VECTOR)
    inspection.to_json(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())
    inspection.to_html(tmp_path / "a.html")
    assert "<html" in (tmp_path / "a.html").read_text().lower()
    assert "graph" in inspection.to_dot()
    json.dumps(dict(fxgrow.widen(mlp(), VECTOR, 1).report))


def test_models_without_memory_grow_as_graphs_that_nobody_can_check():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
        x = torch.zeros(3, 4)
    for options in ({}, {"emit": "module", "verify": False}):
        with pytest.raises(fxgrow.InputError, match="on the meta device"):
            fxgrow.widen(net, x, {"0": 8}, **options)
    grown = fxgrow.widen(net, x, {"0": 8}, verify=False).module
    assert all(p.is_meta for p in grown.parameters())
    assert [p.shape[0] for p in grown.parameters()] == [16, 16, 16, 16, 2, 2]


@torch.fx.wrap
def halved(x):
    return x / 2


class Halving(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(halved(self.a(x)))


def test_functions_that_the_user_wrapped_stay_wrapped():
    """Whoever traces the grown graph again gets the function, not what it is made of."""
    grown = fxgrow.widen(Halving(), torch.randn(3, 4), {"a": 2}).module
    again = torch.fx.symbolic_trace(grown)
    assert [node.target for node in again.graph.nodes].count(halved) == 1
