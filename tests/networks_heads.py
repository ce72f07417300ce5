"""Attention in the ways people write it: heads packed, shared, mixed, turned and normalised."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, SIZE = 12, 3, 4
TOKENS = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(5))
CONTEXT = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(6))
VIDEO = torch.randn(2, 6, 6, WIDTH, generator=torch.Generator().manual_seed(7))


def heads_of(x, heads=HEADS, size=SIZE):
    return x.view(x.shape[0], x.shape[1], heads, size).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


class Attention(nn.Module):
    """q, k and v from three layers; the scale an attribute."""

    def __init__(self, heads=HEADS, shared=HEADS, bias=True, source=WIDTH):
        super().__init__()
        self.heads, self.shared, self.head_dim = heads, shared, SIZE
        self.scale = SIZE**-0.5
        self.q = nn.Linear(WIDTH, heads * SIZE, bias=bias)
        self.k = nn.Linear(source, shared * SIZE, bias=bias)
        self.v = nn.Linear(source, shared * SIZE, bias=bias)
        self.o = nn.Linear(heads * SIZE, WIDTH)

    def split(self, x, heads):
        return x.view(x.shape[0], x.shape[1], heads, self.head_dim).transpose(1, 2)

    def turned(self, x):
        return x

    def shares(self, x):
        return x if self.shared == self.heads else x.repeat_interleave(self.heads // self.shared, 1)

    def attend(self, q, k, v):
        return ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v

    def forward(self, x, source=None):
        source = x if source is None else source
        q = self.turned(self.split(self.q(x), self.heads))
        k = self.turned(self.split(self.k(source), self.shared))
        v = self.split(self.v(source), self.shared)
        return self.o(joined(self.attend(q, self.shares(k), self.shares(v))))


class Default(Attention):
    """The fused kernel with its own scale."""

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class Given(Attention):
    """The fused kernel with a scale that is given."""

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale)


class FromShape(Attention):
    """The scale computed from the shape as it runs."""

    def attend(self, q, k, v):
        return (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(-1) @ v


class Traced(Attention):
    """The scale computed from the shape, by what a graph can hold."""

    def attend(self, q, k, v):
        return (q @ k.transpose(-2, -1) * q.size(-1) ** -0.5).softmax(-1) @ v


class FromAttribute(Attention):
    """The scale computed from an attribute as it runs."""

    def attend(self, q, k, v):
        return (q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)).softmax(-1) @ v


class Expanded(Attention):
    """Groups of keys and values, expanded as transformers does it."""

    def shares(self, x):
        b, g, n, d = x.shape
        times = self.heads // self.shared
        return x[:, :, None].expand(b, g, times, n, d).reshape(b, g * times, n, d)


class Grouped(Attention):
    """Queries keep an axis of their own in each group (einsum)."""

    def forward(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.shared, self.heads // self.shared, self.head_dim)
        k = self.k(x).view(b, n, self.shared, self.head_dim)
        v = self.v(x).view(b, n, self.shared, self.head_dim)
        weights = torch.einsum("bngrd,bmgd->bgrnm", q, k).mul(self.scale).softmax(-1)
        return self.o(torch.einsum("bgrnm,bmgd->bngrd", weights, v).reshape(b, n, -1))


class FusedGroups(Attention):
    """Groups left to the fused kernel."""

    def shares(self, x):
        return x

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class MultiQuery(nn.Module):
    """One head of keys and values."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, HEADS * SIZE), nn.Linear(WIDTH, 2 * SIZE)
        self.o = nn.Linear(HEADS * SIZE, WIDTH)

    def forward(self, x):
        q = heads_of(self.q(x))
        k, v = self.kv(x)[:, None].chunk(2, -1)
        weights = (q @ k.transpose(-2, -1) * SIZE**-0.5).softmax(-1)
        return self.o(joined(weights @ v))


