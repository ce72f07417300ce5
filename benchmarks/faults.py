"""Break writing in every way that can be arranged, and look at what is left.

``python benchmarks/faults.py --kills 300 --output docs/faults.json``

Every writer of the library replaces a complete file of one version with one of the other
version while: it is killed with SIGKILL at a random moment; the disk is full (a small
tmpfs where mounting is allowed, and a limit on the file size); the folder is read-only; or
others write and read the same file. What is there afterwards must be the old version or
the new one, whole; anything else is **lost**. After the next write no temporary file may
be left. A killed process is a fork of this one, so that a trial costs milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

import fxgrow
from fxgrow import io
from fxgrow.checkpoint import read_state, write_state
from fxgrow.errors import FxgrowError
from fxgrow.files.stored import open_stored

if TYPE_CHECKING:
    from collections.abc import Callable

VERSIONS = (1, 2)
NOBODY = 65534
SIZE = 400_000  # elements of the largest tensor


class Net(nn.Module):
    """Every entry of every tensor is the version."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("large", torch.zeros(SIZE))
        self.register_buffer("other", torch.zeros(SIZE // 2))

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def growth_of(version):
    growth = fxgrow.widen(Net(), torch.zeros(2, 4), {"up": 2}, seed=version)
    with torch.no_grad():
        for tensor in growth.module.state_dict().values():
            tensor.fill_(version)
    return growth


@dataclass(frozen=True)
class Writer:
    """How something is written, and how its version is told; None if it is not whole."""

    name: str
    write: Callable
    version: Callable


def only(tensors):
    """The one value of all tensors, or None."""
    values = {float(v) for t in tensors for v in (t.min(), t.max())}
    return int(values.pop()) if len(values) == 1 else None


def state_of(path):
    stored = open_stored(path)
    return only(stored.tensors().values())


def module_of(path):
    return only(torch.load(path, weights_only=False).state_dict().values())


WRITERS = {
    each.name: each
    for each in (
        Writer("growth.safetensors", lambda g, v, p: g[v].save(p), state_of),
        Writer(
            "growth.safetensors.index.json",
            lambda g, v, p: io.save(g[v], p, max_shard_size="1MB"),
            state_of,
        ),
        Writer(
            "plan.json",
            lambda g, v, p: g[v].save(p),
            lambda p: io.read_meta(p)["steps"][0]["seed"],
        ),
        Writer(
            "run.pt",
            lambda g, v, p: write_state({"state": g[v].module.state_dict()}, p),
            lambda p: only(read_state(p)["state"].values()),
        ),
        Writer("module.pt", lambda g, v, p: io.pickle_module(g[v].module, p), module_of),
        Writer(
            "report.html",
            lambda g, v, p: io.atomic_write(p, lambda t: t.write_text(str(v) * SIZE)),
            lambda p: {str(v) * SIZE: v for v in VERSIONS}.get(p.read_text()),
        ),
    )
}


def version_of(writer, path):
    """The version that is there, whole; 0 where there is no file; None for anything else."""
    if not path.exists():
        return 0
    try:
        return writer.version(path)
    except (FxgrowError, OSError, ValueError, RuntimeError, EOFError, LookupError):
        return None


def leftovers(folder, path):
    """Files that belong to no version: temporary ones, and shards that no index names."""
    named = {path.name}
    if path.name.endswith(".index.json") and path.exists():
        named |= set(json.loads(path.read_text())["weight_map"].values())
    return sorted(set(os.listdir(folder)) - named)


def forked(action):
    """Run something in a fork and return its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    with contextlib.suppress(BaseException):
        torch.set_num_threads(1)  # the threads of the parent are not in the fork
        status = action() or 0
    os._exit(status)


# ------------------------------------------------------------------- kills


def kills(writer, growths, trials, rng, folder):
    """Kill a writer at random moments between its begin and somewhat after its end."""
    path, counts = folder / writer.name, Counter()
    writer.write(growths, 1, path)
    begin = time.perf_counter()
    writer.write(growths, 2, path)
    usual, old = time.perf_counter() - begin, 2
    for _ in range(trials):
        new = 3 - old
        pid = forked(lambda new=new: writer.write(growths, new, path))
        time.sleep(rng.random() * usual * 1.3)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        found = version_of(writer, path)
        counts["killed" if os.WIFSIGNALED(status) else "was faster"] += 1
        counts[{old: "old", new: "new"}.get(found, "lost")] += 1
        counts["left something behind"] += bool(leftovers(folder, path))
        if found != new or rng.random() < 0.2:
            writer.write(growths, new, path)
            counts["lost"] += version_of(writer, path) != new
            counts["stray files after the next write"] += len(leftovers(folder, path))
        old = new
    return counts


# ------------------------------------------------------------------- full disks


def attempt(writer, growths, path, counts):
    """Write version 2 over version 1 where that can't work."""
    try:
        writer.write(growths, 2, path)
        counts["written all the same"] += 1
    except FxgrowError as error:
        counts["refused"] += 1
        counts["lost"] += "could not be written" not in str(error)
    counts["lost"] += version_of(writer, path) != (2 if counts["written all the same"] else 1)
    counts["stray files"] += len(leftovers(path.parent, path))


@contextlib.contextmanager
def tmpfs(size):
    """A file system of ``size`` bytes; yields None where mounting is not allowed."""
    with tempfile.TemporaryDirectory() as at:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", at]
        try:
            done = subprocess.run(command, check=False, capture_output=True).returncode == 0
        except OSError:
            done = False
        try:
            yield Path(at) if done else None
        finally:
            if done:
                subprocess.run(["umount", at], check=False, capture_output=True)


def full_disks(writer, growths, rng, trials):
    """The disk has room for the old file and a random part of the new one."""
    counts = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        writer.write(growths, 1, Path(scratch) / writer.name)
        needed = sum(path.stat().st_size for path in Path(scratch).iterdir())
    for _ in range(trials):
        with tmpfs(int(needed * (1 + 0.9 * rng.random())) + 20_000) as folder:
            if folder is None:
                counts["no mount allowed"] += 1
                continue
            path = folder / writer.name
            writer.write(growths, 1, path)
            fill(folder, needed * rng.random() * 0.9)
            filler = {"filler"}
            attempt(writer, growths, path, each := Counter())
            each["stray files"] -= len(filler)
            counts += each
    return counts


def fill(folder, leave):
    """Write a file that leaves ``leave`` bytes free."""
    free = os.statvfs(folder)
    size = max(free.f_bavail * free.f_frsize - int(leave), 0)
    (folder / "filler").write_bytes(bytes(size))


def limits(writer, growths, rng, trials, folder):
    """Files may only be of a random part of the size that is needed."""
    path, counts = folder / writer.name, Counter()
    writer.write(growths, 1, path)
    largest = max(each.stat().st_size for each in folder.iterdir())
    for _ in range(trials):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest * rng.random() * 0.95), -1))
        try:
            attempt(writer, growths, path, each := Counter())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        counts += each
    return counts


