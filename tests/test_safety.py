"""Hostile files: nothing runs, one error of ours, quickly, in bounded memory, on one line."""

import contextlib
import json
import os
import pickle
import resource
import struct
import time

import hostile
import numpy as np
import pytest
import torch
from conftest import Small
from fxgrow_cli.main import app
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import fxgrow
from fxgrow import checkpoint, io
from fxgrow.errors import FileError
from fxgrow.printable import hidden, printable, quoted

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
SECONDS, MEBIBYTES = 10, 400
# these are odd, but only lists, or keys that nobody reads
HARMLESS = {
    *("deep, zip", "deep, deflated zip", "deep, old", "hidden method, keys of the old"),
}


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def bounded():
    """Neither time nor memory run away, and no payload has run."""
    begin, before = time.process_time(), peak()  # of this process, whatever else runs
    yield
    assert time.process_time() - begin < SECONDS
    assert peak() - before < MEBIBYTES
    assert not os.path.exists(hostile.MARKER)


def refused_by_the_command(*arguments):
    """Run the command; one line of printable text is its answer."""
    result = CliRunner().invoke(app, ["inspect", *arguments])
    assert result.exit_code == 1, (result.output, result.exception)
    (line,) = result.stderr.strip().split("\n")
    assert line.startswith("error: ")
    assert not any(hidden(character) for character in line), line
    return line


PICKLES = hostile.pickles()


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_run_nothing(folder, name):
    path = folder / "evil.pt"
    path.write_bytes(PICKLES[name])
    with bounded():
        with contextlib.nullcontext() if name in HARMLESS else pytest.raises(FileError):
            io.open_pickle(path)
        refused_by_the_command("evil.pt", "--arch", "parts.py:Small")
    assert set(os.listdir(folder)) - {"__pycache__"} == {"evil.pt", "parts.py"}


def test_the_payloads_are_real(folder):
    """A test that finds no marker must be able to find one."""
    for kind in hostile.PAYLOADS.values():
        if kind is not hostile.Rebuilt:
            with contextlib.suppress(TypeError, AttributeError):  # what they make is of no use
                pickle.loads(pickle.dumps(kind(), 2))
            assert os.path.exists(hostile.MARKER), kind
            os.remove(hostile.MARKER)
    for name in ("global", "inst", "obj", "stack global"):
        pickle.loads(hostile.RAW[name])
        assert os.path.exists(hostile.MARKER), name
        os.remove(hostile.MARKER)


def test_trust_opens_what_is_trusted(folder):
    (folder / "evil.pt").write_bytes(PICKLES["torch.save, new"])
    io.open_pickle(folder / "evil.pt", trust=True)
    assert os.path.exists(hostile.MARKER)


ARCHIVES = hostile.archives()


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("trust", [False, True])
def test_archives_are_refused_before_they_are_expanded(folder, name, trust):
    path = folder / "a.pt"
    path.write_bytes(ARCHIVES[name])
    with bounded():
        with pytest.raises(FileError):
            io.open_pickle(path, trust=trust and name != "expanded")
        with pytest.raises(FileError):
            checkpoint.read_state(path)
        refused_by_the_command("a.pt", "--arch", "parts.py:Small")


def test_ordinary_checkpoints_are_read(tmp_path):
    state = {
        "model": Small().state_dict(),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "lr": [0.1, None, True]},
        "bytes": b"abc\xff",
        "flags": torch.ones(3, dtype=torch.bool),
        "shared": [X, X[0]],
        "complex": 1j,
    }
    for new in (True, False):
        torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
        back = io.open_pickle(tmp_path / "a.pt")
        assert back["bytes"] == state["bytes"] and back["optimizer"] == state["optimizer"]
        assert torch.equal(back["shared"][0], X)
        assert list(back["model"]) == list(state["model"])


def test_archives_that_compress_well_are_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros((1000, 1000)), y=np.zeros(1000))
    assert set(fxgrow.files.archive.check_archive(path)) == {"x.npy", "y.npy"}


HEADERS = hostile.headers()


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_refused(folder, name):
    path = folder / "a.safetensors"
    path.write_bytes(HEADERS[name])
    with bounded():
        for read in (io.read_meta, lambda p: fxgrow.load(p, Small())):
            with pytest.raises(FileError):
                read(path)
        refused_by_the_command("a.safetensors", "--arch", "parts.py:Small")


