"""Every model of the zoos (``make zoo``), and the page about them."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import zoo_models
from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # at the end: tests have a zoo of their own

import zoo_page

ATTENDING = ("vit", "swin", "maxvit", "mvit", "raft")


def benchmark():
    """``benchmarks/zoo.py``, under a name of its own: the tests have a zoo, too."""
    spec = importlib.util.spec_from_file_location("zoo_benchmark", ROOT / "benchmarks" / "zoo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.zoo
@pytest.mark.timeout(7300)
@pytest.mark.parametrize("name", zoo_models.names())
def test_every_model(name):
    """Every group alone, and all at once; results are kept in ``zoo-out`` (resumable)."""
    outcome = benchmark().result_of(name, benchmark().arguments(["--timeout", "7200"]))
    assert outcome.get("failed") is None
    assert outcome["wrong"] == []
    assert outcome["groups"]
    zoo, _, short = name.partition(":")
    if zoo == "torchvision" and not short.startswith(ATTENDING):
        assert outcome["coverage"] >= 0.99, outcome["reasons"]


def test_the_catalogue_is_whole():
    import timm

    names = zoo_models.names()
    count = {zoo: sum(n.startswith(f"{zoo}:") for n in names) for zoo in zoo_models.ZOOS}
    assert count["torchvision"] == 121
    assert count["transformers"] == 11
    assert {n for n in names if n.startswith("timm:")} == {f"timm:{m}" for m in timm.list_modules()}


def test_the_page_tells_what_is_wrong_and_what_is_missing():
    good = {
        "name": "timm:resnet", "params": 10, "size": "64x64", "groups": 2, "frozen": 1,
        "coverage": 1.0, "reasons": {"output": 1}, "unsupported": [], "all_eval": 0.0,
        "all_train": 1e-15, "singles_checked": 2, "singles_worst": 0.0, "trained": True,
        "wrong": [], "seconds": 1.0, "commit": "abc",
    }  # fmt: skip
    bad = {**good, "name": "timm:vit", "wrong": ["all: eval 1.0e-02"], "all_eval": 1e-2}
    dead = {"name": "timm:dead", "failed": "exit code 1", "seconds": 1.0}
    text = zoo_page.page([good, bad, dead], ["torchvision:later"])
    assert "| timm | 3 | 2 | 1 | 1 | 4 of 4 | 100.00 % | 0 | 0 |" in text
    assert "vit **wrong**" in text
    assert "- timm:dead: exit code 1" in text
    assert "Not run yet: torchvision:later." in text
