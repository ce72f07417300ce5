"""Rules of the caller: custom operations, opaque modules and opaque functions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from checks import errors, randomised, untrained
from torch import library, nn

import fxgrow
from fxgrow import rules


def _simple(name, function, gradient, tags=()):
    """Define a custom operation of one tensor, with its gradient from the output.

    As ``custom_op`` does, whose ``tags`` are younger than torch 2.6.
    """

    def setup(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], output)

    library.define(name, "(Tensor x) -> Tensor", tags=tags)
    library.impl(name, "CPU", function)
    library.register_fake(name, function)
    library.register_autograd(name, gradient, setup_context=setup)
    return getattr(torch.ops.fxgrow_test, name.partition("::")[2])


def _double(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * 2


def _double_back(ctx, grad):
    _, out = ctx.saved_tensors
    return grad * (2 - out**2 / 2)


def _turn(x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1)


def _swap(x: torch.Tensor) -> torch.Tensor:
    return x.t().clone()


def _share(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1)


double = _simple("fxgrow_test::double", _double, _double_back)
tagged = _simple("fxgrow_test::tagged", _double, _double_back, tags=[torch.Tag.pointwise])
turn = _simple("fxgrow_test::turn", _turn, lambda ctx, grad: grad.flip(-1))
swap = _simple("fxgrow_test::swap", _swap, lambda ctx, grad: grad.t())
share = _simple("fxgrow_test::share", _share, lambda ctx, grad: grad)


def doubled(x):  # operations themselves can't be copied with a model
    return double(x)


OPERATIONS = {double: doubled, tagged: lambda x: tagged(x), turn: lambda x: turn(x)}
OPERATIONS[swap] = lambda x: swap(x).t()
OPERATIONS[share] = lambda x: share(x)


class Net(nn.Module):
    """An operation between two layers."""

    def __init__(self, operation, times=1):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.middle = nn.ModuleList(nn.Linear(5, 5) for _ in range(times - 1))
        self.operation = OPERATIONS.get(operation, operation)

    def forward(self, x):
        x = self.operation(self.first(x))
        for layer in self.middle:
            x = self.operation(layer(x))
        return self.last(x)


def example():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, 4, generator=generator, dtype=torch.float64)


def ready(model):
    torch.manual_seed(0)
    return randomised(model)


def grown(model, own, additions=2, emits=("graph", "module")):
    """Grow with rules, exactly and trainably; return the last growth."""
    for emit in emits:
        growth = fxgrow.widen(model, example(), additions, rules=own, emit=emit)
        assert growth.verification.passed
        assert max(errors(model, growth.module, example())) <= 1e-10
        assert not untrained(growth.module, growth.groups, example())
    return growth


def test_unknown_operations_freeze_with_name_count_node_and_place():
    inspection = fxgrow.inspect(ready(Net(double, times=3)), example())
    assert not inspection.groups
    (entry,) = inspection.unsupported
    assert (entry.op, entry.count) == ("fxgrow_test::double", 3)
    assert entry.node
    assert "test_user_rules.py:" in entry.source
    reasons = {g.reason for g in inspection.frozen if g.reason.code == "unknown_op"}
    assert all("fxgrow_test::double" in r.message and r.node and r.source for r in reasons)
    assert reasons


def test_strict_raises_one_error_that_lists_all():
    model = ready(nn.Sequential(Net(double), nn.Linear(3, 4), Net(turn, times=2)))
    with pytest.raises(fxgrow.UnsupportedError) as caught:
        fxgrow.inspect(model, example(), strict=True)
    text = str(caught.value)
    assert "fxgrow_test::double ×1 (first at " in text
    assert "fxgrow_test::turn ×2 (first at " in text
    assert "fxgrow.rule" in text
    own = [fxgrow.rule(double)(rules.pointwise), fxgrow.rule(turn)(rules.pointwise)]
    assert not fxgrow.inspect(model, example(), strict=True, rules=own).unsupported


TARGETS = ["fxgrow_test::double", double, torch.ops.fxgrow_test.double]
TARGETS.append(torch.ops.fxgrow_test.double.default)


@pytest.mark.parametrize("target", TARGETS, ids=["name", "custom_op", "packet", "overload"])
def test_rules_are_found_by_any_name_of_an_operation(target):
    own = [fxgrow.rule(target)(rules.pointwise)]
    growth = grown(ready(Net(double, times=2)), own)
    assert growth.module.get_submodule("first").out_features == 7


def test_rules_hold_for_one_call_only():
    model = ready(Net(double))
    assert fxgrow.inspect(model, example(), rules=[fxgrow.rule(double)(rules.pointwise)]).groups
    assert not fxgrow.inspect(model, example()).groups


def test_a_pointwise_tag_is_believed():
    grown(ready(Net(tagged)), ())


def turned(state, call):
    """A movement: the labels move as the positions do."""
    planes = state.planes(call.args[0])
    return [fxgrow.Plane(np.flip(p.labels, -1), p.zero) for p in planes]


def swapped(state, call):
    planes = state.planes(call.args[0])
    return [fxgrow.Plane(p.labels.T, p.zero) for p in planes]


@pytest.mark.parametrize("function", [swapped, rules.shape.t])
def test_movements(function):
    growth = grown(ready(Net(swap, times=2)), [fxgrow.rule(swap)(function)])
    assert growth.plan.additions == {"first": 2, "middle.0": 2}


def test_reversed_channels_are_put_in_order():
    """New units lie at the end of one axis, but not of the other: an index follows."""
    growth = grown(ready(Net(turn)), [fxgrow.rule(turn)(turned)], emits=("graph",))
    assert any("index_select" in edit for edit in growth.report["edits"])


def test_mixtures_freeze():
    @fxgrow.rule(share)
    def mixed(state, call):
        where = state.where(call.name)
        planes = state.planes(call.args[0])
        return [*planes, *state.book.mix(planes, [1], "_softmax", where)]

    inspection = fxgrow.inspect(ready(Net(share)), example(), rules=[mixed])
    assert not inspection.unsupported
    reasons = {g.name: g.reason.code for g in inspection.frozen}
    assert reasons["first"] == "_softmax"


@pytest.mark.parametrize("operation", [turn, share], ids=["order", "softmax"])
def test_wrong_rules_are_caught(operation):
    """Both are called pointwise, which they are not."""
    model = ready(Net(operation))
    own = [fxgrow.rule(operation)(rules.pointwise)]
    assert fxgrow.inspect(model, example(), rules=own).groups
    with pytest.raises(fxgrow.VerificationError, match="another function"):
        fxgrow.widen(model, example(), 2, rules=own)


def test_the_callers_rule_goes_before_the_table():
    def frozen(state, call):
        state.freeze(state.planes(call.args[0]), "mine", call.name)
        return state.planes(call.args[0])

    model = ready(Net(torch.tanh))
    assert fxgrow.inspect(model, example()).groups
    inspection = fxgrow.inspect(model, example(), rules=[fxgrow.rule("aten::tanh")(frozen)])
    assert {g.reason.code for g in inspection.frozen if g.name == "first"} == {"mine"}


def misshapen(state, call):
    return [fxgrow.Plane(p.labels[0]) for p in state.planes(call.args[0])]


def broken(state, call):
    return call.args[7]


def several(state, call):
    return None


@pytest.mark.parametrize(
    ("function", "message"),
    [(misshapen, "not of the output's shape"), (broken, "IndexError"), (several, "TypeError")],
)
def test_broken_rules_are_named(function, message):
    own = [fxgrow.rule(double)(function)]
    with pytest.raises(fxgrow.InputError, match="rule for fxgrow_test::double") as caught:
        fxgrow.inspect(ready(Net(double)), example(), rules=own)
    assert message in str(caught.value)


def test_declarations_are_checked():
    one = fxgrow.rule("fxgrow_test::double")(rules.pointwise)
    with pytest.raises(fxgrow.InputError, match="two rules for fxgrow_test::double"):
        fxgrow.inspect(ready(Net(double)), example(), rules=[one, fxgrow.rule(double)(turned)])
    with pytest.raises(fxgrow.InputError, match="can't have a rule"):
        fxgrow.rule("double")
    with pytest.raises(fxgrow.InputError, match="can't have a rule"):
        fxgrow.rule(int)
    with pytest.raises(fxgrow.InputError, match=r"give it a rule, fxgrow\.rule"):
        fxgrow.resizable(double)
    with pytest.raises(fxgrow.InputError, match="rules hold"):
        fxgrow.inspect(ready(Net(double)), example(), rules=[rules.pointwise])


def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(8, 4, generator=generator, dtype=torch.float64),
            torch.randn(8, 3, generator=generator, dtype=torch.float64),
        )
        for _ in range(2)
    ]


def test_rules_reach_every_function(tmp_path):
    model, own = ready(Net(double, times=2)), [fxgrow.rule(double)(rules.pointwise)]
    assert fxgrow.vote(model, batches(), budget=4, rules=own).counts
    assert fxgrow.plan_for(model, batches(), budget=4, rules=own)[2].spent == 4
    growth = fxgrow.expand(model, batches(), budget=4, rules=own)
    assert growth.plan.spent == 4
    growth.save(tmp_path / "own.safetensors")
    with pytest.raises(fxgrow.FileError, match="does not belong"):
        fxgrow.load(tmp_path / "own.safetensors", base=model)
    loaded = fxgrow.load(tmp_path / "own.safetensors", base=model, rules=own)
    assert max(errors(growth.module, loaded.module, example())) == 0
    again = fxgrow.widen(growth.module, example(), 1, rules=own)
    assert max(errors(growth.module, again.module, example())) <= 1e-10


# -- opaque modules and functions ----------------------------------------------------


class Outside(nn.Module):
    """Leaves PyTorch: labels end here."""

    def forward(self, x):
        return x + (torch.from_numpy(np.sin(x.detach().numpy())) - x).detach()


class Branching(nn.Module):
    """Looks at values, so it can't be traced, and keeps its width where nobody finds it."""

    def __init__(self, width=5):
        super().__init__()
        self.width = {"all": [width]}
        self.mix, self.scale = nn.Linear(width, width), nn.Parameter(torch.ones(width))

    def forward(self, x):
        if float(x.detach()[0, 0]) > 1e9:
            return x
        assert x.shape[-1] == self.width["all"][0]
        return torch.tanh(self.mix(x.view(-1, self.width["all"][0]))) * self.scale


