"""Grower: when, how much, and when to stop; losses, wrappers, history, refusals."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from checks import doubled, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS
from torch import nn
from torch.optim.swa_utils import AveragedModel

import fxgrow
from fxgrow.budgets import Limits, Size, budget_of, stalled
from fxgrow.errors import BudgetError, DataError, InputError, NothingToGrow, UnsupportedError
from fxgrow.history import _figure
from fxgrow.ledger import Ledger

DATA = [
    (torch.randn(8, 6, generator=g), torch.randint(3, (8,), generator=g))
    for g in [torch.Generator().manual_seed(seed) for seed in range(4)]
]
SIZE = Size(neurons=10, params=100, flops=1000)


def net(width=5):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, 3)
    )


def grower(model=None, optimizer=None, **options):
    return fxgrow.Grower(
        net() if model is None else model, optimizer, **{"data": DATA, "budget": 2, **options}
    )


def rounds_after(grower_, ends):
    """Round counter after every boundary of ``ends``, e.g. "sse" or [("e", 0.5), ...]."""
    calls = {"s": grower_.step_end, "e": grower_.epoch_end}
    seen = []
    for end in ends:
        kind, metric = end if isinstance(end, tuple) else (end, None)
        calls[kind](metric)
        seen.append(grower_.round)
    return seen


# ------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("schedule", "ends", "expected"),
    [
        (fxgrow.every(epochs=2), "sesesese", [0, 0, 0, 1, 1, 1, 1, 2]),
        (fxgrow.every(steps=3), "sssesss", [0, 0, 1, 1, 1, 1, 2]),
        (fxgrow.at(epochs=[1, 3]), "eeee", [1, 1, 2, 2]),
        (fxgrow.at(steps=[2]), "sses", [0, 1, 1, 1]),
        (lambda now: now.boundary == "epoch" and now.size.neurons < 12, "eee", [1, 2, 2]),
        (lambda now: now.epochs_in_round == 2, "eeeee", [0, 1, 1, 2, 2]),
        (None, "ee", [1, 2]),
    ],
)
def test_schedules(schedule, ends, expected):
    assert rounds_after(grower(schedule=schedule), ends) == expected


def test_plateau_counts_from_the_last_growth():
    tall = [("e", v) for v in (3.0, 2.0, 2.0, 2.5, 2.4, 2.3, 2.3, 2.4)]
    it = grower(schedule=fxgrow.plateau(patience=2))
    # 2.0 2.5 do not beat 2.0: growth; afterwards 2.4 is the first, and 2.3 2.4 no better than 2.3
    assert rounds_after(it, tall) == [0, 0, 0, 1, 1, 1, 1, 2]


def test_plateau_of_steps_does_not_look_at_epochs():
    it = grower(schedule=fxgrow.plateau(patience=1, on="step"))
    assert rounds_after(it, [("e", 1.0), ("s", 1.0), ("e", 1.0), ("s", 1.0)]) == [0, 0, 0, 1]


@given(
    st.lists(st.floats(-5, 5) | st.just(math.nan), max_size=8),
    st.integers(1, 4),
    st.floats(0, 1),
)
def test_stalled_is_what_it_says(values, patience, delta):
    numbers = [math.inf if math.isnan(v) else v for v in values]
    last = numbers[-patience:]
    best = min(numbers[:-patience], default=None)
    expected = best is not None and len(numbers) > patience and all(v >= best - delta for v in last)
    assert stalled(values, patience, delta, "min") == expected
    assert stalled([-v for v in values], patience, delta, "max") == expected


# ------------------------------------------------------------------- budgets and limits


def neurons(it):
    return [row.budget for row in it.history.growths]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (2, [2, 2, 2]),
        ([3, 1, 2], [3, 1, 2]),
        (fxgrow.geometric(2, 1.5, rounds=3), [2, 3, 4.5]),
        ("+50%", [4.5, 6.5, 9.5]),  # of 9, 13, 19 neurons; the fraction buys nothing
        (lambda round_, size: 1 + round_, [1, 2, 3]),
    ],
)
def test_budgets(budget, expected):
    it = grower(budget=budget, rounds=3)
    rounds_after(it, "eeee")
    assert neurons(it) == expected
    assert it.size.neurons == 9 + sum(int(value) for value in expected)


@pytest.mark.parametrize("budget", [[2, 3], fxgrow.geometric(2, 1, rounds=2)])
def test_finished_when_the_budgets_are_used_up(budget):
    it = grower(budget=budget)
    assert rounds_after(it, "ee") == [1, 2]
    assert it.finished == ""
    assert rounds_after(it, "ee") == [2, 2]
    assert it.finished == "the budgets are used up"


@pytest.mark.parametrize("unit", ["params", "flops"])
def test_budget_units(unit):
    it = grower(budget=200, unit=unit)
    before = it.size
    it.grow()
    assert 0 < it.size.in_unit(unit) - before.in_unit(unit) <= 200


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"rounds": 2}, "all 2 growths are made"),
        ({"max_neurons": 14}, "the model has 14 of at most 14 neurons"),
        ({"max_params": 130}, "another growth would exceed 130 params"),
    ],
)
def test_limits_are_never_exceeded(limits, reason):
    it = grower(budget=3, **limits)
    rounds_after(it, "eeeeee")
    assert it.finished == reason
    assert it.size.neurons <= limits.get("max_neurons", math.inf)
    assert it.size.params <= limits.get("max_params", math.inf)
    assert it.size.params == sum(p.numel() for p in it.module.parameters())


def test_patience_with_growth():
    it = grower(patience=2, rounds=9)
    ends = [("e", v) for v in (1.0, 0.5, 0.6, 0.5, 0.1)]
    # rounds 2 and 3 are no better than round 1: the fourth growth is not made
    assert rounds_after(it, ends) == [1, 2, 3, 3, 3]
    assert it.finished == "the last 2 growths made the metric no better"


@settings(max_examples=40)
@given(st.integers(1, 9), st.lists(st.floats(0.1, 50), min_size=1, max_size=4))
def test_listed_budgets_end(round_, budgets):
    value = budget_of(budgets, round_, 10)
    assert value == (budgets[round_] if round_ < len(budgets) else None)


def test_room_is_in_its_own_unit():
    limits = Limits(max_neurons=12, max_params=130)
    assert limits.room("neurons", SIZE) == 2
    assert limits.room("params", SIZE) == 30
    assert limits.room("flops", SIZE) == math.inf


# ------------------------------------------------------------------- the loss


def step(model, optimizer, batch):
    loss = F.cross_entropy(model(batch[0]), batch[1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("emit", ["graph", "module"])
@pytest.mark.parametrize("distributor", ["uniform", "svod", "gain"])
def test_loss_does_not_jump(emit, distributor):
    """Float32, relative 1e-5, after every growth of a training; and training goes on."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    it = grower(model, optimizer, budget="+40%", emit=emit, distributor=distributor)
    for _ in range(4):
        for batch in DATA:
            step(model, optimizer, batch)
        old = [model(x).detach() for x, _ in DATA]
        model = it.epoch_end()
        for before, (x, _) in zip(old, DATA, strict=True):
            torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
    for row in it.history.growths:
        assert row.loss_after == pytest.approx(row.loss_before, rel=1e-5)
        assert row.params_after > row.params_before
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in model.parameters()
    }


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "flattened", "packed", "mlp"])
def test_old_entries_go_on_as_without_growth(name):
    """With fill="zero" the next step changes every old entry as it would have been changed."""
    factory, example = NETWORKS[name]
    torch.manual_seed(0)
    model, example = randomised(factory()).eval(), doubled(example)
    with torch.no_grad():
        out = model(example)
    data = [(example, torch.zeros_like(out))]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    twin = copy.deepcopy(model)
    other = torch.optim.Adam(twin.parameters(), lr=1e-2)

    def go_on(module, its):
        its.zero_grad()
        module(example).square().mean().backward()
        its.step()

    for _ in range(3):
        go_on(model, optimizer)
        go_on(twin, other)
    # Streams under a norm scale old entries of the norm, so their steps are others.
    streams = [g.name for g in fxgrow.inspect(model, example).groups if g.recipe != "fresh"]
    it = fxgrow.Grower(
        model, optimizer, data=data, budget="+30%", distributor="uniform", exclude=streams
    )
    model = it.grow()
    go_on(model, optimizer)
    go_on(twin, other)
    narrow = dict(twin.named_parameters())
    grown = fxgrow.io.widen_again(twin, example, it.record()["steps"][0], {"emit": "graph"})
    for key, value in model.named_parameters():
        region = grown.index_map.region(key, narrow[key])
        torch.testing.assert_close(value[region], narrow[key], rtol=1e-9, atol=1e-11)