class Shared(Attention):
    """One head of keys and values, made to fit the queries' in ways that people write."""

    def __init__(self, way, **given):
        super().__init__(shared=1, **given)
        self.way = way

    def shares(self, x):
        b, _, n, d = x.shape
        return {
            "expand": lambda: x.expand(-1, self.heads, -1, -1),
            "expand_as": lambda: x.expand(b, self.heads, n, d),
            "broadcast": lambda: torch.broadcast_to(x, (b, self.heads, n, d)),
            "repeat": lambda: x.repeat(1, self.heads, 1, 1),
            "tile": lambda: torch.tile(x, (self.heads, 1, 1)),
            "interleave": lambda: x.repeat_interleave(self.heads, 1),
            "interleave_named": lambda: torch.repeat_interleave(x, repeats=self.heads, dim=1),
            "in_groups": lambda: x[:, :, None].expand(b, 1, self.heads, n, d).flatten(1, 2),
            "left_alone": lambda: x,
        }[self.way]()


class SharedFused(Shared):
    """The same for the fused kernel."""

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class SharedKernel(Shared):
    """Left to the kernel."""

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class SharedBatched(Shared):
    """Heads folded into the batch, the shared one too."""

    def attend(self, q, k, v):
        b, h, n, d = q.shape
        q, k, v = (t.reshape(b * h, n, d) for t in (q, k, v))
        return torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v).view(b, h, n, d)


class SharedMasked(Shared):
    """A mask that is expanded over the heads, too."""

    def attend(self, q, k, v):
        mask = torch.ones(6, 6, dtype=q.dtype).tril().log().expand(2, self.heads, 6, 6)
        return (q @ k.transpose(-2, -1) + mask).softmax(-1) @ v


class SharedEinsum(Attention):
    """One head without an axis of its own."""

    def forward(self, x):
        q = self.split(self.q(x), self.heads)
        weights = torch.einsum("bhnd,bmd->bhnm", q, self.k(x)).softmax(-1)
        return self.o(torch.einsum("bhnm,bmd->bnhd", weights, self.v(x)).flatten(2))


class SharedMerged(Attention):
    """Queries of all heads meet the keys at once, heads beside tokens (GPTBigCode)."""

    def forward(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, SIZE).reshape(b, n * self.heads, SIZE)
        weights = torch.bmm(q, self.k(x).transpose(1, 2)).view(b, n, self.heads, n).softmax(-1)
        mixed = torch.bmm(weights.view(b, n * self.heads, n), self.v(x))
        return self.o(mixed.view(b, n, self.heads * SIZE))


class SharedPacked(nn.Module):
    """Queries, the key and the value beside each other in one layer (Falcon)."""

    def __init__(self, bias=True):
        super().__init__()
        self.heads = HEADS
        self.qkv = nn.Linear(WIDTH, (HEADS + 2) * SIZE, bias=bias)
        self.o = nn.Linear(HEADS * SIZE, WIDTH)

    def forward(self, x):
        b, n, _ = x.shape
        packed = self.qkv(x).view(b, n, self.heads + 2, SIZE)
        q, k, v = packed[..., :-2, :], packed[..., [-2], :], packed[..., [-1], :]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return self.o(joined((q @ k.transpose(-2, -1)).softmax(-1) @ v))


class SharedSplit(SharedPacked):
    """The same, cut into three (PaLM, StarCoder)."""

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).split((self.heads * SIZE, SIZE, SIZE), dim=-1)
        q = heads_of(q, self.heads)
        k, v = (t.unsqueeze(1).expand(b, self.heads, n, SIZE) for t in (k, v))
        return self.o(joined((q @ k.transpose(-2, -1)).softmax(-1) @ v))


