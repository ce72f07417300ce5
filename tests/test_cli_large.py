"""``fxgrow widen`` on checkpoints that are folders, or become some."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import Small
from safetensors.torch import load_file, save_file
from test_cli_commands import run, run_json
from test_large import filled, llama

import fxgrow


@pytest.fixture
def here(folder):
    filled(llama).save_pretrained("old", max_shard_size="8KB")
    torch.manual_seed(0)
    save_file(Small().state_dict(), "small.safetensors")
    return folder


@pytest.mark.parametrize(
    ("model", "options", "output"),
    [
        ("old", [], "old-grown"),
        ("old", ["-o", "wide"], "wide"),
        ("old/", ["-o", "wide", "--shard-size", "20KB"], "wide"),
        ("local-dir:old", ["-o", "wide", "--seed", "3"], "wide"),
    ],
)
def test_folders(here, model, options, output):
    data = run_json("widen", model, "*mlp*=+4", *options)
    assert data["schema"] == "fxgrow.growth/1"
    assert (data["output"], data["left_out"], data["verification"]) == (output, [], None)
    assert data["files"] == sorted(path.name for path in Path(output).iterdir())
    assert data["config"]["changes"] == {"intermediate_size": [40, 44]}
    assert json.loads((Path(output) / "config.json").read_text())["intermediate_size"] == 44
    assert data["bytes"] == sum(
        tensor.nbytes
        for file in Path(output).glob("*.safetensors")
        for tensor in load_file(file).values()
    )


def test_an_index_is_widened_without_what_lies_beside_it(here):
    arguments = ("model.layers.0.mlp*=+4", "--arch", "local-dir:old", "-o", "wide")
    data = run_json("widen", "old/model.safetensors.index.json", *arguments)
    assert "model.safetensors.index.json" in data["files"]
    assert "config.json" not in data["files"]  # none describes one layer that is wider
    grown = fxgrow.load("wide/model.safetensors.index.json", filled(llama)).module
    assert [layer.mlp.gate_proj.out_features for layer in grown.model.layers] == [44, 40]


def test_said_and_not_done(here):
    text = run("widen", "old", "*mlp*=+4", "--dry-run").stdout
    assert "Dry run" in text
    assert not list(here.glob("old-*"))
    text = run("widen", "old", "*mlp*=+4").stdout
    assert re.search("Written to old-grown", text)
    assert "outputs were not compared" in text


def test_a_file_of_weights(here):
    arguments = ("conv=+3", "--arch", "parts.py:Small", "-o", "wide")
    data = run_json("widen", "small.safetensors", *arguments)
    assert data["files"] == ["small.safetensors"]
    base = Small()
    base.load_state_dict(load_file("small.safetensors"))
    grown = fxgrow.load("wide/small.safetensors", base).module
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(grown.eval()(x), base.eval()(x), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["old", "+4", "-o", "wide.safetensors"], "name a folder with -o"),
        (["old", "+4", "-o", "old"], "is the input itself"),
        (["old", "+4", "-o", "taken"], "exists already"),
        (["old", "+4", "-o", "taken", "--force"], "no folder with a checkpoint"),
        (["old", "nothing=+4"], "no group is called"),
        (["old", "+4", "--model-kwargs", "a=1"], "config.json says"),
        (["old", "+4", "--shard-size", "0"], "max_shard_size"),
        (["small.safetensors", "+4", "-o", "wide"], "name what builds the model"),
        (["small.safetensors", "+4", "-o", "wide", "--arch", "timm:resnet18@a1"], "leave out"),
        (["small.safetensors", "+4", "-o", "wide", "--arch", "parts.py:linear"], "no checkpoint"),
        (["taken", "+4"], "no such file"),
    ],
)
def test_refused(here, arguments, said):
    Path("taken").mkdir()
    before = sorted(here.iterdir())
    result = run("widen", *arguments, code=1)
    assert re.search(said, result.stderr)
    assert sorted(here.iterdir()) == before


def test_shard_sizes_are_for_folders(here):
    assert (
        "--shard-size" in run("widen", "parts.py:Small", "+4", "--shard-size", "1", code=2).stderr
    )
