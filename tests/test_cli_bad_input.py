"""Bad input: one sentence with what to do, a nonzero exit code, nothing half-written."""

import os
import re

import numpy as np
import pytest
import torch
from fxgrow_cli.main import app
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner


class Evil:
    """Unpickling this runs a program."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.fixture
def files(folder, small):
    torch.save(small.state_dict(), "a.pt")
    torch.save(small, "whole.pt")
    torch.save([1, 2], "list.pt")
    torch.save({"model": small.state_dict(), "x": Evil()}, "evil.pt")
    (folder / "junk.pt").write_bytes(b"no zip file at all")
    (folder / "half.pt").write_bytes((folder / "a.pt").read_bytes()[:700])
    save_file({"x": torch.zeros(2)}, "other.safetensors")
    np.savez("empty.npz", x=np.zeros((0, 1, 8, 8)), y=np.zeros((0,), dtype=np.int64))
    np.savez("names.npz", a=np.zeros(3))
    np.savez("uneven.npz", x=np.zeros((4, 1, 8, 8)), y=np.zeros(3, dtype=np.int64))
    np.savez("objects.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    (folder / "bare").mkdir()
    (folder / "folder.pt").mkdir()
    torch.save(small, "old.pt", _use_new_zipfile_serialization=False)
    (folder / "taken.safetensors").write_text("precious")
    (folder / "syntax.py").write_text("def f(:\n")
    (folder / "needs.py").write_text("import nowhere_to_be_found\n")
    return folder


SMALL = ["parts.py:Small"]
CASES = {
    # models
    "missing file": (["none.pt"], "no such file"),
    "no reference": (["nonsense"], "MODEL is"),
    "junk": (["junk.pt"], "damaged, or no PyTorch file"),
    "half a file": (["half.pt"], "damaged"),
    "a list": (["list.pt"], "neither a module nor a state dict"),
    "pickle": (["whole.pt"], r"conftest\.Small.*--trust-pickle"),
    "old pickle": (["old.pt"], r"conftest\.Small.*--trust-pickle"),
    "evil": (["evil.pt"], r"(posix|nt)\.system.*--trust-pickle"),
    "no arch": (["a.pt"], "--arch"),
    "wrong arch": (["a.pt", "--arch", "parts.py:tokens"], "don't fit --arch parts.py:tokens"),
    "superfluous arch": (["whole.pt", "--trust-pickle", "--arch", "parts.py:Small"], "--arch"),
    "arch of nothing": ([*SMALL, "--arch", "parts.py:Small"], "--arch"),
    "foreign safetensors": (["other.safetensors", "--arch", *SMALL], "not written by fxgrow"),
    "missing python file": (["none.py:f"], "no such file"),
    "missing module": (["nowhere_at_all:f"], "can't be found"),
    "missing name": (["parts.py:nothing"], "it offers .*Small"),
    "no module": (["parts.py:number"], "gave int"),
    "broken factory": (["parts.py:broken"], "no such luck"),
    "syntax error": (["syntax.py:f"], "importing it failed"),
    "missing dependency": (["needs.py:f"], "nowhere_to_be_found"),
    "no such zoo model": (["torchvision:resnet19"], "did you mean resnet1"),
    # inputs
    "wrong input shape": ([*SMALL, "--input", "1x3x32x32"], "does not take --input"),
    "malformed input": ([*SMALL, "--input", "a,b"], "not understood"),
    "strange dtype": ([*SMALL, "--input", "1x2:float"[:-1] + "y"], "not understood"),
    "unknown input": (["parts.py:Puzzling"], "--input"),
    # data
    "missing data": ([*SMALL, "--data", "none.npz"], "no such file"),
    "unknown data": ([*SMALL, "--data", "nonsense"], "--data takes"),
    "empty data": ([*SMALL, "--data", "empty.npz"], "0 inputs"),
    "no batches": ([*SMALL, "--data", "parts.py:no_batches"], "hold no batch"),
    "unnamed arrays": ([*SMALL, "--data", "names.npz"], "needs 'inputs' and 'targets'"),
    "uneven arrays": ([*SMALL, "--data", "uneven.npz"], "4 inputs but 3 targets"),
    "objects": ([*SMALL, "--data", "objects.npz"], "no array of numbers"),
    "empty folder": ([*SMALL, "--data", "bare"], "one subfolder per class"),
    "unknown digits": ([*SMALL, "--data", "sklearn:dogs"], "one of breast_cancer"),
    "data not iterable": ([*SMALL, "--data", "parts.py:number"], "DataLoader"),
    "NaN loss": ([*SMALL, "--data", "parts.py:nan_batches"], "the loss of batch 0 is nan"),
    "wrong batches": (
        [*SMALL, "--data", "parts.py:wrong_batches"],
        "expected input.*check their sha",
    ),
    "unknown loss": ([*SMALL, "--data", "parts.py:batches", "--loss", "love"], "unknown loss"),
    # growth
    "budget 0": ([*SMALL, "--budget", "0"], "positive"),
    "budget negative": ([*SMALL, "--budget", "-5"], "positive"),
    "budget nan": ([*SMALL, "--budget", "nan"], "positive"),
    "budget too large": ([*SMALL, "--budget", "1e15"], "take a smaller budget"),
    "budget too small": ([*SMALL, "--budget", "3", "--unit", "params"], "buys nothing"),
    "nothing to grow": (["parts.py:linear"], "no group can grow"),
    "nothing included": ([*SMALL, "--include", "xyz*"], "matches no group"),
    "text that looks like a model": (["folder.pt"], "no such file"),
    "no such device": ([*SMALL, "--device", "warp"], "--device warp"),
    # outputs
    "no such folder": ([*SMALL, "-o", "none/a.safetensors"], "no folder none"),
    "output is a folder": ([*SMALL, "-o", "folder.pt", "--force"], "can't be written"),
    "output exists": ([*SMALL, "-o", "taken.safetensors"], "exists already.*--force"),
    "output is the input": (["a.pt", "--arch", *SMALL, "-o", "a.pt"], "is the input itself"),
    "strange suffix": ([*SMALL, "-o", "a.txt"], "an output ends in"),
}


def contents(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.mark.parametrize("name", CASES)
def test_bad_input(files, name):
    arguments, words = CASES[name]
    before = contents(files)
    if "--budget" not in arguments:
        arguments = [*arguments, "--budget", "4"]
    result = CliRunner().invoke(app, ["expand", *arguments])
    assert result.exit_code == 1, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    # the progress bars may have been drawn before
    error = result.stderr[result.stderr.index("error: ") :]
    assert len(error.strip().splitlines()) == 1
    assert re.search(words, error), error
    assert contents(files) == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["expand"],
        ["expand", "parts.py:Small", "--budget", "many"],
        ["expand", "parts.py:Small", "--unit", "miles"],
        ["expand", "parts.py:Small", "--epochs", "1"],
        ["expand", "parts.py:Small", "--candidates", "few"],
        ["expand", "parts.py:Small", "--round-to", "0"],
        ["inspect", "parts.py:Small", "--nonsense"],
        ["shrink", "parts.py:Small"],
    ],
)
def test_usage(folder, arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_pickle_of_code_that_is_not_here(folder):
    module = nn.Linear(1, 1)
    module.extra = __import__("decimal").Decimal(1)
    torch.save(module, "a.pt")
    data = (folder / "a.pt").read_bytes()
    (folder / "a.pt").write_bytes(data.replace(b"decimal", b"decimol"))
    result = CliRunner().invoke(app, ["inspect", "a.pt", "--trust-pickle"])
    assert result.exit_code == 1
    assert "error: " in result.stderr


def test_evil_pickle_runs_nothing(files):
    CliRunner().invoke(app, ["inspect", "evil.pt"])
    assert not (files / "ran").exists()
