"""Small forms of what architectures of the zoos do: exact, and everything new trains."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from checks import doubled, errors, randomised, step, untrained
from torch import nn

import fxgrow
from fxgrow.rewrite import rewrite

EXACT = 1e-10


class Factors(nn.Module):
    """Both factors of a product are rows of one depthwise convolution (EfficientViM)."""

    def __init__(self):
        super().__init__()
        self.project = nn.Conv1d(6, 12, 1, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.mix = nn.Conv1d(6, 6, 1, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        flat = x.flatten(2)
        rows = self.depthwise(self.project(flat).reshape(x.shape[0], -1, 4, 4)).flatten(2)
        a, b, c = rows.chunk(3, dim=1)
        state = flat @ (a.softmax(-1) * b).transpose(-2, -1)
        state = self.mix(state)
        return self.head(((state * F.silu(state) + state) @ c).mean(-1))


class TalkingHeads(nn.Module):
    """Attention of every head is mixed with that of the others, after the softmax (CaiT)."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(6, 12), nn.Linear(6, 24)
        self.mix = nn.Parameter(torch.randn(3, 3))
        self.out = nn.Linear(12, 5)

    def forward(self, x):
        parts = (self.q(x), *self.kv(x).chunk(2, dim=-1))
        q, k, v = (t.unflatten(-1, (3, 4)).transpose(1, 2) for t in parts)
        scores = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
        scores = torch.einsum("bhij,hg->bgij", scores, self.mix)
        out = torch.einsum("bhij,bhjd->bhid", scores, v)
        return self.out(out.transpose(1, 2).flatten(2)).mean(1)


class ClassToken(nn.Module):
    """Queries are made of a parameter alone: weights multiplied with weights."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.last = nn.LayerNorm(8), nn.LayerNorm(8)
        self.q, self.kv = nn.Linear(8, 4, bias=False), nn.Linear(8, 8)
        self.out, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        token = self.token.repeat(x.shape[0], 1, 1)
        k, v = self.kv(self.norm(self.embed(x))).chunk(2, dim=-1)
        attended = (self.q(self.norm(token)) @ k.transpose(1, 2)).softmax(-1) @ v
        return self.head(self.last(token + self.out(attended)).mean(1))


class Leftover(nn.Module):
    """What rotation leaves of a head is nothing, of every head (RvT)."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 12)
        self.register_buffer("angles", torch.rand(5, 4))
        self.out = nn.Linear(12, 5)
        self.heads = 3

    def forward(self, x):
        parts = (layer(x) for layer in (self.q, self.k, self.v))
        q, k, v = (t.unflatten(-1, (self.heads, 4)).transpose(1, 2).flatten(0, 1) for t in parts)
        size = self.angles.shape[-1]
        q, k = (torch.cat((t[..., :size] * self.angles, t[..., size:]), -1) for t in (q, k))
        out = (q @ k.transpose(1, 2)).softmax(-1) @ v
        out = out.unflatten(0, (-1, self.heads)).transpose(1, 2)
        return self.out(out.flatten(2)).mean(1)


class Aggregate(nn.Module):
    """A convolution over a stack of outputs; its channels are the outputs (CoaT)."""

    def __init__(self):
        super().__init__()
        self.rows = nn.ModuleList(nn.Linear(6, 8) for _ in range(3))
        self.aggregate, self.head = nn.Conv1d(3, 1, 1), nn.Linear(8, 4)

    def forward(self, x):
        stacked = torch.stack([layer(x) for layer in self.rows], dim=1)
        return self.head(self.aggregate(stacked).squeeze(1))


class SimpleNorm(nn.Module):
    """Division by the deviation over channels, written by hand (ConvNeXt)."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.stem, self.depthwise = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6)
        self.gain = nn.Parameter(torch.randn(6))
        self.rows, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.depthwise(self.stem(x)).permute(0, 2, 3, 1)
        x = x * torch.rsqrt(self.how(x) + 1e-2) * self.gain
        return self.head(self.rows(x).tanh()).mean((1, 2))


class Blocks(nn.Module):
    """The side of a grid is a root of the number of tokens; all of a stream is a shape (NesT)."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.head, self.heads = nn.Conv2d(8, 3, 1), 2

    def forward(self, x):
        x = self.embed(x)
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c))
        side = int(math.sqrt(x.shape[1]))
        return self.head(x.transpose(1, 2).reshape(b, c, side, side)).mean((2, 3))


