"""Small networks with attention, written in the many ways people write it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 8
TOKENS = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(2))


class Mlp(nn.Module):
    """Pre-norm MLP block on a stream that ends in a norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.n1, self.n2 = nn.Linear(WIDTH, 6), nn.LayerNorm(6), nn.LayerNorm(6)
        self.up, self.down, self.out = nn.Linear(6, 12), nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.down(F.gelu(self.up(self.n1(x))))
        return self.out(self.n2(x))


class Packed(nn.Module):
    """q, k and v from one layer, as in ViTs."""

    def __init__(self, heads=2):
        super().__init__()
        self.heads, self.scale = heads, (WIDTH // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class Separate(nn.Module):
    """q, k and v from three layers, heads by ``view``."""

    def __init__(self, heads=2):
        super().__init__()
        self.heads, self.size = heads, WIDTH // heads
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.o = nn.Linear(WIDTH, WIDTH)

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], self.heads, self.size).transpose(1, 2)

    def forward(self, x):
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.o(x.transpose(1, 2).contiguous().view(x.shape[0], -1, self.heads * self.size))


def rotate_half(x):
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), dim=-1)


class Rotary(Separate):
    """Rotary embeddings, and fewer heads of keys and values than of queries."""

    def __init__(self, groups=2):
        super().__init__(heads=4)
        self.groups = groups
        self.size = 4
        self.q, self.o = nn.Linear(WIDTH, 16, bias=False), nn.Linear(16, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, 4 * groups, bias=False) for _ in range(2))
        angles = torch.arange(6.0)[:, None] * torch.tensor([1.0, 0.1])
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin())

    def turn(self, x):
        return x * self.cos + rotate_half(x) * self.sin

    def repeat(self, x):
        b, g, n, d = x.shape
        times = self.heads // self.groups
        return x[:, :, None].expand(b, g, times, n, d).reshape(b, g * times, n, d)

    def forward(self, x):
        b, n, _ = x.shape
        q = self.turn(self.q(x).view(b, n, self.heads, self.size).transpose(1, 2))
        k = self.turn(self.k(x).view(b, n, self.groups, self.size).transpose(1, 2))
        v = self.v(x).view(b, n, self.groups, self.size).transpose(1, 2)
        weights = torch.softmax(q @ self.repeat(k).transpose(2, 3) / self.size**0.5, dim=-1)
        return self.o((weights @ self.repeat(v)).transpose(1, 2).reshape(b, n, -1))


class Block(nn.Module):
    """Pre-norm block around any attention, with a class token and positions."""

    def __init__(self, attention):
        super().__init__()
        self.n1, self.n2, self.n3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.attention, self.up, self.down = attention, nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = x + self.attention(self.n1(x))
        x = x + self.down(F.silu(self.up(self.n2(x))))
        return self.out(self.n3(x[:, 0]))


class Vision(nn.Module):
    """Patches, class token, positions, encoder layers of torch."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, 5, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, 0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(
            layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.encoder(x)[:, 0])


class Merging(nn.Module):
    """Patch merging: four neighbours become one token of four times the width."""

    def __init__(self):
        super().__init__()
        self.stem, self.reduce = nn.Linear(3, 6), nn.Linear(24, 10, bias=False)
        self.norm, self.out = nn.LayerNorm(10), nn.Linear(10, 3)

    def forward(self, x):
        x = self.stem(x.permute(0, 2, 3, 1)).tanh()
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.out(self.norm(self.reduce(x))).mean((1, 2))


class Windows(nn.Module):
    """Attention inside of windows that were rolled, with a table of relative positions."""

    def __init__(self):
        super().__init__()
        self.stem, self.attention, self.out = nn.Linear(3, WIDTH), Packed(), nn.Linear(WIDTH, 3)
        self.table = nn.Parameter(torch.randn(16, WIDTH))

    def forward(self, x):
        x = torch.roll(self.stem(x.permute(0, 2, 3, 1)), (-2, -2), (1, 2))
        b, h, w, c = x.shape
        x = x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        x = self.attention(x + self.table)
        x = x.view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return self.out(torch.roll(x, (2, 2), (1, 2)))


class Torch(nn.Module):
    """``nn.MultiheadAttention`` with a mask, weights returned."""

    def __init__(self):
        super().__init__()
        self.stem, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.attention = nn.MultiheadAttention(WIDTH, 4, dropout=0.1, batch_first=True)

    def forward(self, x, mask):
        x = self.stem(x)
        y, weights = self.attention(x, x, x, attn_mask=mask)
        return self.out(x + y), weights


class Recurrent(nn.Module):
    """An LSTM, whose inside stays as it is."""

    def __init__(self):
        super().__init__()
        self.a, self.lstm, self.b = (
            nn.Linear(WIDTH, 7),
            nn.LSTM(7, 5, batch_first=True),
            nn.Linear(5, 6),
        )
        self.c = nn.Linear(6, 2)

    def forward(self, x):
        return self.c(self.b(self.lstm(self.a(x))[0]).tanh())


class Language(nn.Module):
    """Embedding, encoder layer (norms after), classes from the mean."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, 3)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, 0.1, batch_first=True)

    def forward(self, tokens):
        return self.out(self.layer(self.embed(tokens)).mean(1))


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
ATTENTION = {
    "mlp": (Mlp, TOKENS),
    "packed": (lambda: Block(Packed()), TOKENS),
    "separate": (lambda: Block(Separate()), TOKENS),
    "rotary": (lambda: Block(Rotary()), TOKENS),
    "vision": (Vision, IMAGE),
    "merging": (Merging, IMAGE),
    "windows": (Windows, IMAGE),
    "multihead": (Torch, (TOKENS, torch.zeros(6, 6))),
    "recurrent": (Recurrent, TOKENS),
    "language": (Language, torch.arange(10).view(2, 5)),
}
