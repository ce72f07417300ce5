"""Small networks whose streams are normalised over their channels, one way or another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from networks_attention import Packed, Separate
from torch import nn

WIDTH = 8
TOKENS = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(2))
WORDS = torch.arange(10).view(2, 5)
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


class HandRms(nn.Module):
    """RMS normalisation as Llama's code has it."""

    def __init__(self, width=WIDTH, eps=0.1):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        variance = x.to(x.dtype).pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.eps))


class HandNorm(HandRms):
    """Layer normalisation written out, as Cohere's code and, over channels, ConvNeXt's have it."""

    def __init__(self, width=WIDTH, eps=0.1, dim=-1):
        super().__init__(width, eps)
        self.bias, self.dim = nn.Parameter(torch.zeros(width)), dim

    def forward(self, x):
        mean = x.mean(self.dim, keepdim=True)
        variance = (x - mean).pow(2).mean(self.dim, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        shape = [-1] + [1] * (-1 - self.dim)
        return self.weight.view(shape) * x + self.bias.view(shape)


class HandImages(nn.Module):
    """Stream of images with layer normalisation over the channels, written out."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, WIDTH, 2, 2), HandNorm(dim=-3)
        self.up, self.down = nn.Conv2d(WIDTH, 10, 1), nn.Conv2d(10, WIDTH, 1)
        self.last, self.head = HandNorm(dim=-3), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(self.last(x).mean((-2, -1)))


class FunctionNorm(nn.Module):
    """``F.layer_norm`` with its size and eps as attributes, as timm has it."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.normalized_shape, self.eps = (width,), 0.05

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class SizelessNorm(FunctionNorm):
    """As before, its size read off the weight."""

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class PreNorm(nn.Module):
    """Class token, positions, blocks with layer scale, last norm and head."""

    def __init__(self, norm, attention=Packed, scaled=True):
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, 7, WIDTH))
        self.n1, self.n2, self.n3 = norm(), norm(), norm()
        self.attention, self.up, self.down = attention(), nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)
        self.gamma = nn.Parameter(torch.ones(WIDTH)) if scaled else 1.0
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.stem(x)], 1) + self.positions
        x = x + self.attention(self.n1(x))
        x = x + self.gamma * self.down(F.gelu(self.up(self.n2(x))))
        return self.head(self.n3(x)[:, 0])


class Language(nn.Module):
    """Words, positions, a block, and a head that shares the embedding's weight."""

    def __init__(self, norm, tied=True):
        super().__init__()
        self.words, self.places = nn.Embedding(11, WIDTH), nn.Embedding(5, WIDTH)
        self.n1, self.n2, self.n3 = norm(), norm(), norm()
        self.attention = Separate()
        self.up, self.gate = nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 10)
        self.down, self.head = nn.Linear(10, WIDTH), nn.Linear(WIDTH, 11, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(5, device=tokens.device))
        x = x + self.attention(self.n1(x))
        y = self.n2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(self.n3(x))


class Raw(nn.Module):
    """A stream that is also read beside its norms."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.out = nn.Linear(WIDTH, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm, self.side = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.mix(self.norm(x))
        return self.out(self.norm(x)) + self.side(x)


class Grn(nn.Module):
    """The middle of a ConvNeXtV2 block: global response normalisation."""

    def __init__(self):
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(3, 6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.weight, self.bias = nn.Parameter(torch.zeros(12)), nn.Parameter(torch.zeros(12))
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x.permute(0, 2, 3, 1)).tanh()
        y = F.gelu(self.up(x))
        size = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
        ratio = size / (size.mean(dim=-1, keepdim=True) + 1e-2)
        y = self.weight * (y * ratio) + self.bias + y
        return self.out(x + self.down(y)).mean((1, 2))


class PostNorm(nn.Module):
    """Norms after the sums: new entries can't be means there."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.out = nn.Linear(WIDTH, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.n1, self.n2 = nn.LayerNorm(6), nn.LayerNorm(6)

    def forward(self, x):
        x = self.n1(self.stem(x))
        return self.out(self.n2(x + self.mix(x).tanh()))


