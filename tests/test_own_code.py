"""Code that is no graph: what it writes into blanks, noise, and sizes that values decide."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from checks import errors
from torch import nn

import fxgrow
from fxgrow.trace import trace

EXACT = 1e-10


class Chosen(nn.Module):
    """Values decide how many tokens there are, and so which way its code takes."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        kept = x[:, x.mean((0, 2)) > 0]
        if kept.shape[1] > 3:
            kept = kept[:, :3]
        return self.down(self.up(kept).relu()).mean(1)


def test_sizes_that_values_decide_are_guarded_by_no_graph():
    torch.manual_seed(0)
    model, x = Chosen().double(), torch.randn(2, 9, 4, dtype=torch.float64)
    growth = fxgrow.widen(model, x, {"up": 2})
    assert type(growth.module) is Chosen
    for other in (x.abs(), x.abs() * torch.linspace(-9, 1, 9)[:, None]):  # all tokens, and one
        assert torch.allclose(model.eval()(other), growth.module.eval()(other), atol=EXACT)


class Latent(nn.Module):
    """Parts of keys are copied into a blank: some are the heads' own, some are shared by all."""

    def __init__(self, write, heads=3, own=4, shared=2, width=12):
        super().__init__()
        self.write, self.heads, self.own, self.shared = write, heads, own, shared
        self.q = nn.Linear(width, heads * (own + shared))
        self.kv, self.rot = nn.Linear(width, 2 * heads * own), nn.Linear(width, shared)
        self.out = nn.Linear(heads * own, 2)

    def forward(self, x):
        if float(x.sum()) > 1e9:
            return x
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(x).view(*x.shape[:2], -1, 2 * self.own).transpose(1, 2)
        own, v = kv.split([self.own, self.own], dim=-1)
        rot = self.rot(x)[:, None].expand(-1, own.shape[1], -1, -1)
        k = self.write(kv, own, rot, self.own, self.own + self.shared)
        return self.out(((q @ k.mT * 0.4).softmax(-1) @ v).transpose(1, 2).flatten(2))


def copied(kv, own, rot, cut, size):
    k = kv.new_empty(*kv.shape[:-1], size)
    k[..., :cut].copy_(own)
    k[..., cut:].copy_(rot)
    return k


def set_in_zeros(kv, own, rot, cut, size):
    k = torch.zeros(*kv.shape[:-1], size, dtype=kv.dtype)
    k[..., :cut] = own
    k[..., cut:] = rot
    return k


@pytest.mark.parametrize("write", [copied, set_in_zeros])
def test_heads_whose_parts_are_copied_into_a_blank(write):
    torch.manual_seed(0)
    model, x = Latent(write).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    inspection = fxgrow.inspect(model, x)
    (group,) = inspection.groups
    assert (group.width, set(group.layers)) == (3, {"q", "kv", "out"})
    reasons = {g.reason.code for g in inspection.frozen if "rot" in g.layers}
    assert "inner_axis" in reasons
    growth = fxgrow.widen(model, x, {group.name: 2})
    module = growth.module
    assert max(growth.verification.eval_error, growth.verification.train_error) <= EXACT
    assert (module.heads, module.own, module.shared) == (5, 4, 2)
    assert (module.q.out_features, module.kv.out_features) == (30, 40)


class Noisy(nn.Module):
    """Adds noise for each unit, drawn into a blank."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 2)

    def forward(self, x):
        if float(x.sum()) > 1e9:
            return x
        h = self.a(x).relu()
        return self.c(self.b(h + torch.empty(len(x), self.a.out_features).uniform_()).relu())


def test_noise_for_each_unit_is_no_blank():
    inspection = fxgrow.inspect(Noisy(), torch.zeros(2, 6))
    assert [g.name for g in inspection.groups] == ["b"]
    assert {g.name: g.reason.code for g in inspection.frozen}["a"] == "unlabelled"


class Sampler(nn.Module):
    """Tells what it has chosen only where it had to choose."""

    def forward(self, x):
        if x.shape[1] <= 3:
            return x, None
        return x[:, :3], torch.arange(3)


class Sampled(nn.Module):
    """What a part returns depends on how many tokens values have left."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.sampler = nn.Linear(4, 6), nn.Linear(6, 2), Sampler()

    def forward(self, x):
        x, chosen = self.sampler(x[:, x.mean((0, 2)) > 0])
        h = self.up(x).relu()
        return self.down(h if chosen is None else h + chosen[:, None]).mean(1)


