"""What voting and adjusting cost, in plain training steps: time and peak memory per batch.

    python benchmarks/cost.py            # measures what is missing, writes docs/cost.md
    python benchmarks/cost.py --anew     # forgets what was measured
    python benchmarks/cost.py --page     # only the page

Every figure comes from a process of its own with one thread. A plain training step (forward,
backward, Adam) runs before every batch of what is measured, so that other work on the machine
slows both; the ratio is the median over these pairs. Memory is counted byte by byte from the
allocations that torch's profiler sees, not from the size of the process. Figures lie in
``benchmarks/results/cost.json``; a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import fxgrow
from fxgrow.ballot import candidate_count
from fxgrow.gradmax import maximise_gradients
from fxgrow.rewrite import rewrite
from fxgrow.swe import adjust

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cost.json"
BUDGET, BATCH, SIZE = 512, 16, 64


def resnet50():
    import torchvision

    return torchvision.models.resnet50()


def vit12():
    from torchvision.models import VisionTransformer

    return VisionTransformer(SIZE, 8, 12, 6, 384, 1536)


MODELS = {"resnet50": resnet50, "vit": vit12}


def batch():
    return torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(1000, (BATCH,))


class Pairs:
    """One batch again and again, with a plain step and a look at the clocks before each.

    ``own`` and ``plain`` hold pairs of (wall, processor) seconds, ``own`` by pass over the data.
    """

    def __init__(self, count, data, plain=None):
        self.count, self.data, self.step = count, data, plain
        self.own, self.plain = [], []

    def __len__(self):
        return self.count

    def __iter__(self):
        self.own.append([])
        self.plain.append([])
        for _ in range(self.count):
            start = clocks()
            if self.step:
                self.step(*self.data)
            middle = clocks()
            yield self.data
            self.plain[-1].append(since(start, middle))
            self.own[-1].append(since(middle, clocks()))

    def figures(self):
        """Medians over the pairs, without the first of every pass; passes add up."""
        found = {}
        for name, clock in (("wall", 0), ("cpu", 1)):
            pairs = [
                [(o[clock], p[clock]) for o, p in zip(own[1:], plain[1:], strict=True)]
                for own, plain in zip(self.own, self.plain, strict=True)
            ]
            middle = statistics.median
            found[f"own_{name}"] = sum(middle(o for o, _ in one) for one in pairs)
            found[f"plain_{name}"] = middle(p for one in pairs for _, p in one)
            found[f"ratio_{name}"] = sum(middle(o / p for o, p in one) for one in pairs)
        found["passes"] = [round(middle(o[0] for o in own[1:]), 4) for own in self.own]
        return found


def clocks():
    return time.perf_counter(), time.process_time()


def since(start, end):
    return end[0] - start[0], end[1] - start[1]


def plain_step(module):
    """A function that makes one training step."""
    optimizer = torch.optim.Adam(module.train().parameters(), lr=1e-3, fused=True)

    def step(x, y):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()

    return step


@contextlib.contextmanager
def counted(found, key):
    """Put the peak of the bytes that torch allocates inside the block into ``found[key]``."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield
    events = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    now = peak = 0
    for _, nbytes in sorted(events, key=lambda pair: pair[0]):
        now += nbytes
        peak = max(peak, now)
    found[key] = peak


def passes(module, data, trained=None):
    """Forward and backward without any step: what any training of ``trained`` needs."""
    for parameter in module.parameters():
        parameter.requires_grad_(trained is None or any(parameter is t for t in trained))
    for _ in range(2):
        module.zero_grad()
        F.cross_entropy(module(data[0]), data[1]).backward()
    module.zero_grad()


def size_of(tensors):
    return sum({id(t): t.numel() * t.element_size() for t in tensors}.values())


