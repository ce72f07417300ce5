"""Plans and growth files, replayed on a base."""

import json

import pytest
import torch
from conftest import Small
from safetensors.torch import save_file

import fxgrow
from fxgrow.errors import FileError, InputError
from fxgrow.io import save
from fxgrow.recipes import read_recipe

IMAGE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def outputs(module, x=IMAGE):
    with torch.no_grad():
        return module.eval()(x)


@pytest.fixture
def twice(small, tmp_path):
    """A file of two growths, trained a little in between."""
    first = fxgrow.widen(small, IMAGE, {"conv": 3}, seed=1)
    second = fxgrow.widen(first.module, IMAGE, {"conv": 2}, seed=5)
    with torch.no_grad():
        second.module.fc.bias += 1
    save(second, tmp_path / "g.safetensors", history=[fxgrow.io.growth_step(first)])
    return tmp_path / "g.safetensors", second


def test_all_growths_are_replayed_with_their_seeds(small, twice):
    path, second = twice
    growth = fxgrow.apply(path, small)
    assert [step["seed"] for step in growth.report["steps"]] == [1, 5]
    assert growth.verification.passed
    assert growth.module.conv.out_channels == 9
    assert torch.equal(growth.module.conv.weight, second.module.conv.weight)  # the same rows
    assert torch.allclose(outputs(growth.module), outputs(small), atol=1e-6)


def test_on_weights_of_another_training(twice):
    torch.manual_seed(9)
    other = Small()
    with pytest.raises(FileError, match="any_weights=True"):
        fxgrow.apply(twice[0], other)
    growth = fxgrow.apply(twice[0], other, any_weights=True)
    assert torch.allclose(outputs(growth.module), outputs(other), atol=1e-6)


def test_what_was_applied_is_saved_and_loaded(small, twice):
    torch.manual_seed(9)
    other = Small()
    growth = fxgrow.apply(twice[0], other, any_weights=True)
    *history, _ = growth.report["steps"]
    save(growth, twice[0].with_name("again.safetensors"), history=history)
    again = fxgrow.load(twice[0].with_name("again.safetensors"), base=small)
    assert torch.equal(outputs(again.module), outputs(growth.module))
    fxgrow.apply(twice[0].with_name("again.safetensors"), other)  # it knows these weights now


def test_a_report_is_a_plan(small, tmp_path):
    growth = fxgrow.widen(small, IMAGE, {"conv": 3}, seed=4)
    (tmp_path / "plan.json").write_text(json.dumps(growth.report, default=str))
    again = fxgrow.apply(tmp_path / "plan.json", small)
    assert torch.equal(again.module.conv.weight, growth.module.conv.weight)


def test_a_plan_by_hand(small, tmp_path):
    (tmp_path / "plan.json").write_text('{"additions": {"conv": 3}, "seed": 4}')
    recipe = read_recipe(tmp_path / "plan.json")
    again = fxgrow.apply(recipe, small, IMAGE)
    assert again.module.conv.out_channels == 7
    assert again.report["seed"] == 4
    with pytest.raises(InputError, match="records no inputs"):
        fxgrow.apply(recipe, small)


REPORT = {"schema": "fxgrow.growth/1", "seed": 0, "plan": {"additions": {"conv": 1}}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is no JSON"),
        ("[1, 2]", "holds no plan but a list"),
        ("[" * 100_000, "is no JSON"),
        ("{}", "has no 'additions'"),
        ('{"additions": {}}', "has no 'additions'"),
        ('{"additions": [1]}', "has no 'additions'"),
        ('{"additions": {"conv": 0}}', "is 0, no number of units"),
        ('{"additions": {"conv": -3}}', "no number of units"),
        ('{"additions": {"conv": 1.5}}', "no number of units"),
        ('{"additions": {"conv": true}}', "no number of units"),
        ('{"additions": {"conv": 1e400}}', "too large a number"),
        ('{"additions": {"conv": 99999999999999999999}}', "no number of units"),
        ('{"additions": {"conv": 1}, "seed": "x"}', "its seed is 'x'"),
        ('{"additions": {"conv": 1}, "seed": -1}', "its seed is -1"),
        ('{"schema": "fxgrow.growth/99", "plan": {}}', "is of schema 'fxgrow.growth/99'"),
        ('{"schema": ["x"], "plan": {}}', "is of schema"),
        ('{"schema": "fxgrow.growth/1", "plan": 3}', "has no 'additions'"),
    ],
)
def test_damaged_plans(tmp_path, content, words):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(FileError, match=words):
        read_recipe(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.json", "no such file"),
        ("plan.txt", "no .safetensors file"),
        (".", "no such file"),
    ],
)
def test_files_that_are_no_plans(tmp_path, name, words):
    (tmp_path / "plan.txt").write_text('{"additions": {"conv": 3}}')
    with pytest.raises(FileError, match=words):
        read_recipe(tmp_path / name)


def test_foreign_safetensors(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(FileError, match="not written by fxgrow"):
        read_recipe(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": [{"name": "conv", "width": 5}]}, "does not belong to this base.*5 units there"),
        ({"plan": {"additions": {"konv": 1}}}, "did you mean conv"),
        ({"plan": {"additions": {"fc": 1}}}, "can't grow"),
        ({"plan": {"additions": {"conv": 2**31 - 1}}}, "more than the limit"),
        ({"transfer": True}, "holds a transfer"),
    ],
)
def test_plans_that_do_not_fit(small, tmp_path, change, words):
    (tmp_path / "plan.json").write_text(json.dumps({**REPORT, **change}))
    with pytest.raises(FileError, match=words):
        fxgrow.apply(tmp_path / "plan.json", small, IMAGE)


def test_growth_files_of_another_base(twice):
    with pytest.raises(FileError, match="does not belong to this base model"):
        fxgrow.apply(twice[0], Small(5))