def test_growth_leaves_random_numbers_and_the_given_model_alone():
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*DATA[0]),
        4,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )
    model = net()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(7)
    expected = torch.rand(3)
    order = [x.tolist() for x, _ in loader]
    loader.generator.manual_seed(0)
    torch.manual_seed(7)
    it = fxgrow.Grower(model, data=loader, budget=3, adjust_epochs=1)
    it.grow()
    assert torch.equal(torch.rand(3), expected)
    assert [x.tolist() for x, _ in loader] == order
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_growth_inside_an_epoch_of_persistent_workers():
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*DATA[0]), 2, num_workers=1, persistent_workers=True
    )
    it = fxgrow.Grower(net(), data=loader, budget=3, schedule=fxgrow.every(steps=2))
    seen = []
    for x, _ in it.batches():
        seen.append(x)
        it.step_end()
    assert torch.equal(torch.cat(seen), DATA[0][0])
    assert it.round == 2


# ------------------------------------------------------------------- what else grows


def test_everything_follows():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    ema = AveragedModel(model)
    it = grower(model, optimizer, ema=ema, track={"scheduler": scheduler})
    step(model, optimizer, DATA[0])
    ema.update_parameters(model)
    old = ema(DATA[1][0])
    model = it.grow()
    torch.testing.assert_close(it.ema(DATA[1][0]), old)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    step(model, optimizer, DATA[1])
    it.ema.update_parameters(it.module)
    assert all(
        p.shape == q.shape for p, q in zip(it.ema.parameters(), model.parameters(), strict=False)
    )