def voting(model, count, candidates, budget=BUDGET, memory=True):
    """The whole vote, clone included."""
    torch.manual_seed(0)
    net, data = MODELS[model](), batch()
    example = data[0][:2]
    pairs = Pairs(count, data, plain_step(copy.deepcopy(net)))
    options = {"budget": budget, "candidates": candidates, "example_inputs": example}
    start = time.perf_counter()
    fxgrow.vote(net, pairs, **options)
    spent = time.perf_counter() - start
    found = pairs.figures()
    found["once_wall"] = spent - sum(
        wall for times in (*pairs.own, *pairs.plain) for wall, _ in times
    )
    pairs.step = None
    inspection = fxgrow.inspect(net, example)
    clone = rewrite(net, inspection, candidate_count(inspection.groups, budget, candidates))
    found["candidates"] = sum(group.added for group in clone.groups)
    found["model_bytes"] = size_of(net.parameters())
    found["slices_bytes"] = size_of(clone.module.parameters())
    found["aim_bytes"] = 3 * found["slices_bytes"] + size_of(clone.module.buffers())
    if memory:
        with counted(found, "bare_bytes"):
            passes(clone.module.train(), data)
        del clone
        with counted(found, "peak_bytes"):
            fxgrow.vote(net, Pairs(2, data), **options)
        found["extra_bytes"] = found["peak_bytes"] - found["bare_bytes"]
    return found


def widened(net, data, added, widest=True):
    """The network with its widest group (or its first one) wider."""
    inspection = fxgrow.inspect(net, data[0][:2])
    fresh = [g for g in inspection.groups if g.recipe == "fresh" and g.rows_per_unit == 1]
    group = max(fresh, key=lambda g: g.width) if widest else fresh[0]
    return fxgrow.widen(net, data[0][:2], {group.name: added})


def adjusting(model, count, coupling, added=BUDGET, widest=True):
    """The adjusting phase of one group."""
    torch.manual_seed(0)
    return adjusted(MODELS[model](), batch(), count, coupling, added, widest)


def adjusted(net, data, count, coupling, added, widest=True):
    growth = widened(net, data, added, widest)
    pairs = Pairs(count, data, plain_step(copy.deepcopy(growth.module)))
    adjust(growth.module, growth.groups, pairs, coupling=coupling)
    found = pairs.figures()
    tensors = dict(growth.module.named_parameters())
    (group,) = growth.groups
    grown = [tensors[s.tensor] for s in group.slots if s.tensor in tensors]
    rows = [tensors[s.tensor] for s in group.slots if s.role == "producer" and s.tensor in tensors]
    found["group"], found["old"], found["new"] = group.name, group.width, group.added
    found["pairs_entries"] = sum(
        t.numel() // (group.width + group.added) for t in rows
    ) * group.width * group.added  # fmt: skip
    found["model_bytes"] = size_of(tensors.values())
    found["slices_bytes"] = size_of(grown)
    found["aim_bytes"] = 3 * found["slices_bytes"]
    trained = [tensors[name] for name in trained_names(growth, data)]
    with counted(found, "bare_bytes"):
        passes(growth.module, data, trained)
    growth.module.requires_grad_(True)
    with counted(found, "peak_bytes"):
        adjust(growth.module, growth.groups, Pairs(2, data), coupling=coupling)
    found["extra_bytes"] = found["peak_bytes"] - found["bare_bytes"]
    return found


def trained_names(growth, data):
    """What the adjusting phase trains, by its own report."""
    module = copy.deepcopy(growth.module)
    (group,) = adjust(module, growth.groups, Pairs(1, data), coupling="laplacian").groups
    return [*group.coupled, *(name for name in group.trained if name not in group.coupled)]


class Layer(nn.Sequential):
    """One layer that grows, and what reads it."""

    def __init__(self, kind, width):
        if kind == "linear":
            super().__init__(nn.Linear(128, width), nn.ReLU(), nn.Linear(width, 10))
        else:
            tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
            super().__init__(nn.Conv2d(14, width, 3), nn.ReLU(), *tail)