class Windows(nn.Module):
    """Attention between windows has a mask of five axes, made by the model's code (Swin)."""

    def __init__(self):
        super().__init__()
        self.rows, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 4)
        self.register_buffer("mask", torch.rand(2, 4, 4))

    def forward(self, x):
        windows = self.rows(x).flatten(2).unflatten(2, (2, 1, 4, 4))
        return self.head((windows + self.mask[:, None].unsqueeze(0)).mean((2, 3, 4, 5)))


class Kept(nn.Module):
    """A masked autoencoder: data choose the tokens that it goes on with."""

    def __init__(self, width=None):
        super().__init__()
        self.width = width
        self.embed, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(2))
        self.up, self.down = nn.Linear(6, 7), nn.Linear(7, 6)

    def forward(self, x):
        order = x.sum(-1).argsort(1)[:, :4]
        x = self.embed(x)
        x = x.gather(1, order.unsqueeze(-1).repeat(1, 1, self.width or x.shape[2]))
        x = x + self.down(self.up(self.norms[0](x)).relu())
        return self.head(self.norms[1](x))


class PutTogether(nn.Module):
    """Heads become one axis by a shape that is put together (GLPN, and BERT's first code)."""

    def __init__(self):
        super().__init__()
        self.width, self.q, self.k = 8, nn.Linear(5, 8), nn.Linear(5, 8)
        self.v, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        heads = (*x.shape[:-1], -1, 4)
        q, k, v = (layer(x).view(heads).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        y = y.permute(0, 2, 1, 3).contiguous()
        return self.out(y.view(y.size()[:-2] + (self.width,)))  # noqa: RUF005  # as it is written there


class Focal(nn.Module):
    """What a layer puts out is split by the width of what it reads (FocalNet)."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.parts = (
            nn.Conv2d(3, 6, 1),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 14, 1),
        )
        self.back, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        x = self.norm(self.stem(x))
        query, context, gates = torch.split(self.parts(x), (x.shape[1], x.shape[1], 2), 1)
        return self.head(x + self.back(query * context * gates[:, 1:]))


_VARIANCES = (
    lambda x: torch.var(x, dim=-1, keepdim=True),
    lambda x: x.var(-1, False, keepdim=True),
    lambda x: torch.var(x, dim=(-1,), correction=2, keepdim=True),
    lambda x: x.var((1, 2, 3), keepdim=True),
)


MODELS = {  # what builds it, its input, layers that have to grow
    "factors of one convolution": (Factors, (2, 6, 4, 4), {"project", "mix"}),
    "talking heads": (TalkingHeads, (2, 5, 6), {"kv", "q"}),
    "nothing left of heads": (Leftover, (2, 5, 6), {"q", "v"}),
    "stack of outputs": (Aggregate, (2, 6), {"rows.0", "rows.2"}),
    "variance": (lambda: SimpleNorm(_VARIANCES[0]), (2, 3, 5, 5), {"stem", "rows"}),
    "biased variance": (lambda: SimpleNorm(_VARIANCES[1]), (2, 3, 5, 5), {"stem"}),
    "variance, corrected": (lambda: SimpleNorm(_VARIANCES[2]), (2, 3, 5, 5), {"stem"}),
    "variance in space": (lambda: SimpleNorm(_VARIANCES[3]), (2, 3, 5, 5), {"stem"}),
    "grid of tokens": (Blocks, (2, 9, 5), {"embed", "qkv"}),
    "tokens that data choose": (Kept, (2, 7, 5), {"embed", "up"}),
    "tokens chosen along a number": (lambda: Kept(6), (2, 7, 5), {"embed", "up"}),
    "shape put together": (PutTogether, (2, 6, 5), {"q", "v"}),
    "split by another width": (Focal, (2, 3, 4, 4), {"stem", "parts"}),
    "queries of a parameter": (ClassToken, (2, 5, 6), {"embed", "token"}),
}


def built(name):
    make, shape, layers = MODELS[name]
    torch.manual_seed(0)
    return randomised(make()), doubled(torch.randn(shape)), layers


@pytest.mark.parametrize("name", MODELS)
def test_grows_exactly_and_trains(name):
    model, example, layers = built(name)
    inspection = fxgrow.inspect(model, example)
    assert layers <= {layer for group in inspection.groups for layer in group.layers}
    for group in inspection.groups:
        grown = rewrite(model, inspection, {group.name: step(group, 1)})
        assert max(errors(model, grown.module, example)) <= EXACT, group.name
    grown = rewrite(model, inspection, {g.name: step(g, 2) for g in inspection.groups})
    assert max(errors(model, grown.module, example)) <= EXACT
    assert untrained(grown.module, grown.groups, example) == []


@pytest.mark.parametrize("name", ["tokens that data choose", "tokens chosen along a number"])
def test_a_stream_of_chosen_tokens_grows_by_single_units(name):
    model, example, _ = built(name)
    steps = {g.name: g.multiple_of for g in fxgrow.inspect(model, example).groups}
    assert steps == {"embed": 1, "up": 1}
    growth = fxgrow.widen(model, example, {"embed": 1, "up": 2}, emit="module")
    assert max(errors(model, growth.module, example)) <= EXACT


def test_shapes_put_together_fit_any_batch():
    model, example, _ = built("shape put together")
    growth = fxgrow.widen(model, example, 1)
    other = torch.randn(3, 4, 5, dtype=torch.float64)
    assert max(errors(model, growth.module, other)) <= EXACT


def test_constants_have_no_memory_format():
    """What a forward computes becomes a buffer, which is no image: it is in nobody's way."""
    torch.manual_seed(0)
    model, example = Windows(), torch.randn(2, 3, 4, 8)
    growth = fxgrow.widen(model, example, {"rows": 2})
    assert any(b.ndim == 5 for n, b in growth.module.named_buffers() if n.startswith("_tensor"))
    moved = growth.module.to(memory_format=torch.channels_last)
    assert max(errors(model, moved, example)) <= 1e-5
    assert next(moved.parameters()).is_contiguous(memory_format=torch.channels_last)


def test_numbers_are_guarded():
    """What the code takes for a number of Python's is the size of these inputs."""
    torch.manual_seed(0)
    model = randomised(Blocks())
    growth = fxgrow.widen(model, torch.randn(2, 9, 5).double(), {"embed": 2})
    with pytest.raises(RuntimeError, match="another path"):
        growth.module(torch.randn(2, 16, 5).double())
    assert growth.module(torch.randn(3, 9, 5).double()).shape == (3, 3)


class Batched(nn.Module):
    """Python takes the length of the batch, as one of its numbers."""

    def __init__(self, how):
        super().__init__()
        self.part, self.how = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6)), how

    def forward(self, x):
        return self.part(x).view(self.how(x), 6)