class TiedPostNorm(nn.Module):
    """A head that shares the embedding's weight, behind norms after the sums (BART).

    ``last`` makes of the stream what the head reads: as it is, or as BERT does, through a layer
    and a norm. ``beside`` reads that, too.
    """

    def __init__(self, last=None, beside=None, dropout=0.0):
        super().__init__()
        self.words, self.first = nn.Embedding(11, WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.last = last or nn.Identity()
        self.beside, self.dropout = beside, nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, 11)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.first(self.words(tokens))
        x = self.dropout(self.last(self.norm(x + self.mix(x))))
        y = self.head(x)
        return y if self.beside is None else (y, self.beside(x))


class BloomLike(nn.Module):
    """A norm behind the embedding, which writes a stream with norms first; a tied head."""

    def __init__(self):
        super().__init__()
        self.words, self.first = nn.Embedding(11, WIDTH), nn.LayerNorm(WIDTH)
        self.norm, self.up, self.down = layer_norm(), nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)
        self.last, self.head = layer_norm(), nn.Linear(WIDTH, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.first(self.words(tokens))
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(self.last(x))


def transform():
    """What BERT has in front of its head."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH))


class Mixer(nn.Module):
    """What mixes tokens writes the normalised stream back, channel by channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.tokens = nn.Linear(WIDTH, 6), nn.Linear(6, 6)
        self.n1, self.n2, self.out = nn.LayerNorm(6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return self.out(self.n2(x).mean(1))


class Depthwise(nn.Module):
    """ConvNeXt's block: a depthwise convolution between stream and norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.gamma, self.out = nn.Parameter(torch.ones(6)), nn.Linear(6, 3)
        self.last = nn.LayerNorm(6)

    def forward(self, x):
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.conv(x).permute(0, 2, 3, 1)))))
        x = x + (self.gamma * y).permute(0, 3, 1, 2)
        return self.out(self.last(x.mean((2, 3))))


class Bare(nn.Module):
    """A norm without weights: nothing there could make up for a new width."""

    def __init__(self):
        super().__init__()
        self.stem, self.out = nn.Linear(WIDTH, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(F.layer_norm(self.stem(x), (6,)))


def layer_norm():
    return nn.LayerNorm(WIDTH, eps=0.1)


def rms_norm():
    return nn.RMSNorm(WIDTH, eps=0.1)


# Name → (factory, example, recipe of the stream).
STREAMS = {
    "pre-norm": (lambda: PreNorm(layer_norm), TOKENS, "mean"),
    "functional norm": (lambda: PreNorm(FunctionNorm), TOKENS, "mean"),
    "separate": (lambda: PreNorm(layer_norm, Separate, scaled=False), TOKENS, "mean"),
    "language": (lambda: Language(layer_norm), WORDS, "mean"),
    "rms": (lambda: PreNorm(rms_norm), TOKENS, "zero"),
    "rms by hand": (lambda: PreNorm(HandRms), TOKENS, "zero"),
    "layer norm by hand": (lambda: PreNorm(HandNorm), TOKENS, "mean"),
    "layer norm by hand, tied": (lambda: Language(HandNorm), WORDS, "mean"),
    "layer norm of images by hand": (HandImages, IMAGE, "mean"),
    "llama": (lambda: Language(HandRms, tied=False), WORDS, "zero"),
    "tied llama": (lambda: Language(rms_norm), WORDS, "zero"),
    "raw": (Raw, TOKENS, "mean"),
    "grn": (Grn, IMAGE, "zero"),
    "post-norm": (PostNorm, TOKENS, "copies"),
    "tied post-norm": (TiedPostNorm, WORDS, "copies"),
    "tied, transformed": (lambda: TiedPostNorm(transform()), WORDS, "copies"),
    "tied, read twice": (lambda: TiedPostNorm(beside=nn.Linear(WIDTH, 2)), WORDS, "copies"),
    "norm behind the embedding": (BloomLike, WORDS, "copies"),
    "mixer": (Mixer, TOKENS, "copies"),
    "depthwise": (Depthwise, IMAGE, "copies"),
    "bare": (Bare, TOKENS, "copies"),
}