# ------------------------------------------------------------------- plans


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A growth file, its description, and its tensors."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    fxgrow.widen(Small(), X, {"conv": 3}).save(path)
    return path


def description(path):
    text = path.read_bytes()
    (length,) = struct.unpack("<Q", text[:8])
    return json.loads(json.loads(text[8 : 8 + length])["__metadata__"]["fxgrow"])


@pytest.mark.parametrize("name", hostile.CHANGES)
def test_changed_plans_are_refused(folder, good, name):
    text = json.dumps(hostile.CHANGES[name](description(good)))
    save_file(load_file(good), folder / "p.safetensors", {"fxgrow": text})
    (folder / "p.json").write_text(text, encoding="utf-8")
    with bounded():
        with pytest.raises(FileError) as caught:
            fxgrow.load(folder / "p.safetensors", Small())
        assert not any(hidden(each) for each in str(caught.value)), str(caught.value)
        assert len(str(caught.value)) < 1000
        refused_by_the_command("p.safetensors", "--arch", "parts.py:Small")


# these are plans, only not for the tensors beside them
OF_TENSORS = {
    "too small for its tensors",
    "too large for its tensors",
    "alias",
    "transient",
    "bytes",
    "sum",
    "a transfer",
}


@pytest.mark.parametrize(
    "name", [n for n in hostile.CHANGES if not n.startswith(tuple(OF_TENSORS))]
)
def test_changed_plans_are_not_applied(folder, good, name):
    text = json.dumps(hostile.CHANGES[name](description(good)))
    (folder / "p.json").write_text(text, encoding="utf-8")
    with bounded(), pytest.raises(FileError):
        fxgrow.apply(folder / "p.json", Small(), any_weights=True)


@pytest.mark.parametrize("name", hostile.RAW_PLANS)
def test_plans_that_are_none(folder, name):
    text = hostile.RAW_PLANS[name]
    (folder / "p.json").write_text(text)
    save_file({"x": torch.zeros(1)}, folder / "p.safetensors", {"fxgrow": text})
    with bounded():
        for read in (io.read_meta, lambda p: fxgrow.apply(p, Small())):
            for path in ("p.json", "p.safetensors"):
                with pytest.raises(FileError):
                    read(folder / path)
        refused_by_the_command("p.safetensors", "--arch", "parts.py:Small")


