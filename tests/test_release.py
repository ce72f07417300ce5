"""What is published: archives build, install alone, are whole, and are typed."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT

pytestmark = pytest.mark.slow

USER = """
from collections.abc import Iterable
from pathlib import Path

import torch

import fxgrow


def grow(model: torch.nn.Module, data: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    inspection = fxgrow.inspect(model, torch.zeros(1, 4))
    widths: dict[str, int] = {group.name: group.width for group in inspection.groups}
    growth: fxgrow.Growth = fxgrow.expand(model, data, budget=4, unit="params")
    by_hand = fxgrow.widen(model, torch.zeros(1, 4), dict.fromkeys(widths, 1), emit="module")
    growth.save(Path("a.safetensors"))
    again = fxgrow.load("a.safetensors", base=model)
    same = fxgrow.apply("a.safetensors", model, any_weights=True)
    optimizer = torch.optim.Adam(model.parameters())
    growth.migrate(optimizer, fill="mean")
    grower = fxgrow.Grower(model, optimizer, data=data, budget=4, schedule=fxgrow.every(epochs=1))
    model = grower.epoch_end(metric=0.5)
    plan: fxgrow.Plan = by_hand.plan
    units: int = sum(plan.additions.values()) + again.module.training + same.plan.spent
    print(units)
"""
WRONG = USER.replace("budget=4, unit", "budget=[4], unit").replace("fill=", "fil=")


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source archive, and the wheel built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, ROOT)
    return out


@pytest.fixture(scope="module")
def clean(built, tmp_path_factory):
    """An environment with our wheel, and this one's other packages."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    place = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    with open(f"{place}/others.pth", "w", encoding="utf-8") as file:
        # no packages of the other environment's .pth files: ours is not among them then
        file.write(f"{Path(torch.__file__).parents[1]}\n")
    return python


def test_archives_are_whole(built):
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(source) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    for path in (ROOT / "fxgrow").rglob("*"):
        if path.suffix in {".py", ".typed", ".js", ".css", ".html"}:
            assert str(path.relative_to(ROOT)) in names & sources, path
    for path in (ROOT / "cli").glob("*.py"):
        assert f"fxgrow_cli/{path.name}" in names, path
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {"tests/conftest.py", "tests/golden/make.py", "README.md", "Makefile"} <= sources
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "examples"))]


def test_the_wheel_works_alone(clean, tmp_path):
    code = "import fxgrow, sys; print(fxgrow.__file__, fxgrow.__version__)"
    where, version = run(clean, "-c", code, cwd=tmp_path).split()
    assert where.startswith(str(clean.parent.parent))
    metadata = "from importlib.metadata import version; print(version('fxgrow'))"
    assert run(clean, "-c", metadata, cwd=tmp_path).strip() == version
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    fxgrow = clean.with_name("fxgrow")
    run(fxgrow, "expand", "net.py:net", "--input", "2x4", "--budget", "2", cwd=tmp_path)
    text = run(
        *(clean, "-m", "fxgrow", "inspect", "net-grown.safetensors", "--arch", "net.py:net"),
        cwd=tmp_path,
    )
    assert "10" in text


def test_a_users_code_is_checked_strictly(clean, tmp_path):
    (tmp_path / "right.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(WRONG)
    check = [
        *(sys.executable, "-m", "mypy", "--strict", "--python-executable", str(clean)),
        *("--cache-dir", str(tmp_path / "cache")),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "MYPYPATH"}
    run(*check, "right.py", cwd=tmp_path, env=environment)
    done = subprocess.run(
        [*check, "wrong.py"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert '"budget"' in done.stdout and '"fil"' in done.stdout, done.stdout
