"""Checkpoints: whatever happens to the process, the run ends as if nothing had happened."""

import functools
import multiprocessing
import random
import signal

import pytest
import runs
import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["runs_warm"])
PATIENCE = 60  # seconds that a process may take


@functools.cache
def reference(variant, folder):
    """Digest of the run that nobody disturbs."""
    path = folder / f"{variant}-undisturbed.pt"
    return start(path, variant)[1]


def start(path, variant, where="", at=0, seconds=None):
    """Run in a process of its own; return its exit code and the digest, if it got there."""
    result = path.with_suffix(".digest")
    process = CONTEXT.Process(target=runs.child, args=(path, variant, result, where, at))
    process.start()
    process.join(PATIENCE if seconds is None else seconds)
    late = process.is_alive()
    if late:
        process.kill()
        process.join(PATIENCE)
    assert seconds is not None or not late, "the process hangs"
    code = process.exitcode
    process.close()
    return code, result.read_text(encoding="utf-8") if result.is_file() else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("variant", list(runs.OPTIONS))
def test_kill_at_every_kind_of_moment(variant, folder, tmp_path):
    """One run after the other dies: growing, writing, before the rename, with half a file."""
    path = tmp_path / "run.pt"
    growing = {"growth": 2} if variant == "voted" else {}  # others have no progress to tell
    deaths = {**growing, "torch.save": 3, "write": 2, "rename": 2}
    for where, at in deaths.items():
        code, outcome = start(path, variant, where, at)
        assert code == -signal.SIGKILL, f"was to die of {where}"
        assert outcome is None
    code, outcome = start(path, variant)
    assert code == 0
    assert outcome == reference(variant, folder)
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("trial", range(4))
def test_kill_at_random_moments(trial, folder, tmp_path):
    dice = random.Random(trial)
    variant = dice.choice(list(runs.OPTIONS))
    path = tmp_path / "run.pt"
    kills = 0
    for _ in range(3):
        code, outcome = start(path, variant, seconds=dice.uniform(0.15, 1.2))
        if code == 0:
            break
        assert (code, outcome) == (-signal.SIGKILL, None)
        kills += 1
    code, outcome = start(path, variant)
    assert code == 0
    assert kills
    assert outcome == reference(variant, folder)
