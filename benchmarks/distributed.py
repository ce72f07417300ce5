"""What a growth step costs on one and on two processes.

Each setting is a process group of its own on this machine: an epoch of training, then growth
(analysis and votes; insertion, calibration and one epoch of adjusting a group; settling,
i.e. comparing checksums), then migrating and wrapping again. The same global batches
everywhere. ``exchange`` is one averaging of all gradients with its status round,
measured apart. ``python benchmarks/distributed.py [--model resnet18] [--json FILE]``
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fxgrow
from fxgrow.distributed import Team
from fxgrow.wrapping import move_optimizer

SETTINGS = ((1, "plain"), (2, "ddp"), (2, "fsdp2"))
COLUMNS = ("epoch", "growth", "votes", "adjusting", "settling", "migrate", "rewrap", "exchange")


def cnn():
    layers, channels = [], (3, 32, 64, 64)
    for narrow, wide in pairwise(channels):
        layers += [nn.Conv2d(narrow, wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def build(name):
    torch.manual_seed(0)
    if name == "cnn":
        return cnn()
    from torchvision import models

    return models.get_model(name, weights=None, num_classes=10)


def share(batches, batch_size, rank, size):
    generator = torch.Generator().manual_seed(0)
    drawn = [
        (
            torch.randn(batch_size, 3, 32, 32, generator=generator),
            torch.randint(10, (batch_size,), generator=generator),
        )
        for _ in range(batches)
    ]
    return [(x.chunk(size)[rank], y.chunk(size)[rank]) for x, y in drawn]


def sharded(model):
    for child in list(model.children()):
        if any(True for _ in child.parameters()):
            fully_shard(child)
    return fully_shard(model)


WRAPS = {"plain": lambda model: model, "ddp": DistributedDataParallel, "fsdp2": sharded}


def timed(action):
    begin = time.perf_counter()
    result = action()
    return time.perf_counter() - begin, result


def train(model, optimizer, data):
    for inputs, targets in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


class Stages:
    """Seconds from one stage's first report to the end of its last."""

    def __init__(self):
        self.ends = {}
        self.begin = time.perf_counter()

    def __call__(self, stage, done, total):
        self.ends[stage.partition(":")[0].partition(" ")[0]] = time.perf_counter() - self.begin


def exchange(model, team):
    grads = [torch.zeros_like(p) for p in model.parameters()]
    return statistics.median(
        timed(lambda: team.mean(grads, 1.0, "a benchmark"))[0] for _ in range(5)
    )


def worker(options):
    rank, size = options.rank, options.size
    dist.init_process_group(
        "gloo", init_method=f"file://{options.meeting}", rank=rank, world_size=size
    )
    team = Team(None, rank, size)
    data = share(options.batches, options.batch_size, rank, size)
    plain = build(options.model)
    apart = exchange(plain, team)
    model = WRAPS[options.kind](plain)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, data[:1])
    epoch, _ = timed(lambda: train(model, optimizer, data))
    stages = Stages()
    growth_seconds, growth = timed(
        lambda: fxgrow.expand(
            model, data, budget=options.budget, progress=stages, process_group=team
        )
    )

    def migrate():
        move_optimizer(optimizer, model, growth.sources)
        growth.migrate(optimizer, fill="mean")

    migrating, _ = timed(migrate)
    wrapping, wrapped = timed(lambda: fxgrow.rewrap(growth.module, like=model, optimizer=optimizer))
    train(wrapped, optimizer, data[:1])
    votes, adjusted = stages.ends["vote"], stages.ends["adjust"]
    first = growth.report["adjusting"]["groups"]
    result = {
        "processes": size,
        "kind": options.kind,
        "epoch": epoch,
        "growth": growth_seconds,
        "votes": votes,
        "adjusting": adjusted - votes,
        "settling": growth_seconds - adjusted,
        "groups": len(first),
        "migrate": migrating,
        "rewrap": wrapping,
        "exchange": apart,
    }
    if rank == 0:
        Path(options.result).write_text(json.dumps(result), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def measure(size, kind, options):
    with tempfile.TemporaryDirectory() as folder:
        common = ["--model", options.model, "--batches", str(options.batches)]
        common += ["--batch-size", str(options.batch_size), "--budget", str(options.budget)]
        common += ["--size", str(size), "--kind", kind, "--meeting", f"{folder}/meeting"]
        common += ["--result", f"{folder}/result.json"]
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, *common, "--rank", str(rank)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(size)
        ]
        codes = [process.wait(timeout=options.timeout) for process in processes]
        if any(codes):
            raise SystemExit(f"{size} × {kind}: exit codes {codes}")
        return json.loads(Path(folder, "result.json").read_text(encoding="utf-8"))


def table(rows):
    yield " ".join(["processes", " kind", *(f"{name:>10}" for name in COLUMNS), "growth/epoch"])
    for row in rows:
        values = " ".join(f"{row[name]:9.3f}s" for name in COLUMNS)
        ratio = row["growth"] / row["epoch"]
        yield f"{row['processes']:9d} {row['kind']:>5} {values} {ratio:11.1f}×"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cnn", help="cnn, or a name of torchvision")
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64, help="of all processes together")
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=500)
    parser.add_argument("--json", type=Path)
    for name in ("--kind", "--meeting", "--result"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def median_of(rows):
    """Median of each figure over the repeats."""
    fixed = ("processes", "kind", "groups")
    return {
        key: value if key in fixed else statistics.median(row[key] for row in rows)
        for key, value in rows[0].items()
    }


def main():
    options = arguments()
    if options.rank is not None:
        worker(options)
        return
    runs = {setting: [] for setting in SETTINGS}
    for _ in range(options.repeats):  # in turns, so that a noisy machine slows all
        for setting, rows in runs.items():
            rows.append(measure(*setting, options))
    medians = [median_of(rows) for rows in runs.values()]
    print(
        f"{options.model}, {options.batches} batches of {options.batch_size}, "
        f"{options.budget} neurons, median of {options.repeats}, torch {torch.__version__}, "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    )
    for line in table(medians):
        print(line)
    if options.json:
        about = {"torch": torch.__version__, "cpus": os.cpu_count(), "load": os.getloadavg()}
        text = json.dumps({"about": about, "settings": medians}, indent=2)
        options.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
