"""Throw damaged files at every reader, and count what comes of it.

``python benchmarks/fuzz.py --runs 1000000 --output docs/fuzz.json``

An execution makes one file out of good ones, of hostile ones (``tests/hostile.py``) and of
random changes, and reads it. It is *read* (the file is still good), *refused* (one error
of ours) or **lost**: any other exception, code run (seen by an audit hook), more than
``SECONDS``, or a process that dies or takes more than ``MEBIBYTES``. Runs are
deterministic: execution ``i`` of a target depends on ``--seed`` and ``i`` alone, so
``--only TARGET:i`` repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import pickletools
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path

import torch
from torch import nn

import fxgrow
from fxgrow import io
from fxgrow.errors import FxgrowError
from fxgrow.files.stored import open_stored
from fxgrow.recipes import read_recipe

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
import hostile

SECONDS, MEBIBYTES = 5.0, 1024
CHUNK = 20_000  # executions a process
MOST_ADDRESSES = 16 * 2**30  # bytes; a process that runs away ends, and is counted
KEPT = 20  # lost files that are written down

# ------------------------------------------------------------------- changes

INTERESTING = [0, 1, -1, 2, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**63 - 1]
VALUES = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan")),
    *(float("inf"), "", "x", "..", "../../x", "a\0b", "\x1b[2J", "\u202e", "\ud800", "\u0441onv"),
    *("conv.weight", "fxgrow.file/1", "fxgrow.file/2", "F64", "BOOL", "int64", "nn", "graph"),
    *([], {}, [[]], [1, 2], {"a": 1}, ["conv"], {"": ""}, [1] * 70),
]
CODES = [
    *(b"cposix\nsystem\n", b"(S'touch ran'\ni", b"cbuiltins\nbytearray\n", b"c_codecs\nencode\n"),
    *(b"R", b"t", b"(", b".", b"b", b"u", b"e", b"s", b"a", b"o", b"0", b"2", b"\x81", b"\x85"),
    *(b"\x86", b"\x87", b"Q", b"}", b"]", b")", b"h\x00", b"h\x01", b"q\x00", b"K\xff", b"N"),
    *(b"J\xff\xff\xff\x7f", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8c\x03abc", b"\x93"),
    *(b"X\x03\x00\x00\x00abc", b"X\xff\xff\xff\xff", b"\x80\x04", b"\x88", b"\x89", b"\x8f"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ctorch\nTensor\n"),
    *(b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch.nn.parameter\nParameter\n"),
    *(b"ccollections\nOrderedDict\n", b"ctorch._tensor\n_rebuild_from_type_v2\n"),
]


def bytes_changed(data, rng, others, tokens=()):
    """Change some bytes: flips, numbers, cuts, copies, and pieces of other files."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            number = rng.choice(INTERESTING) + rng.randrange(-1, 2)
            size = rng.choice((1, 2, 4, 8))
            part = (number % 256**size).to_bytes(size, rng.choice(("little", "big")))
            data[place : place + size] = part
        elif kind == 2:
            del data[place : place + rng.choice((1, 2, 16, 200))]
        elif kind == 3:
            length = rng.choice((1, 4, 30))
            data[place:place] = data[place : place + length]
        elif kind == 4:
            other = rng.choice(others)
            begin = rng.randrange(len(other) + 1)
            data[place:place] = other[begin : begin + rng.choice((1, 8, 60))]
        elif kind == 5:
            data[place:place] = rng.randbytes(rng.choice((1, 2, 8)))
        elif kind == 6 and tokens:
            data[place : place + rng.choice((0, 0, 1, 2))] = rng.choice(tokens)
        else:
            del data[place if rng.random() < 0.3 else len(data) :]
    return bytes(data)


def opcodes(pickled):
    """Cut a pickle into its instructions; one piece if that can't be done."""
    try:
        places = [place for _, _, place in pickletools.genops(pickled)]
    except (ValueError, LookupError):
        return [pickled]
    return [pickled[a:b] for a, b in zip(places, [*places[1:], len(pickled)], strict=True)]


def opcodes_changed(pieces, rng):
    """Change some instructions of a pickle, so that the others still run."""
    pieces = list(pieces)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(pieces))
        kind = rng.randrange(5)
        if kind == 0:
            pieces[place] = rng.choice(CODES)
        elif kind == 1:
            pieces.insert(place, rng.choice(CODES))
        elif kind == 2:
            pieces.insert(place, rng.choice(pieces))
        elif kind == 3 and len(pieces) > 1:
            del pieces[place]
        else:
            pieces[place] = bytes_changed(pieces[place], rng, pieces)
    return b"".join(pieces)


