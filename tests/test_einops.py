"""Networks written with einops are graphs, and the lengths that they name follow growth."""

from __future__ import annotations

import pytest
import torch
from checks import doubled, errors, randomised, step, untrained
from torch import nn

import fxgrow
from fxgrow.errors import UnsupportedError

einops = pytest.importorskip("einops", reason="its patterns are what is tested")
layers = pytest.importorskip("einops.layers.torch", reason="its patterns are what is tested")


class Attention(nn.Module):
    """Heads by ``rearrange``, products by the ``einsum`` of einops and of torch."""

    def __init__(self, width=12, heads=3, each=4):
        super().__init__()
        self.heads, self.scale = heads, each**-0.5
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * each, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * each, bias=False)
        self.to_out = nn.Linear(heads * each, width)

    def forward(self, x):
        b, n, _, h = *x.shape, self.heads
        x = self.norm(x)
        q = einops.rearrange(self.to_q(x), "b n (h d) -> b h n d", h=h)
        k, v = einops.rearrange(self.to_kv(x), "b n (two h d) -> two b h n d", two=2, h=h)
        scores = einops.einsum(q, k, "b h i d, b h j d -> b h i j") * self.scale
        out = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
        out = einops.rearrange(out, "... h n d -> ... n (h d)", n=n).view(b, n, -1)
        return self.to_out(out)


