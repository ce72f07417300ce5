"""Schedulers outlive a growth, with and without param groups of their own for new tensors."""

from __future__ import annotations

import pytest
import torch
from optimizing import X, net, picture, train, widened
from torch.optim import lr_scheduler as ls

import fxgrow

SCHEDULERS = {
    "lambda": lambda o: ls.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "multiplicative": lambda o: ls.MultiplicativeLR(o, lambda epoch: 0.9),
    "cosine": lambda o: ls.CosineAnnealingLR(o, T_max=12),
    "warm restarts": lambda o: ls.CosineAnnealingWarmRestarts(o, T_0=4),
    "one cycle": lambda o: ls.OneCycleLR(o, max_lr=0.1, total_steps=12),
    "cyclic": lambda o: ls.CyclicLR(o, 1e-3, 0.1, step_size_up=3),
    "multi step": lambda o: ls.MultiStepLR(o, [2, 5]),
    "polynomial": lambda o: ls.PolynomialLR(o, total_iters=12),
    "linear": lambda o: ls.LinearLR(o, start_factor=0.1, total_iters=8),
    "sequence": lambda o: ls.SequentialLR(
        o, [ls.LinearLR(o, 0.1, total_iters=3), ls.LambdaLR(o, lambda n: 1 / (1 + n))], [3]
    ),
    "chain": lambda o: ls.ChainedScheduler([ls.ExponentialLR(o, 0.9), ls.StepLR(o, 4)]),
    "plateau": lambda o: ls.ReduceLROnPlateau(o, patience=1, min_lr=[1e-4, 2e-4]),
}


def setup(name):
    """A model in two groups, SGD with momentum, and a scheduler that has run for a while."""
    model = net()
    optimizer = torch.optim.SGD(
        [
            {"params": [model[0].weight, model[0].bias, model[4].bias]},
            {"params": [model[2].weight, model[2].bias, model[4].weight], "lr": 0.02},
        ],
        lr=0.01,
        momentum=0.9,
    )
    scheduler = SCHEDULERS[name](optimizer)
    rates = [advance(model, optimizer, scheduler) for _ in range(4)]
    return model, optimizer, scheduler, rates


def advance(model, optimizer, scheduler):
    train(model, optimizer, 1)
    scheduler.step(*([1.0] if isinstance(scheduler, ls.ReduceLROnPlateau) else []))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert scheduler.get_last_lr() == pytest.approx(rates)
    return rates


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch 2.6 warns of its own call
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_schedules_go_on(name):
    model, optimizer, scheduler, _ = setup(name)
    plain, other, same, _ = setup(name)
    growth = widened(model)
    growth.migrate(optimizer)
    for _ in range(5):
        ours = advance(growth.module, optimizer, scheduler)
        assert ours == advance(plain, other, same)
    assert scheduler.optimizer is optimizer


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch 2.6 warns of its own call
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_new_groups_follow_the_old_schedule_at_their_own_rate(name):
    model, optimizer, scheduler, _ = setup(name)
    plain, other, same, _ = setup(name)
    now = [group["lr"] for group in optimizer.param_groups]
    growth = widened(model, {"0": 3})
    growth.migrate(optimizer, new_options={"lr": 0.005}, schedulers=[scheduler])
    name_of = {id(p): n for n, p in growth.module.named_parameters()}
    names = [[name_of[id(p)] for p in g["params"]] for g in optimizer.param_groups]
    assert names == [["4.bias"], ["2.bias", "4.weight"], ["0.weight", "0.bias"], ["2.weight"]]
    assert [g["lr"] for g in optimizer.param_groups] == [*now, 0.005, 0.005]
    assert scheduler.get_last_lr() == pytest.approx([*now, 0.005, 0.005])
    assert all(g["momentum"] for g in optimizer.param_groups)
    for _ in range(5):
        ours = advance(growth.module, optimizer, scheduler)
        theirs = advance(plain, other, same)
        assert ours[:2] == theirs
        scaled = [0.005 * rate / start for rate, start in zip(theirs, now, strict=True)]
        assert ours[2:] == pytest.approx(scaled, rel=1e-9)


def test_options_other_than_the_rate():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01), weight_decay=0.1)
    train(model, optimizer)
    rate = optimizer.param_groups[0]["lr"]
    growth = widened(model)
    growth.migrate(optimizer, new_options={"weight_decay": 0.0})
    old, new = optimizer.param_groups
    assert (old["weight_decay"], new["weight_decay"]) == (0.1, 0.0)
    assert old["lr"] is rate
    assert new["lr"] is not rate
    assert float(new["lr"]) == float(rate)
    assert [tuple(p.shape) for p in old["params"]] == [(3,)]  # the only one that did not grow
    assert optimizer.state[new["params"][0]]["step"] == 3
    train(growth.module, optimizer, 1)


def test_a_group_that_grew_as_a_whole_is_changed_itself():
    model = net()
    optimizer = torch.optim.Adam(
        [
            {"params": [("0.weight", model[0].weight)]},
            {"params": [("4.bias", model[4].bias), ("2.weight", model[2].weight)]},
        ],
        lr=0.01,
    )
    scheduler = ls.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    train(model, optimizer)
    scheduler.step()
    growth = widened(model)
    first = optimizer.param_groups[0]
    growth.migrate(optimizer, new_options={"lr": 0.001}, schedulers=[scheduler])
    assert len(optimizer.param_groups) == 3
    assert optimizer.param_groups[0] is first
    assert [g["param_names"] for g in optimizer.param_groups] == [
        ["0.weight"], ["4.bias"], ["2.weight"]
    ]  # fmt: skip
    assert [g["lr"] for g in optimizer.param_groups] == [0.001, 0.005, 0.001]
    train(growth.module, optimizer, 1)
    scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.0005, 0.0025, 0.0005])
    copy = torch.optim.Adam(
        [
            {"params": [(n, growth.module.get_parameter(n))]}
            for n in ("0.weight", "4.bias", "2.weight")
        ]
    )
    copy.load_state_dict(optimizer.state_dict())


def test_schedulers_must_be_told():
    model, optimizer, scheduler, _ = setup("cosine")
    growth = widened(model)
    before = picture(optimizer), dict(scheduler.state_dict())
    with pytest.raises(fxgrow.InputError, match=r"pass schedulers=\[scheduler"):
        growth.migrate(optimizer, new_options={"lr": 0.1})
    _, _, stranger, _ = setup("cosine")
    with pytest.raises(fxgrow.InputError, match="CosineAnnealingLR belongs to another optimizer"):
        growth.migrate(optimizer, new_options={"lr": 0.1}, schedulers=[stranger])
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(fxgrow.InputError, match="rate is 0 now"):
        growth.migrate(optimizer, new_options={"lr": 0.1}, schedulers=[scheduler])
    optimizer.param_groups[0]["lr"] = scheduler.get_last_lr()[0]
    assert (picture(optimizer), dict(scheduler.state_dict())) == before
    assert growth.module(X).shape == (7, 3)
