"""What analysing, widening and adjusting cost, in units anybody knows.

Analysis is compared with forward passes (batch 1, 224 px), widening with deep copies of
its result, an adjusting step (laplacian) with plain training steps of the widened model.
Both sides of a comparison take turns, so that a noisy machine slows both; medians are shown.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F

import fxgrow
from fxgrow.rewrite import rewrite
from fxgrow.swe import adjust

MODELS = ("resnet18", "resnet50", "densenet121", "mobilenet_v3_small", "efficientnet_b0")
SIZE = 224
BOUNDS = {"inspect": 3.0, "rewrite": 3.0, "laplacian step": 1.5}


@dataclass(frozen=True)
class Figure:
    """Median seconds of something, and of what it is measured against."""

    what: str
    model: str
    seconds: float
    against: str
    base_seconds: float
    repeats: int

    @property
    def ratio(self):
        return self.seconds / self.base_seconds

    @property
    def bound(self):
        return BOUNDS.get(self.what)

    def as_dict(self):
        return {**asdict(self), "ratio": self.ratio, "bound": self.bound}


def seconds(action):
    """Duration of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turns(repeats, *actions):
    """Median seconds of each action; they take turns, after one round to warm up."""
    rounds = [[seconds(action) for action in actions] for _ in range(repeats + 1)][1:]
    return tuple(statistics.median(column) for column in zip(*rounds, strict=True))


def build(name):
    """A torchvision model as a user has it: float32, eval mode, random weights."""
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, SIZE, SIZE)


def inspecting(name, repeats=7):
    """``fxgrow.inspect`` (trace, propagation, grouping) against forward passes."""
    model, example = build(name)

    def forward():
        with torch.no_grad():
            model(example)

    base, spent = in_turns(repeats, forward, lambda: fxgrow.inspect(model, example))
    return Figure("inspect", name, spent, "forward", base, repeats)


def widening(name, repeats=7, *, whole=True):
    """Insertion alone, and the ``whole`` of ``fxgrow.widen``, against copies of the result."""
    model, example = build(name)
    inspection = fxgrow.inspect(model, example)
    # An eighth more of everything; streams that grow by whole copies stay as they are.
    additions = {
        g.name: max(g.width // 8 // g.multiple_of, 1) * g.multiple_of
        for g in inspection.groups
        if g.recipe == "fresh"
    }
    result = rewrite(model, inspection, additions).module
    actions = {
        "deepcopy": lambda: copy.deepcopy(result),
        "rewrite": lambda: rewrite(model, inspection, additions),
        "widen, all of it": lambda: fxgrow.widen(model, example, additions),
    }
    if not whole:
        del actions["widen, all of it"]
    base, *spent = in_turns(repeats, *actions.values())
    return [
        Figure(what, name, own, "deepcopy", base, repeats)
        for what, own in zip(list(actions)[1:], spent, strict=True)
    ]


class Alternating:
    """Batches that take a plain training step of ``twin`` before each of them.

    Whoever trains on them takes turns with the twin; ``own`` and ``plain`` are the seconds
    of both sides' steps.
    """

    def __init__(self, twin, batch, count):
        self.twin, self.batch, self.count = twin.train(), batch, count
        self.optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3, fused=True)
        self.own, self.plain = [], []

    def __len__(self):
        return self.count

    def step(self):
        inputs, targets = self.batch
        self.optimizer.zero_grad()
        F.cross_entropy(self.twin(inputs), targets).backward()
        self.optimizer.step()

    def __iter__(self):
        for _ in range(self.count):
            self.plain.append(seconds(self.step))
            start = time.perf_counter()
            yield self.batch
            self.own.append(time.perf_counter() - start)


def adjusting(name, model, batch, group, added, repeats=15):
    """One adjusting step of one group against plain steps of the widened model."""
    growth = fxgrow.widen(model, batch[0], {group: added})
    module = growth.module
    data = Alternating(copy.deepcopy(module), batch, repeats + 1)
    adjust(module, growth.groups, data, coupling="laplacian")
    own, plain = (statistics.median(side[1:]) for side in (data.own, data.plain))
    return Figure("laplacian step", name, own, "plain step", plain, repeats)


def linear_case():
    """The largest layers of the published experiments, 512 to 512, 512 new ones."""
    torch.manual_seed(0)
    layers = [nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    batch = torch.randn(64, 512), torch.randint(10, (64,))
    return "512-512-10, +512", nn.Sequential(*layers), batch, "2", 512


def conv_case():
    """A residual stream of many layers, on small images."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    batch = torch.randn(16, 3, 64, 64), torch.randint(10, (16,))
    return "resnet18 layer3, +64", model, batch, "layer3.0.conv2", 64


def measure(models, repeats):
    """Yield all figures."""
    for name in models:
        yield inspecting(name, repeats)
    for name in models:
        yield from widening(name, repeats)
    for case in (linear_case, conv_case):
        yield adjusting(*case(), repeats=2 * repeats)


def show(figures):
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"medians, {torch.get_num_threads()} threads, {SIZE} px, batch 1")
    for head, side in (("what", "left"), ("model", "left"), ("ms", "right")):
        table.add_column(head, justify=side)
    for head in ("ms of one", "ratio", "bound"):
        table.add_column(head, justify="right")
    for f in figures:
        base = f"{f.base_seconds * 1e3:.1f} ({f.against})"
        bound = "" if f.bound is None else f"{f.bound:g}"
        style = "red" if f.bound is not None and f.ratio > f.bound else None
        row = (f.what, f.model, f"{f.seconds * 1e3:.1f}", base, f"{f.ratio:.2f}", bound)
        table.add_row(*row, style=style)
    Console().print(table)


def options_given():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="torchvision names, timm: before timm's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="JSON in place of the table")
    parser.add_argument("--peer", action="store_true", help="inspect against Torch-Pruning")
    parser.add_argument("--depth", action="store_true", help="residual networks of 18-1202 layers")
    parser.add_argument("--page", action="store_true", help="write docs/speed.md")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # for --peer
    parser.add_argument("--size", type=int, help=f"pixels, {SIZE} if left out (--depth: 32)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for a model's peer")
    return parser.parse_args()


def main():
    options = options_given()
    if options.one or options.peer or options.depth or options.page:
        against_peer(options)
        return
    torch.set_num_threads(options.threads)
    figures = list(measure(options.models or MODELS, options.repeats))
    if options.json:
        print(json.dumps([f.as_dict() for f in figures], indent=2))
    else:
        show(figures)


def against_peer(options):
    """Do what is in files of its own."""
    import speed
    import speed_page

    if options.one:
        speed.measure_one(options.models[0], options.size or SIZE, options.repeats)
    rest = (options.repeats, options.timeout)
    if options.peer:
        speed.run("peer", options.models or speed.MODELS, options.size or SIZE, *rest)
    if options.depth:
        names = [f"depth:{depth}" for depth in options.models or speed.DEPTHS]
        speed.run("depth", names, options.size or 32, *rest)
    if options.page:
        speed_page.page()


if __name__ == "__main__":
    main()
