"""Heads as units: attention as people write it, grown by whole heads."""

from __future__ import annotations

import pickle

import pytest
import torch
from checks import doubled, errors, randomised, step, untrained
from exactly import EXACT, grows_exactly
from networks_heads import HEADED, HEADS, ONE_HEAD, PICTURE, SIZE, SplitAttention
from torch import nn

import fxgrow
from fxgrow.compose import WideMultiheadAttention
from fxgrow.errors import UnsupportedError, VerificationError

# Keys and values of one head: what grows is the inner axis of the values.
TORCH = ("torch", "encoder", "decoder")


def built(name, table=HEADED):
    make, example = table[name]
    torch.manual_seed(0)
    return randomised(make()), doubled(example)


@pytest.mark.parametrize("name", HEADED)
def test_heads_are_the_units(name):
    """What writes queries is one group of as many units as there are heads (of keys)."""
    model, example = built(name)
    inspection = fxgrow.inspect(model, example)
    found = {g.name: g for g in (*inspection.groups, *inspection.frozen)}
    writers = [g for n, g in found.items() if n.endswith(("attention.q", "qkv", "attn", "tion"))]
    heads = [g for g in writers if g.width == HEADS]
    assert heads
    reasons = {g.reason.code for g in heads if g.reason is not None}
    assert reasons == set()


@pytest.mark.parametrize("name", HEADED)
def test_growth_is_exact_and_trains(name):
    model, example = built(name)
    grows_exactly(model, example)


@pytest.mark.parametrize("name", HEADED)
def test_in_the_users_class(name):
    """The same, or refused where the user's own code holds the number of heads."""
    model, example = built(name)
    additions = {g.name: step(g) for g in fxgrow.inspect(model, example).groups}
    try:
        growth = fxgrow.widen(model, example, additions, emit="module")
    except (UnsupportedError, VerificationError) as error:
        assert "emit='graph'" in str(error)
        assert not name.startswith((*TORCH, "mqa_"))
    else:
        assert max(errors(model, growth.module, example)) <= EXACT


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}, {}])
def test_torch_attention_written_out(options, masked):
    """What the graph computes is what torch computes, weights and masks too."""
    from fxgrow.compose import multihead_forward

    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(12, 3, batch_first=True, **options).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    given = {}
    if masked:
        given["attn_mask"] = torch.ones(5, 5, dtype=torch.bool).triu(1)
        given["key_padding_mask"] = torch.arange(5).expand(2, 5) >= torch.tensor([[5], [3]])
    for need_weights in (False, True):
        wanted = module(x, x, x, need_weights=need_weights, **given)
        found = multihead_forward(module, x, x, x, need_weights=need_weights, **given)
        torch.testing.assert_close(found[0], wanted[0])
        if need_weights:
            torch.testing.assert_close(found[1], wanted[1])


@pytest.mark.parametrize("name", ONE_HEAD)
def test_one_head_grows_inside(name):
    """Of one head, queries with keys and values are groups (packed in a view: one group)."""
    model, example = built(name, ONE_HEAD)
    inspection = fxgrow.inspect(model, example)
    writers = [g for g in inspection.groups if g.width in {SIZE, 12} and "attention" in g.name]
    held = {g.reason.code for g in inspection.frozen} - {"output", "unlabelled"}
    mixed = name in {"normed", "rms_normed", "rotary"}
    assert bool(held) == mixed
    assert len([g for g in writers if "out_proj" not in g.name]) == (
        1 if mixed or name in {"packed_3hd", "packed_hd3"} else 2
    )
    grows_exactly(model, example)


