"""Growing by the inner axis: the size of heads, the channels of a convolution's groups."""

from __future__ import annotations

import pytest
import torch
from checks import doubled, errors, randomised, step, untrained
from networks_heads import CONVOLUTIONS, HEADED, HEADS, SIZE
from oracle import complaints

import fxgrow
from fxgrow.errors import InputError, UnsupportedError, VerificationError
from fxgrow.io import growth_step
from fxgrow.rewrite import rewrite
from fxgrow.stages import grow

EXACT = 1e-10
TABLE = {**HEADED, **CONVOLUTIONS}
# What can't grow inside, and why; the values still do, but for channels that attend to channels.
HELD = {
    "rotary_halves": "inner_table",
    "rotary_interleaved": "inner_table",
    "rotary_gqa": "inner_table",
    "rotary_now": "unlabelled",
    "rms_normed_rotary": "inner_table",
    "mqa_packed": "product",  # one view gives queries, the key and the value one size
    "mqa_packed_no_bias": "product",
    "mqa_partly": "product",
    "normed": "layer_norm",
    "rms_normed": "mean",
    "cosine": "norm",
    "efficient": "_softmax",
    "elu_kernel": "product",
    "relu_kernel": "product",
    "cross_covariance": "_softmax",
}
# Packed in one view, queries, keys and values have one size.
JOINT = {"packed_3hd", "packed_h3d", "packed_hd3", "relative", "assembled"}
# Two factors are zero at first: one of them waits for the other.
LATE = ("near",)


def built(name):
    make, example = TABLE[name]
    torch.manual_seed(0)
    return randomised(make()), doubled(example)


def inside(inspection):
    return [g for g in inspection.groups if ":inner" in g.name]


def by_inner(name):
    model, example = built(name)
    return model, example, fxgrow.inspect(model, example, inner=["*"])


@pytest.mark.parametrize("name", HEADED)
def test_what_grows_inside(name):
    """Heads stay as many as they are: units are the indices of the inner axis."""
    _, _, inspection = by_inner(name)
    grows = inside(inspection)
    held = {g.reason.code for g in inspection.frozen if ":inner" in g.name}
    assert held == ({HELD[name]} if name in HELD else set())
    assert all(group.width == SIZE for group in grows)
    layers = {layer for group in grows for layer in group.layers}
    kept = {"cross_covariance", "mqa_packed", "mqa_packed_no_bias"}
    assert bool(layers) == (name not in kept)
    if name not in HELD:
        per = 1 if name in JOINT else 2
        attentions = {g.name.partition(":")[0].rpartition(".")[0] for g in grows}
        nested = {g.name.partition(":")[0] for g in grows} if "." not in grows[0].name else set()
        assert len(grows) == per * max(len(nested or attentions), 1) or "coder" in name


@pytest.mark.parametrize("name", sorted({*TABLE} - {"cross_covariance"}))
def test_growth_is_exact_and_trains(name):
    model, example, inspection = by_inner(name)
    for group in inside(inspection):
        grown = rewrite(model, inspection, {group.name: step(group, 1)})
        assert max(errors(model, grown.module, example)) <= EXACT, group.name
    every = fxgrow.ir.Plan({g.name: step(g, 2) for g in inspection.groups})
    growth = grow(model, inspection, every, seed=0, emit="graph", verify=True)
    assert max(errors(model, growth.module, example)) <= EXACT
    assert untrained(growth.module, growth.groups, example, late=LATE) == []


@pytest.mark.parametrize("name", sorted({*TABLE} - {"cross_covariance"}))
def test_units_can_be_permuted(name):
    """The oracle, which knows nothing of how they were found."""
    model, example, inspection = by_inner(name)
    assert complaints(model, inside(inspection), example, omit=0) == []


