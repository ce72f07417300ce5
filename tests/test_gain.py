"""Gains of new units: what each contributes to a falling loss."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import fxgrow
from fxgrow.ballot import candidate_count
from fxgrow.gain import contributions, share_by_gain
from fxgrow.rewrite import rewrite


def mlp():
    layers = [nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)]
    return nn.Sequential(*layers)


def residual():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.mid = nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = F.relu(self.norm(self.stem(x)))
            return self.head((x + self.mid(x)).mean((2, 3)))

    return Net()


def grouped():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, groups=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(),
        nn.Linear(8 * 16, 3),
    )  # fmt: skip


CASES = {
    "mlp": (mlp, lambda: torch.randn(16, 8), 5),
    "residual": (residual, lambda: torch.randn(16, 3, 8, 8), 3),
    "grouped": (grouped, lambda: torch.randn(16, 3, 8, 8), 3),
}


def clone_of(case, added=3):
    make, inputs, classes = CASES[case]
    torch.manual_seed(0)
    model = make().double()
    x = inputs().double()
    with torch.no_grad():
        classes = model(x).shape[1]
    inspection = fxgrow.inspect(model, x[:2])
    counts = {g.name: added * g.multiple_of for g in inspection.groups}
    return rewrite(model, inspection, counts), (x, torch.randint(classes, (len(x),)))


@pytest.mark.parametrize("case", CASES)
def test_contributions_sum_to_the_change_of_the_loss(case):
    clone, batch = clone_of(case)
    clone.module.train()

    @torch.no_grad()
    def loss():
        return F.cross_entropy(clone.module(batch[0]), batch[1]).item()

    seen = [loss()]
    found = contributions(
        clone.module, clone.groups, [batch] * 40, lr=1e-4,
        progress=lambda *_: seen.append(loss()),
    )  # fmt: skip
    # after the last step nothing is credited any more: the first 39 steps are
    assert seen[-2] < seen[0]
    total = sum(rows.sum() for rows in found.values())
    assert total == pytest.approx(seen[-2] - seen[0], rel=0.05)
    assert {n: r.shape[1] for n, r in found.items()} == {g.name: g.added for g in clone.groups}


@pytest.mark.parametrize("case", CASES)
def test_only_new_entries_are_stepped(case):
    clone, batch = clone_of(case)
    before = {n: p.detach().clone() for n, p in clone.module.named_parameters()}
    contributions(clone.module, clone.groups, [batch] * 3)
    for name, param in clone.module.named_parameters():
        new = torch.zeros(param.shape, dtype=torch.bool)
        for slot in (s for g in clone.groups for s in g.slots if s.tensor == name):
            new.index_fill_(slot.dim, torch.from_numpy(slot.new.reshape(-1)), value=True)
        assert torch.equal(param[~new], before[name][~new])
    changed = [n for n, p in clone.module.named_parameters() if not torch.equal(p, before[n])]
    assert changed


def digits(batch=32):
    found = load_digits()
    x = torch.from_numpy(found.data).float() / 8 - 1
    y = torch.from_numpy(found.target).long()
    return list(zip(x.split(batch), y.split(batch), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_a_bottleneck_gets_most(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3), nn.ReLU(), nn.Linear(3, 32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip
    data = digits()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for x, y in data * 8:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    _, votes, plan = fxgrow.plan_for(net, data, budget=24, distributor="gain", seed=seed)
    assert plan.additions["2"] > 12  # more than the others together
    assert min(plan.additions.values()) >= 3  # of the even part, 4 each, up to rounding
    assert all(noise < 200 for noise in votes.noise.values())
    again = fxgrow.plan_for(net, data, budget=24, distributor="gain", seed=seed)[1]
    assert again.counts == votes.counts


def test_shares():
    groups = fxgrow.inspect(mlp(), torch.zeros(2, 8)).groups
    names = [g.name for g in groups]
    none = share_by_gain({n: np.array([1.0, 2.0]) for n in names}, groups)
    assert len(set(none.values())) == 1  # nobody gains
    one = share_by_gain({names[0]: np.array([-1.0])}, groups)
    assert one[names[0]] == pytest.approx(500 + 500 / len(names), abs=1)
    assert sum(one.values()) == pytest.approx(1000, abs=len(names))
    alike = {g.name: np.array([-1.0]) for g in groups}
    shares = share_by_gain(alike, groups, uniform=0)
    for a, b in pairwise(groups):
        assert shares[a.name] * a.width == pytest.approx(shares[b.name] * b.width, rel=0.05)
    paid = share_by_gain(alike, groups, "params", uniform=0)
    for a, b in pairwise(groups):
        costs = [g.width * g.params_per_unit for g in (a, b)]
        assert paid[a.name] * costs[0] == pytest.approx(paid[b.name] * costs[1], rel=0.05)


def test_every_group_has_as_many_candidates():
    net = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 200), nn.ReLU(), nn.Linear(200, 2))
    groups = fxgrow.inspect(net, torch.zeros(2, 8)).groups
    assert len(set(candidate_count(groups, 100).values())) == 1