class SharedRotary(Attention):
    """A part of each key is shared by all heads (DeepSeek's latent attention)."""

    def __init__(self):
        super().__init__()
        self.far = nn.Linear(WIDTH, HEADS * 2)
        self.near = nn.Linear(WIDTH, 2)

    def forward(self, x):
        q, k, v = (self.split(layer(x), self.heads) for layer in (self.q, self.k, self.v))
        q = torch.cat([q, self.far(x).view(2, 6, self.heads, 2).transpose(1, 2)], -1)
        near = self.near(x).view(2, 1, 6, 2).expand(-1, self.heads, -1, -1)
        return self.o(joined((q @ torch.cat([k, near], -1).transpose(-2, -1)).softmax(-1) @ v))


class Packed(nn.Module):
    """One layer for all three; ``layout`` says how they are packed."""

    def __init__(self, layout="3hd", bias=True, heads=HEADS):
        super().__init__()
        self.heads, self.layout, self.scale = heads, layout, SIZE**-0.5
        self.qkv = nn.Linear(WIDTH, 3 * heads * SIZE, bias=bias)
        self.proj = nn.Linear(heads * SIZE, WIDTH)

    def unpacked(self, x):
        b, n, _ = x.shape
        qkv, h, d = self.qkv(x), self.heads, SIZE
        if self.layout == "3hd":
            return qkv.reshape(b, n, 3, h, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.layout == "h3d":
            return qkv.reshape(b, n, h, 3, d).permute(3, 0, 2, 1, 4)
        if self.layout == "hd3":
            return qkv.reshape(b, n, h, d, 3).permute(4, 0, 2, 1, 3).unbind(0)
        if self.layout == "3d of a head":
            return qkv.view(b, n, h, 3 * d).transpose(1, 2).chunk(3, -1)
        if self.layout == "split":
            return [heads_of(part, h) for part in qkv.split(h * d, -1)]
        return [heads_of(part, h) for part in qkv.chunk(3, -1)]

    def forward(self, x):
        q, k, v = self.unpacked(x)
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj(joined(weights @ v))


class Assembled(Packed):
    """A bias made of parameters and of zeros that don't train (BEiT)."""

    def __init__(self):
        super().__init__(bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(HEADS * SIZE)) for _ in range(2))
        self.register_buffer("k_bias", torch.zeros(HEADS * SIZE))

    def unpacked(self, x):
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        b, n, _ = x.shape
        return qkv.reshape(b, n, 3, self.heads, SIZE).permute(2, 0, 3, 1, 4).unbind(0)


class Batched(Attention):
    """Heads folded into the batch (bmm)."""

    def attend(self, q, k, v):
        b, h, n, d = q.shape
        q, k, v = (t.reshape(b * h, n, d) for t in (q, k, v))
        return torch.bmm(torch.bmm(q, k.transpose(1, 2)).mul(self.scale).softmax(-1), v).view(
            b, h, n, d
        )


def halves(x):
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), dim=-1)


def interleaved(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


class Rotary(Attention):
    """Rotary embeddings from tables, in either of two orders."""

    def __init__(self, rotate=halves, **given):
        super().__init__(**given)
        self.rotate = rotate
        angles = torch.arange(6.0)[:, None] * torch.tensor([1.0, 0.1])
        both = torch.cat([angles] * 2, -1) if rotate is halves else angles.repeat_interleave(2, -1)
        self.register_buffer("cos", both.cos())
        self.register_buffer("sin", both.sin())

    def turned(self, x):
        return x * self.cos + self.rotate(x) * self.sin


class RotaryNow(Attention):
    """Rotary embeddings computed as the model runs."""

    def turned(self, x):
        d = x.shape[-1]
        rate = 10.0 ** (-torch.arange(0, d, 2, dtype=x.dtype) / d)
        angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * torch.cat([rate, rate])
        return x * angles.cos() + halves(x) * angles.sin()


class Normed(Attention):
    """Queries and keys normalised over each head."""

    def __init__(self, norm=nn.LayerNorm, **given):
        super().__init__(**given)
        self.norm = norm(SIZE)

    def turned(self, x):
        return self.norm(x)


class NormedRotary(Rotary):
    """Both: the norm's weights lie beside the table."""

    def __init__(self, norm=nn.RMSNorm):
        super().__init__()
        self.norm = norm(SIZE)

    def turned(self, x):
        return super().turned(self.norm(x))


class Cosine(Attention):
    """Cosines of queries and keys, a temperature for each head (Swin 2)."""

    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.ones(HEADS, 1, 1))

    def attend(self, q, k, v):
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return (scores * self.logit.exp()).softmax(-1) @ v