def closed_folders(writer, growths, folder):
    """The folder can't be written to, by its mode (as nobody) and by its mount."""
    path, counts = folder / writer.name, Counter()
    writer.write(growths, 1, path)
    if os.geteuid() == 0:
        folder.chmod(0o555)
        os.seteuid(NOBODY)
        try:
            attempt(writer, growths, path, counts)
        finally:
            os.seteuid(0)
            folder.chmod(0o755)
    with tmpfs(64 * 2**20) as mounted:
        if mounted is None:
            counts["no mount allowed"] += 1
            return counts
        path = mounted / writer.name
        writer.write(growths, 1, path)
        command = ["mount", "-o", "remount,ro", str(mounted)]
        subprocess.run(command, check=True, capture_output=True)
        attempt(writer, growths, path, counts)
    return counts


# ------------------------------------------------------------------- many at once


def many(writer, growths, folder, writers=4, rounds=6):
    """Several processes write the same file over and over, another one reads it."""
    path, counts = folder / writer.name, Counter()
    writer.write(growths, 1, path)

    def work(number):
        for each in range(rounds):
            writer.write(growths, VERSIONS[(number + each) % 2], path)

    pids = {forked(lambda n=n: work(n)) for n in range(writers)}
    while pids:
        found = version_of(writer, path)
        counts["read whole"] += found in VERSIONS
        counts["lost"] += found not in VERSIONS
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in pids:
            pids.discard(pid)
            counts["writes"] += rounds
            counts["lost"] += status != 0
    counts["stray files"] += len(leftovers(folder, path))
    return counts


# ------------------------------------------------------------------- all of it


def in_folder(action, *arguments):
    with tempfile.TemporaryDirectory() as at:
        return action(*arguments, Path(at))


def everything(kill_trials, seed=0, names=tuple(WRITERS), others=6):
    """Run all faults on the writers named; return counts by fault and writer."""
    rng = random.Random(seed)
    growths = {version: growth_of(version) for version in VERSIONS}
    each = -(-kill_trials // len(names))
    found = {}
    for name in names:
        writer = WRITERS[name]
        found[name] = {
            "SIGKILL": in_folder(kills, writer, growths, each, rng),
            "full disk": full_disks(writer, growths, rng, others),
            "limit on the file size": in_folder(limits, writer, growths, rng, others),
            "read-only folder": in_folder(closed_folders, writer, growths),
            "many at once": in_folder(many, writer, growths),
        }
        sys.stderr.write(f"{name}: { ({k: dict(v) for k, v in found[name].items()}) }\n")
    return found


def bad(found):
    """How much was lost, or left behind for good."""
    keys = ("lost", "stray files", "stray files after the next write", "written all the same")
    return sum(
        counts[key] for faults in found.values() for counts in faults.values() for key in keys
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60, help="over all writers together")
    parser.add_argument("--others", type=int, default=6, help="full disks a writer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    found = everything(arguments.kills, arguments.seed, others=arguments.others)
    result = {
        "seed": arguments.seed,
        "seconds": round(time.perf_counter() - begin, 1),
        "bad": bad(found),
        "writers": {n: {f: dict(c) for f, c in faults.items()} for n, faults in found.items()},
    }
    text = json.dumps(result, indent=1) + "\n"
    if arguments.output:
        io.atomic_write(arguments.output, lambda file: file.write_text(text, encoding="utf-8"))
    sys.stdout.write(text)
    raise SystemExit(1 if result["bad"] else 0)


if __name__ == "__main__":
    main()