def test_lookalikes_are_shown(folder, good):
    text = json.dumps(hostile.CHANGES["homoglyph"](description(good)))
    save_file(load_file(good), folder / "p.safetensors", {"fxgrow": text})
    assert r"\u0441onv" in refused_by_the_command("p.safetensors", "--arch", "parts.py:Small")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 字", "plain é 字"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\u202eb\u200b", r"a\u202eb\u200b"),
        ("a\x00\x07\r", r"a\x00\x07\r"),
        ("a\nb\tc", "a\nb\tc"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_moves_the_cursor_or_hides_is_spelt_out(text, shown):
    assert printable(text) == shown
    assert str(FileError(text)) == shown
    assert quoted(text).isascii()


def test_names_of_a_model_are_printed_harmlessly(folder):
    (folder / "odd.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    net = nn.Sequential()\n"
        "    for n in ('a\\x1b[2J', 'r\\u202e', 'c'):\n"
        "        net.add_module(n, nn.Linear(4, 4)); net.add_module(n + 'x', nn.ReLU())\n"
        "    return net\n"
    )
    result = CliRunner().invoke(app, ["inspect", "odd.py:make", "--input", "2x4"])
    assert r"a\x1b[2J" in result.stdout
    assert not any(hidden(each) for each in result.output if each not in "\n\t")


# ------------------------------------------------------------------- shards, links


@pytest.fixture
def sharded(folder, good):
    growth = fxgrow.load(good, Small())
    io.save(growth, folder / "m.safetensors.index.json", max_shard_size="1KB")
    return folder / "m.safetensors.index.json"


NAMES = {
    "up": "../../x.safetensors",
    "one up": "../m.safetensors",
    "absolute": "/etc/x.safetensors",
    "windows": "..\\x.safetensors",
    "drive": "C:x.safetensors",
    "below": "a/b.safetensors",
    "hidden": ".x.safetensors",
    "nothing": "",
    "dots": "..",
    "nul": "a\0.safetensors",
    "escape": "a\x1b[2J.safetensors",
    "bidi": "a\u202e.safetensors",
    "itself": "m.safetensors.index.json",
    "pickle": "m.pt",
    "number": 3,
    "list": ["m.safetensors"],
    "long": "a" * 5000 + ".safetensors",
    "missing": "missing.safetensors",
}


@pytest.mark.parametrize("name", NAMES)
def test_shards_elsewhere_are_refused(sharded, name):
    content = json.loads(sharded.read_text())
    content["weight_map"]["fc.weight"] = NAMES[name]
    sharded.write_text(json.dumps(content))
    with bounded():
        with pytest.raises(FileError) as caught:
            fxgrow.load(sharded, Small())
        assert not any(hidden(each) for each in str(caught.value))
        refused_by_the_command(str(sharded), "--arch", "parts.py:Small")


def odd_indices(good):
    names = good["weight_map"]
    return {
        "other shard": {**good, "weight_map": {**names, "x": names["fc.weight"]}},
        "fewer": {**good, "weight_map": {}},
        "no map": {"metadata": good["metadata"]},
        "no metadata": {"weight_map": good["weight_map"]},
        "metadata a list": {**good, "metadata": []},
        "map a list": {**good, "weight_map": list(good["weight_map"])},
        "not ours": {**good, "metadata": {"total_size": 3}},
        "a list": [],
        "text no text": {**good, "metadata": {"fxgrow": {"schema": "fxgrow.file/2"}}},
    }  # fmt: skip


@pytest.mark.parametrize("name", odd_indices({"metadata": {}, "weight_map": {"fc.weight": ""}}))
def test_odd_indices_are_refused(sharded, name):
    sharded.write_text(json.dumps(odd_indices(json.loads(sharded.read_text()))[name]))
    with bounded(), pytest.raises(FileError):
        fxgrow.load(sharded, Small())


def test_links_out_of_the_folder_are_refused(sharded, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    shard = next(sharded.parent.glob("m-*.safetensors"))
    shard.rename(outside / "x.safetensors")
    shard.symlink_to(outside / "x.safetensors")
    with pytest.raises(FileError, match="leads out of the folder"):
        fxgrow.load(sharded, Small())


def test_links_as_in_the_cache_of_hugging_face_are_followed(sharded, good):
    blobs, snapshot = sharded.parent / "blobs", sharded.parent / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for number, path in enumerate([*sharded.parent.glob("m*safetensors*")]):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../blobs/{number}")
    growth = fxgrow.load(snapshot / sharded.name, Small())
    wanted = fxgrow.load(good, Small())
    assert torch.equal(growth.module.eval()(X), wanted.module.eval()(X))


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.json", "a.safetensors.index.json"])
def test_devices_pipes_and_loops_are_no_files(folder, name):
    os.mkfifo(folder / "pipe")
    for target in ("/dev/zero", "pipe", name, ".", "nowhere"):
        (folder / name).symlink_to(target)
        with bounded(), pytest.raises(FileError):
            io.open_pickle(name) if name == "a.pt" else fxgrow.apply(name, Small())
        (folder / name).unlink()


@pytest.mark.parametrize("name", ["bomb", "overlapping", "noise", "nothing", "comment"])
def test_data_archives_are_looked_at_first(folder, name):
    (folder / "d.npz").write_bytes(ARCHIVES[name])
    with bounded():
        arguments = ["parts.py:Small", "--data", "d.npz", "--budget", "4"]
        result = CliRunner().invoke(app, ["expand", *arguments])
    assert result.exit_code == 1 and "error: " in result.stderr


@pytest.mark.parametrize("name", HEADERS)
def test_data_headers_are_looked_at_first(folder, name):
    (folder / "d.safetensors").write_bytes(HEADERS[name])
    with bounded():
        arguments = ["parts.py:Small", "--data", "d.safetensors", "--budget", "4"]
        result = CliRunner().invoke(app, ["expand", *arguments])
    assert result.exit_code == 1 and "error: " in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("target", ["precious", "nowhere", "../outside"])
def test_a_link_at_the_output_needs_force_and_its_target_is_left_alone(folder, target):
    (folder / "precious").write_text("precious")
    (folder / "out.safetensors").symlink_to(target)
    arguments = ["expand", "parts.py:Small", "--budget", "4", "-o", "out.safetensors"]
    arguments += ["--distributor", "uniform"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "exists already" in result.stderr
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
    assert not (folder / "out.safetensors").is_symlink()
    assert (folder / "precious").read_text() == "precious"
    assert not os.path.lexists(folder / "nowhere") and not os.path.lexists(folder / "../outside")