class Torch(nn.Module):
    """``nn.MultiheadAttention``, in its many forms."""

    def __init__(self, cross=False, heads=HEADS, weigh=False, **given):
        super().__init__()
        self.weigh = weigh
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, heads, **given)
        self.out, self.cross = nn.Linear(WIDTH, WIDTH), cross

    def forward(self, x, source=None):
        x = self.stem(x)
        source = source if self.cross else x
        mixed, weights = self.attention(x, source, source, need_weights=self.weigh)
        return self.out(mixed) + (0 if weights is None else weights.sum())


class Relative(Packed):
    """Windows with a table of relative positions for each head (Swin)."""

    def __init__(self, size=3):
        super().__init__()
        self.size = size
        self.table = nn.Parameter(torch.randn((2 * size - 1) ** 2, HEADS))
        grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
        apart = grid.flatten(1)[:, :, None] - grid.flatten(1)[:, None] + size - 1
        self.register_buffer("index", apart[0] * (2 * size - 1) + apart[1])

    def forward(self, x):
        b, h, w, c = x.shape
        s = self.size
        x = x.view(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        q, k, v = self.unpacked(x)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(s * s, s * s, -1).permute(2, 0, 1)
        x = self.proj(joined((scores + bias[None]).softmax(-1) @ v))
        return x.view(b, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)


class RelativeKeys(Attention):
    """Queries meet embeddings of the relative positions (Shaw)."""

    def __init__(self, **given):
        super().__init__(**given)
        self.near = nn.Parameter(torch.randn(6, 6, SIZE))

    def attend(self, q, k, v):
        scores = q @ k.transpose(-2, -1) + torch.einsum("bhnd,nmd->bhnm", q, self.near)
        return (scores * self.scale).softmax(-1) @ v


class Talking(Attention):
    """Heads mixed before and after the softmax (CaiT)."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)

    def attend(self, q, k, v):
        scores = ((q * self.scale) @ k.transpose(-2, -1)).permute(0, 2, 3, 1)
        weights = self.after(self.before(scores).softmax(-2))
        return weights.permute(0, 3, 1, 2) @ v


class Efficient(Attention):
    """Softmax of the queries over the inner axis, of the keys over the tokens."""

    def attend(self, q, k, v):
        return q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v)


class Kernel(Attention):
    """Linear attention, with ``elu + 1`` or ``relu`` for a kernel."""

    def __init__(self, kernel=lambda x: F.elu(x) + 1):
        super().__init__()
        self.kernel = kernel

    def attend(self, q, k, v):
        q, k = self.kernel(q), self.kernel(k)
        total = (q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True) + 1e-6
        return q @ (k.transpose(-2, -1) @ v) / total


class CrossCovariance(Packed):
    """Channels attend to channels (XCiT)."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))

    def forward(self, x):
        q, k, v = (t.transpose(-2, -1) for t in self.unpacked(x))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)
        return self.proj(joined((weights @ v).transpose(-2, -1)))


class Block(nn.Module):
    """An attention on a hidden stream, read by a head."""

    def __init__(self, attention):
        super().__init__()
        self.attention, self.out = attention, nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.out(x + self.attention(x))


class CrossBlock(Block):
    """The same, with keys and values from elsewhere."""

    def forward(self, x, source):
        return self.out(x + self.attention(x, source))


def in_block(make, *args, **given):
    return lambda: Block(make(*args, **given))


def encoder(**given):
    def make():
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 10, 0.1, **given)
        encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), encoder, nn.Linear(WIDTH, 3))

    return make


