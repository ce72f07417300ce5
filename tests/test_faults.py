"""Kills, full disks, closed folders, many writers: the old file or the new one, never half.

Short versions of ``benchmarks/faults.py`` and ``benchmarks/fuzz.py``; their long runs are
reported in docs/safety.md.
"""

import errno
import json
import os
import random
import sys
import time

import pytest
from conftest import ROOT

from fxgrow import io
from fxgrow.errors import FileError
from fxgrow.files import atomic, stored

sys.path.append(str(ROOT / "benchmarks"))  # at the end: tests have a zoo of their own

import faults
import fuzz


@pytest.fixture(scope="module")
def growths():
    return {version: faults.growth_of(version) for version in faults.VERSIONS}


@pytest.fixture(params=faults.WRITERS)
def writer(request):
    return faults.WRITERS[request.param]


def nothing_bad(counts):
    assert faults.bad({"": {"": counts}}) == 0, counts


def test_killed_writers_leave_the_old_file_or_the_new_one(writer, growths, tmp_path):
    counts = faults.kills(writer, growths, 8, random.Random(1), tmp_path)
    nothing_bad(counts)
    assert counts["killed"] and counts["old"] + counts["new"] == 8


def test_limits_on_the_file_size(writer, growths, tmp_path):
    counts = faults.limits(writer, growths, random.Random(1), 2, tmp_path)
    nothing_bad(counts)
    assert counts["refused"] == 2


def test_full_disks(writer, growths):
    counts = faults.full_disks(writer, growths, random.Random(1), 1)
    if counts["no mount allowed"]:  # the limit on the file size is tested anywhere
        pytest.skip("mounting needs root")
    nothing_bad(counts)
    assert counts["refused"] == 1


def test_closed_folders(writer, growths):
    counts = faults.in_folder(faults.closed_folders, writer, growths)  # nobody can't enter tmp_path
    nothing_bad(counts)
    assert counts["refused"] or os.geteuid()


def test_many_writers_and_a_reader(writer, growths, tmp_path):
    counts = faults.many(writer, growths, tmp_path, writers=3, rounds=2)
    nothing_bad(counts)
    assert counts["writes"] == 6 and counts["read whole"]


