"""Dead units get a new start, and nothing that the model computes changes."""

import copy

import pytest
import torch
from torch import nn

import fxgrow
from fxgrow.errors import DataError, UnsupportedError
from fxgrow.revival import revive


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)
    ).double()


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 3),
    ).double()  # fmt: skip


def some_data(*shape, batches=4):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, *shape, generator=generator), torch.randint(3, (16,), generator=generator))
        for _ in range(batches)
    ]


def kill(layer, units):
    with torch.no_grad():
        layer.bias[list(units)] = -1e3


CASES = {"mlp": (mlp, (6,), "2"), "convolutions": (convolutions, (2, 6, 6), "3")}


@pytest.fixture(params=CASES)
def case(request):
    build, shape, deep = CASES[request.param]
    net, data = build(), some_data(*shape)
    revive(net, data)  # a few are dead as drawn
    return net, data, deep


def all_outputs(net, data):
    with torch.no_grad():
        return [net(x.double()) for x, _ in data]


def test_dead_units_live_again_and_the_function_is_kept(case):
    net, data, deep = case
    kill(net[0], (1, 4))
    kill(net.get_submodule(deep), (0, 2, 5))
    before = all_outputs(net, data)
    found = revive(net, data)
    assert found.revived == {"0": 2, deep: 3} and not found.left and found.samples == 64
    for old, new in zip(before, all_outputs(net, data), strict=True):
        torch.testing.assert_close(old, new, rtol=1e-12, atol=1e-12)
    after = fxgrow.activity(net, data, threshold=0)
    for name, units in (("0", (1, 4)), (deep, (0, 2, 5))):
        assert not after.group(name).inactive.any()
        assert (after.group(name).active[list(units)] > 0.2).all()


def test_living_units_stay_bit_for_bit(case):
    net, data, deep = case
    kill(net[0], (3,))
    before = copy.deepcopy(net.state_dict())
    revive(net, data)
    for name, value in net.state_dict().items():
        old, new = before[name], value
        if name.startswith("0."):
            alive = [unit for unit in range(len(new)) if unit != 3]
            old, new = old[alive], new[alive]
        elif name == f"{deep}.weight":
            old, new = old.clone(), new.clone()
            old[:, 3], new[:, 3] = 0, 0
            assert (value[:, 3] == 0).all()
        assert torch.equal(old, new), name


def test_revived_units_learn(case):
    net, data, deep = case
    kill(net[0], (2,))
    revive(net, data)
    start = net[0].weight[2].detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x.double()), y).backward()
        optimizer.step()
    assert (net.get_submodule(deep).weight[:, 2] != 0).any()
    assert not torch.equal(net[0].weight[2], start)


def test_without_dead_units_nothing_changes(case):
    net, data, _ = case
    before = copy.deepcopy(net.state_dict())
    assert revive(net, data) == fxgrow.Revival({}, {}, 64)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_the_optimizer_forgets_what_it_held(case):
    net, data, deep = case
    optimizer = torch.optim.Adam(net.parameters())
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x.double()), y).backward()
        optimizer.step()
    kill(net[0], (4,))
    revive(net, data, optimizer=optimizer)
    row, column = optimizer.state[net[0].weight], optimizer.state[net.get_submodule(deep).weight]
    for key in ("exp_avg", "exp_avg_sq"):
        assert (row[key][4] == 0).all() and (row[key][0] != 0).any()
        assert (column[key][:, 4] == 0).all() and (column[key][:, 0] != 0).any()
    assert row["step"] == len(data)


def test_only_as_many_samples_as_asked_for_are_looked_at(case):
    net, data, _ = case
    assert revive(net, data, samples=20).samples == 32


def test_where_columns_count_for_more_than_what_they_read_nothing_is_changed():
    net = mlp()
    net[2] = nn.utils.parametrizations.weight_norm(net[2])
    data = some_data(6)
    kill(net[0], (1,))
    before = copy.deepcopy(net.state_dict())
    found = revive(net, data)
    assert not found.revived and "changes the outputs" in found.left["0"]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)), "bias"),
        (
            lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
            "norm",
        ),
    ],
    ids=["no bias", "behind a norm"],
)
def test_what_cannot_be_revived_is_told(build, why):
    net = build().double().eval()
    data = [(x.abs(), y) for x, y in some_data(6)]
    with torch.no_grad():
        if isinstance(net[1], nn.BatchNorm1d):
            net[1].bias[2] = -1e3
        else:
            net[0].weight[2] = -1
    found = revive(net, data)
    assert not found.revived and why in found.left["0"]


def test_a_group_of_dead_units_alone_is_left(case):
    net, data, _ = case
    kill(net[0], range(net[0].weight.shape[0]))
    found = revive(net, data)
    assert "0" not in found.revived and "all of its units are dead" in found.left["0"]


def test_the_random_state_and_modes_are_kept(case):
    net, data, _ = case
    kill(net[0], (0,))
    net.train()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    revive(net, data)
    assert torch.equal(torch.rand(3), wanted) and all(part.training for part in net.modules())


def test_bad_data_are_refused():
    with pytest.raises(DataError):
        revive(mlp(), iter(some_data(6)))


def test_sharded_models_are_refused(monkeypatch):
    monkeypatch.setattr("fxgrow.revival.is_sharded", lambda model: True)
    with pytest.raises(UnsupportedError, match="FSDP2"):
        revive(mlp(), some_data(6))
