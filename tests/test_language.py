"""Models of transformers, which are no graphs, grow as their own classes."""

from __future__ import annotations

import pytest
import torch
import transformers
from networks_language import MODELS, TOKENS, made

import fxgrow

EXACT = 1e-10


@pytest.mark.parametrize("name", MODELS)
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


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "mixtral"])
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