@pytest.mark.parametrize(
    "name", ["separate", "given_scale", "grouped", "packed_3hd", "torch", "encoder", "decoder"]
)
def test_in_the_users_class(name):
    """The same, or refused where the user's own code holds the size."""
    model, example, inspection = by_inner(name)
    plan = fxgrow.ir.Plan({g.name: step(g, 2) for g in inside(inspection)})
    try:
        growth = grow(model, inspection, plan, seed=0, emit="module", verify=True)
    except (UnsupportedError, VerificationError) as error:
        assert "emit='graph'" in str(error)
        assert name in {"separate", "given_scale", "packed_3hd"}
    else:
        assert max(errors(model, growth.module, example)) <= EXACT


def test_sizes_after_growth():
    model, example, inspection = by_inner("default_scale")
    keys, values = (g.name for g in inside(inspection))
    growth = fxgrow.widen(model, example, {keys: 2, values: 5}, inner=["attention.*"])
    parameters = dict(growth.module.named_parameters())
    sizes = {name: len(parameters[f"attention.{name}.weight"]) for name in "qkv"}
    assert sizes == {"q": HEADS * (SIZE + 2), "k": HEADS * (SIZE + 2), "v": HEADS * (SIZE + 5)}
    # New queries are zero, new keys are not: scores stay, and gradients flow.
    new = growth.index_map.axes["attention.q.weight"][0].new
    assert not parameters["attention.q.weight"][new].any()
    assert parameters["attention.k.weight"][new].all()
    scale = [node.kwargs["scale"] for node in growth.module.graph.nodes if "scale" in node.kwargs]
    assert scale == [SIZE**-0.5]


def test_only_what_matches():
    model, example = built("encoder_norm_first")
    names = {g.name for g in fxgrow.inspect(model, example, inner=["1.layers.0.*attn"]).groups}
    assert {"1.layers.0.self_attn:inner", "1.layers.0.self_attn:inner#2"} <= names
    assert {"1.layers.1.self_attn", "1.layers.0.linear1"} <= names
    assert len([name for name in names if ":inner" in name]) == 2


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("attention.x", "did you mean attention"), ("stem", "no group that matches")],
)
def test_patterns_that_do_not_fit(pattern, words):
    model, example = built("torch" if pattern == "stem" else "separate")
    with pytest.raises(InputError, match=words):
        fxgrow.inspect(model, example, inner=[pattern])


def test_names_are_not_mixed_up():
    """A plan of one kind does not fit an inspection of the other."""
    model, example, inspection = by_inner("packed_3hd")
    names = [g.name for g in (*inspection.groups, *inspection.frozen)]
    assert len(set(names)) == len(names)
    (inner,) = inside(inspection)
    with pytest.raises(InputError, match="no group is called"):
        fxgrow.widen(model, example, {inner.name: 1})
    with pytest.raises(InputError, match="can't grow"):  # the columns, which are the user's
        fxgrow.widen(model, example, {"attention.qkv": 1}, inner=["*"])


@pytest.mark.parametrize("name", ["packed_hd3", "separate", "grouped"])
def test_files_carry_it(name, tmp_path):
    """What was grown inside is loaded, and its plan applied, as it was made."""
    model, example, inspection = by_inner(name)
    additions = {g.name: 2 for g in inside(inspection)}
    growth = fxgrow.widen(model, example, additions, inner=["*"])
    assert growth_step(growth)["inner"] == ["*"]
    growth.save(tmp_path / "grown.safetensors")
    growth.save(tmp_path / "plan.json")
    loaded = fxgrow.load(tmp_path / "grown.safetensors", base=model)
    assert max(errors(growth.module, loaded.module, example)) == 0.0
    applied = fxgrow.apply(tmp_path / "plan.json", model, example)
    assert max(errors(growth.module, applied.module, example)) == 0.0
    # Heads grow outside next: both growths are replayed.
    again = fxgrow.widen(loaded.module, example, 1)
    fxgrow.save(again, tmp_path / "again.safetensors", history=loaded.report["steps"])
    last = fxgrow.load(tmp_path / "again.safetensors", base=model)
    assert max(errors(again.module, last.module, example)) == 0.0
    assert max(errors(model, last.module, example)) <= EXACT


def test_files_of_outer_growth_say_nothing_of_it(tmp_path):
    model, example = built("separate")
    assert "inner" not in growth_step(fxgrow.widen(model, example, 1))


