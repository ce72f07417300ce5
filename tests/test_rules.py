"""Every rule against the permutation oracle: one operation between two layers.

The first layer's width must grow (or be frozen with the right reason), its units must be
exactly those of the oracle, and growing everything must keep the function.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checks import doubled, errors, randomised, run, step, untrained
from oracle import complaints
from torch import nn

import fxgrow
from fxgrow import rules
from fxgrow.planes import Plane
from fxgrow.propagate import Call, Propagation

WIDTH = 8


class Between(nn.Module):
    """``read(op(write(x)))``: an image or a sequence, ``WIDTH`` channels."""

    def __init__(self, op, kind, parts=None):
        super().__init__()
        self.kind, self.op, self.parts = kind, op, parts or nn.Identity()
        self.write = nn.Conv2d(3, WIDTH, 3, padding=1) if kind == "image" else nn.Linear(5, WIDTH)
        with torch.no_grad():
            shape = self.mid(EXAMPLES[kind]).shape
        if kind == "image":
            self.read = nn.Conv2d(shape[1], 4, 1)
        else:
            self.read = nn.Linear(shape[-1], 4)

    def mid(self, x):
        y = self.write(x)
        return self.op(y) if isinstance(self.parts, nn.Identity) else self.op(self.parts, y)

    def forward(self, x):
        return self.read(self.mid(x))


torch.manual_seed(0)
EXAMPLES = {"image": torch.randn(2, 3, 8, 8), "tokens": torch.randn(2, 6, 5)}


class Weights(nn.Module):
    """Bare parameters of given shapes: ``w0``, ``w1`` ..."""

    def __init__(self, *shapes):
        super().__init__()
        for i, shape in enumerate(shapes):
            self.register_parameter(f"w{i}", nn.Parameter(torch.randn(shape)))


def halves(x, dim=1):
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


def unbound(x):
    a, b = x.unflatten(1, (2, -1)).unbind(1)
    return a * torch.tanh(b)


def split_sizes(x):
    a, b, c = torch.split(x, [2, 4, 2], 1)
    return torch.cat([c, b, a], 1).relu()


IMAGE = {
    "relu": torch.relu,
    "relu_": lambda x: x.relu_(),
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "clamp": lambda x: x.clamp(-1, 1),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "maximum": lambda x: torch.maximum(x, x * 0.2),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "add number": lambda x: 2 * x + 1,
    "pow": lambda x: x**2,
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "adaptive_avg": lambda x: F.adaptive_avg_pool2d(x, 2),
    "adaptive_max": lambda x: F.adaptive_max_pool2d(x, 2),
    "adaptive_one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mean space": lambda x: x.mean((2, 3), keepdim=True),
    "sum space": lambda x: x.sum(-1, keepdim=True),
    "amax space": lambda x: x.amax((-2, -1), keepdim=True),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, size=(5, 6), mode="bilinear"),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "pad reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "roll space": lambda x: torch.roll(x, (1, 2), (2, 3)),
    "flip space": lambda x: x.flip(3),
    "permute": lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2),
    "transpose": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "flatten unflatten": lambda x: x.flatten(2).unflatten(2, (8, 8)),
    "view sizes": lambda x: x.view(x.size(0), x.size(1), -1).view(x.shape),
    "cat self": lambda x: torch.cat([x, torch.relu(x)], 1),
    "cat space": lambda x: torch.cat([x, x], 2),
    "stack flatten": lambda x: torch.stack([x, x.relu()], 1).flatten(1, 2),
    "stack mean": lambda x: torch.stack([x, x.relu()]).mean(0),
    "chunk": halves,
    "glu": lambda x: F.glu(x, 1),
    "unbind": unbound,
    "split sizes": split_sizes,
    "slices": lambda x: x[:, :4] * x[:, 4:],
    "narrow": lambda x: x.narrow(1, 2, 4),
    "every second": lambda x: x[:, ::2] + x[:, 1::2],
    "select": lambda x: x[:, 3:4] * x,
    "index list": lambda x: x[:, [3, 1, 0, 2, 7, 6, 5, 4]],
    "index_select": lambda x: x.index_select(2, torch.tensor([1, 0, 3])),
    "flip channels": lambda x: x.flip(1),
    "roll channels": lambda x: x.roll(3, 1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "expand": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4),
    "expand_as": lambda x: x.mean((2, 3), keepdim=True).expand_as(x) * x,
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "unfold": lambda x: F.unfold(x, 2, stride=2).unflatten(2, (4, 4)),
    "tensor unfold": lambda x: x.unfold(2, 2, 2).mean(-1),
    "softmax space": lambda x: torch.softmax(x.flatten(2), -1).view_as(x),
    "instance_norm": lambda x: F.instance_norm(x),
    "normalize": lambda x: x / x.norm(dim=1, keepdim=True),
    "normalize space": lambda x: x / (x.norm(dim=(2, 3), keepdim=True) + 1),
    "bmm": lambda x: torch.bmm(x.flatten(2), x.flatten(2).transpose(1, 2).softmax(1))[
        ..., None
    ].mean(2, keepdim=True),
    "einsum": lambda x: torch.einsum("bchw,bcvw->bchv", x, x.relu()),
    "inplace write": lambda x: x.clone().mul_(2).add_(1),
}
FROZEN = {
    "softmax": (lambda x: torch.softmax(x, 1), "_softmax"),
    "cumsum": (lambda x: torch.cumsum(x, 1), "cumsum"),
    "sort": (lambda x: torch.sort(x, 1).values, "sort"),
    "norm of order three": (lambda x: x / x.norm(3, dim=1, keepdim=True), "p_norm"),
    "unknown": (lambda x: torch.fft.fft(x, dim=2).real, "unknown_op"),
    "masked by data": (lambda x: x * torch.linspace(0, 1, WIDTH).view(1, -1, 1, 1), "unlabelled"),
}
LAYERS = {
    "conv": lambda: nn.Conv2d(WIDTH, 6, 3, padding=1),
    "conv no bias": lambda: nn.Conv2d(WIDTH, 6, 3, padding=1, bias=False, stride=2),
    "conv dilated": lambda: nn.Conv2d(WIDTH, 6, 3, dilation=2, padding="same"),
    "depthwise": lambda: nn.Conv2d(WIDTH, WIDTH, 3, groups=WIDTH),
    "depthwise multiplier": lambda: nn.Conv2d(WIDTH, 3 * WIDTH, 3, groups=WIDTH),
    "grouped": lambda: nn.Conv2d(WIDTH, 12, 3, groups=4),
    "grouped no bias": lambda: nn.Conv2d(WIDTH, WIDTH, 1, groups=2, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(WIDTH, 6, 2, stride=2),
    "transposed depthwise": lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 2, groups=WIDTH),
    "transposed grouped": lambda: nn.ConvTranspose2d(WIDTH, 12, 2, groups=4),
    "batch norm": lambda: nn.BatchNorm2d(WIDTH),
    "batch norm plain": lambda: nn.BatchNorm2d(WIDTH, affine=False),
    "batch norm batch": lambda: nn.BatchNorm2d(WIDTH, track_running_stats=False),
    "group norm": lambda: nn.GroupNorm(4, WIDTH),
    "group norm one": lambda: nn.GroupNorm(1, WIDTH),
    "instance norm": lambda: nn.InstanceNorm2d(WIDTH, affine=True),
    "instance norm running": lambda: nn.InstanceNorm2d(WIDTH, track_running_stats=True),
    "prelu": lambda: nn.PReLU(WIDTH),
    "prelu one": lambda: nn.PReLU(),
    "glu": lambda: nn.GLU(1),
    "pixel shuffle": lambda: nn.PixelShuffle(2),
    "upsample": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "dropout": lambda: nn.Dropout2d(0.5),
    "adaptive": lambda: nn.AdaptiveAvgPool2d(3),
    "rrelu in eval": lambda: nn.Hardtanh(),
}
TOKENS = {
    "linear": (lambda: nn.Linear(WIDTH, 6), lambda m, x: m(x)),
    "layer norm": (lambda: nn.LayerNorm(WIDTH), lambda m, x: m(x)),
    "rms norm": (lambda: nn.RMSNorm(WIDTH, eps=1e-6), lambda m, x: m(x)),
    "F.linear": (lambda: Weights((6, WIDTH), (6,)), lambda m, x: F.linear(x, m.w0, m.w1)),
    "matmul": (lambda: Weights((WIDTH, 6)), lambda m, x: x @ m.w0),
    "addmm": (
        lambda: Weights((6,), (WIDTH, 6)),
        lambda m, x: torch.addmm(m.w0, x.flatten(0, 1), m.w1),
    ),
    "einsum": (lambda: Weights((WIDTH, 6)), lambda m, x: torch.einsum("btc,cd->btd", x, m.w0)),
    "einsum heads": (
        lambda: Weights((WIDTH, 3, 4)),
        lambda m, x: torch.einsum("btc,chd->bthd", x, m.w0).flatten(2),
    ),
    "bmm": (lambda: Weights((2, WIDTH, 6)), lambda m, x: torch.bmm(x, m.w0)),
    "weight.t()": (lambda: Weights((6, WIDTH)), lambda m, x: torch.mm(x.flatten(0, 1), m.w0.t())),
    "scale": (lambda: Weights((WIDTH,)), lambda m, x: x * m.w0),
    "positions": (lambda: Weights((1, 6, WIDTH)), lambda m, x: x + m.w0),
    "token": (
        lambda: Weights((1, 1, WIDTH)),
        lambda m, x: torch.cat([m.w0.expand(x.size(0), -1, -1), x], 1),
    ),
    "conv1d": (lambda: nn.Conv1d(WIDTH, 6, 3), lambda m, x: m(x.transpose(1, 2)).transpose(1, 2)),
    "F.conv1d": (
        lambda: Weights((WIDTH, 1, 3)),
        lambda m, x: F.conv1d(x.mT, m.w0, groups=WIDTH).mT,
    ),
    "F.batch_norm": (
        lambda: Weights((WIDTH,), (WIDTH,)),
        lambda m, x: F.batch_norm(x.mT, None, None, m.w0, m.w1, training=True).mT,
    ),
    "F.prelu": (lambda: Weights((WIDTH,)), lambda m, x: F.prelu(x.mT, m.w0).mT),
    "mean tokens": (lambda: Weights((WIDTH,)), lambda m, x: x.mean(1) * m.w0),
    "flatten": (lambda: nn.Linear(6 * WIDTH, 4), lambda m, x: m(x.flatten(1))),
    "attention": (
        lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        lambda m, x: m(x, x, x, need_weights=False)[0],
    ),
    "attention weights": (
        lambda: nn.MultiheadAttention(WIDTH, 4, batch_first=True, dropout=0.2),
        lambda m, x: m(x, x, x)[0],
    ),
    "attention other widths": (
        lambda: nn.MultiheadAttention(
            WIDTH, 2, kdim=WIDTH, vdim=WIDTH, batch_first=True, bias=False
        ),
        lambda m, x: m(x, x.relu(), x)[0],
    ),
    "encoder post": (
        lambda: nn.TransformerEncoderLayer(WIDTH, 2, 12, 0.1, batch_first=True),
        lambda m, x: m(x),
    ),
    "encoder pre": (
        lambda: nn.TransformerEncoderLayer(
            WIDTH, 2, 12, activation="gelu", batch_first=True, norm_first=True
        ),
        lambda m, x: m(x),
    ),
    "decoder": (
        lambda: nn.TransformerDecoderLayer(WIDTH, 2, 12, batch_first=True),
        lambda m, x: m(x, x.relu()),
    ),
    "sdpa": (
        lambda: nn.Linear(WIDTH, 3 * WIDTH),
        lambda m, x: (
            F.scaled_dot_product_attention(
                *m(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4), is_causal=True
            )
            .transpose(1, 2)
            .flatten(2)
        ),
    ),
}
# Where means are taken out, or a softmax over the positions follows, biases do not matter.
BIASES = ("write.bias",)
CENTRED = {"softmax space", "instance_norm", "instance norm", "batch norm batch", "F.batch_norm"}


def checked(model, example, *, may_freeze=False, redundant=()):
    """Oracle over all growable groups; grow all; compare; train."""
    model, example = randomised(model), doubled(example)
    run(model.train(), example)  # the example fits in train mode too
    inspection = fxgrow.inspect(model, example)
    assert may_freeze or inspection.groups, [(g.name, g.reason) for g in inspection.frozen]
    assert complaints(model, inspection.groups, example, omit=9, redundant=redundant) == []
    if not inspection.groups:
        return inspection
    grown = fxgrow.widen(model, example, {g.name: step(g) for g in inspection.groups})
    assert max(errors(model, grown.module, example)) <= 1e-10
    assert untrained(grown.module, grown.groups, example) == []
    return inspection


@pytest.mark.parametrize("name", IMAGE)
def test_operation_on_channels(name):
    redundant = BIASES if name in CENTRED else ()
    inspection = checked(Between(IMAGE[name], "image"), EXAMPLES["image"], redundant=redundant)
    assert any("write" in g.layers for g in inspection.groups)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_on_channels(name):
    model = Between(lambda m, x: m(x).tanh(), "image", LAYERS[name]())
    inspection = checked(model, EXAMPLES["image"], redundant=BIASES if name in CENTRED else ())
    assert any("write" in g.layers for g in inspection.groups)


@pytest.mark.parametrize("name", TOKENS)
def test_layer_on_tokens(name):
    make, op = TOKENS[name]
    redundant = BIASES if name in CENTRED else ()
    inspection = checked(Between(op, "tokens", make()), EXAMPLES["tokens"], redundant=redundant)
    assert any("write" in g.layers for g in inspection.groups)


@pytest.mark.parametrize("name", FROZEN)
def test_operation_that_mixes_channels_freezes_them(name):
    op, code = FROZEN[name]
    inspection = checked(Between(op, "image"), EXAMPLES["image"], may_freeze=True)
    reasons = {g.reason.code for g in inspection.frozen if "write" in g.layers}
    assert code in reasons


@pytest.mark.parametrize("training", [False, True])
def test_embedding(training):
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    inspection = checked(model.train(training), torch.arange(6).view(2, 3))
    assert {g.name for g in inspection.groups} == {"0", "1"}


def test_the_model_input_and_output_are_the_users():
    inspection = checked(Between(torch.relu, "image"), EXAMPLES["image"])
    assert {g.reason.code for g in inspection.frozen} == {"unlabelled", "output"}


@pytest.mark.parametrize(("name", "gates"), [("lstm", 4), ("gru", 3)])
def test_fused_cells_unite_what_their_steps_would(name, gates):
    """Kernels of other devices: their operations can't run here, their rule can."""
    width = 3
    bias = torch.nn.Parameter(torch.zeros(gates * width))
    state = Propagation({id(bias): "bias"})

    def labelled(size):
        tensor = torch.zeros(2, size)
        plane = Plane(state.book.fresh(size).reshape(1, -1))
        state.assign(tensor, (plane,), weight=False, live=True)
        return tensor, plane.labels.reshape(-1)

    inputs, own = zip(*(labelled(n * width) for n in (gates, gates, 1)), strict=True)
    out = [torch.zeros(2, width)] * (3 if name == "lstm" else 2)
    call = Call(f"_thnn_fused_{name}_cell", (*inputs, bias, None), {}, out)
    *states, workspace = rules.TABLE[call.name](state, call)
    assert workspace == ()
    state.book.settle()
    units = state.book.find(own[2])
    assert len(set(units)) == width
    for labels in (own[0], own[1], state.axes["bias", 0]):
        assert (state.book.find(labels).reshape(gates, width) == units).all()
    for (plane,) in states:
        assert (state.book.find(plane.labels) == units).all()
    assert state.roles["bias", 0] == {"producer"}
    assert not state.book.frozen