SIZED = fxgrow.resizable(Branching, width=lambda module: {"all": [module.scale.shape[0]]})


def test_modules_that_leave_torch():
    model = ready(Net(Outside()))
    assert not fxgrow.inspect(model, example()).groups
    grown(model, [fxgrow.rule(Outside)(rules.pointwise)])


def test_modules_with_sizes_of_their_own():
    model = ready(Net(Branching()))
    inspection = fxgrow.inspect(model, example())
    assert {g.reason.code for g in inspection.frozen} >= {"hidden_size"}
    assert "first" not in {g.name for g in inspection.groups}
    growth = grown(model, [SIZED])
    inner = growth.module.get_submodule("operation")
    assert inner.width == {"all": [7]}
    assert (inner.mix.in_features, inner.mix.out_features) == (7, 7)
    assert type(inner) is Branching
    assert not inner.mix._forward_pre_hooks


def test_running_statistics_are_not_those_of_the_analysis():
    """Values are computed around code that looks at them, statistics must stay."""

    class Training(Net):
        def forward(self, x):  # asks for the mode: both are analysed
            return super().forward(x) * (2 if self.training else 1)

    model = ready(Training(Branching()))
    model.first = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)).double()
    model.first[1].running_mean += 3
    before = copy.deepcopy(model.state_dict())
    growth = fxgrow.widen(model, example(), 2, rules=[SIZED])
    assert max(errors(model, growth.module, example())) <= 1e-10
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(
        growth.module.state_dict()["first.1.running_mean"][:5], before["first.1.running_mean"]
    )


