"""SVoD: candidates, gates, counts."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade import IMAGES, convnet, data, mlp, ungrown
from torch import nn

from fxgrow.errors import BudgetError, DataError, InputError
from fxgrow.ir import GrownGroup, GrownSlot
from fxgrow.vote import (
    candidate_count,
    cast_votes,
    count_votes,
    fill_candidates,
    gate_gradients,
    train_and_judge,
    train_candidates,
    vote_noise,
)


class Gate(nn.Module):
    """Multiplies channels by 1 + y."""

    def __init__(self, size):
        super().__init__()
        self.y = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, x):
        return x * (1 + self.y.reshape(1, -1, *[1] * (x.ndim - 2)))


def gated(module, places):
    """Copy of a Sequential's layers with a gate after each of ``places``, and the gates."""
    layers, gates = [], {}
    for number, layer in enumerate(module):
        layers.append(layer)
        if number in places:
            gates[number] = Gate(places[number])
            layers.append(gates[number])
    return nn.Sequential(*layers), gates


def slopes(module, places, batches):
    net, gates = gated(module, places)
    net.train()
    total = {number: np.zeros(size) for number, size in places.items()}
    for inputs, targets in batches:
        net.zero_grad()
        torch.manual_seed(0)
        nn.functional.cross_entropy(net(inputs), targets).backward()
        for number in places:
            total[number] += gates[number].y.grad.numpy() / len(batches)
    return total


def test_vote_identity_on_rows():
    module, grown = mlp()
    fill_candidates(module, grown, torch.Generator().manual_seed(0), scale=0.5)
    expected = slopes(module, {0: 11, 2: 8}, data())
    found = gate_gradients(module, grown, data())
    np.testing.assert_allclose(found["h0"], expected[0][8:], rtol=0, atol=1e-16)
    np.testing.assert_allclose(found["h1"], expected[2][6:], rtol=0, atol=1e-16)
    assert all(param.grad is None for param in module.parameters())


def test_vote_identity_on_norms():
    module, grown = convnet()
    module[8] = nn.Identity()  # no dropout, so that both passes see the same
    fill_candidates(module, grown, torch.Generator().manual_seed(0), scale=0.5)
    expected = slopes(module, {1: 7, 4: 7, 6: 7}, data(**IMAGES))
    found = gate_gradients(module, grown, data(**IMAGES))
    both = (expected[1] + expected[4])[4:]
    assert np.abs(both).max() > 1e-6
    np.testing.assert_allclose(found["conv"], both, rtol=0, atol=1e-15)
    np.testing.assert_allclose(found["up"], expected[6][4:], rtol=0, atol=1e-15)


def test_vote_identity_with_several_rows_per_unit():
    module, grown = mlp((4,), (4,))
    pairs = np.arange(8).reshape(4, 2)  # four units of two rows, the last two new
    slots = tuple(GrownSlot(s.tensor, s.dim, s.role, pairs[:2], pairs[2:]) for s in grown[0].slots)
    found = gate_gradients(module, [GrownGroup("heads", 2, 2, slots)], data())["heads"]
    single = gate_gradients(module, grown, data())["h0"]
    np.testing.assert_allclose(found, single.reshape(2, 2).sum(1), atol=1e-17)


def test_candidates_fill_all_their_entries():
    module, grown = convnet()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    fill_candidates(module, grown, torch.Generator().manual_seed(0))
    block = module[6].weight[4:, 4:]  # candidates reading candidates
    for new in (module[0].weight[4:], module[0].bias[4:], module[10].weight[:, 16:], block):
        assert 0 < new.abs().max() <= 1e-2
    assert torch.equal(module[0].weight[:4], before["0.weight"][:4])
    assert torch.equal(module[10].weight[:, :16], before["10.weight"][:, :16])
    for name in ("1.weight", "1.running_mean", "4.bias"):
        assert torch.equal(module.state_dict()[name], before[name])
    other, _ = convnet(dtype=torch.float32)
    fill_candidates(other, grown, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        other[0].weight[4:].double(), module[0].weight[4:], atol=1e-9, rtol=0
    )


def test_counts_are_the_most_negative_ones():
    values = {"a": np.array([-3.0, -1.0, 2.0]), "b": np.array([-2.0, -0.5]), "c": np.array([])}
    assert count_votes(values, 2) == {"a": 1, "b": 1, "c": 0}
    assert count_votes(values, 3) == {"a": 2, "b": 1, "c": 0}
    assert count_votes(values, 99) == {"a": 2, "b": 2, "c": 0}  # only negative ones vote
    assert count_votes({"a": np.array([1.0])}, 5) == {"a": 0}
    assert count_votes({}, 5) == {}
    # per price: b -2, a -0.75, b -0.5, a -0.25; the second purchase uses the budget up
    assert count_votes(values, 3, {"a": 4, "b": 1}) == {"a": 1, "b": 1, "c": 0}
    assert count_votes(values, 1, {"a": 4, "b": 1}) == {"a": 0, "b": 1, "c": 0}


