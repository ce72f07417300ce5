"""What voting and adjusting cost, in plain training steps: time and peak memory per batch.

    python benchmarks/cost.py        # docs/cost.md and benchmarks/results/cost.json

Every figure comes from a process of its own, so that peaks of memory do not mix. Voting is
compared with plain steps of the model before growth, adjusting with plain steps of the widened
model. The published formulation (2K candidates for every layer; one coupling vector for each
pair of rows) is measured where it fits into the memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import fxgrow
from fxgrow.ballot import candidate_count
from fxgrow.rewrite import rewrite
from fxgrow.swe import adjust
from fxgrow.vote import fill_candidates, gate_gradients_by_batch, train_candidates

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 512
BATCH, SIZE, REPEATS = 8, 64, 8
PAGE = """# Cost of voting and adjusting

Written by `python benchmarks/cost.py` ({where}); do not edit. Batches of {batch} images of
{size} x {size}, budget {budget} neurons, medians of {repeats} batches. "Plain step": forward,
backward and an Adam step of the model named. Memory is the peak of the process above that of the
plain steps of the same model.

| model | what | ms a batch | plain step (ms) | ratio | memory above plain steps (MB) |
|---|---|--:|--:|--:|--:|
{rows}
"""


def resnet50():
    import torchvision

    return torchvision.models.resnet50()


def vit12():
    from torchvision.models import VisionTransformer

    return VisionTransformer(SIZE, 8, 12, 6, 384, 1536)


MODELS = {"resnet50": resnet50, "ViT of 12 layers, 384 wide": vit12}


def batch():
    return torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(1000, (BATCH,))


class Clock:
    """A data set of one batch, repeated, that takes the time between its batches."""

    def __init__(self):
        self.data, self.times, self.last = batch(), [], None

    def __len__(self):
        return REPEATS + 1

    def __iter__(self):
        for _ in range(len(self)):
            start = time.perf_counter()
            yield self.data
            self.times.append(time.perf_counter() - start)

    @property
    def median(self):
        return statistics.median(self.times[1:])


def plain(module):
    """Seconds of a plain step."""
    optimizer = torch.optim.Adam(module.train().parameters(), lr=1e-3, fused=True)
    clock = Clock()
    for x, y in clock:
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    return clock.median


def clone(model, candidates):
    """The clone that votes."""
    inspection = fxgrow.inspect(model, batch()[0][:2])
    counts = candidate_count(inspection.groups, BUDGET, candidates)
    return rewrite(model, inspection, counts)


def voting(model, candidates):
    """Seconds a batch of both passes of the vote."""
    grown = clone(model, candidates)
    fill_candidates(grown.module, grown.groups, torch.Generator().manual_seed(0))
    train, judge = Clock(), Clock()
    train_candidates(grown.module, train)
    gate_gradients_by_batch(grown.module, grown.groups, judge)
    return train.median + judge.median


def widened(model):
    """The model with its widest fresh group widened by the budget, and that group."""
    inspection = fxgrow.inspect(model, batch()[0][:2])
    fresh = [g for g in inspection.groups if g.recipe == "fresh" and g.rows_per_unit == 1]
    widest = max(fresh, key=lambda group: group.width)
    return fxgrow.widen(model, batch()[0][:2], {widest.name: BUDGET})


def adjusting(model, coupling):
    """Seconds a batch of the adjusting phase."""
    growth = widened(model)
    clock = Clock()
    adjust(growth.module, growth.groups, clock, coupling=coupling)
    return clock.median


WHAT = {
    "plain step": lambda model: plain(model),
    "plain step, widened": lambda model: plain(widened(model).module),
    "vote": lambda model: voting(model, "auto"),
    "vote, 2K candidates": lambda model: voting(model, "paper"),
    "adjusting, laplacian": lambda model: adjusting(model, "laplacian"),
    "adjusting, pairwise": lambda model: adjusting(model, "pairwise"),
    "adjusting, dense": lambda model: adjusting(model, "dense"),
}
AGAINST = {what: "plain step, widened" for what in WHAT if what.startswith("adjusting")}
AGAINST |= {what: "plain step" for what in WHAT if what.startswith("vote")}


def measure_here(model, what):
    torch.manual_seed(0)
    seconds = WHAT[what](MODELS[model]())
    return {
        "seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure(model, what, timeout):
    """One figure, from a process of its own; none where it takes too long or too much."""
    command = [sys.executable, __file__, "--one", model, what]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {timeout:g} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def row(model, what, found):
    figure, base = found[what], found[AGAINST[what]]
    if "failed" in figure or "failed" in base:
        return f"| {model} | {what} | {figure.get('failed', '')} | | | |"
    ratio = figure["seconds"] / base["seconds"]
    cells = (
        f"{1e3 * figure['seconds']:.0f}", f"{1e3 * base['seconds']:.0f}", f"{ratio:.2f}",
        f"{figure['peak_mb'] - base['peak_mb']:+.0f}",
    )  # fmt: skip
    return f"| {model} | {what} | " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timeout", type=float, default=600, help="seconds a figure")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_here(*options.one)))
        return 0
    found = {}
    for model in MODELS:
        found[model] = {}
        for what in WHAT:
            found[model][what] = measure(model, what, options.timeout)
            print(model, what, found[model][what], flush=True)
    out = ROOT / "benchmarks" / "results" / "cost.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    rows = "\n".join(row(model, what, found[model]) for model in MODELS for what in AGAINST)
    where = f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU"
    text = PAGE.format(
        where=where, batch=BATCH, size=SIZE, budget=BUDGET, repeats=REPEATS, rows=rows
    )
    (ROOT / "docs" / "cost.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