def data(name):
    model, example = built(name)
    return model, [(example, torch.randn(2, 6, 3, dtype=torch.float64))] * 2


@pytest.mark.parametrize("name", ["packed_3hd", "separate"])
def test_votes_and_adjusting(name):
    model, batches = data(name)
    growth = fxgrow.expand(model, batches, budget=24, inner=["*"], seed=3)
    assert growth.plan.additions
    assert all(":inner" in group for group in growth.plan.additions)
    assert growth.verification.passed
    assert all(torch.isfinite(p).all() for p in growth.module.parameters())
    votes = fxgrow.planning.vote(model, batches, budget=24, inner=["*"], seed=3)
    assert votes.counts == growth.votes.counts


def test_grower():
    model, batches = data("separate")
    optimizer = torch.optim.Adam(model.parameters())
    options = {"data": batches, "budget": 24, "inner": ["attention.*"]}
    grower = fxgrow.Grower(model, optimizer, schedule=fxgrow.every(epochs=1), **options)
    module = model
    for _ in range(2):
        for inputs, targets in batches:
            optimizer.zero_grad()
            ((module(inputs) - targets) ** 2).mean().backward()
            optimizer.step()
        module = grower.epoch_end()
    steps = grower.record()["steps"]
    assert [step["inner"] for step in steps] == [["attention.*"]] * 2
    assert all(name.partition("#")[0].endswith(":inner") for name in steps[1]["plan"]["additions"])


def test_command_line(tmp_path):
    from test_cli import run, run_json

    source = tmp_path / "net.py"
    source.write_text(
        "from networks_heads import HEADED\ndef net():\n    return HEADED['packed_3hd'][0]()\n"
    )
    common = [f"{source}:net", "--input", "1x6x12", "--inner", "attention.*"]
    shown = run_json("inspect", *common)
    assert [g["name"] for g in shown["groups"]] == ["attention.qkv:inner"]
    target = tmp_path / "out.safetensors"
    run("widen", common[0], "attention.qkv:inner=+2", *common[1:], "-o", target)
    assert fxgrow.io.read_meta(target)["steps"][0]["inner"] == ["attention.*"]


SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
}


def hugging_face(name):
    transformers = pytest.importorskip("transformers", reason="its models are what is tested")
    tokens = {"input_ids": torch.arange(12).view(2, 6)}
    if name == "bert":
        config = transformers.BertConfig(vocab_size=32, max_position_embeddings=16, **SMALL)
        return transformers.BertForSequenceClassification(config), tokens
    if name == "vit":
        config = transformers.ViTConfig(image_size=8, patch_size=4, **SMALL)
        image = {"pixel_values": torch.randn(2, 3, 8, 8)}
        return transformers.ViTForImageClassification(config), image
    config = transformers.LlamaConfig(
        **{**SMALL, "num_attention_heads": 6}, vocab_size=32, num_key_value_heads=3, head_dim=4
    )
    return transformers.LlamaForCausalLM(config), {**tokens, "use_cache": False}


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_one_size_in_python_code(name):
    """Queries, keys and values of three layers are one group where one attribute is their size."""
    torch.manual_seed(0)
    model, example = hugging_face(name)
    model, example = randomised(model), doubled(example)
    inspection = fxgrow.inspect(model, example, inner=["*.attention.*"])
    groups = inside(inspection)
    assert len(groups) == 2
    assert all(len([s for s in g.slots if s.role == "consumer"]) >= 2 for g in groups)
    plan = fxgrow.ir.Plan({g.name: 2 for g in groups})
    growth = grow(model, inspection, plan, seed=0, emit="module", verify=True)
    assert max(errors(model, growth.module, example)) <= EXACT
    assert untrained(growth.module, growth.groups, example) == []


def test_rotary_heads_in_python_code_are_frozen():
    torch.manual_seed(0)
    model, example = hugging_face("llama")
    inspection = fxgrow.inspect(model, example, inner=["*self_attn*"])
    assert not inside(inspection)
    codes = {g.reason.code for g in inspection.frozen if ":inner" in g.name}
    assert codes == {"inner_table", "hidden_size"}
