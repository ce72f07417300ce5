"""What was tried on the way to the default extender, judged on validation data only.

    python benchmarks/explore.py --decays                    # AdamW's decay, by task
    python benchmarks/explore.py --tasks mnist-mlp --seeds 2

The harness is that of ``growth.py``; seeds are others than its own, and test data are not looked
at. One line of JSON a run lies in ``benchmarks/results/explore.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import growth
import numpy as np
import torch
from growth_tasks import DATA, TASKS
from torch.nn import functional as F

import fxgrow
from fxgrow.gradmax import maximise_gradients
from fxgrow.rows import activate_rows
from fxgrow.swe import adjust

RESULTS = growth.ROOT / "benchmarks" / "results" / "explore.jsonl"
DECAYS = (0.03, 0.1, 0.3, 1.0, 3.0)
FIRST_SEED = 10
LONGEST = 80

# Options of growth as in growth.py, and of this file (``OWN``).
VARIANTS = {
    "zero": {"extender": "zero"},
    "active": {"extender": "active"},
    "active, norm x 0.5": {"extender": "active", "norm": 0.5},
    "active, norm x 2": {"extender": "active", "norm": 2.0},
    "active, outgoing small": {"extender": "active", "noise": 1e-2},
    "active, on for 80 %": {"extender": "active", "on": 0.8},
    "active, lr warm-up": {"extender": "active", "warm": True},
    "active, revival": {"extender": "active", "revive": True},
    "active, shrink 0.8": {"extender": "active", "shrink": (0.8, 0.0)},
    "active, shrink and perturb": {"extender": "active", "shrink": (0.8, 0.1)},
    "laplacian": {"rows": "kaiming", "coupling": "laplacian"},
    "laplacian, active": {"rows": "active", "coupling": "laplacian"},
    "laplacian, active, revival": {"rows": "active", "coupling": "laplacian", "revive": True},
    "pairwise, then laplacian, active": {"rows": "active", "coupling": "pairwise", "late": True},
    "paper": {"rows": "kaiming", "paper": True},
    "paper, active": {"extender": "active", "paper_after": True},
    "gradmax": {"extender": "gradmax"},
    "laplacian, gradmax": {"rows": "gradmax", "coupling": "laplacian"},
    "laplacian, active, norm x 2": {"extender": "active", "strong": 2.0},
    "shrink, laplacian, active, norm x 2": {
        "extender": "active",
        "shrink": (0.8, 0.0),
        "strong": 2.0,
    },
    "shrink and perturb, laplacian, active, norm x 2": {
        "extender": "active",
        "shrink": (0.8, 0.1),
        "strong": 2.0,
    },
    "shrink, laplacian, active": {"rows": "active", "shrink": (0.8, 0.0)},
    "shrink, laplacian, gradmax": {"rows": "gradmax", "shrink": (0.8, 0.0)},
    "shrink and perturb, laplacian, gradmax": {"rows": "gradmax", "shrink": (0.8, 0.1)},
}
for how in ("zero", "mean"):  # moments of new entries, where AdamW is not begun anew
    VARIANTS[f"gradmax, optimizer kept, {how}"] = {"extender": "gradmax", "fill": how}
# The coupling's dose, scaled by 1 / (n + k) of the group that is adjusted.
VARIANTS |= {
    f"laplacian, gradmax, {words}": {"extender": "gradmax", "dose": dose}
    for words, dose in {
        "gradient / (n + k)": ("gradient", 1.0),
        "lr / (n + k)": ("lr", 1.0),
        "lr x 16 / (n + k)": ("lr", 16.0),
        "SGD, 0.1 / (n + k)": ("sgd", 0.1),
    }.items()
}
# GradMax's rows from fewer steps and samples.
VARIANTS |= {
    f"laplacian, gradmax, {steps} of {count}": {"extender": "zero", "search": (steps, count)}
    for steps, count in ((5, 1024), (5, 256), (2, 1024), (2, 256), (1, 1024), (1, 256))
}
OWN = (
    "fill", "norm", "strong", "on", "warm", "revive", "shrink", "late", "paper_after", "dose",
    "search",
)  # fmt: skip


def shrunk(net, factor, noise, seed):
    """Shrink and perturb: weights times ``factor``, and noise, a share of their deviation.

    Norms stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in net.modules() if "Norm" in type(m).__name__]
    kept = {id(p) for m in norms for p in m.parameters()}
    with torch.no_grad():
        for value in (p for p in net.parameters() if id(p) not in kept):
            spread = value.std() if value.numel() > 1 else 0.0
            draw = torch.randn(value.shape, generator=generator)
            value.mul_(factor).add_(draw * spread * noise)
    return net


