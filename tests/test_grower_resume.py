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
import torch

import fxgrow
from fxgrow.errors import FileError, InputError

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


@pytest.fixture(autouse=True)
def one_thread():
    """As in the other processes: sums over several threads have other roundings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    deaths = {**growing, "torch.save": 3, "migration": 1, "write": 2, "rename": 2}
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


# ------------------------------------------------------------------- in this process


def stopped(path, variant, step):
    """The state of a run after some steps, written to ``path``."""

    def tell(done):
        if done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.train(path, variant, every=1, tell=tell)


@pytest.mark.parametrize("step", [3, 5, 7, 8, 15])
@pytest.mark.parametrize("variant", ["graph", "module"])
def test_resumed_at_any_step(variant, step, folder, tmp_path):
    path = tmp_path / "run.pt"
    stopped(path, variant, step)
    assert runs.train(path, variant) == reference(variant, folder)


@pytest.mark.parametrize("lost", ["now", "epoch", "optimizer0", "ema", "track.scheduler"])
def test_every_part_of_the_state_matters(lost, folder, tmp_path):
    """Without any one of them the outcome is another: the comparison can fail."""
    path = tmp_path / "run.pt"
    stopped(path, "graph", 8)
    state = torch.load(path, weights_only=True)
    fresh = runs.build("graph")[0].state_dict()
    if lost == "epoch":
        state["random"][0][lost] = None
    elif lost == "now":
        state["random"][0][lost] = fresh["random"][0][lost]
    elif lost == "ema":
        state["objects"][lost]["n_averaged"] += 1
        state["objects"][lost]["module.out.bias"] += 1
    elif lost == "optimizer0":
        state["objects"][lost]["state"] = {}
    else:
        state["objects"][lost] = fresh["objects"][lost]
    torch.save(state, path)
    assert runs.train(path, "graph") != reference("graph", folder)


def test_a_state_fits_only_its_own_run(tmp_path):
    path = tmp_path / "run.pt"
    stopped(path, "graph", 8)
    state = torch.load(path, weights_only=True)  # no code in it
    wide = {**runs.OPTIONS["graph"], "budget": 3}
    wide["schedule"] = fxgrow.every(epochs=1)
    model = runs.Net()
    loader = runs.build("graph")[0]._settings.data

    other = fxgrow.Grower(model, data=loader, **wide)
    with pytest.raises(InputError, match=r"optimizer0.*same optimizers"):
        other.load_state_dict(state)
    with pytest.raises(InputError, match="lacks"):
        other.load_state_dict({"record": {}})
    other.grow()
    with pytest.raises(InputError, match="other growths"):
        other.restore(state["record"])
    narrow = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 5), torch.nn.Linear(5, 4))
    foreign = fxgrow.Grower(narrow, data=loader, **wide)
    with pytest.raises(InputError, match="does not belong to this model"):
        foreign.restore(state["record"])
    assert foreign.model is narrow
    assert foreign.round == 0
    with pytest.raises(InputError, match="schema"):
        foreign.restore({**state["record"], "schema": "fxgrow.grower/9"})


def test_files_are_checked(tmp_path):
    grower = runs.build("graph")[0]
    path = tmp_path / "run.pt"
    assert grower.resume(path) is grower.model  # nothing there: a new run
    path.write_bytes(b"PK no checkpoint")
    with pytest.raises(FileError, match="damaged, or no PyTorch file"):
        grower.resume(path)
    with pytest.raises(FileError, match="could not be written"):
        grower.save(tmp_path / "nowhere" / "run.pt")


def test_states_that_are_not_plain_are_refused_when_saving(tmp_path):
    class Odd:
        def state_dict(self):
            return {"when": [object()]}

        def load_state_dict(self, state):
            raise AssertionError(state)

    data = [(torch.randn(4, 6), torch.randint(3, (4,)))]
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    grower = fxgrow.Grower(model, data=data, budget=2, track={"odd": Odd()})
    with pytest.raises(FileError, match=r"track\.odd.*when.*object"):
        grower.save(tmp_path / "run.pt")
    assert not list(tmp_path.iterdir())
