"""The commands on good input."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Small
from fxgrow_cli.main import app
from safetensors.torch import save_file
from typer.testing import CliRunner

import fxgrow


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def run_json(*arguments):
    return json.loads(run(*arguments, "--json").stdout)


# ------------------------------------------------------------------- program


def test_module_and_script_are_the_same_program():
    script = Path(sys.executable).with_name("fxgrow")
    first, second = (
        subprocess.run([*program, "expand", "--help"], capture_output=True, text=True, check=True)
        for program in ([sys.executable, "-m", "fxgrow"], [str(script)])
    )
    assert first.stdout.partition("Usage:")[2].partition("╭")[2]
    assert first.stdout.partition("╭")[2] == second.stdout.partition("╭")[2]


def test_help_loads_nothing_heavy():
    program = (
        "import sys; sys.argv = ['fxgrow', '--help']\n"
        "from fxgrow_cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert time.perf_counter() - begin < 5


def test_every_option_of_the_manual_is_there():
    text = run("expand", "--help").output
    flags = "unit data loss distributor extender coupling epochs round-to include exclude seed "
    flags += "device input dry-run json output arch trust-pickle force batch-size candidates budget"
    missing = [flag for flag in flags.split() if f"--{flag}" not in text]
    assert not missing


# ------------------------------------------------------------------- inspect


def test_inspect_shows_groups_and_reasons(folder):
    text = run("inspect", "parts.py:Small").stdout
    assert "conv" in text
    assert "outputs" in text
    assert "2x1x8x8" in text


def test_inspect_json_is_the_library_s(folder):
    data = run_json("inspect", "parts.py:Small")
    assert data == fxgrow.inspect(Small(), torch.zeros(2, 1, 8, 8)).to_dict() | {
        "frozen": data["frozen"]  # its source lines name another file
    }
    assert data["schema"] == "fxgrow.inspection/1"
    assert data["groups"][0]["name"] == "conv"


@pytest.mark.parametrize(
    ("suffix", "start"),
    [
        ("json", "{"),
        ("html", "<!doctype html>"),
        ("dot", "graph fxgrow {"),
        ("md", "# What"),
        ("graphml", "<?xml"),
    ],
)
def test_inspect_writes_files(folder, suffix, start):
    run("inspect", "parts.py:Small", "-o", f"report.{suffix}")
    text = (folder / f"report.{suffix}").read_text()
    assert text.startswith(start)
    assert "conv" in text


def test_pages_for_the_browser(folder):
    assert "Written to a.html" in run("inspect", "parts.py:Small", "--html", "a.html").stdout
    assert "What can grow" in (folder / "a.html").read_text()
    growing = ("expand", "parts.py:Small", "--budget", "4", "--html")
    run(*growing, "plan.html", "--dry-run")
    plan = (folder / "plan.html").read_text()
    assert 'data-key="votes"' in plan
    assert 'data-key="after"' in plan
    run(*growing, "b.html", "-o", "b.safetensors")
    assert "Before and after" in (folder / "b.html").read_text()


@pytest.mark.parametrize("command", ["inspect", "expand"])
@pytest.mark.parametrize("path", ["a.txt", "missing/a.html", "parts.py"])
def test_pages_that_could_not_be_written_are_refused_early(folder, command, path):
    before = sorted(folder.rglob("*"))
    result = run(command, "parts.py:Small", "--html", path, code=1)
    assert path.rpartition("/")[2] in result.stderr
    assert sorted(folder.rglob("*")) == before


# -------------------------------------------------------------------- models


@pytest.mark.parametrize(
    "reference",
    [
        "parts.py:Small",
        "parts:Small",
        "parts.py:with_inputs",
        "parts.py:tokens",
        "torchvision:squeezenet1_1",
    ],
)
def test_model_references(folder, reference):
    assert run_json("inspect", reference)["groups"]


def test_inputs_come_with_the_factory(folder):
    assert "inputs of 4x5" in run("inspect", "parts.py:with_inputs").stdout


def test_inputs_can_be_named(folder):
    assert "inputs of 3x1x8x8" in run("inspect", "parts.py:Small", "--input", "3x1x8x8").stdout
    assert "int64" in run("inspect", "parts.py:tokens", "--input", "1x7:int64").stdout
    assert "input=" in run("inspect", "parts.py:tokens", "--input", "input=1x7:int64").stdout


def test_state_dict_with_arch(folder, small):
    torch.save({"state_dict": {f"module.{k}": v for k, v in small.state_dict().items()}}, "a.pt")
    assert run_json("inspect", "a.pt", "--arch", "parts.py:Small")["groups"]


def test_checkpoint_that_names_a_zoo_model_opens_alone(folder):
    from torchvision.models import squeezenet1_1

    state = squeezenet1_1().state_dict()
    torch.save({"arch": "torchvision:squeezenet1_1", "state_dict": state}, "model.pt")
    assert run_json("inspect", "model.pt")["groups"]


def test_pickled_module_with_trust(folder, small):
    torch.save(small, "a.pt")
    assert run_json("inspect", "a.pt", "--trust-pickle")["groups"]


# -------------------------------------------------------------------- expand


def test_literal_command(folder, small):
    torch.save(small, "model.pt")
    before = (folder / "model.pt").read_bytes()
    result = run("expand", "model.pt", "--budget", "6", "--trust-pickle")
    assert "architecture, not the task" in result.stdout
    assert "Function kept" in result.stdout
    assert (folder / "model.pt").read_bytes() == before
    grown = fxgrow.load("model-grown.safetensors", base=small)
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(grown.module.eval()(x), small.eval()(x), atol=1e-5)
    assert sum(grown.plan.additions.values()) == 6


def test_json_is_all_of_stdout(folder):
    data = run_json("expand", "parts.py:Small", "--budget", "4", "--data", "parts.py:batches")
    assert data["schema"] == "fxgrow.growth/1"
    assert data["output"] == "Small-grown.safetensors"
    assert data["plan"]["spent"] <= 4
    assert data["verification"]["passed"]
    assert not data["random_votes"]
    row = data["groups"][0]
    assert row["new_width"] == row["width"] + row["added"]


def test_dry_run_writes_nothing(folder):
    before = set(os.listdir())
    data = run_json("expand", "parts.py:Small", "--budget", "4", "--dry-run")
    assert data["output"] is None
    assert data["totals"]["new_params"] > data["totals"]["params"]
    assert "Dry run" in run("expand", "parts.py:Small", "--budget", "4", "--dry-run").stdout
    assert set(os.listdir()) - before <= {"__pycache__"}


@pytest.mark.parametrize(
    "options",
    [
        ["--distributor", "uniform"],
        ["--distributor", "proportional", "--round-to", "4"],
        ["--distributor", "random", "--seed", "3"],
        ["--unit", "params", "--budget", "1500"],
        ["--candidates", "paper"],
        ["--candidates", "3"],
        ["--data", "parts.py:batches", "--extender", "zero", "--epochs", "0"],
        ["--data", "parts.py:batches", "--coupling", "pairwise"],
        ["--data", "parts.py:batches", "--loss", "cross_entropy", "--epochs", "2"],
        ["--data", "parts.py:batches", "--loss", "parts.py:squared", "--epochs", "0"],
        ["--include", "conv", "--device", "cpu", "--batch-size", "4"],
    ],
)
def test_options(folder, options):
    data = run_json("expand", "parts.py:Small", "--budget", "8", *options)
    assert data["plan"]["additions"]
    assert data["verification"]["passed"]


def test_pickle_on_request(folder):
    run("expand", "parts.py:Small", "--budget", "4", "-o", "out.pt")
    module = torch.load("out.pt", weights_only=False)
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert run_json("inspect", "out.pt", "--trust-pickle")["groups"]


def test_grown_again(folder):
    run("expand", "parts.py:Small", "--budget", "4", "-o", "1.safetensors")
    arch = ["--arch", "parts.py:Small"]
    run("expand", "1.safetensors", *arch, "--budget", "3", "-o", "2.safetensors")
    data = run_json("inspect", "2.safetensors", *arch)
    assert data["groups"][0]["width"] == 4 + 4 + 3


def test_force_replaces(folder):
    for _ in range(2):
        run("expand", "parts.py:Small", "--budget", "4", "-o", "a.safetensors", "--force")


# ---------------------------------------------------------------------- data


def images():
    return torch.randint(256, (20, 8, 8), dtype=torch.uint8), torch.randint(10, (20,))


def test_npz(folder):
    samples, targets = images()
    np.savez("d.npz", x=samples.numpy(), y=targets.numpy())
    data = run_json("expand", "parts.py:Small", "--budget", "4", "--data", "d.npz")
    assert not data["random_votes"]


def test_safetensors(folder):
    samples, targets = images()
    save_file({"inputs": samples.float().flatten(1), "targets": targets}, "d.safetensors")
    run("expand", "parts.py:Small", "--budget", "4", "--data", "d.safetensors")


def test_digits(folder):
    options = ["--data", "sklearn:digits", "--batch-size", "256"]
    run("expand", "parts.py:Small", "--budget", "4", *options)


def test_folder_of_images(folder):
    from PIL import Image

    for kind in ("cat", "dog"):
        (folder / "pets" / kind).mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 255, (9, 11, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pets" / kind / f"{number}.png")
    run("expand", "parts.py:Small", "--budget", "4", "--data", "pets")


def test_regression_needs_no_flag(folder):
    np.savez("d.npz", inputs=np.zeros((9, 5)), targets=np.zeros((9, 2)))
    run("expand", "parts.py:with_inputs", "--budget", "4", "--data", "d.npz")


# ------------------------------------------------------------------- Ctrl-C


def test_ctrl_c(folder):
    import signal

    arguments = ["expand", "parts.py:Small", "--budget", "4", "--data", "parts.py:slow_batches"]
    program = [sys.executable, "-m", "fxgrow", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        program,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # shells have programs in the background ignore Ctrl-C, and those that they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout.readline() == "READY\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert "interrupted" in error
    assert not [name for name in os.listdir() if "grown" in name]


def test_a_model_that_is_no_graph_grows_as_its_class_and_says_so(folder):
    arguments = (
        "expand",
        "parts.py:Counting",
        "--input",
        "1x4",
        "--budget",
        "4",
        "-o",
        "c.safetensors",
    )
    said = " ".join(run(*arguments).stdout.split())
    assert "It grew as its own class: no graph of Counting" in said
    assert run_json(*arguments, "--force")["emit"] == "module"