@pytest.mark.parametrize("call", ["open", "fsync", "mkdir", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_whatever_call_fails(tmp_path, monkeypatch, call, code):
    path = tmp_path / "a.txt"
    io.atomic_write(path, lambda temporary: temporary.write_text("old"))

    def fail(*_arguments, **_options):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr("os." + call, fail)
        if call in {"mkdir", "replace"}:
            patch.setattr(f"pathlib.Path.{call}", fail)
        with pytest.raises(FileError, match=r"a\.txt: could not be written"):
            io.atomic_write(path, lambda temporary: temporary.write_text("new"))
    # where the folder's own fsync fails, the new file is in place already
    assert path.read_text() == "old"
    io.atomic_write(path, lambda temporary: temporary.write_text("newer"))
    assert os.listdir(tmp_path) == ["a.txt"] and path.read_text() == "newer"


def test_a_live_writer_keeps_its_file(tmp_path):
    path = tmp_path / "a.txt"

    def outer(temporary):
        temporary.write_text("outer")
        io.atomic_write(path, lambda inner: inner.write_text("inner"))  # removes leftovers
        assert temporary.read_text() == "outer"

    io.atomic_write(path, outer)
    assert path.read_text() == "outer" and os.listdir(tmp_path) == ["a.txt"]


def test_leftovers_of_all_versions_are_removed(tmp_path):
    (tmp_path / ".a.txt.0123abcd.tmp").write_text("as version 0.1 left it")
    (tmp_path / ".a.txt.4567abcd.tmp").mkdir()
    (tmp_path / ".a.txt.4567abcd.tmp" / "new").write_text("half")
    (tmp_path / ".b.txt.4567abcd.tmp").write_text("of another file")
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".a.txt.89abcdef.tmp").symlink_to("precious")
    atomic.remove_leftovers(tmp_path / "a.txt")
    kept = {".b.txt.4567abcd.tmp", ".a.txt.89abcdef.tmp", "precious"}
    assert set(os.listdir(tmp_path)) == kept


@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_a_link_is_replaced_and_its_target_left_alone(tmp_path, kind):
    outside = tmp_path / "outside"
    if kind == "file":
        outside.write_text("precious")
    elif kind == "folder":
        outside.mkdir()
    path = tmp_path / "a.txt"
    path.symlink_to(outside)
    io.atomic_write(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new" and not path.is_symlink()
    assert kind != "file" or outside.read_text() == "precious"
    assert kind != "folder" or os.listdir(outside) == []
    assert kind != "nothing" or not outside.exists()


@pytest.mark.parametrize("name", ["a\0b", "", ".", "..", "x" * 300, "none/a.txt", "taken/a.txt"])
def test_names_that_are_none(tmp_path, name):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(FileError):
        io.atomic_write(f"{tmp_path}/{name}", lambda temporary: temporary.write_text("x"))
    assert os.listdir(tmp_path) == ["taken"]


def test_errors_of_the_writing_function_are_its_own(tmp_path):
    def broken(_temporary):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        io.atomic_write(tmp_path / "a.txt", broken)
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------- fuzzing


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_damaged_files_are_read_or_refused(target):
    runs = 60 if target == "growth" else 1200
    (tally,) = fuzz.fuzz(runs, seed=7, targets=(target,)).values()
    assert tally.lost == 0, tally.losses
    assert tally.executions == runs
    assert tally.read and tally.refused  # the changes are neither too wild nor too tame


def test_the_fuzzer_notices(monkeypatch):
    """A reader that fails, hangs, dies or runs code is counted."""

    def reader(_made, path):
        data = path.read_bytes()
        {0: lambda: 1 / 0, 1: lambda: time.sleep(0.2), 2: lambda: os.abort()}.get(
            len(data) % 50, lambda: None
        )()

    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    monkeypatch.setitem(fuzz.TARGETS, "plan", (fuzz.plan, reader, 1.0))
    (tally,) = fuzz.fuzz(100, targets=("plan",), size=10).values()
    whys = " ".join(loss["why"] for loss in tally.losses)
    assert tally.lost and "the process died" in whys


def test_the_fuzzer_is_deterministic(tmp_path):
    made = fuzz.corpus(tmp_path)
    for target in fuzz.TARGETS:
        one, other = (fuzz.maker(target, made, 3) for _ in range(2))
        assert [one(n) for n in range(50)] == [other(n) for n in range(50)]


def test_reports_are_current():
    """What docs/safety.md quotes are runs without losses."""
    found = json.loads((ROOT / "docs" / "fuzz.json").read_text())
    assert found["total"]["lost"] == 0 and found["total"]["executions"] >= 1_000_000
    assert set(found["targets"]) == set(fuzz.TARGETS)
    found = json.loads((ROOT / "docs" / "faults.json").read_text())
    kills = [counts["SIGKILL"] for counts in found["writers"].values()]
    assert found["bad"] == 0 and sum(c["old"] + c["new"] for c in kills) >= 200
    assert set(found["writers"]) == set(faults.WRITERS)


def test_a_file_replaced_while_it_is_opened_is_opened_again(growths, tmp_path, monkeypatch):
    path = tmp_path / "growth.safetensors"
    growths[1].save(path)
    opened = stored.safe_open

    def replaced_meanwhile(*arguments, **options):
        monkeypatch.setattr(stored, "safe_open", opened)
        growths[2].save(path)
        raise RuntimeError("the file is shorter than its header says")

    monkeypatch.setattr(stored, "safe_open", replaced_meanwhile)
    assert faults.state_of(path) == 2