def test_parts_that_may_return_other_things_are_no_leaves():
    torch.manual_seed(0)
    model, x = Sampled().double(), torch.randn(2, 9, 4, dtype=torch.float64).abs()
    growth = fxgrow.widen(model, x, {"up": 2})
    for other in (x, x * torch.linspace(-9, 1, 9)[:, None]):  # all tokens, and one
        assert torch.allclose(model.eval()(other), growth.module.eval()(other), atol=EXACT)


class Counted(nn.Module):
    """Cuts by numbers that tensors hold."""

    def __init__(self, cut, dim):
        super().__init__()
        self.cut, self.dim = cut, dim
        self.inner, self.up = nn.Linear(4, 5), nn.Linear(4, 6)
        self.outer, self.down = nn.LazyLinear(2), nn.Linear(6, 2)

    def forward(self, x):
        count = (x[:, :, 0] > -9).sum(1).max().clamp(max=3)  # three, whatever the tokens are
        if float(count) < 3:
            return x
        kept = self.outer(self.cut(self.inner(x).relu(), self.dim, count))
        return kept.mean(1) + self.down(self.up(x).relu()).mean(1)


def narrowed(x, dim, count):
    return x.narrow(dim, count - count, count)


def selected(x, dim, count):
    return x.select(dim, count).unsqueeze(dim)


def sliced(x, dim, count):
    return x[:, :count] if dim == 1 else x[..., :count]


@pytest.mark.parametrize("cut", [narrowed, selected, sliced])
@pytest.mark.parametrize(("dim", "grow"), [(1, {"inner", "up"}), (2, {"up"})])
def test_positions_that_tensors_hold_do_not_follow_the_width(cut, dim, grow):
    torch.manual_seed(0)
    model, x = Counted(cut, dim).double(), torch.randn(2, 7, 4, dtype=torch.float64)
    model(x)
    inspection = fxgrow.inspect(model, x)
    assert {g.name for g in inspection.groups} == grow
    for group in inspection.groups:
        growth = fxgrow.widen(model, x, {group.name: 2})
        assert max(errors(model, growth.module, x)) <= EXACT


class Shifted(nn.Module):
    """One method makes blanks for several tensors: scores of heads, and a mask for all heads."""

    def __init__(self, heads=3, size=4, shift=2):
        super().__init__()
        self.heads, self.size, self.shift = heads, size, shift
        self.key, self.value = nn.Linear(4, heads * size), nn.Linear(4, heads * size)
        self.out, self.up, self.down = nn.Linear(heads * size, 2), nn.Linear(4, 6), nn.Linear(6, 2)

    def later(self, x):
        batch, heads, tokens = x.shape
        blank = x.new_zeros((batch * heads, tokens + self.shift))
        blank[:, self.shift :] = x.flatten(0, 1)
        return blank[:, :tokens].reshape(batch, heads, tokens)

    def forward(self, x):
        if float(x.sum()) > 1e9:
            return x
        key, value = (
            part(x).view(*x.shape[:2], self.heads, self.size).transpose(1, 2)
            for part in (self.key, self.value)
        )
        mask = torch.ones(len(x), 1, x.shape[1], dtype=x.dtype)
        scores = self.later(key.square().sum(-1)) + self.later(mask)
        mixed = scores.softmax(-1)[:, :, None] @ value
        return self.out(mixed.flatten(1)) + self.down(self.up(x).relu()).mean(1)


def test_blanks_of_one_place_for_several_tensors():
    torch.manual_seed(0)
    model, x = Shifted().double(), torch.randn(2, 5, 4, dtype=torch.float64)
    inspection = fxgrow.inspect(model, x)
    assert [(g.name, g.width) for g in inspection.groups] == [("key", 3), ("up", 6)]
    for group in inspection.groups:
        growth = fxgrow.widen(model, x, {group.name: 2})
        assert max(errors(model, growth.module, x)) <= EXACT


