"""widen, apply, verify, export, activity, doctor, and what all commands share, on good input."""

import importlib.metadata
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, WRITES_ONNX, Small
from fxgrow_cli.main import COMMANDS, app
from typer.testing import CliRunner

import fxgrow


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def run_json(*arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code).stdout)


# -------------------------------------------------------------------- widen


@pytest.mark.parametrize(
    ("additions", "expected"),
    [
        (["conv=+3"], 3),
        (["conv=+25%"], 1),
        (["+50%"], 2),
        (["+2"], 2),
        (["co*=+5"], 5),
        (["+50%", "conv=+3"], 3),
        (["conv=+3", "*=+50%"], 2),
    ],
)
def test_widen(folder, additions, expected):
    data = run_json("widen", "parts.py:Small", *additions)
    assert data["plan"]["additions"] == {"conv": expected}
    assert data["verification"]["passed"]
    assert data["output"] == "Small-grown.safetensors"
    assert Path("Small-grown.safetensors").is_file()


def test_widen_without_writing(folder):
    text = run("widen", "parts.py:Small", "conv=+3", "--dry-run").stdout
    assert "Dry run" in text
    assert "votes" not in text
    assert not list(folder.glob("*grown*"))


# -------------------------------------------------------------------- apply


def test_a_dry_run_is_a_plan(folder, small):
    torch.save(small.state_dict(), "a.pt")
    arch = ["--arch", "parts.py:Small"]
    plan = run("expand", "a.pt", *arch, "--budget", "3", "--dry-run", "--json").stdout
    Path("plan.json").write_text(plan)
    data = run_json("apply", "plan.json", "a.pt", *arch, "-o", "b.safetensors")
    assert data["plan"]["additions"] == json.loads(plan)["plan"]["additions"]
    assert run_json("verify", "a.pt", "b.safetensors", *arch)["same_function"]


def test_a_grown_file_is_a_plan_and_weights(folder):
    options = ["--budget", "3", "--data", "parts.py:batches", "-o", "g.safetensors"]
    run("expand", "parts.py:Small", *options)
    run("widen", "g.safetensors", "conv=+2", "--arch", "parts.py:Small", "-o", "gg.safetensors")
    text = run("apply", "gg.safetensors", "parts.py:Small", "-o", "a.safetensors").stdout
    assert "base's own weights" in text
    assert run_json("verify", "parts.py:Small", "a.safetensors")["same_function"]
    run("apply", "gg.safetensors", "parts.py:Small", "--weights", "-o", "b.pt")
    run("verify", "gg.safetensors", "b.pt", "--arch", "parts.py:Small", "--trust-pickle")


# -------------------------------------------------------------------- verify


def test_verify_says_so_in_its_exit_code(folder):
    run("widen", "parts.py:Small", "conv=+3", "-o", "w.safetensors")
    text = run("verify", "parts.py:Small", "w.safetensors").stdout
    assert "compute the same function" in text
    assert re.search(r"conv\.weight +4×1×3×3 +7×1×3×3", text)
    again = run_json("verify", "parts.py:Small", "w.safetensors", "--data", "parts.py:batches")
    assert again["samples"] == 24


def test_verify_of_other_weights(folder, small):
    torch.save(small.state_dict(), "a.pt")
    with torch.no_grad():
        small.fc.weight *= 1.5
    torch.save(small.state_dict(), "b.pt")
    arch = ["--arch", "parts.py:Small"]
    assert "do NOT compute" in run("verify", "a.pt", "b.pt", *arch, code=3).stdout
    data = run_json("verify", "a.pt", "b.pt", *arch, code=3)
    assert data["schema"] == "fxgrow.verify/1"
    assert not data["same_function"]
    run("verify", "a.pt", "b.pt", *arch, "--tolerance", "10")
    run("verify", "a.pt", "b.pt", *arch, "--quiet", code=3)


# -------------------------------------------------------------------- export


def test_export_of_a_package(folder):
    run("widen", "parts.py:Small", "conv=+3", "-o", "w.safetensors")
    out = ["export", "w.safetensors", "--arch", "parts.py:Small", "-o", "wide_net"]
    assert "Written to wide_net" in run(*out).stdout
    data = run_json(*out, "--force")
    assert data["format"] == "python"
    assert data["checks"][0]["relative"] == 0
    program = "import wide_net, sys; wide_net.load(); assert 'fxgrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=folder)


@pytest.mark.skipif(not WRITES_ONNX, reason="torch 2.6 can't write batch norms as ONNX")
def test_export_of_onnx(folder):
    data = run_json("export", "parts.py:Small", "-o", "a.onnx")
    assert data["dynamic_batch"]
    assert {check["runtime"] for check in data["checks"]} == {"onnxruntime"}


# ------------------------------------------------------------------ activity


def test_activity(folder):
    text = run("activity", "parts.py:Small", "--data", "parts.py:batches").stdout
    assert "Units on 24 samples" in text
    data = run_json("activity", "parts.py:Small")
    assert data["schema"] == "fxgrow.activity/1"
    assert data["random_data"]


def test_activity_of_a_grown_model_with_a_picture(folder):
    run("widen", "parts.py:Small", "conv=+3", "-o", "w.safetensors")
    options = ["--arch", "parts.py:Small", "--data", "parts.py:batches", "--plot", "a.png"]
    assert "New units" in run("activity", "w.safetensors", *options).stdout
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    data = run_json("activity", "w.safetensors", *options, "--force")
    assert data["groups"][0]["new"] == 3


def test_inspect_with_data(folder):
    data = run_json("inspect", "parts.py:Small", "--data", "parts.py:batches")
    assert data["activity"]["groups"][0]["name"] == "conv"
    text = run("inspect", "parts.py:Small", "--data", "parts.py:batches").stdout
    assert "inactive" in text


