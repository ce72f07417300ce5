"""Methods of growth against each other, on real data: one command, resumable.

    python benchmarks/growth.py                  # all tasks, five seeds: hours on two cores
    python benchmarks/growth.py --tasks digits-mlp --seeds 2
    python benchmarks/growth.py --tasks cifar-paper        # the published protocol, scaled
    python benchmarks/growth.py --tasks cifar-conv-early   # growth as soon as possible

Every arm gets the same data, budgets, optimizer and decay, and differs in how units come in or
where they go. Networks train, grow by uniform allocation (extender arms) or by the distributor
of the arm, and train on, round by round. Choices are made on validation data; the page shows
test data. One line of JSON a run lies in ``benchmarks/results/growth.jsonl``; the page
``docs/benchmarks.md`` and its plots are written from all of them by ``growth_page.py``.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path

import torch
from growth_tasks import DATA, LONG, TASKS
from torch.nn import functional as F

import fxgrow

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "growth.jsonl"

# How new units come in, allocated uniformly.
EXTENDERS = {
    "zero": {"extender": "zero"},
    "active": {"extender": "active"},
    "swe laplacian": {"rows": "kaiming", "coupling": "laplacian"},
    "swe laplacian, active": {"rows": "active", "coupling": "laplacian"},
    "swe laplacian, gradmax": {"rows": "gradmax", "coupling": "laplacian"},
    "swe laplacian, auto": {"rows": "auto", "coupling": "laplacian"},
    "swe pairwise": {"rows": "kaiming", "coupling": "pairwise"},
    "swe dense": {"rows": "kaiming", "coupling": "dense"},
    "swe paper": {"rows": "kaiming", "paper": True},
    "net2wider": {"extender": "net2wider"},
    "gradmax": {"extender": "gradmax"},
    "paired": {"extender": "paired"},
    "small random": {"extender": "zero", "noise": 1e-2},
}
# Where they go; they come in as active rows, and at the end as the default does.
DISTRIBUTORS = {
    f"to {name}": {"extender": "active", "distributor": name}
    for name in ("svod", "gain", "proportional", "random")
}
for name in ("svod", "gain"):
    DISTRIBUTORS[f"swe laplacian, gradmax, to {name}"] = {"rows": "gradmax", "distributor": name}
DISTRIBUTORS["swe paper, to svod paper"] = {  # all as published
    "rows": "kaiming", "paper": True, "distributor": "svod", "candidates": "paper",
}  # fmt: skip
ARMS = {"small": None, "scratch": None, "scratch, equal FLOPs": None, **EXTENDERS, **DISTRIBUTORS}
WHOLE = "default"  # what `fxgrow.expand` does if nothing is asked for
ARMS[WHOLE] = {"distributor": "svod"}
# With units revived after every epoch but the last, as `Grower` does: there the score is taken.
REVIVED = f"{WHOLE}, revived"
ARMS[REVIVED] = {**ARMS[WHOLE], "revive": True}
# Every extender with every distributor, on cheap tasks; some of these arms are above. The search
# of GradMax's rows changed after some of the runs above, so uniform shares are run again.
SHARES = ("svod", "uniform", "proportional", "random")
APART = ("active", "swe laplacian, active", "swe laplacian, auto")
CROSSED = tuple(name for name in EXTENDERS if name not in APART)
AGAIN = ("swe laplacian, gradmax", "gradmax")
CHEAP = ("digits-narrow", "digits-mlp", "mnist-mlp")
NORMED = ("cifar-resnet", "cifar-vit")
CROSS = {
    f"{name}, to {share}": {**EXTENDERS[name], "distributor": share}
    for name in CROSSED
    for share in SHARES
    if share != "uniform" or name in AGAIN
}
del CROSS[f"{AGAIN[0]}, to svod"]  # which is the default where there are no norms


def arms_of(task):
    """What is run of a task if nothing is asked for."""
    shares = tuple(f"{AGAIN[0]}, to {share}" for share in SHARES[1:])
    more = CROSS if task.name in CHEAP else shares
    return task.arms or tuple(dict.fromkeys((*ARMS, *more)))


def loader(split, batch, seed):
    """Batches in an order of the seed; the same tensors every time it is iterated."""
    x, y = split
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return [(x[i], y[i]) for i in order.split(batch) if len(i) > 1]


def train(net, task, split, epochs, seed, revive=False):
    """AdamW from anew; the optimizer."""
    optimizer = fresh(net, task)
    for epoch in range(epochs):
        if revive and epoch:
            revived(net, optimizer, task, split, 1000 * seed + epoch)
        one_epoch(net, optimizer, task, split, 1000 * seed + epoch)
    return optimizer


def revived(net, optimizer, task, split, seed):
    """Give dead units a new start, as many samples looked at as `Grower` does."""
    fxgrow.revive(net, loader(split, task.batch, seed), optimizer=optimizer, seed=seed)


def fresh(net, task):
    """The optimizer of a task: AdamW, or Adam with the published penalty."""
    if task.l2:
        return torch.optim.Adam(net.parameters(), lr=task.lr, weight_decay=task.l2, fused=True)
    return torch.optim.AdamW(net.parameters(), lr=task.lr, weight_decay=task.decay, fused=True)


def one_epoch(net, optimizer, task, split, seed):
    """Once over the data."""
    net.train()
    for x, y in loader(split, task.batch, seed):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


def train_until(net, task, split, epochs, seed, patience, revive=False):
    """Early stopping: the epoch with the best validation loss stays; how many there were.

    An optimizer from anew, as in ``train``; at least one epoch counts, so that what was just
    inserted is always trained.
    """
    optimizer, best, since, done = fresh(net, task), None, 0, 0
    while done < epochs and since < patience:
        if revive and done:
            revived(net, optimizer, task, split.train, 1000 * seed + done)
        one_epoch(net, optimizer, task, split.train, 1000 * seed + done)
        done, since = done + 1, since + 1
        loss = score(net, split.valid)[1]
        if best is None or loss < best[0]:
            best, since = (loss, copy.deepcopy(net.state_dict())), 0
    net.load_state_dict(best[1])
    return done


def train_round(net, task, split, epochs, seed, revive=False):
    """One round as the task has it; its epochs."""
    if task.patience:
        return train_until(net, task, split, epochs, seed, task.patience, revive)
    train(net, task, split.train, epochs, seed, revive)
    return epochs


@torch.no_grad()
def score(net, split):
    """Accuracy and loss."""
    net.eval()
    out = torch.cat([net(x) for x in split[0].split(500)])
    return (
        (out.argmax(1) == split[1]).float().mean().item(),
        F.cross_entropy(out, split[1]).item(),
    )


def scores(net, split):
    """Accuracy and loss on validation and test data."""
    names = ("valid", "valid_loss", "test", "test_loss")
    return dict(zip(names, (*score(net, split.valid), *score(net, split.test)), strict=True))


def noisy(growth, scale, seed):
    """Small random outgoing entries in place of zeros: breaks the function a little."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(growth.module.named_parameters())
    with torch.no_grad():
        for group in growth.groups:
            for slot in group.slots:
                if slot.role == "consumer":
                    tensor, index = tensors[slot.tensor], torch.from_numpy(slot.new.reshape(-1))
                    shape = list(tensor.shape)
                    shape[slot.dim] = len(index)
                    draw = (2 * torch.rand(shape, generator=generator) - 1) * scale
                    tensor.index_copy_(slot.dim, index, draw)


