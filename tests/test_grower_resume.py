"""Checkpoints: whatever happens to the process, the run ends as if nothing had happened."""

import contextlib
import functools
import multiprocessing
import random
import signal
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import runs

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["runs_warm"])
PATIENCE = 60  # seconds that a process may take


@functools.cache
def reference(variant, folder):
    """Digest of the run that nobody disturbs."""
    path = folder / f"{variant}-undisturbed.pt"
    return start(path, variant)[1]


def start(path, variant, where="", at=0, meddle=None):
    """Run in a process of its own; return its exit code and the digest, if it got there."""
    result = path.with_suffix(".digest")
    ours, theirs = CONTEXT.Pipe(duplex=False)
    arguments = (path, variant, result, where, at, theirs)
    process = CONTEXT.Process(target=runs.child, args=arguments)
    process.start()
    theirs.close()
    if meddle:
        meddle(process, ours)
    process.join(PATIENCE)
    hangs = process.is_alive()
    process.kill()
    process.join()
    ours.close()
    code = process.exitcode
    process.close()
    assert not hangs, "the process hangs"
    return code, result.read_text(encoding="utf-8") if result.is_file() else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # the fork server of Python 3.11 knows no sys.path
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        forkserver.ensure_running()
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
    variant = list(runs.OPTIONS)[trial % len(runs.OPTIONS)]
    path = tmp_path / "run.pt"

    def kill(process, pipe):
        with contextlib.suppress(EOFError):  # it was at the end already
            for _ in range(dice.randint(1, 8)):
                pipe.recv()  # of 20 steps
        time.sleep(dice.uniform(0, 0.05))
        process.kill()

    codes = []
    for _ in range(3):
        code, outcome = start(path, variant, meddle=kill)
        codes.append(code)
        if code == 0:
            break
    if code != 0:
        code, outcome = start(path, variant)
    assert code == 0
    assert codes[0] == -signal.SIGKILL
    assert outcome == reference(variant, folder)