# -------------------------------------------------------------------- doctor


def test_doctor(folder):
    data = run_json("doctor")
    assert data["packages"]["torch"] == importlib.metadata.version("torch")
    assert data["devices"][0]["name"] == "cpu"
    assert "can be opened, run and analysed" in run("doctor", "parts.py:Small").stdout


@pytest.mark.parametrize(
    ("model", "key", "words"),
    [
        ("parts.py:nothing", "class", "it offers"),
        ("parts.py:Puzzling", "inputs", "--input"),
        ("parts.py:Counting", "groups", "no graph|input shape"),
    ],
)
def test_doctor_says_what_is_missing(folder, model, key, words):
    found = run_json("doctor", model)["model"]
    assert re.search(words, found["problem"])
    assert found[key] is None
    assert "It needs something more" in run("doctor", model).stdout


# ------------------------------------------------------- what commands share


@pytest.mark.parametrize("command", [function.__name__ for function, _ in COMMANDS])
def test_help_has_examples_and_exit_codes(command):
    text = " ".join(run(command, "--help").output.split())
    assert f"Examples: fxgrow {command}" in text or "Examples: fxgrow expand" in text
    assert f"fxgrow {command} " in text
    assert "Exit codes: 0 done" in text
    for option in ("--json", "--quiet", "--verbose", "--config"):
        assert option in text


def test_version():
    assert run("--version").stdout == f"fxgrow {fxgrow.__version__}\n"


def test_quiet_and_verbose(folder):
    quiet = run("widen", "parts.py:Small", "conv=+3", "--quiet")
    assert quiet.output == ""
    assert Path("Small-grown.safetensors").is_file()
    loud = run("widen", "parts.py:Small", "conv=+3", "--verbose", "--force")
    assert "parts.py:Small: Small, " in loud.stderr
    assert "edited: " in loud.stderr
    assert "parts.py:Small: Small" not in run("inspect", "parts.py:Small").stderr


def test_errors_as_json_and_with_their_place(folder):
    result = run("inspect", "parts.py:nothing", "--json", code=1)
    data = json.loads(result.stdout)
    assert data["schema"] == "fxgrow.error/1"
    assert data["error"]["type"] == "InputError"
    assert data["exit_code"] == 1
    assert data["error"]["message"] in " ".join(result.stderr.split())
    assert "Traceback" in run("inspect", "parts.py:nothing", "--verbose", code=1).stderr


def test_unexpected_errors_are_one_sentence(folder):
    Path("odd.py").write_text(
        "import torch\n\nclass Strange(Exception): pass\n\n"
        "class Odd(torch.nn.Linear):\n    def __init__(self):\n        raise Strange('of a kind')\n"
    )
    result = run("inspect", "odd.py:Odd", code=4)
    assert result.stderr.startswith("error: unexpected Strange: of a kind")
    assert "Traceback" not in result.output
    assert "in __init__" in run("inspect", "odd.py:Odd", "--verbose", code=4).stderr


def test_plain_text_outside_of_terminals(folder):
    text = run("inspect", "parts.py:Small").stdout
    assert text.isascii()
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    rows = [line.split() for line in text.splitlines()]
    assert ["conv", "4", "1", "652", "4,864", "conv,", "norm,", "fc"] in rows


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self):
        return True


def test_tables_fit_into_narrow_terminals(folder, monkeypatch):
    from fxgrow_cli import render

    data = fxgrow.inspect(Small(), torch.zeros(2, 1, 8, 8)).to_dict()
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "50")
    render.Screen().show(data, lambda table: render.inspection(table, "2x1x8x8"))
    monkeypatch.undo()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert max(map(len, lines)) <= 50
    assert [line for line in lines if line.startswith("┏")]
    assert [line for line in lines if "4,864" in line]


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        ("fxgrow expand --unit p", ["params"]),
        ("fxgrow expand --distributor ", ["svod", "gain", "uniform", "proportional", "random"]),
        ("fxgrow export --format o", ["onnx"]),
        ("fxgrow inspect ti", ["timm:"]),
        ("fxgrow inspect par", ["parts.py"]),
        ("fxgrow ve", ["verify"]),
    ],
)
def test_completion(folder, words, offers):
    environment = {
        "_FXGROW_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="fxgrow")
    assert result.stdout.split() == offers


# ---------------------------------------------------------------------- docs


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_manual_s_commands_run(folder):
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    Path("net.py").write_text(next(code for kind, code in blocks if kind == "python"))
    Path("run.toml").write_text(next(code for kind, code in blocks if kind == "toml"))
    commands = [
        line[2:] for kind, code in blocks if kind == "console" for line in code.splitlines()
    ]
    shown = set()
    for command in commands:
        line, _, remark = command.partition("   # exit ")
        words, _, target = line.partition(" > ")
        program, *arguments = shlex.split(words)
        assert program == "fxgrow"
        shown.add(arguments[0])
        if line.endswith(".onnx") and not WRITES_ONNX:
            continue
        result = run(*arguments, code=int(remark or 0))
        if target:
            Path(target).write_text(result.stdout)
    assert shown == {function.__name__ for function, _ in COMMANDS}


def test_the_manual_lists_all_schemas():
    text = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    sources = [*(ROOT / "fxgrow").glob("*.py"), *(ROOT / "cli").glob("*.py")]
    found = {
        name
        for path in sources
        for name in re.findall(r'SCHEMA = "(fxgrow\.\w+/\d+)"', path.read_text(encoding="utf-8"))
    }
    assert found - set(re.findall(r"^## (\S+)$", text, re.MULTILINE)) <= {
        "fxgrow.file/1",  # these two are files, not outputs of commands
        "fxgrow.grower/1",
    }
