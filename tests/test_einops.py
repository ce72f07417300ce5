"""Networks written with einops are graphs, and the lengths that they name follow growth."""

from __future__ import annotations

import copy

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


@pytest.mark.parametrize("make", [network, by_layers])
def test_lengths_follow_in_the_users_class(make):
    model, x = make()
    groups = fxgrow.inspect(model, x).groups
    for group in groups:
        grown = fxgrow.widen(model, x, {group.name: group.multiple_of}, emit="module")
        assert type(grown.module) is type(model)
        assert max(errors(model, grown.module, x)) <= 1e-10
    grown = fxgrow.widen(model, x, {g.name: step(g, 2) for g in groups}, emit="module")
    assert max(errors(model, grown.module, x)) <= 1e-10
    again = fxgrow.widen(grown.module, x, 1, emit="module")
    assert max(errors(model, again.module, x)) <= 1e-10


def test_layers_show_what_they_compute_with(tmp_path):
    """They hold lengths twice, and copies of them are made of the ones that they show."""
    model, x = by_layers()
    growth = fxgrow.widen(model, x, {"q": 2}, emit="module")
    assert "split.axes_lengths['h']: 3 → 5" in growth.report["edits"]
    assert "h=5" in repr(growth.module.split)
    assert "h=3" in repr(model.split)
    growth.save(tmp_path / "grown.safetensors")
    loaded = fxgrow.load(tmp_path / "grown.safetensors", base=model).module
    for module in (growth.module, copy.deepcopy(growth.module), loaded):
        assert max(errors(model, module, x)) <= 1e-10
        assert all(type(length) is int for _, length in module.split._axes_lengths)


class Free(ByLayers):
    """The same as no graph, with sizes in a dict."""

    def __init__(self):
        super().__init__()
        self.sizes = {"h": 3, "name": "heads"}
        self.split = None

    def forward(self, x):
        if float(x.sum()) > 1e9:
            return x
        q, k, v = (
            einops.rearrange(linear(x), "b n (h d) -> b h n d", h=self.sizes["h"])
            for linear in (self.q, self.k, self.v)
        )
        x = x + self.out(self.join((q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v))
        return self.head(self.pool(x))


def test_models_that_are_no_graph():
    torch.manual_seed(0)
    model, x = randomised(Free()), doubled(torch.randn(2, 5, 12))
    inspection = fxgrow.inspect(model, x)
    assert inspection.analysis.traced.obstacle
    assert {g.name: (g.width, g.rows_per_unit) for g in inspection.groups} == {"q": (3, 4)}
    growth = fxgrow.widen(model, x, {"q": 2})
    assert max(errors(model, growth.module, x)) <= 1e-10
    assert growth.module.sizes == {"h": 5, "name": "heads"}
    assert model.sizes == {"h": 3, "name": "heads"}


def test_a_number_beside_a_pattern_is_named_with_the_line_of_the_model():
    class Fixed(Free):
        def forward(self, x):
            if float(x.sum()) > 1e9:
                return x
            q = einops.rearrange(self.q(x), "b n (h d) -> b h n d", h=3)
            return self.head(self.out(self.join(q * q.sum(-1, keepdim=True))))

    torch.manual_seed(0)
    inspection = fxgrow.inspect(Fixed(), torch.randn(2, 5, 12))
    reason = next(g.reason for g in inspection.frozen if g.name == "q")
    assert reason.code == "hidden_size"
    assert "test_einops.py:" in reason.source


class Talking(nn.Module):
    """Heads of queries and keys, and those of values, are two widths; its code has one number."""

    def __init__(self, heads=3, each=4, width=12):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * heads * each), nn.Linear(heads * each, width)
        self.mix = nn.Parameter(torch.randn(heads, heads))

    def forward(self, x):
        q, k, v = (
            einops.rearrange(t, "b n (h d) -> b h n d", h=self.heads)
            for t in self.qkv(x).chunk(3, dim=-1)
        )
        scores = (q @ k.transpose(-1, -2) * 0.5).softmax(-1)
        scores = torch.einsum("bhij,hg->bgij", scores, self.mix)
        return self.out(einops.rearrange(scores @ v, "b h n d -> b n (h d)"))


def test_widths_that_are_one_in_the_users_class():
    torch.manual_seed(0)
    model, x = randomised(Talking()), doubled(torch.randn(2, 5, 12))
    names = [g.name for g in fxgrow.inspect(model, x).groups]
    assert names == ["qkv", "qkv#2"]
    growth = fxgrow.widen(model, x, dict.fromkeys(names, 2), emit="module")
    assert growth.module.heads == 5
    assert max(errors(model, growth.module, x)) <= 1e-10
    for additions in ({"qkv": 1}, {"qkv#2": 1}, {"qkv": 1, "qkv#2": 2}):
        with pytest.raises(UnsupportedError, match="grow together, by as many units"):
            fxgrow.widen(model, x, additions, emit="module")
        assert fxgrow.widen(model, x, additions).verification.passed


class Packs(nn.Module):
    """Tokens packed and unpacked, a mask of a size and a number of a type that are traced."""

    def __init__(self, width=12, heads=3):
        super().__init__()
        self.heads = heads
        self.token = nn.Parameter(torch.randn(width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, image):
        x = einops.rearrange(image, "b c h w -> b h w c")
        token = einops.repeat(self.token, "d -> b d", b=x.shape[0])
        x, sizes = einops.pack([token, x], "b * d")
        q, k, v = einops.rearrange(self.qkv(x), "b n (k h d) -> k b h n d", k=3, h=self.heads)
        scores = q @ k.transpose(-1, -2) * 0.5
        itself = torch.eye(scores.shape[-1], device=x.device, dtype=torch.bool)
        scores = scores.masked_fill(itself, -torch.finfo(scores.dtype).max)
        out = self.out(einops.rearrange(scores.softmax(-1) @ v, "b h n d -> b n (h d)"))
        token, x = einops.unpack(x + out, sizes, "b * d")
        return self.head(token), einops.reduce(x, "b h w d -> b d", "max")


@pytest.mark.parametrize("emit", ["graph", "module"])
def test_packed_tokens(emit):
    torch.manual_seed(0)
    model, x = randomised(Packs()), doubled(torch.randn(2, 12, 4, 3))
    inspection = fxgrow.inspect(model, x)
    assert not inspection.analysis.traced.obstacle
    nodes = inspection.analysis.traced.graphs["eval"].nodes
    assert not any("einops.packing" in getattr(n.target, "__module__", "") for n in nodes)
    assert {g.name: g.width for g in inspection.groups} == {"qkv": 3}
    growth = fxgrow.widen(model, x, {"qkv": 2}, emit=emit)
    assert max(errors(model, growth.module, x)) <= 1e-10
    other = doubled(torch.randn(3, 12, 2, 5))
    with torch.no_grad():
        for old, new in zip(model.eval()(other), growth.module.eval()(other), strict=True):
            assert torch.allclose(old, new, atol=1e-12)


def test_einops_is_left_as_it_was():
    """Values that are traced are known to it while tracing lasts, and its caches hold none."""
    from einops import _backends
    from einops import einops as home

    before = dict(_backends._type2backend), home._reconstruct_from_shape
    model, x = by_layers()
    fxgrow.widen(model, x, {"q": 1}, emit="module")
    fxgrow.inspect(Packs().double(), doubled(torch.randn(2, 12, 4, 3)))
    assert (dict(_backends._type2backend), home._reconstruct_from_shape) == before
    sizes = einops.parse_shape(torch.zeros(2, 3), "b c")
    assert all(type(size) is int for size in sizes.values())
    assert "h=3" in repr(model.split)


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