def decoder():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(10, WIDTH)
            self.layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 10, batch_first=True)
            self.out = nn.Linear(WIDTH, 3)

        def forward(self, x, source):
            return self.out(self.layer(self.a(x), self.b(source)))

    return Decoder()


HEADED = {
    "separate": (in_block(Attention), TOKENS),
    "no_bias": (in_block(Attention, bias=False), TOKENS),
    "cross": (lambda: CrossBlock(Attention(source=10)), (TOKENS, CONTEXT)),
    "default_scale": (in_block(Default), TOKENS),
    "given_scale": (in_block(Given), TOKENS),
    "scale_from_shape": (in_block(FromShape), TOKENS),
    "scale_traced": (in_block(Traced), TOKENS),
    "scale_from_attribute": (in_block(FromAttribute), TOKENS),
    "batched": (in_block(Batched), TOKENS),
    "gqa_repeated": (in_block(Attention, heads=6, shared=3), TOKENS),
    "gqa_expanded": (in_block(Expanded, heads=6, shared=3), TOKENS),
    "gqa_einsum": (in_block(Grouped, heads=6, shared=3), TOKENS),
    "gqa_fused": (in_block(FusedGroups, heads=6, shared=3), TOKENS),
    "mqa": (in_block(MultiQuery), TOKENS),
    **{
        f"mqa_{way}": (in_block(Shared, way), TOKENS)
        for way in (
            *("expand", "expand_as", "broadcast", "repeat", "tile", "interleave"),
            *("interleave_named", "in_groups", "left_alone"),
        )
    },
    "mqa_fused": (in_block(SharedFused, "expand"), TOKENS),
    "mqa_kernel": (in_block(SharedKernel, "left_alone"), TOKENS),
    "mqa_batched": (in_block(SharedBatched, "expand"), TOKENS),
    "mqa_masked": (in_block(SharedMasked, "expand"), TOKENS),
    "mqa_einsum": (in_block(SharedEinsum, shared=1), TOKENS),
    "mqa_merged": (in_block(SharedMerged, shared=1), TOKENS),
    "mqa_packed": (in_block(SharedPacked), TOKENS),
    "mqa_packed_no_bias": (in_block(SharedPacked, bias=False), TOKENS),
    "mqa_split": (in_block(SharedSplit), TOKENS),
    "mqa_partly": (in_block(SharedRotary), TOKENS),
    "packed_3hd": (in_block(Packed), TOKENS),
    "packed_h3d": (in_block(Packed, "h3d"), TOKENS),
    "packed_hd3": (in_block(Packed, "hd3"), TOKENS),
    "packed_in_head": (in_block(Packed, "3d of a head"), TOKENS),
    "packed_split": (in_block(Packed, "split"), TOKENS),
    "packed_chunk": (in_block(Packed, "chunk", bias=False), TOKENS),
    "assembled": (in_block(Assembled), TOKENS),
    "rotary_halves": (in_block(Rotary), TOKENS),
    "rotary_interleaved": (in_block(Rotary, interleaved), TOKENS),
    "rotary_gqa": (in_block(Rotary, heads=6, shared=3), TOKENS),
    "rotary_now": (in_block(RotaryNow), TOKENS),
    "normed": (in_block(Normed), TOKENS),
    "rms_normed": (in_block(Normed, nn.RMSNorm), TOKENS),
    "rms_normed_rotary": (in_block(NormedRotary), TOKENS),
    "cosine": (in_block(Cosine), TOKENS),
    "relative": (in_block(Relative), VIDEO),
    "relative_keys": (in_block(RelativeKeys), TOKENS),
    "talking": (in_block(Talking), TOKENS),
    "efficient": (in_block(Efficient), TOKENS),
    "elu_kernel": (in_block(Kernel), TOKENS),
    "relu_kernel": (in_block(Kernel, F.relu), TOKENS),
    "cross_covariance": (in_block(CrossCovariance), TOKENS),
    "torch": (Torch, TOKENS),
    "torch_weights": (lambda: Torch(weigh=True, batch_first=True), TOKENS),
    "torch_batch_first": (lambda: Torch(batch_first=True), TOKENS),
    "torch_no_bias": (lambda: Torch(batch_first=True, bias=False), TOKENS),
    "torch_other_sizes": (
        lambda: Torch(cross=True, batch_first=True, kdim=10, vdim=10),
        (TOKENS, CONTEXT),
    ),
    "torch_bias_kv": (lambda: Torch(batch_first=True, add_bias_kv=True), TOKENS),
    "torch_zero": (lambda: Torch(batch_first=True, add_zero_attn=True), TOKENS),
    "encoder": (encoder(), TOKENS),
    "encoder_batch_first": (encoder(batch_first=True), TOKENS),
    "encoder_norm_first": (encoder(batch_first=True, norm_first=True), TOKENS),
    "decoder": (decoder, (TOKENS, CONTEXT)),
}
ONE = {"heads": 1, "shared": 1}
ONE_HEAD = {
    "separate": (in_block(Attention, **ONE), TOKENS),
    "no_bias": (in_block(Attention, bias=False, **ONE), TOKENS),
    "default_scale": (in_block(Default, **ONE), TOKENS),
    "batched": (in_block(Batched, **ONE), TOKENS),
    "packed_3hd": (in_block(Packed, heads=1), TOKENS),
    "packed_hd3": (in_block(Packed, "hd3", heads=1), TOKENS),
    "packed_split": (in_block(Packed, "split", heads=1), TOKENS),
    "packed_chunk": (in_block(Packed, "chunk", bias=False, heads=1), TOKENS),
    "torch": (lambda: Torch(heads=1), TOKENS),
    "torch_no_bias": (lambda: Torch(heads=1, bias=False), TOKENS),
    "rms_normed": (in_block(Normed, nn.RMSNorm, **ONE), TOKENS),
    "normed": (in_block(Normed, **ONE), TOKENS),
    "rotary": (in_block(Rotary, **ONE), TOKENS),
}