def living(growth, split, batch):
    """Activity of new and of all units, on training data, and parity with the old ones."""
    found = fxgrow.activity(growth, loader(split, batch, 0)[:24])
    rows = [group.to_dict() for group in found.groups]
    grown = [r for r in rows if r["new"]]

    def total(key, among):
        return sum(r[key] for r in among)

    def average(key):
        values = [r[key] for r in grown if r[key] is not None]
        return sum(values) / len(values) if values else None

    return {
        "new": total("new", grown),
        "new_inactive": total("new_inactive", grown),
        "new_nearly": total("new_nearly_inactive", grown),
        "units": total("width", rows),
        "inactive": total("inactive", rows),
        "activation_parity": average("activation_parity"),
        "gradient_parity": average("gradient_parity"),
    }


def grow(net, task, split, budget, options, seed):
    """One growth; seconds with it."""
    options = {"distributor": "uniform", "exclude": task.stays, **options}
    noise = options.pop("noise", None)
    start = time.perf_counter()
    growth = fxgrow.expand(
        net, loader(split.train, task.batch, seed), budget=budget, seed=seed, **options
    )
    if noise:
        noisy(growth, noise, seed)
    return growth, time.perf_counter() - start


def growing(task, split, net, options, seed):
    """All rounds of one arm."""
    rounds, options = [], dict(options)
    revive = options.pop("revive", False)
    for number, budget in enumerate(task.budgets):
        if revive and number:
            revived(net, (), task, split.train, 100 * seed + number)
        before = scores(net, split)
        growth, seconds = grow(net, task, split, budget, options, 100 * seed + number)
        net = growth.module
        at = scores(net, split)
        epochs = task.rounds()[number]
        epochs = train_round(net, task, split, epochs, 100 * seed + number + 1, revive)
        rounds.append(
            {
                "epochs": epochs,
                "before": before,
                "at_growth": at,
                "after": scores(net, split),
                "alive": living(growth, split.train, task.batch),
                "growth_seconds": round(seconds, 2),
                "plan": dict(growth.plan.additions),
            }
        )
    return rounds


