"""The house rules that no other tool checks."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
from conftest import ROOT

import fxgrow

SOURCES = [
    path
    for folder in ("fxgrow", "cli", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_exception_to_a_rule_has_a_reason(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.search(r"#\s*(noqa|type:\s*ignore)", line):
            assert re.search(r"#\s*(noqa: \w+|type:\s*ignore\[[\w, -]+\]).*\s{1,2}\S+", line), line


def test_all_is_sorted_and_there():
    assert fxgrow.__all__ == sorted(fxgrow.__all__)
    assert all(hasattr(fxgrow, name) for name in fxgrow.__all__)


def test_all_is_the_public_surface():
    public = {
        name
        for name, value in vars(fxgrow).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(fxgrow.__all__)


def callables():
    for name in fxgrow.__all__:
        value = getattr(fxgrow, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name, value
        if inspect.isclass(value):
            for key, member in vars(value).items():
                if inspect.isfunction(member) and not key.startswith("_"):
                    yield f"{name}.{key}", member


@pytest.mark.parametrize(("name", "value"), list(callables()))
def test_docstrings(name, value):
    assert (value.__doc__ or "").strip(), f"{name} says nothing of itself"


@pytest.mark.parametrize(
    "name", [name for name in fxgrow.__all__ if inspect.isfunction(getattr(fxgrow, name))]
)
def test_functions_document_their_parameters(name):
    function = getattr(fxgrow, name)
    text = inspect.getdoc(function)
    assert "Parameters\n----------" in text
    parameters = inspect.signature(function).parameters
    assert not [name for name in parameters if not re.search(rf"\b{name}\b", text)]


def test_every_package_is_installed():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^packages = \[([^\]]*)\]", text, re.MULTILINE)[1]
    for init in (ROOT / "fxgrow").rglob("__init__.py"):
        package = ".".join(init.parent.relative_to(ROOT).parts)
        assert f'"{package}"' in listed


def test_version_is_one():
    from importlib.metadata import version

    assert version("fxgrow") == fxgrow.__version__


def test_cli_knows_rich_in_one_place_and_click_nowhere():
    for path in (ROOT / "cli").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) click", text, re.MULTILINE)
        if path.name != "render.py":
            assert not re.search(r"^\s*(import|from) rich", text, re.MULTILINE)


def test_library_does_not_import_the_zoos():
    for path in (ROOT / "fxgrow").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        packages = {"torchvision", "timm", "transformers", "lightning", "accelerate", "matplotlib"}
        if path.parent.name == "integrations":
            packages.discard(path.stem)  # whoever imports it has that one
        for package in packages:
            assert not re.search(rf"^(import|from) {package}\b", text, re.MULTILINE)


def test_every_module_can_be_imported_alone():
    for path in (ROOT / "fxgrow").rglob("*.py"):
        if path.stem != "__main__":
            parts = path.relative_to(ROOT).with_suffix("").parts
            importlib.import_module(".".join(part for part in parts if part != "__init__"))