def json_changed(value, rng, stop=0.02):
    """Change one place of a JSON value, chosen on a walk from its root."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < stop:
        return rng.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    value = dict(value) if isinstance(value, dict) else list(value)
    kind = rng.random()
    if kind < 0.1:
        del value[key]
    elif kind < 0.2 and isinstance(value, dict):
        value[str(rng.choice([*keys, *VALUES]))] = value.pop(key)
    elif kind < 0.25 and isinstance(value, list):
        value.insert(0, value[key])
    else:
        value[key] = json_changed(value[key], rng, 0.15)
    return value


def json_text(value, rng):
    """Write JSON; now and then with a change of its bytes."""
    text = json.dumps(value).encode()
    return bytes_changed(text, rng, [text]) if rng.random() < 0.2 else text


# ------------------------------------------------------------------- targets


class Small(nn.Module):
    """A model that every growth file here belongs to."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(12, 2)
        self.register_buffer("twist", torch.zeros(2, dtype=torch.complex128))
        self.register_buffer("shift", torch.zeros(3), persistent=False)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


@dataclass
class Corpus:
    """Good and hostile files to begin with, in a folder on no disk."""

    folder: Path
    growth: bytes = b""
    plan: object = None
    index: object = None
    zips: list = field(default_factory=list)
    olds: list = field(default_factory=list)
    raws: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    cut: list = field(default_factory=list)
    good: list = field(default_factory=list)
    report: dict = field(default_factory=dict)
    byhand: dict = field(default_factory=dict)
    records: list = field(default_factory=list)
    base: nn.Module | None = None


def corpus(folder):
    """Write the good files once, and gather all the others."""
    torch.manual_seed(0)
    made = Corpus(folder, base=Small())
    growth = fxgrow.widen(made.base, torch.zeros(1, 1, 4, 4), {"conv": 2})
    growth.save(folder / "g.safetensors")
    growth.save(folder / "g.json")
    io.save(growth, folder / "m.safetensors.index.json", max_shard_size=200)
    made.growth = (folder / "g.safetensors").read_bytes()
    made.plan = json.loads((folder / "g.json").read_text())
    del made.plan["sha256"]
    made.report = json.loads(json.dumps(growth.report, default=str))
    made.byhand = {"additions": {"conv": 2, "fc": 1}, "seed": 3}
    made.index = json.loads((folder / "m.safetensors.index.json").read_text())
    state = {"state_dict": made.base.state_dict(), "epoch": 3, "lr": [0.1, None], "b": b"\xff"}
    for new in (True, False):
        torch.save(state, folder / "s.pt", _use_new_zipfile_serialization=new)
        (made.zips if new else made.olds).append((folder / "s.pt").read_bytes())
    hostiles = hostile.pickles()
    made.zips += [*(v for k, v in hostiles.items() if "zip" in k), *hostile.archives().values()]
    made.olds += [v for k, v in hostiles.items() if "old" in k or k == "System, tar"]
    made.raws = [*hostile.RAW.values(), pickle.dumps({"a": [1, 2.5, "x", b"y", None]}, 2)]
    made.headers = [*hostile.headers().values(), made.growth]
    small = {n: [v for v in getattr(made, n) if len(v) < 20_000] for n in ("zips", "olds", "raws")}
    made.zips, made.olds, made.raws = small["zips"], small["olds"], small["raws"]
    made.headers = [each for each in made.headers if 8 < len(each) < 20_000]
    made.cut = [opcodes(each) for each in made.raws]
    with zipfile.ZipFile(BytesIO(made.zips[0])) as archive:
        made.good = opcodes(archive.read("s/data.pkl"))
        names = [n for n in archive.namelist() if n.startswith("s/data/")]
        made.records = [(name.rpartition("/")[2], archive.read(name)) for name in names]
    return made


def _header(data):
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def safetensors(made, rng):
    """A growth file with a changed header, description or bytes."""
    kind = rng.random()
    if kind < 0.3:
        data = rng.choice(made.headers)
        return "f.safetensors", bytes_changed(data, rng, made.headers)
    header, body = _header(made.growth)
    if kind < 0.6:
        return "f.safetensors", hostile.packed(json_text(json_changed(header, rng), rng), body)
    meta = json_changed(json.loads(header["__metadata__"]["fxgrow"]), rng)
    header["__metadata__"] = {"fxgrow": json_text(meta, rng).decode("utf-8", "replace")}
    return "f.safetensors", hostile.packed(header, body)


def plan(made, rng):
    """A plan file with changed fields, or a hostile one with changed bytes."""
    if rng.random() < 0.1:
        text = rng.choice([v for v in hostile.RAW_PLANS.values() if len(v) < 1000]).encode()
        return "f.json", bytes_changed(text, rng, [text])
    value = made.plan
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = json_changed(value, rng)
    return "f.json", json_text(value, rng)


def index(made, rng):
    """An index of shards that are there."""
    return "m.safetensors.index.json", json_text(json_changed(made.index, rng), rng)


