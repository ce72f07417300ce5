"""Files: round trips, wrong bases, damage, interrupted writes."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fxgrow
from fxgrow import io
from fxgrow.errors import FileError, InputError

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def grown(small):
    return fxgrow.widen(small, X, {"conv": 3}, seed=5)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.head(x + self.down(torch.relu(self.up(x))))


def test_round_trip(small, grown, tmp_path):
    path = tmp_path / "a.safetensors"
    with torch.no_grad():  # as training would
        for parameter in grown.module.parameters():
            parameter.add_(0.1)
    grown.save(path)
    back = fxgrow.load(path, base=small)
    assert torch.equal(back.module.eval()(X), grown.module.eval()(X))
    assert back.plan == grown.plan
    assert back.verification == grown.verification
    assert back.report["inputs"] == grown.report["inputs"]
    assert [step["seed"] for step in back.report["steps"]] == [5]


def test_votes_survive(small, tmp_path):
    data = [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,))) for _ in range(2)]
    growth = fxgrow.expand(small, data, budget=4)
    path = tmp_path / "a.safetensors"
    fxgrow.save(growth, path)
    back = fxgrow.load(path, base=small)
    assert back.votes.counts == growth.votes.counts
    assert torch.equal(back.module.eval()(X), growth.module.eval()(X))


def test_load_leaves_the_base_alone(small, grown, tmp_path):
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    path = tmp_path / "a.safetensors"
    fxgrow.save(grown, path)
    fxgrow.load(path, base=small)
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())


def test_growths_on_growths_are_replayed(small, grown, tmp_path):
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    fxgrow.save(grown, first)
    again = fxgrow.widen(fxgrow.load(first, base=small).module, X, {"conv": 2})
    fxgrow.save(again, second, history=fxgrow.load(first, base=small).report["steps"])
    back = fxgrow.load(second, base=small)
    assert torch.equal(back.module.eval()(X), again.module.eval()(X))
    assert len(back.report["steps"]) == 2


def test_shared_tensors_are_written_once_and_stay_shared(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    tokens = torch.randint(11, (2, 5))
    growth = fxgrow.widen(model, tokens, {"up": 2})
    path = tmp_path / "tied.safetensors"
    fxgrow.save(growth, path)
    stored = load_file(path)
    assert ("embed.weight" in stored) != ("head.weight" in stored)
    back = fxgrow.load(path, base=model)
    assert torch.equal(back.module.eval()(tokens), growth.module.eval()(tokens))
    names = dict(back.module.named_parameters(remove_duplicate=False))
    assert names["embed.weight"] is names["head.weight"]


def test_file_holds_plain_json(grown, tmp_path):
    path = tmp_path / "a.safetensors"
    fxgrow.save(grown, path)
    meta = io.read_meta(path)
    assert meta["schema"] == io.SCHEMA
    assert meta["steps"][0]["plan"]["additions"] == {"conv": 3}
    assert meta["inputs"]["args"] == [{"shape": [3, 1, 8, 8], "dtype": "float32"}]
    assert meta["torch"] == str(torch.__version__)


def test_without_a_base(grown, tmp_path):
    fxgrow.save(grown, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="base="):
        fxgrow.load(tmp_path / "a.safetensors")


def other_width():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    return model, "it has no 'conv"


def other_outputs(small):
    small.fc = nn.Linear(256, 7)
    return small, r"its 'fc.bias' is float32\[7\], not float32\[10\]"


@pytest.mark.parametrize("which", ["names", "shapes"])
def test_wrong_base(small, grown, tmp_path, which):
    fxgrow.save(grown, tmp_path / "a.safetensors")
    base, words = other_width() if which == "names" else other_outputs(small)
    with pytest.raises(FileError, match=words):
        fxgrow.load(tmp_path / "a.safetensors", base=base)


def test_missing_file(small, tmp_path):
    with pytest.raises(FileError, match="no such file"):
        fxgrow.load(tmp_path / "none.safetensors", base=small)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_damaged_file(small, grown, tmp_path, keep):
    path = tmp_path / "a.safetensors"
    fxgrow.save(grown, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(FileError, match="damaged"):
        fxgrow.load(path, base=small)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "not written by fxgrow"),
        ("{", "description is damaged"),
        ("[]", "description is damaged"),
        ('{"schema": "fxgrow.file/99"}', "another version"),
        (json.dumps({"schema": io.SCHEMA}), "lacks aliases"),
    ],
)
def test_foreign_descriptions(small, tmp_path, text, words):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, path, None if text is None else {"fxgrow": text})
    with pytest.raises(FileError, match=words):
        fxgrow.load(path, base=small)


def test_unwritable_folder(grown, tmp_path):
    with pytest.raises(FileError, match="could not be written"):
        fxgrow.save(grown, tmp_path / "none" / "a.safetensors")


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half(temporary):
        temporary.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(FileError, match="No space left"):
        io.atomic_write(path, half)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_interrupted_write_leaves_nothing(tmp_path):
    def half(temporary):
        temporary.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        io.atomic_write(tmp_path / "a.txt", half)
    assert os.listdir(tmp_path) == []


def test_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    program = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from fxgrow.io import atomic_write

        def slow(temporary):
            with temporary.open("wb") as file:
                file.write(b"n" * 1000)
                file.flush()
                print("READY", flush=True)
                time.sleep(60)

        atomic_write(sys.argv[1], slow)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "READY\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"


def test_pickled_module_runs_without_our_classes(grown, tmp_path):
    path = tmp_path / "a.pt"
    io.pickle_module(grown.module, path)
    back = torch.load(path, weights_only=False)
    assert torch.allclose(back.eval()(X), grown.module.eval()(X))


def test_unpicklable_module(tmp_path):
    model = nn.Linear(1, 1)
    model.act = lambda x: x
    with pytest.raises(FileError, match="can't be pickled"):
        io.pickle_module(model, tmp_path / "a.pt")
    assert os.listdir(tmp_path) == []


def test_extra_state_has_no_place(grown, tmp_path):
    grown.module.__class__.get_extra_state = lambda self: {"calls": 3}
    try:
        with pytest.raises(FileError, match="no tensor"):
            fxgrow.save(grown, tmp_path / "a.safetensors")
    finally:
        del grown.module.__class__.get_extra_state


def test_permissions_follow_the_umask(grown, tmp_path):
    path = tmp_path / "a.safetensors"
    fxgrow.save(grown, path)
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