def searching(model, looked_at=4):
    """GradMax's rows of the whole budget, shared evenly, on a few batches; in plain steps.

    Plain steps of the widened model run before and after it, as many as there are batches.
    """
    torch.manual_seed(0)
    net, data = MODELS[model](), batch()
    options = {"budget": BUDGET, "distributor": "uniform", "extender": "zero"}
    growth = fxgrow.expand(net, [data], **options)
    step, plain = plain_step(copy.deepcopy(growth.module)), []
    step(*data)
    few = [data] * looked_at
    for turn in (0, 1):
        for _ in few:
            start = clocks()
            step(*data)
            plain.append(since(start, clocks()))
        if not turn:
            start = clocks()
            maximise_gradients(growth.module, growth.groups, few, look_at=looked_at * BATCH)
            own = since(start, clocks())
    found = {"looked_at": looked_at, "groups": len(growth.groups)}
    for name, clock in (("wall", 0), ("cpu", 1)):
        found[f"own_{name}"] = own[clock] / looked_at
        found[f"plain_{name}"] = statistics.median(p[clock] for p in plain)
        found[f"ratio_{name}"] = found[f"own_{name}"] / found[f"plain_{name}"]
    tensors = dict(growth.module.named_parameters())
    grown = {s.tensor for group in growth.groups for s in group.slots if s.tensor in tensors}
    found["model_bytes"] = size_of(tensors.values())
    found["slices_bytes"] = size_of(tensors[name] for name in grown)
    with counted(found, "bare_bytes"):
        passes(growth.module, data, [tensors[name] for name in grown])
    growth.module.requires_grad_(True)
    with counted(found, "peak_bytes"):
        maximise_gradients(growth.module, growth.groups, [data], look_at=BATCH, steps=1)
    found["extra_bytes"] = found["peak_bytes"] - found["bare_bytes"]
    return found


def sweep(kind, coupling):
    """Adjusting of one layer of several widths, each of which doubles."""
    found = {}
    for width in WIDTHS[coupling]:
        torch.manual_seed(0)
        x = torch.randn(8, 128) if kind == "linear" else torch.randn(8, 14, 4, 4)
        data = x, torch.randint(10, (8,))
        count = 10 if coupling == "laplacian" else 3
        found[width] = adjusted(Layer(kind, width), data, count, coupling, width)
    return found


def cases():
    """All figures: name to function and arguments."""
    found = {f"{model}/vote": (voting, (model, 5, "auto")) for model in MODELS}
    for coupling in WIDTHS:
        for kind in ("linear", "conv"):
            found[f"{kind}/{coupling}"] = (sweep, (kind, coupling))
    for model in MODELS:
        found[f"{model}/adjust laplacian"] = (adjusting, (model, 5, "laplacian"))
    for model in MODELS:
        first = (model, 5, "laplacian", BUDGET, False)
        found[f"{model}/adjust laplacian, first group"] = (adjusting, first)
    for model in MODELS:
        found[f"{model}/gradmax rows"] = (searching, (model,))
    for model in MODELS:
        for budget in PUBLISHED:
            found[f"{model}/vote as published, {budget}"] = (
                voting, (model, 2, "paper", budget, False),
            )  # fmt: skip
    return found


PUBLISHED = (32, 64, 128)
"""Budgets whose published clones fit into memory and time."""
LIMIT = 900
"""Seconds for one figure."""
WIDTHS = {
    "laplacian": (512, 1024, 2048, 4096, 8192),
    "pairwise": (128, 256, 512),
    "dense": (64, 128, 256),
}


def measure_here(name):
    function, arguments = cases()[name]
    return function(*arguments)


def measure(name):
    """One figure, from a process of its own; a reason where it takes too long or too much."""
    command = [sys.executable, __file__, "--one", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LIMIT} s"}
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if "USDT" not in line]
        return {"failed": lines[-1][:200] if lines else f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help="figures whose names hold this")
    parser.add_argument("--anew", action="store_true", help="measure again what was measured")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(measure_here(options.one)))
        return 0
    found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    for name in cases():
        if options.page or options.only not in name or (name in found and not options.anew):
            continue
        found[name] = measure(name)
        options.out.write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")
        print(name, found[name], flush=True)
    if options.out == RESULTS:
        import cost_page

        cost_page.write(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
