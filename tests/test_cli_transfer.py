"""``fxgrow transfer`` on good and on bad input."""

import json
import re

import pytest
import torch
from conftest import Small
from fxgrow_cli.main import app
from typer.testing import CliRunner

import fxgrow

NETS = """
from conftest import Small
import torch

def narrow():
    return Small(4)

def wide():
    return Small(7)

def double():
    return Small(7).double()

def linear():
    return torch.nn.Linear(64, 10)
"""


@pytest.fixture
def nets(folder):
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    return folder


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["transfer", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_weights_into_a_wider_model(nets, small):
    torch.save(small.state_dict(), "model.pt")
    before = (nets / "model.pt").read_bytes()
    text = run("model.pt", "nets.py:wide", "--arch", "nets.py:narrow").stdout
    assert "Function kept" in text
    assert "Written to model-grown.safetensors." in text
    assert (nets / "model.pt").read_bytes() == before
    loaded = fxgrow.load("model-grown.safetensors", base=Small(7))
    assert loaded.module.conv.out_channels == 7
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(loaded.module.eval()(x), small.eval()(x), atol=1e-5)


def test_json_and_pickle(nets):
    data = json.loads(run("nets.py:narrow", "nets.py:wide", "--json", "-o", "a.pt").stdout)
    assert data["schema"] == "fxgrow.growth/1"
    assert data["plan"]["additions"] == {"conv": 3}
    assert data["verification"]["passed"]
    assert data["output"] == "a.pt"
    module = torch.load("a.pt", weights_only=False)
    assert type(module) is Small
    assert module.conv.out_channels == 7


def test_the_result_grows_on(nets):
    run("nets.py:narrow", "nets.py:wide", "-o", "a.safetensors", "--input", "3x1x8x8")
    arguments = ["a.safetensors", "--arch", "nets.py:wide", "--budget", "2", "-o", "b.safetensors"]
    assert CliRunner().invoke(app, ["expand", *arguments]).exit_code == 0
    loaded = fxgrow.load("b.safetensors", base=Small(7))
    assert loaded.module.get_parameter("conv.weight").shape[0] == 9


CASES = {
    "missing source": (["none.pt", "nets.py:wide"], "no such file"),
    "missing target": (["nets.py:narrow", "none.pt"], "no such file"),
    "weights without arch": (["a.pt", "nets.py:wide"], "--arch"),
    "narrower": (["nets.py:wide", "nets.py:narrow"], "narrower than the source: conv.weight"),
    "another architecture": (["nets.py:narrow", "nets.py:linear"], "the target lacks conv.weight"),
    "another dtype": (["nets.py:narrow", "nets.py:double"], "dtype or device.*differ"),
    "wrong input": (["nets.py:narrow", "nets.py:wide", "--input", "1x2"], "does not take --input"),
    "taken": (["nets.py:narrow", "nets.py:wide", "-o", "taken.pt"], "exists already.*--force"),
    "is the source": (["a.pt", "nets.py:wide", "-o", "a.pt"], "is the input itself"),
    "strange suffix": (["nets.py:narrow", "nets.py:wide", "-o", "a.txt"], "an output ends in"),
    "no folder": (["nets.py:narrow", "nets.py:wide", "-o", "no/a.pt"], "no folder no"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(nets, small, name):
    torch.save(small.state_dict(), "a.pt")
    (nets / "taken.pt").write_text("precious")
    arguments, words = CASES[name]
    before = {p.name: p.read_bytes() for p in nets.glob("*.*") if p.is_file()}
    result = run(*arguments, code=1)
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert re.search(words, result.stderr), result.stderr
    assert {p.name: p.read_bytes() for p in nets.glob("*.*") if p.is_file()} == before


@pytest.mark.parametrize("arguments", [[], ["nets.py:narrow"]])
def test_usage(arguments):
    run(*arguments, code=2)
