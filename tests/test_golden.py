"""Files that earlier versions wrote keep loading, bit by bit."""

import json
import sys

import pytest
import torch
from conftest import ROOT

import fxgrow

GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(GOLDEN))
import make  # noqa: E402  the script beside the files

FILES = sorted(GOLDEN.glob("*.safetensors"))
# releases differ in the last bits of what a CPU computes
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def test_every_case_is_there_in_every_schema():
    newest = int(fxgrow.io.SCHEMA.rpartition("/")[2])
    names = {f"{n}-{case}" for n in range(1, newest + 1) for case in make.CASES}
    assert {path.stem for path in FILES} == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_old_files_load(path):
    _, base, inputs = make.CASES[path.stem.partition("-")[2]]
    growth = fxgrow.load(path, base=base())
    wanted = json.loads(path.with_suffix(".json").read_text())
    state = growth.module.state_dict()
    assert {name: make.digest(value) for name, value in state.items()} == wanted["digests"]
    with torch.no_grad():
        output = growth.module.eval()(inputs()).flatten()
    wanted = torch.tensor(wanted["output"], dtype=torch.float64)
    assert torch.allclose(output.double(), wanted, atol=CLOSE[output.dtype], rtol=0)
    assert fxgrow.io.read_meta(path)["schema"] == fxgrow.io.SCHEMA


@pytest.mark.parametrize("name", [n for n in make.CASES if n != "transferred"])
def test_old_plans_apply(name):
    path = GOLDEN / f"1-{name}.safetensors"
    _, base, inputs = make.CASES[name]
    model = base().eval()
    growth = fxgrow.apply(path, model, any_weights=True)
    loaded = fxgrow.load(path, base=model)
    shapes = {key: value.shape for key, value in loaded.module.state_dict().items()}
    assert {k: v.shape for k, v in growth.module.state_dict().items()} == shapes
    with torch.no_grad():
        difference = growth.module.eval()(inputs()) - model(inputs())
    assert difference.abs().max() <= CLOSE[difference.dtype]