def test_gradient_scalers_go_on():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    it = grower(model, optimizer, track={"scaler": scaler})
    for number in range(4):
        loss = F.cross_entropy(model(DATA[0][0]), DATA[0][1])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if number == 1:
            model = it.grow()
    assert scaler.get_scale() == 8.0 * 2 * 2  # no step was skipped
    assert "track.scaler" in it.state_dict()["objects"]


def test_several_optimizers():
    model = net()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    rest = torch.optim.Adam(model[2:].parameters())
    it = grower(model, [first, rest])
    model = it.grow()
    held = [p for o in (first, rest) for g in o.param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}


def test_compiled_models_are_compiled_again():
    calls = []

    def backend(module, inputs):
        calls.append(module)
        return module.forward

    model = torch.compile(net(), backend=backend, dynamic=False)
    plain_output = model(DATA[0][0])
    optimizer = torch.optim.Adam(model.parameters())
    it = grower(model, optimizer)
    grown = it.grow()
    assert type(grown) is type(model)
    assert it.module is grown._orig_mod
    before = len(calls)
    torch.testing.assert_close(grown(DATA[0][0]), plain_output)
    assert len(calls) == before + 1  # by the same backend
    step(grown, optimizer, DATA[0])


def test_own_wrappers():
    class Shell(nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside

        def forward(self, x):
            return self.inside(x)

    it = grower(Shell(net()), unwrap=lambda shell: shell.inside, wrap=Shell)
    for _ in range(2):
        model = it.grow()
        assert isinstance(model, Shell)
        assert it.module is model.inside
    assert it.size.neurons == 13


# ------------------------------------------------------------------- history


def trained_history():
    it = grower(rounds=2, schedule=fxgrow.every(epochs=1))
    for epoch in range(4):
        for number in range(3):
            it.step_end(1 / (1 + epoch + number))
        it.epoch_end(1 / (1 + epoch))
    return it.history


def test_history_tells_all():
    history = trained_history()
    first, second = history.growths
    assert (first.epoch, first.step, first.round, first.metric) == (1, 3, 1, 1.0)
    assert first.params_after == second.params_before
    assert all(old < new for old, new in first.widths.values())
    assert json.loads(json.dumps(history.rows()))[1]["params_after"] == second.params_after
    assert [m.boundary for m in history.metrics] == (["step"] * 3 + ["epoch"]) * 4
    lines = history.table().splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert f"{first.params_before:,} → {first.params_after:,}" in lines[2]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_history_plots(kind, tmp_path):
    path = tmp_path / f"history.{kind}"
    trained_history().plot(path, metric="loss", log=True)
    magic = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert path.read_bytes().startswith(magic[kind])
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_history_over_epochs_where_no_steps_are_counted(tmp_path):
    it = grower(rounds=1)
    for value in (3.0, 2.0):
        it.epoch_end(value)
    it.history.plot(tmp_path / "a.svg")
    figure = _figure(it.history, "loss", False)
    above, below = figure.axes
    assert below.get_xlabel().startswith("epoch")
    lines = {tuple(line.get_xdata()) for line in above.lines}
    assert lines == {(1, 2), (1, 1)}  # the metric, and the growth


def test_history_of_nothing_and_unknown_formats(tmp_path):
    with pytest.raises(InputError, match="is empty"):
        fxgrow.History().plot(tmp_path / "a.png")
    with pytest.raises(InputError, match="png"):
        trained_history().plot(tmp_path / "a.gif")


@given(
    st.lists(st.tuples(st.sampled_from(["step", "epoch"]), st.none() | st.floats(0, 9)), max_size=9)
)
def test_ledger_round_trip(ends):
    ledger = Ledger("max")
    for boundary, metric in ends:
        ledger.count(boundary, metric)
    back = Ledger.from_dict(json.loads(json.dumps(ledger.to_dict())), "max")
    assert back == ledger
    assert back.moment("epoch", SIZE) == ledger.moment("epoch", SIZE)


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"budget": 0}, BudgetError, "positive"),
        ({"budget": "half"}, BudgetError, "share like"),
        ({"budget": "-5%"}, BudgetError, "share like"),
        ({"fill": "ones"}, InputError, "fill is 'ones'"),
        ({"emit": "onnx"}, InputError, "emit is 'onnx'"),
        ({"mode": "best"}, InputError, "mode is 'best'"),
        ({"unit": "kilos"}, InputError, "unknown budget unit"),
        ({"rounds": 0}, InputError, "rounds is 0"),
        ({"patience": 0}, InputError, "patience is 0"),
        ({"extendor": "swe"}, InputError, "unknown argument 'extendor'"),
        ({"track": {"loss": F.cross_entropy}}, InputError, "no state_dict"),
        ({"data": iter(DATA)}, DataError, "one-shot"),
        ({"data": None, "example_inputs": DATA[0][0]}, InputError, "need data"),
        ({"exclude": ["*"]}, NothingToGrow, "no group can grow"),
    ],
)
def test_bad_arguments_are_refused_at_once(options, error, words):
    with pytest.raises(error, match=words):
        grower(**options)