def rescaled(found, factor):
    """Rows (and biases) of new units times ``factor``; what reads them is zero."""
    tensors = dict(found.module.named_parameters())
    with torch.no_grad():
        for group in found.groups:
            for slot in group.slots:
                if slot.role == "producer" and slot.tensor in tensors:
                    index = torch.from_numpy(slot.new.reshape(-1))
                    tensor = tensors[slot.tensor]
                    values = tensor.index_select(slot.dim, index) * factor
                    tensor.index_copy_(slot.dim, index, values)


class Dosed:
    """Adam at 1e-3, but for couplings: their steps go with 1 / (n + k)."""

    def __init__(self, tensors, size, how, factor):
        readers = [t for t in tensors if isinstance(t, torch.nn.Parameter)]
        rows = [t for t in tensors if not isinstance(t, torch.nn.Parameter)]
        self.shrunk = [] if how == "lr" else rows
        self.size, scale = size, factor / size if how == "lr" else factor
        plain = torch.optim.SGD if how == "sgd" else torch.optim.Adam
        lr = scale if how == "sgd" else 1e-3 * scale
        self.parts = [plain(rows, lr=lr), torch.optim.Adam(readers, lr=1e-3)]

    def step(self):
        for tensor in self.shrunk:
            tensor.grad /= self.size
        for part in self.parts:
            part.step()


def dosed(found, data, dose, seed):
    """The adjusting phase of the default, with another dose; groups come deepest first."""
    sizes = iter([group.width + group.added for group in reversed(found.groups)])
    adjust(
        found.module,
        found.groups,
        data,
        seed=seed,
        optimizer=lambda tensors: Dosed(tensors, next(sizes), *dose),
    )


def touched(found, task, split, own, seed):
    """What a variant does to new units besides the extender."""
    data = growth.loader(split.train, task.batch, seed)
    if "norm" in own:
        rescaled(found, own["norm"])
    if "on" in own:
        activate_rows(found.module, found.groups, data, on=own["on"], seed=seed)
    if "strong" in own:  # inserted as active rows, made larger, then coupled
        rescaled(found, own["strong"])
        adjust(found.module, found.groups, data, seed=seed)
    if "dose" in own:
        dosed(found, data, own["dose"], seed)
    if "search" in own:
        steps, count = own["search"]
        maximise_gradients(found.module, found.groups, data, steps=steps, look_at=count, seed=seed)
        adjust(found.module, found.groups, data, seed=seed)
    if "paper_after" in own:
        adjust(found.module, found.groups, data, paper=True, seed=seed)


def dead(found, split, batch):
    """The grown groups of units that no sample turns on, with those units alone as new ones."""
    data = growth.loader(split, batch, 0)[:24]
    seen = {g.name: g for g in fxgrow.activity(found, data).groups}
    groups = {g.name: g for g in fxgrow.inspect(found.module, data[0][0][:2]).groups}
    for group in found.groups:
        if group.name not in seen or not seen[group.name].inactive.any():
            continue
        off = {
            (s.tensor, s.dim): s.positions[seen[group.name].inactive]
            for s in groups[group.name].slots
        }
        first = group.slots[0]
        mask = np.isin(first.new[:, 0], off[first.tensor, first.dim])
        if mask.any():
            slots = tuple(slot._replace(new=slot.new[mask]) for slot in group.slots)
            yield replace(group, slots=slots, added=int(mask.sum()))