class Network(nn.Module):
    """Patches by a layer, attention, an MLP, a mean by ``reduce``."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Sequential(
            layers.Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=2, q=2), nn.Linear(12, 12)
        )
        self.attention = Attention()
        self.up, self.down = nn.Linear(12, 20), nn.Linear(10, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.patches(x)
        x = x + self.attention(x)
        gated = einops.rearrange(self.up(x), "b n (two c) -> two b n c", two=2)
        x = x + self.down(gated[0] * gated[1].sigmoid())
        return self.head(einops.reduce(x, "b n c -> b c", "mean"))


def network():
    torch.manual_seed(0)
    return randomised(Network()), doubled(torch.randn(2, 3, 8, 8))


def test_groups_and_function():
    model, x = network()
    inspection = fxgrow.inspect(model, x)
    assert not inspection.analysis.traced.obstacle
    widths = {g.name: (g.width, g.rows_per_unit) for g in inspection.groups}
    assert widths["attention.to_q"] == (3, 4)
    assert widths["up"] == (10, 1)
    for group in inspection.groups:
        grown = fxgrow.widen(model, x, {group.name: group.multiple_of})
        assert max(errors(model, grown.module, x)) <= 1e-10
    grown = fxgrow.widen(model, x, {g.name: step(g, 4) for g in inspection.groups})
    assert max(errors(model, grown.module, x)) <= 1e-10
    assert untrained(grown.module, grown.groups, x) == []


def test_other_sizes_of_batch_and_space_still_work():
    model, x = network()
    grown = fxgrow.widen(model, x, {"attention.to_q": 2, "up": 3}).module
    other = doubled(torch.randn(5, 3, 12, 8))
    with torch.no_grad():
        assert torch.allclose(model.eval()(other), grown.eval()(other), atol=1e-12)


def test_units_within_one_dimension_of_three_axes():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(6, 3 * 2 * 5), nn.Linear(10, 6)

        def forward(self, x):
            q, k, v = einops.rearrange(self.qkv(x), "b n (k h d) -> k b h n d", k=3, h=2)
            out = (q @ k.transpose(-1, -2) * 0.4).softmax(-1) @ v
            return self.out(einops.rearrange(out, "b h n d -> b n (h d)"))

    torch.manual_seed(0)
    model, x = randomised(Packed()), doubled(torch.randn(2, 4, 6))
    inspection = fxgrow.inspect(model, x)
    (group,) = inspection.groups
    assert (group.width, group.rows_per_unit) == (2, 5)
    grown = fxgrow.widen(model, x, {group.name: 2})
    assert max(errors(model, grown.module, x)) <= 1e-10
    assert untrained(grown.module, grown.groups, x, late=("qkv",)) == []


def test_a_key_that_all_heads_share():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.out = nn.Linear(6, 12), nn.Linear(6, 4), nn.Linear(12, 6)

        def forward(self, x):
            q = einops.rearrange(self.q(x), "b n (h d) -> b h n d", h=3)
            k = einops.repeat(self.k(x), "b n d -> b h n d", h=3)
            out = (q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ k
            return self.out(einops.rearrange(out, "b h n d -> b n (h d)"))

    torch.manual_seed(0)
    model, x = randomised(Shared()), torch.randn(2, 4, 6, dtype=torch.float64)
    inspection = fxgrow.inspect(model, x)
    assert {g.name: g.width for g in inspection.groups} == {"q": 3}
    growth = fxgrow.widen(model, x, {"q": 2})
    assert growth.module.q.weight.shape[0] == 5 * 4
    assert max(errors(model, growth.module, x)) <= 1e-10
    assert untrained(growth.module, growth.groups, x) == []


class ByLayers(nn.Module):
    """Heads split and joined by layers, which hold their number."""

    def __init__(self, heads=3, each=4, width=12):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, heads * each) for _ in range(3))
        self.out, self.head = nn.Linear(heads * each, width), nn.Linear(width, 3)
        self.split = layers.Rearrange("b n (h d) -> b h n d", h=heads)
        self.join = layers.Rearrange("b h n d -> b n (h d)")
        self.pool = layers.Reduce("b n c -> b c", "mean")

    def forward(self, x):
        q, k, v = (self.split(linear(x)) for linear in (self.q, self.k, self.v))
        x = x + self.out(self.join((q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v))
        return self.head(self.pool(x))


def by_layers():
    torch.manual_seed(0)
    return randomised(ByLayers()), doubled(torch.randn(2, 5, 12))


def test_numbers_that_layers_hold_follow():
    model, x = by_layers()
    (group,) = fxgrow.inspect(model, x).groups
    assert (group.name, group.width, group.rows_per_unit) == ("q", 3, 4)
    grown = fxgrow.widen(model, x, {"q": 2})
    assert max(errors(model, grown.module, x)) <= 1e-10
    assert untrained(grown.module, grown.groups, x, late=("q", "k")) == []
    again = fxgrow.widen(grown.module, x, {"q": 1})
    assert max(errors(model, again.module, x)) <= 1e-10


def test_the_own_class_is_refused_with_the_reason():
    model, x = by_layers()
    with pytest.raises(UnsupportedError, match=r"own class.*comparison"):
        fxgrow.widen(model, x, {"q": 2}, emit="module")


class Packing(nn.Module):
    """A class token and registers beside tokens, by ``pack`` and ``unpack``."""

    def __init__(self, width=8):
        super().__init__()
        self.stem, self.norm = nn.Linear(4, width), nn.LayerNorm(width)
        self.cls, self.registers = (
            nn.Parameter(torch.randn(width)),
            nn.Parameter(torch.randn(2, width)),
        )
        self.mix, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x)
        first = einops.repeat(self.cls, "d -> b d", b=x.shape[0])
        rest = einops.repeat(self.registers, "n d -> b n d", b=x.shape[0])
        x, shapes = einops.pack([first, x, rest], "b * d")
        x = x + self.mix(self.norm(x))
        first, images, _ = einops.unpack(self.norm(x), shapes, "b * d")
        return self.head(first) + self.head(images).mean((1, 2))


def test_packed_tensors_stay_a_graph():
    """Their sizes are the input's, whatever they are."""
    torch.manual_seed(0)
    model, example = randomised(Packing()), torch.randn(2, 2, 3, 4).double()
    inspection = fxgrow.inspect(model, example)
    assert not inspection.analysis.traced.obstacle
    growth = fxgrow.widen(model, example, {g.name: step(g, 3) for g in inspection.groups})
    assert growth.plan.additions == {"stem": 3}
    for shape in ((2, 2, 3, 4), (3, 4, 2, 4)):
        other = torch.randn(shape).double()
        assert max(errors(model, growth.module, other)) <= 1e-10
    assert untrained(growth.module, growth.groups, example) == []


def test_einops_is_left_as_it_was():
    """While a model is traced, ``pack`` takes traced values; afterwards it refuses them."""
    home = pytest.importorskip("einops.packing")
    before = home.get_backend
    fxgrow.inspect(Packing(), torch.randn(2, 2, 3, 4))
    assert home.get_backend is before