def test_foreign_optimizers_and_lbfgs_are_refused_at_once():
    model = net()
    with pytest.raises(InputError, match="holds no parameter of the model"):
        grower(model, torch.optim.SGD(net().parameters(), lr=1))
    lbfgs = torch.optim.LBFGS(model.parameters())
    with pytest.raises(UnsupportedError, match="fill='reset'"):
        grower(model, lbfgs)
    grower(model, lbfgs, fill="reset").grow()


def test_models_compiled_in_place_are_refused():
    model = net()
    model.compile(backend="eager")
    with pytest.raises(UnsupportedError, match="in place"):
        grower(model)


@pytest.mark.parametrize(
    "make",
    [
        lambda: fxgrow.every(),
        lambda: fxgrow.every(epochs=1, steps=1),
        lambda: fxgrow.every(steps=0),
        lambda: fxgrow.at(epochs=[]),
        lambda: fxgrow.at(steps=[0, 3]),
        lambda: fxgrow.plateau(patience=0),
        lambda: fxgrow.plateau(min_delta=-1),
        lambda: fxgrow.plateau(on="batch"),
        lambda: fxgrow.geometric(0, 2),
        lambda: fxgrow.geometric(1, math.inf),
    ],
)
def test_impossible_rules_are_refused(make):
    with pytest.raises(InputError):
        make()


def test_a_failed_growth_changes_nothing():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    it = grower(model, optimizer, budget=lambda round_, size: 5 if size else None)
    it._budget = 0.5  # as a callable may say later in a run
    with pytest.raises(BudgetError):
        it.epoch_end()
    assert it.model is model
    assert it.round == 0
    assert optimizer.param_groups[0]["params"][0] is next(model.parameters())


# ------------------------------------------------------------------- units that die


def killed(model):
    """A new unit of the first layer, which is its last one, is dead."""
    with torch.no_grad():
        model.get_submodule("0").bias[-1] = -1e3
    return model


@pytest.mark.parametrize("revive", [2048, 0])
def test_new_units_that_died_are_revived_after_an_epoch(revive):
    options = {"schedule": fxgrow.at(epochs=[1]), "distributor": "uniform", "budget": 4}
    model = net()
    run = grower(model, torch.optim.SGD(model.parameters(), lr=0.1), revive=revive, **options)
    killed(run.epoch_end())
    state = torch.get_rng_state()
    before = [run.model(x) for x, _ in DATA]
    grown = run.epoch_end()
    assert torch.equal(state, torch.get_rng_state())
    dead = fxgrow.activity(grown, DATA, threshold=0).group("0").inactive[-1]
    assert dead == (not revive)
    for (x, _), old in zip(DATA, before, strict=True):
        torch.testing.assert_close(grown(x), old)


def test_nothing_is_revived_before_the_first_growth_and_without_data():
    model = killed(net())
    run = grower(model, schedule=fxgrow.at(epochs=[5]))
    run.epoch_end()
    assert model[0].bias[-1] == -1e3
    without = fxgrow.Grower(
        model, budget=2, distributor="uniform", example_inputs=DATA[0][0], adjust_epochs=0
    )
    without.epoch_end()
    assert without.round == 1 and without.revive() == fxgrow.Revival({}, {}, 0)