@pytest.mark.parametrize(
    "how",
    [
        lambda x: int(x.shape[0]),
        lambda x: int(x.size(0)),
        lambda x: int(x.size()[0] * 1.0),
        lambda x: int(x.numel() / 5),
        lambda x: len(x),
    ],
)
def test_the_batch_stays_free(how):
    model = Batched(how).double()
    x = torch.randn(2, 5, dtype=torch.float64)
    inspection = fxgrow.inspect(model, x)
    additions = {group.name: 3 for group in inspection.groups}
    growth = fxgrow.widen(model, x, additions)
    more = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(growth.module(more), model(more), rtol=1e-10, atol=1e-12)


@torch.fx.wrap
def _trimmed(x, sizes):
    """Change the list that is given, as torchvision's video Swin does."""
    sizes[0] = min(sizes[0], x.shape[1])
    return x[:, : sizes[0]]


class Trimming(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.down(self.up(_trimmed(x, [x.shape[1] + 2, 1])).relu())


def test_functions_may_change_lists():
    model, x = Trimming().double(), torch.randn(2, 5, dtype=torch.float64)
    (group,) = fxgrow.inspect(model, x).groups
    growth = fxgrow.widen(model, x, {group.name: 3})
    torch.testing.assert_close(growth.module(x), model(x), rtol=1e-10, atol=1e-12)