def test_subclasses_are_meant_too():
    class Special(Branching):
        pass

    grown(ready(Net(Special())), [SIZED], emits=("graph",))


def test_undeclared_sizes_are_refused():
    own = [fxgrow.resizable(Branching)]
    with pytest.raises(fxgrow.UnsupportedError, match="does not run at the new width"):
        fxgrow.widen(ready(Net(Branching())), example(), 2, rules=own)


def test_sizes_that_can_not_be_computed_are_named():
    own = [fxgrow.resizable(Branching, breadth=lambda module: 1)]
    with pytest.raises(fxgrow.InputError, match=r"size 'breadth' declared for Branching"):
        fxgrow.widen(ready(Net(Branching())), example(), 2, rules=own)


def pairs(x):
    """Looks at values; adapts to any width."""
    if float(x.detach()[0, 0]) > 1e9:
        return x
    return x.view(x.shape[0], -1, 1).squeeze(-1) * 2


def outside(x):
    return x + (torch.from_numpy(np.sin(x.detach().numpy())) - x).detach()


class Calling(nn.Module):
    """Calls a function by its name in this module."""

    def __init__(self, which):
        super().__init__()
        self.first, self.last, self.which = nn.Linear(4, 5), nn.Linear(5, 3), which

    def forward(self, x):
        x = self.first(x)
        return self.last(pairs(x) if self.which == "pairs" else outside(x))


@pytest.mark.parametrize("which", ["pairs", "outside"])
def test_functions(which):
    model = ready(Calling(which))
    assert "no graph" in fxgrow.inspect(model, example()).analysis.traced.obstacle
    own = {"pairs": fxgrow.resizable(pairs), "outside": fxgrow.rule(outside)(rules.pointwise)}
    grown(model, [own[which]])
    # The wrapping has gone with the call.
    assert "no graph" in fxgrow.inspect(model, example()).analysis.traced.obstacle


class Whole(nn.Module):
    """No graph itself; what the caller declares lies inside."""

    def __init__(self, operation):
        super().__init__()
        self.inner = Net(operation)

    def forward(self, x):
        return self.inner(x) if float(x.detach()[0, 0]) < 1e9 else x


@pytest.mark.parametrize(
    ("operation", "own"), [(Outside, fxgrow.rule(Outside)(rules.pointwise)), (Branching, SIZED)]
)
def test_declared_modules_inside_a_model_that_is_no_graph(operation, own):
    model = ready(Whole(operation()))
    assert "inner.first" not in {g.name for g in fxgrow.inspect(model, example()).groups}
    growth = grown(model, [own], emits=("module",))
    assert all("forward" not in module.__dict__ for module in growth.module.modules())


def test_the_example_runs(capsys):
    import custom_operation

    custom_operation.main()
    text = capsys.readouterr().out
    assert "without a rule: []" in text
    assert "no rule for fxgrow_example::gated, 1 time(s)" in text
    assert "out_features=12" in text