def test_noise():
    steady = {"a": np.full((5, 2), -1.0), "b": np.full((5, 2), 1.0)}
    assert vote_noise(steady, 2) == {"a": 0.0, "b": 0.0}
    noisy = {name: np.random.default_rng(0).normal(size=(5, 4)) for name in "ab"}
    noisy["b"] = -noisy["b"]
    assert max(vote_noise(noisy, 3).values()) > 0
    assert vote_noise({"a": np.ones((1, 2))}, 2) == {}


def test_candidate_counts():
    _, grown = mlp((8, 40), (1, 1))
    wide, heads = ungrown(grown[1], params=10), ungrown(grown[0], params=100, rows=4, multiple=3)
    # as many in every group: four times the budget over the prices, 8 at least, 2K at most
    assert candidate_count([wide], 100) == {"h1": 160}  # four times its width
    assert candidate_count([wide, heads], 100) == {"h1": 80, "h0": 48}  # 48 are what 2K buys
    assert candidate_count([wide, heads], 12) == {"h1": 10, "h0": 6}
    many = [replace(wide, name=str(i)) for i in range(9)]
    assert set(candidate_count(many, 90).values()) == {40}
    assert set(candidate_count(many, 13).values()) == {8}
    assert set(candidate_count(many, 3).values()) == {6}
    assert set(candidate_count(many, 1e15).values()) == {4 * wide.width}  # budgets of any size
    assert candidate_count([wide, heads], 100, "paper") == {"h1": 200, "h0": 48}
    assert candidate_count([wide, heads], 100, 5) == {"h1": 5, "h0": 3}
    assert candidate_count([wide, heads], 60, unit="params") == {"h1": 12}
    for wrong in ("many", 0):
        with pytest.raises(InputError, match="candidates"):
            candidate_count([wide], 10, wrong)
    with pytest.raises(BudgetError, match="'h0' for 12 neurons"):
        candidate_count([heads], 11)


@pytest.mark.parametrize("own_pass", [False, True])
def test_a_whole_vote(own_pass):
    module, grown = convnet()
    groups = [ungrown(group) for group in grown]
    told = []
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    options = {"budget": 3, "seed": 5, "own_pass": own_pass}
    votes = cast_votes(
        module, grown, groups, data(**IMAGES), **options, progress=lambda *s: told.append(s)
    )
    assert torch.equal(torch.rand(2), expected)
    assert {name: len(values) for name, values in votes.values.items()} == {"conv": 3, "up": 3}
    assert sum(votes.counts.values()) <= 3 and set(votes.noise) == {"conv", "up"}
    assert told[0] == ("vote: training candidates", 1, 4)
    assert told[-1] == (f"vote: {'judging' if own_pass else 'training'} candidates", 4, 4)
    again, grown = convnet()
    votes_again = cast_votes(again, grown, groups, data(**IMAGES), **options)
    assert votes_again.counts == votes.counts
    np.testing.assert_array_equal(votes_again.values["conv"], votes.values["conv"])


@pytest.mark.parametrize(("batches", "judged"), [(1, 1), (2, 1), (3, 2), (8, 4)])
def test_training_judges_on_its_second_half(batches, judged):
    """What it reads are the slopes that a pass of its own would find before each step."""
    module, grown = mlp()
    fill_candidates(module, grown, torch.Generator().manual_seed(0))
    other, part = copy.deepcopy(module), data(batches=batches)
    module[0].weight.requires_grad_(False)  # judged, never stepped
    other[0].weight.requires_grad_(False)
    found = train_and_judge(module, grown, part)
    expected: dict[str, list[np.ndarray]] = {"h0": [], "h1": []}

    def watch():
        frozen = copy.deepcopy(other).requires_grad_(True)
        batch = part[len(expected["h0"])]
        for name, values in gate_gradients(frozen, grown, [batch]).items():
            expected[name].append(values)

    train_candidates(other, part, watch=watch)
    for name, values in expected.items():
        assert found[name].shape == (judged, len(values[0]))
        np.testing.assert_allclose(found[name], values[-judged:], rtol=0, atol=1e-16)
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two) and one.grad is None


def test_training_moves_all_weights_in_train_mode():
    module, _ = convnet()
    module.eval()
    before = [param.detach().clone() for param in module.parameters()]
    train_candidates(module, data(**IMAGES))
    moved = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    assert all(moved) and module.training
    assert module[1].num_batches_tracked == 4


def test_empty_data():
    module, grown = mlp()
    with pytest.raises(DataError, match="no batch"):
        gate_gradients(module, grown, [])
