"""Models of transformers, which are no graphs, grow as their own classes."""

from __future__ import annotations

import sys

import pytest
import torch
import transformers
from conftest import ROOT
from networks_language import MODELS, SHARED, TOKENS, made

import fxgrow

sys.path.append(str(ROOT / "benchmarks"))  # at the end: tests have a zoo of their own

import meta

EXACT = 1e-10


@pytest.mark.parametrize("name", [*MODELS, *SHARED])
def test_all_groups_at_once(name):
    model, inputs, wanted = made(name)
    inspection = fxgrow.inspect(model, inputs)
    found = {(g.name, g.width) for g in inspection.groups}
    assert all(any(n.endswith(end) and w == width for n, w in found) for end, width in wanted)
    growth = fxgrow.widen(
        model, inputs, {g.name: g.multiple_of for g in inspection.groups}, emit="module"
    )
    assert type(growth.module) is type(model)
    assert max(growth.verification.eval_error, growth.verification.train_error) <= EXACT
    # Independent of the verification: run both again.
    with torch.no_grad():
        old, new = (m.eval()(**inputs)[0] for m in (model, growth.module))
    assert (old - new).abs().max() <= 1e-5 * old.abs().max()  # norms cast to float32


@pytest.mark.parametrize("name", ["llama", *SHARED])
def test_every_group_alone(name):
    model, inputs, _ = made(name, attention="eager")
    for group in fxgrow.inspect(model, inputs).groups:
        growth = fxgrow.widen(model, inputs, {group.name: group.multiple_of}, emit="module")
        assert growth.verification.eval_error <= EXACT


@pytest.mark.parametrize("name", ["llama", "gpt2", "whisper"])
def test_streams_take_any_number_of_units(name):
    model, inputs, _ = made(name)
    stream = next(g for g in fxgrow.inspect(model, inputs).groups if g.recipe in {"zero", "mean"})
    assert stream.multiple_of == 1
    growth = fxgrow.widen(model, inputs, {stream.name: 5}, emit="module")
    assert growth.verification.eval_error <= EXACT
    assert any("eps" in edit for edit in growth.report["edits"])


@pytest.mark.skipif(
    not hasattr(torch.nn.functional, "grouped_mm"), reason="this torch has no grouped product"
)
def test_grouped_products_grow_by_blocks_of_memory():
    torch.manual_seed(0)
    model, _, _ = made("mixtral", experts_implementation="grouped_mm")
    config = model.config
    config._experts_implementation = "grouped_mm"
    model = transformers.MixtralForCausalLM(config).float()
    inspection = fxgrow.inspect(model, TOKENS)
    steps = {g.name.rpartition(".")[2]: g.multiple_of for g in inspection.groups}
    assert (steps["experts"], steps["q_proj"], steps["embed_tokens"]) == (4, 1, 4)
    growth = fxgrow.widen(
        model, TOKENS, {g.name: g.multiple_of for g in inspection.groups}, emit="module"
    )
    assert growth.verification.passed


# Growth by ends of names, and what the configuration must say then (gpt2: 4 x 5 = 20).
CONFIGURED = {
    "llama": (
        {"embed_tokens": 2, "q_proj": 1, "gate_proj": 4},
        {
            "hidden_size": 18,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "intermediate_size": 24,
        },
    ),
    "one_key": ({"q_proj": 4}, {"num_attention_heads": 8, "num_key_value_heads": 1}),
    "gpt2": ({"wpe": 4, "c_attn": 1, "c_fc": 3}, {"n_embd": 20, "n_head": 5, "n_inner": 23}),
    "t5": ({"wi": 2}, {"d_ff": 22}),
    "clip": ({"fc1": 1}, {}),
}


@pytest.mark.parametrize("name", CONFIGURED)
def test_config_follows(name, tmp_path):
    model, inputs, _ = made(name)
    asked, wanted = CONFIGURED[name]
    before = model.config.to_dict()
    groups = fxgrow.inspect(model, inputs).groups
    additions = {g.name: n for g in groups for end, n in asked.items() if g.name.endswith(end)}
    growth = fxgrow.widen(model, inputs, additions, emit="module")
    config = growth.module.config
    assert not growth.report["config"]["obstacle"]
    assert {key: getattr(config, key) for key in wanted} == wanted
    assert model.config.to_dict() == before
    growth.module.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
    with torch.no_grad():
        old, new = model.eval()(**inputs)[0], again(**inputs)[0]
    assert (old - new).abs().max() <= 1e-6 * old.abs().max()
    if name != "clip":
        told = [
            m.generate(TOKENS["input_ids"], max_new_tokens=4, do_sample=False)
            for m in (model, growth.module.eval(), again)
        ]
        assert all(torch.equal(told[0], other) for other in told[1:])


@pytest.mark.parametrize(
    ("name", "end", "said"),
    [("bert", "0.intermediate.dense", "no values of BertConfig"), ("llama", "tokens", "multiple")],
)
def test_growth_that_no_config_can_tell_is_said(name, end, said):
    model, inputs, _ = made(name)
    group = next(g for g in fxgrow.inspect(model, inputs).groups if g.name.endswith(end))
    growth = fxgrow.widen(model, inputs, {group.name: 1}, emit="module")
    report = growth.report["config"]
    assert said in report["obstacle"]
    assert "fxgrow.save" in report["obstacle"]
    assert not report["changes"]


def test_models_without_memory_are_inspected_and_planned_for():
    """Their forward asks for values that are not there, unless it is told not to."""
    model, example = meta.build("llama-70b", layers=1)
    with pytest.raises(RuntimeError, match="meta tensors"):
        model(**example)
    inspection = fxgrow.inspect(model, example)
    assert inspection.coverage == 1 and len(inspection.groups) == 3
    assert not torch.compiler.is_compiling()
    assert all(p.is_meta for p in model.parameters())
    plan = fxgrow.plan_for(
        model, None, budget="+2%", unit="params", distributor="uniform", example_inputs=example
    )[2]
    assert 0 < plan.spent <= plan.budget