def final_net(task, split, seed):
    """The network of the final size, with nothing learnt (uniform allocation)."""
    torch.manual_seed(seed)
    net = task.net(task.widths)
    for number, budget in enumerate(task.budgets):
        net, _ = grow(net, task, split, budget, {"extender": "zero"}, 100 * seed + number)
        net = net.module
    torch.manual_seed(seed)
    for layer in net.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return net


def flops(task, split, seed):
    """FLOPs of the training of the grown arms, in passes of the final network."""
    torch.manual_seed(seed)
    net, example = task.net(task.widths), split.train[0][:2]
    cost = [fxgrow.inspect(net, example).flops]
    for number, budget in enumerate(task.budgets):
        net = grow(net, task, split, budget, {"extender": "zero"}, 100 * seed + number)[0].module
        cost.append(fxgrow.inspect(net, example).flops)
    epochs = (task.epochs[0], *task.rounds())
    return sum(c * e for c, e in zip(cost, epochs, strict=True)) / cost[-1]


def baseline(task, split, arm, seed, made):
    """Arms that do not grow.

    Where rounds are stopped early, they train for as many epochs as the default's run (in
    ``made``) did, and the one with the best validation loss counts.
    """
    if task.like:
        return made[task.like, arm, seed]["rounds"]
    total = task.epochs[0] + sum(task.rounds())
    if arm == "small":
        torch.manual_seed(seed)
        net = task.net(task.widths)
    else:
        net = final_net(task, split, seed)
    if task.patience:
        reference = made[task.name, WHOLE, seed]
        total = reference["first_epochs"] + sum(r["epochs"] for r in reference["rounds"])
        train_until(net, task, split, total, seed, total)
        return [{"after": scores(net, split), "epochs": total}]
    epochs = total if arm != "scratch, equal FLOPs" else round(flops(task, split, seed))
    train(net, task, split.train, epochs, seed)
    return [{"after": scores(net, split), "epochs": epochs}]


def run(task, arm, seed, made):
    """One run, as it is written down; ``made``: the runs there are."""
    split = DATA[task.data]()
    start = time.perf_counter()
    found = {"task": task.name, "arm": arm, "seed": seed}
    options = {**ARMS, **CROSS}[arm]
    if options is None:
        found["rounds"] = baseline(task, split, arm, seed, made)
    else:
        torch.manual_seed(seed)
        net = task.net(task.widths)
        found["first_epochs"] = train_round(net, task, split, task.epochs[0], seed)
        found["rounds"] = growing(task, split, net, dict(options), seed)
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def read(path=RESULTS):
    """Runs made so far, by task, arm and seed."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {(r["task"], r["arm"], r["seed"]): r for r in map(json.loads, lines)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = [task for task in TASKS if task not in LONG]
    parser.add_argument("--tasks", nargs="*", default=usual, choices=list(TASKS))
    parser.add_argument("--arms", nargs="*", choices=list({**ARMS, **CROSS}))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in options.tasks:
        for seed in range(options.seeds):
            for arm in options.arms or arms_of(TASKS[name]):
                made = read(options.out)
                if (name, arm, seed) in made:
                    continue
                result = run(TASKS[name], arm, seed, made)
                with options.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(result) + "\n")
                last = result["rounds"][-1]
                print(
                    f"{name} {arm} {seed}: {last['after']['test']:.1%}, {result['seconds']} s",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