@pytest.mark.parametrize("emit", ["graph", "module"])
def test_channels_that_are_one_unit_grow_inside(emit, tmp_path):
    """Split attention mixes halves and groups: none can be added, but all become larger."""
    torch.manual_seed(0)
    model, example = randomised(SplitAttention()), PICTURE.double()
    inspection = fxgrow.inspect(model, example)
    assert {g.name: g.width for g in inspection.groups} == {"a:inner": 6, "b:inner": 6, "up": 4}
    assert not inspection.inner
    for group in inspection.groups:
        growth = fxgrow.widen(model, example, {group.name: 1}, emit=emit)
        assert max(errors(model, growth.module, example)) <= EXACT, group.name
    growth = fxgrow.widen(model, example, 2, emit=emit)
    assert max(errors(model, growth.module, example)) <= EXACT
    assert untrained(growth.module, growth.groups, example) == []
    assert growth.module.b.groups == 2
    growth.save(tmp_path / "grown.safetensors")
    loaded = fxgrow.load(tmp_path / "grown.safetensors", base=model)
    assert max(errors(growth.module, loaded.module, example)) == 0.0


@pytest.mark.parametrize("inner", [(), ("*att*n",)])
@pytest.mark.parametrize("name", ["torch_bias_kv", "encoder_norm_first", "torch_other_sizes"])
def test_torch_attention_of_free_widths(name, inner):
    """In the user's own class an equivalent takes its place: it grows again, and is copied."""
    model, example = built(name)
    inspection = fxgrow.inspect(model, example, inner=inner)
    additions = {g.name: step(g) for g in inspection.groups}
    growth = fxgrow.widen(model, example, additions, inner=inner, emit="module")
    found = [m for m in growth.module.modules() if isinstance(m, torch.nn.MultiheadAttention)]
    assert all(type(m) is WideMultiheadAttention for m in found)
    assert {m.num_heads for m in found} == {HEADS if inner else HEADS + 2}
    assert {m.head_dim for m in found} == ({SIZE + 2} if inner else {SIZE})
    again = pickle.loads(pickle.dumps(growth.module))
    assert max(errors(growth.module, again, example)) == 0.0
    groups = fxgrow.inspect(again, example, inner=inner).groups
    for emit in ("graph", "module"):
        more = {g.name: step(g) for g in groups}
        last = fxgrow.widen(again, example, more, inner=inner, emit=emit)
        assert max(errors(model, last.module, example)) <= EXACT


def test_torch_attention_of_free_widths_without_a_batch():
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(12, 3, batch_first=True).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    (heads, *_) = fxgrow.inspect(attention, (x, x, x)).groups  # weights are means over them
    additions = {heads.name: heads.multiple_of}
    grown = fxgrow.widen(attention, (x, x, x), additions, emit="module").module
    assert type(grown) is WideMultiheadAttention
    for a, b in zip(attention(x[0], x[0], x[0]), grown(x[0], x[0], x[0]), strict=True):
        torch.testing.assert_close(a, b)


def test_the_fused_encoder_layer_of_torch_is_left_out():
    """Its kernel would take heads to be as large as the embedding allows."""
    model, example = built("encoder_batch_first")
    grown = fxgrow.widen(model, example, {"1.layers.0.self_attn": 1}, emit="module").module
    with torch.inference_mode():
        torch.testing.assert_close(grown.eval()(example), model.eval()(example))


class Transposed(nn.Module):
    """Attention between channels whose rows are filtered one by one (Restormer, OmniSR)."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads = heads
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.filter = nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width, bias=False)
        self.out = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        n, width, height, across = x.shape
        parts = self.filter(self.qkv(x)).chunk(3, dim=1)
        q, k, v = (p.reshape(n, self.heads, width // self.heads, -1) for p in parts)
        q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
        mixed = (q @ k.transpose(2, 3) * self.scale).softmax(-1) @ v
        return self.out(mixed.reshape(n, -1, height, across))


def test_heads_of_channels_are_closed_once():
    """Where filters and readers of new heads were both zero, neither would ever train."""
    torch.manual_seed(0)
    model, image = randomised(Transposed()), torch.randn(2, 16, 6, 6, dtype=torch.float64)
    (group,) = fxgrow.inspect(model, image).groups
    assert (group.name, group.width) == ("qkv", 2)
    assert [s.tensor for s in group.slots if s.role == "consumer"] == ["out.weight"]
    grows_exactly(model, image)