class Grouped2d(nn.Module):
    """A bottleneck around a grouped convolution (ResNeXt)."""

    def __init__(self, groups=3, out=12, norm=nn.BatchNorm2d, again=False):
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12)
        self.b, self.m = nn.Conv2d(12, out, 3, padding=1, groups=groups), norm(out)
        self.again = nn.Conv2d(out, out, 3, padding=1, groups=groups) if again else nn.Identity()
        self.c = nn.Conv2d(out, 5, 1)

    def forward(self, x):
        x = F.silu(self.m(self.b(F.silu(self.n(self.a(x))))))
        return self.c(self.again(x)).mean((2, 3))


class Functional(nn.Module):
    """A grouped convolution whose weight is a parameter of the model's own."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Conv1d(3, 12, 1), nn.Conv1d(12, 5, 1)
        self.w = nn.Parameter(torch.randn(12, 4, 3))

    def forward(self, x):
        return self.c(F.conv1d(self.a(x).tanh(), self.w, padding=1, groups=3))


class SplitAttention(nn.Module):
    """Halves of the channels weighed against each other (ResNeSt)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=2)
        self.up, self.down = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 12, 1)
        self.c = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        x = F.relu(self.b(self.a(x).tanh()))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w)
        weights = self.down(F.silu(self.up(x.sum(1).mean((2, 3), keepdim=True))))
        return self.c((x * weights.view(b, 2, c // 2, 1, 1).softmax(1)).sum(1))


PICTURE = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(8))
CONVOLUTIONS = {
    "grouped": (Grouped2d, PICTURE),
    "more_outputs": (lambda: Grouped2d(out=24), PICTURE),
    "twice": (lambda: Grouped2d(again=True), PICTURE),
    "functional": (Functional, torch.randn(2, 3, 7)),
    "split_attention": (SplitAttention, PICTURE),
}