class Told(NamedTuple):
    out: torch.Tensor
    state: tuple[torch.Tensor, None] | None


class Recurrence(nn.Module):
    """A loop over tokens, which is no graph; there may be no state."""

    def __init__(self, state):
        super().__init__()
        self.state, self.up, self.down = state, nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        kept, out = torch.zeros_like(x[:, 0]), []
        for i in range(int(x.new_tensor(x.shape[1]))):
            kept = kept * 0.5 + self.down(self.up(x[:, i]).relu())
            out.append(kept)
        return Told(torch.stack(out, 1), (kept, None) if self.state else None)


class Stateful(nn.Module):
    """Goes on with a state where there is one."""

    def __init__(self, read, *, state):
        super().__init__()
        self.read, self.loop = read, Recurrence(state)
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        x, state = self.read(self.loop(x))
        if state is not None:
            x = x + state[0][:, None]
            if state[1] is not None:
                x = x * state[1]
        return self.down(self.up(x).relu())


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize(
    "read",
    [lambda told: told, lambda told: (told[0], told[1]), lambda told: (told.out, told.state)],
)
def test_what_a_leaf_leaves_out_is_none_to_the_code(read, state):
    torch.manual_seed(0)
    model, x = Stateful(read, state=state).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    assert not trace(model, x).obstacle
    growth = fxgrow.widen(model, x, {"up": 2, "loop.up": 3})
    assert max(errors(model, growth.module, x)) <= EXACT
    growth.module.loop.state = not state
    with pytest.raises((RuntimeError, TypeError), match="another path" if not state else "None"):
        growth.module(x)


class Gated(nn.Module):
    """The blocks of WaveNet: halves are cut by a number that a tensor holds."""

    def __init__(self, make, use, width=6, *, graph=False):
        super().__init__()
        self.make, self.use, self.width, self.graph = make, use, width, graph
        self.into, self.both = nn.Linear(4, width), nn.Linear(width, 2 * width)
        self.out, self.again = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        if not self.graph and float(x.sum()) > 1e9:
            return x
        count = self.use(self.make(self.width))
        x = self.into(x)
        both = self.both(x)
        x = x + self.out(both[..., :count].tanh() * both[..., count:].sigmoid())
        return self.again(x)


@pytest.mark.parametrize(
    "make",
    [lambda n: torch.IntTensor([n])[0], torch.tensor, lambda n: torch.tensor(data=[2, n])[1]],
)
@pytest.mark.parametrize("use", [lambda n: n, lambda n: n.item()])
@pytest.mark.parametrize("graph", [False, True])
def test_tensors_that_hold_sizes_of_the_code(make, use, graph):
    torch.manual_seed(0)
    model, x = Gated(make, use, graph=graph).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    inspection = fxgrow.inspect(model, x)
    assert bool(inspection.analysis.traced.obstacle) is not graph
    assert [(g.name, g.width) for g in inspection.groups] == [("into", 6), ("both", 6)]
    growth = fxgrow.widen(model, x, {"into": 2})
    assert graph or growth.module.width == 6
    growth = fxgrow.widen(model, x, {"both": 3})
    assert graph or growth.module.width == 9
    assert max(errors(model, growth.module, x)) <= EXACT


@pytest.mark.parametrize(
    "use",
    [
        *(lambda n: n.clone(), lambda n: n + 0, lambda n: n.add_(0), int),
        *(lambda n: len(range(n)), lambda n: int(n.numpy()), lambda n: n.tolist()),
    ],
)
def test_numbers_that_are_computed_of_held_sizes_stay(use):
    torch.manual_seed(0)
    model = Gated(torch.tensor, use).double()
    inspection = fxgrow.inspect(model, torch.randn(2, 5, 4, dtype=torch.float64))
    assert [g.name for g in inspection.groups] == ["into"]
    assert "hidden_size" in {g.reason.code for g in inspection.frozen}