def revive(found, split, batch, seed):
    """Give dead new units a median bias and outgoing entries of zero again; how many they were."""
    again = list(dead(found, split, batch))
    tensors = dict(found.module.named_parameters())
    with torch.no_grad():
        for group in again:
            for slot in group.slots:
                if slot.role == "consumer":
                    index = torch.from_numpy(slot.new.reshape(-1))
                    tensors[slot.tensor].index_fill_(slot.dim, index, 0.0)
    activate_rows(found.module, again, growth.loader(split, batch, seed), seed=seed)
    return sum(group.added for group in again)


def adamw(net, task):
    return torch.optim.AdamW(net.parameters(), lr=task.lr, weight_decay=task.decay, fused=True)


def train(found, task, split, epochs, seed, own, optimizer):
    """Train on; with a warm-up over the first epoch, or revivals between epochs."""
    net = found.module
    revived, done = 0, 0
    for epoch in range(epochs):
        net.train()
        batches = growth.loader(split, task.batch, 1000 * seed + epoch)
        for x, y in batches:
            done += 1
            rise = min(1.0, done / len(batches)) if own.get("warm") else 1.0
            optimizer.param_groups[0]["lr"] = task.lr * rise
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        if own.get("revive"):
            revived += revive(found, split, task.batch, seed)
    return revived


def run(task, variant, seed):
    """One run: what validation data say of every round."""
    split = DATA[task.data]()
    options = dict(VARIANTS[variant])
    own = {key: options.pop(key) for key in OWN if key in options}
    torch.manual_seed(seed)
    net, rounds = task.net(task.widths), []
    optimizer = growth.train(net, task, split.train, task.epochs[0], seed)
    for number, budget in enumerate(task.budgets):
        before = growth.score(net, split.valid)
        if "shrink" in own:
            net = shrunk(net, *own["shrink"], seed)
        if own.get("late") and number:
            options["coupling"] = "laplacian"
        found, _ = growth.grow(net, task, split, budget, options, 100 * seed + number)
        touched(found, task, split, own, 100 * seed + number)
        net = found.module
        at = growth.score(net, split.valid)
        kept = "fill" in own
        optimizer = found.migrate(optimizer, fill=own["fill"]) if kept else adamw(net, task)
        epochs, turn = task.epochs[1], 100 * seed + number + 1
        revived = train(found, task, split.train, epochs, turn, own, optimizer)
        alive = growth.living(found, split.train, task.batch)
        after = growth.score(net, split.valid)
        rounds.append(
            {"before": before, "at": at, "after": after, "alive": alive, "revived": revived}
        )
    return rounds


def decayed(task, decay, seed):
    """One run of the network of the final size, from scratch."""
    task, split = replace(task, decay=decay), DATA[task.data]()
    net = growth.final_net(task, split, seed)
    total = task.epochs[0] + task.epochs[1] * len(task.budgets)
    if task.patience:  # no rounds to stop: the best of about as many epochs as growing takes
        growth.train_until(net, task, split, LONGEST, seed, LONGEST)
    else:
        growth.train(net, task, split.train, total, seed)
    return [{"after": growth.score(net, split.valid)}]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--decays", nargs="*", type=float, help="search the decay instead")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    searching = options.decays is not None
    arms = [f"decay {d:g}" for d in options.decays or DECAYS] if searching else options.variants
    for name in options.tasks:
        for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
            for arm in arms:
                if (name, arm, seed) in growth.read(options.out):
                    continue
                start = time.perf_counter()
                if searching:
                    rounds = decayed(TASKS[name], float(arm.split()[1]), seed)
                else:
                    rounds = run(TASKS[name], arm, seed)
                line = {"task": name, "arm": arm, "seed": seed, "rounds": rounds}
                line["seconds"] = round(time.perf_counter() - start, 1)
                with options.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(line) + "\n")
                last = rounds[-1]
                print(name, arm, seed, last["after"], line["seconds"], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