def zipped(made, rng):
    """A zip archive with changed bytes, or a sound one around a changed pickle."""
    if rng.random() < 0.4:
        return "f.pt", bytes_changed(rng.choice(made.zips), rng, made.zips)
    return "f.pt", hostile.zipped(_pickled(made, rng), made.records)


def _pickled(made, rng):
    """A changed pickle: of a good file in half of all cases."""
    pieces = made.good if rng.random() < 0.5 else rng.choice(made.cut)
    if rng.random() < 0.2:
        return bytes_changed(b"".join(pieces), rng, made.raws, CODES)
    return opcodes_changed(pieces, rng)


def old(made, rng):
    """The older format of torch.save, and tar files."""
    if rng.random() < 0.5:
        return "f.pt", bytes_changed(rng.choice(made.olds), rng, made.olds, CODES)
    if rng.random() < 0.5:
        return "f.pt", hostile.legacy(_pickled(made, rng))
    return "f.pt", hostile.legacy(b"\x80\x02}.", _pickled(made, rng))


def growth(made, rng):
    """Numbers and names of a sound description, to be replayed on a model."""
    value = json.loads(json.dumps(made.plan))
    step = value["steps"][0]
    part = rng.choice(("additions", "inputs", "step", "any"))
    if part == "additions":
        step["plan"]["additions"] = {
            rng.choice(("conv", "fc", "norm", "x")): rng.choice((0, 1, 2, 3, 3000, 2**31))
        }
    elif part == "inputs":
        value["inputs"]["args"][0]["shape"] = [rng.choice((0, 1, 4, 5, 2**20)) for _ in range(4)]
    elif part == "step":
        value["steps"] = [step] * rng.randrange(4)
    else:
        value = json_changed(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.5:
        return "f.json", text.encode()
    header, body = _header(made.growth)
    meta = value if isinstance(value, dict) else {}
    meta |= {k: v for k, v in json.loads(header["__metadata__"]["fxgrow"]).items() if k in {
        "aliases", "transient", "bytes", "digests"}}  # fmt: skip
    header["__metadata__"] = {"fxgrow": json.dumps(meta)}
    return "f.safetensors", hostile.packed(header, body)


def recipe(made, rng):
    """A report of a growth, or additions by hand, with changed fields or bytes."""
    value = made.report if rng.random() < 0.6 else made.byhand
    if rng.random() < 0.1:
        text = json.dumps(value).encode()
        return "f.json", bytes_changed(text, rng, [text])
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = json_changed(value, rng)
    return "f.json", json_text(value, rng)


def _stored(made, path):
    open_stored(path).tensors() if path.suffix != ".json" or "index" in path.name else (
        open_stored(path)
    )


def _grown(made, path):
    if path.suffix == ".json":
        fxgrow.apply(path, made.base, any_weights=True, verify=False)
    else:
        fxgrow.load(path, made.base)


# name: (makes a file, reads it, share of the executions)
TARGETS = {
    "safetensors": (safetensors, _stored, 0.35),
    "plan": (plan, _stored, 0.3),
    "recipe": (recipe, lambda made, path: read_recipe(path), 0.05),
    "index": (index, _stored, 0.1),
    "zip": (zipped, lambda made, path: io.open_pickle(path), 0.1),
    "old": (old, lambda made, path: io.open_pickle(path), 0.0985),
    "growth": (growth, _grown, 0.0015),
}

# ------------------------------------------------------------------- execution


RUNS_CODE = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen")
RUNS_CODE += ("pickle.find_class", "socket.connect", "os.remove", "os.rename", "os.mkdir")
SEEN: list[str] = []
WATCHING = [False]


def watch(event, _arguments):
    if WATCHING[0] and event.startswith(RUNS_CODE):
        SEEN.append(event)


@dataclass
class Tally:
    """Outcomes of the executions of one target."""

    executions: int = 0
    read: int = 0
    refused: int = 0
    lost: int = 0
    slowest: float = 0.0
    mebibytes: float = 0.0
    reasons: Counter = field(default_factory=Counter)
    losses: list = field(default_factory=list)

    def add(self, other):
        for name in ("executions", "read", "refused", "lost"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest = max(self.slowest, other.slowest)
        self.mebibytes = max(self.mebibytes, other.mebibytes)
        self.reasons += other.reasons
        self.losses = [*self.losses, *other.losses][:KEPT]

    def lose(self, number, why):
        self.lost += 1
        if len(self.losses) < KEPT:
            self.losses.append({"execution": number, "why": why})


def reason(error):
    """The message without what differs from file to file."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\d.,e+]*|/\S+", "#", str(error))
    return " ".join(text.split())[:60]


def execute(target, data_of, made, number, tally):
    """Make a file, read it, and sort what happened."""
    read = TARGETS[target][1]
    name, data = data_of(number)
    path = made.folder / name
    path.write_bytes(data)
    begin = time.process_time()  # of this process, whatever else runs
    tally.executions += 1
    WATCHING[0] = True
    signal.setitimer(signal.ITIMER_PROF, SECONDS * 4)  # kills the process; the parent counts it
    try:
        read(made, path)
        tally.read += 1
    except FxgrowError as error:
        tally.refused += 1
        tally.reasons[reason(error)] += 1
    except Exception as error:  # noqa: BLE001  whatever it is, it is lost
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        tally.lose(number, f"{type(error).__name__}: {str(error)[:200]} ({where})")
    finally:
        WATCHING[0] = False
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - begin
    tally.slowest = max(tally.slowest, seconds)
    if seconds > SECONDS:
        tally.lose(number, f"took {seconds:.1f} s")
    if SEEN:
        tally.lose(number, f"ran code: {SEEN[:3]}")
        SEEN.clear()


def maker(target, made, seed):
    """Return the function of the execution's number that makes its file."""

    def data_of(number):
        return TARGETS[target][0](made, random.Random(f"{seed} {target} {number}"))

    return data_of


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def chunk(target, made, seed, numbers):
    """Execute some numbers in a process of their own, which may die of it."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(out)
        status = 1
        with contextlib.suppress(BaseException):
            torch.set_num_threads(1)  # the threads of the parent are not in the fork
            resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
            tally, before = Tally(), peak()
            data_of = maker(target, made, seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for number in numbers:
                    execute(target, data_of, made, number, tally)
            tally.mebibytes = max(peak() - before, 0.0)
            with os.fdopen(into, "wb") as file:
                pickle.dump(tally, file)
            status = 0
        os._exit(status)
    os.close(into)
    with os.fdopen(out, "rb") as file:
        answer = file.read()
    _, status = os.waitpid(pid, 0)
    if not answer:
        tally = Tally(executions=len(numbers))
        tally.lose(numbers[0], f"the process died (status {status}) in {numbers[0]}..{numbers[-1]}")
        return tally
    tally = pickle.loads(answer)
    if tally.mebibytes > MEBIBYTES:
        tally.lose(numbers[0], f"took {tally.mebibytes:.0f} MiB in {numbers[0]}..{numbers[-1]}")
    return tally


def fuzz(runs, seed=0, targets=tuple(TARGETS), size=CHUNK, progress=None):
    """Execute ``runs`` files, spread over the targets by their shares; return the tallies."""
    tallies = {name: Tally() for name in targets}
    whole = sum(TARGETS[name][2] for name in targets)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as at:
        made = corpus(Path(at))
        for name in targets:
            count = max(round(runs * TARGETS[name][2] / whole), 1)
            for begin in range(0, count, size):
                numbers = range(begin, min(begin + size, count))
                tallies[name].add(chunk(name, made, seed, numbers))
                if progress is not None:
                    progress(name, numbers.stop, count, tallies[name])
    return tallies


def once(which, seed):
    """Repeat one execution here, and let its exception out."""
    target, _, number = which.partition(":")
    with tempfile.TemporaryDirectory() as at:
        made = corpus(Path(at))
        name, data = maker(target, made, seed)(int(number))
        sys.stderr.write(f"{name}: {data[:2000]!r}\n")
        (Path(at) / name).write_bytes(data)
        TARGETS[target][1](made, Path(at) / name)


def summary(tallies, seed, seconds):
    rows = {}
    for name, tally in tallies.items():
        row = asdict(tally)
        row["reasons"] = dict(tally.reasons.most_common(25))
        row["different reasons"] = len(tally.reasons)
        row["slowest"] = round(tally.slowest, 4)
        row["mebibytes"] = round(tally.mebibytes, 1)
        rows[name] = row
    total = {
        key: sum(getattr(tally, key) for tally in tallies.values())
        for key in ("executions", "read", "refused", "lost")
    }
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "limits": {"seconds": SECONDS, "mebibytes": MEBIBYTES},
        "total": total,
        "targets": rows,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--only", metavar="TARGET:NUMBER", help="repeat one execution")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only:
        once(arguments.only, arguments.seed)
        return
    sys.addaudithook(watch)

    def progress(name, done, count, tally):
        sys.stderr.write(f"{name}: {done} of {count}, lost {tally.lost}, {tally.losses[:3]}\n")

    begin = time.perf_counter()
    tallies = fuzz(arguments.runs, arguments.seed, tuple(arguments.targets), progress=progress)
    result = summary(tallies, arguments.seed, time.perf_counter() - begin)
    text = json.dumps(result, indent=1) + "\n"
    if arguments.output:
        io.atomic_write(arguments.output, lambda file: file.write_text(text, encoding="utf-8"))
    sys.stdout.write(text)
    raise SystemExit(1 if result["total"]["lost"] else 0)


if __name__ == "__main__":
    main()
