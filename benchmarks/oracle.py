"""Distributors against the truth: every group of small networks grown alone, trained, compared.

    python benchmarks/oracle.py              # all families; resumable; about an hour on one core
    python benchmarks/oracle.py --page       # only docs/oracle.md, from the runs made so far

Networks of random widths are trained for a while. Then the true gain of each group is found: it
alone gets 8 units (active rows), the network trains on, and its loss is compared with that of the
same training without growth, on training and validation data, over two draws. Distributors are
judged by how well what they measure on the network *before* growth ranks the groups.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from growth import loader, score
from growth_tasks import DATA, MLP, ConvTrunk, ResNet
from scipy.stats import spearmanr
from torch.nn import functional as F

import fxgrow
from fxgrow.calibrate import calibrate_norms
from fxgrow.rows import activate_rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "oracle.jsonl"
PAGE = ROOT / "docs" / "oracle.md"
ADDED, BATCH, DRAWS, DECAY = 8, 64, 2, 0.1
BUDGET = 24  # of the votes

# data, share of the training data, network, widths to draw from, epochs before and after growth
FAMILIES = {
    "MNIST, MLP": ("mnist", 1.0, MLP, (784,), ((2, 4, 8, 16, 32, 64),) * 3, (6, 4)),
    "digits, MLP": ("digits", 1.0, MLP, (64,), ((2, 4, 8, 16, 32),) * 4, (20, 12)),
    "CIFAR-10, convolutions": (
        "cifar", 1.0, ConvTrunk, (), ((2, 4, 8, 16),) * 4 + ((3, 6, 12, 24),) * 2, (8, 4),
    ),
    "CIFAR-10, residual, BatchNorm": (
        "cifar", 1.0, ResNet, (), ((4, 8, 16),) + ((2, 4, 8, 16),) * 3, (8, 4),
    ),
}  # fmt: skip


def train(net, data, epochs, seed):
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=DECAY, fused=True)
    net.train()
    for epoch in range(epochs):
        for x, y in loader(data, BATCH, 1000 * seed + epoch):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()


def grown(net, data, additions, seed):
    """Active rows, nothing outgoing: the function of the network."""
    growth = fxgrow.widen(net, data[0][:2], additions, seed=seed, verify=False)
    batches = loader(data, BATCH, seed)
    activate_rows(growth.module, growth.groups, batches, seed=seed)
    calibrate_norms(growth.module, growth.groups, batches)
    return growth


def true_gains(net, train_data, valid, names, epochs):
    """Fall of the loss by growing each group alone, mean over the draws and both data."""
    gains = {name: [] for name in names}
    for draw in range(DRAWS):
        plain = copy.deepcopy(net)
        train(plain, train_data, epochs, 50 + draw)
        before = np.array([score(plain, part)[1] for part in (train_data, valid)])
        for name in names:
            module = grown(net, train_data, {name: ADDED}, draw).module
            train(module, train_data, epochs, 50 + draw)
            after = np.array([score(module, part)[1] for part in (train_data, valid)])
            gains[name].append(float((before - after).mean()))
    return gains


def closed_form(net, data, names, seed):
    """Gradient of the outgoing entries of active rows, nothing trained: signal, and per noise.

    The product of the sums over two halves of the batches has no bias by noise.
    """
    growth = grown(net, data, dict.fromkeys(names, ADDED), seed)
    tensors = dict(growth.module.named_parameters())
    growth.module.train()
    sums = {group.name: [0.0, 0.0, 0.0] for group in growth.groups}
    for number, (x, y) in enumerate(loader(data, BATCH, seed)):
        growth.module.zero_grad()
        F.cross_entropy(growth.module(x), y).backward()
        for group in growth.groups:
            parts = [
                tensors[s.tensor].grad.index_select(s.dim, torch.from_numpy(s.new.reshape(-1)))
                for s in group.slots
                if s.role == "consumer" and s.tensor in tensors
            ]
            flat = torch.cat([part.reshape(-1) for part in parts])
            sums[group.name][number % 2] += flat.double()
            sums[group.name][2] += flat.double() ** 2
    squared = {name: float((a * b).sum()) for name, (a, b, _) in sums.items()}
    noise = {name: float((a * b / (c + 1e-16)).sum()) for name, (a, b, c) in sums.items()}
    return squared, noise


def measured(net, data, groups, seed):
    """What each distributor would go by, group by group."""
    batches = loader(data, BATCH, seed)
    names = [group.name for group in groups]

    def counts(distributor, **options):
        found = fxgrow.plan_for(
            net, batches, budget=BUDGET, distributor=distributor, seed=seed, **options
        )[1]
        return {name: float(found.counts.get(name, 0)) for name in names}

    squared, per_noise = closed_form(net, data, names, seed)
    return {
        "gain": counts("gain"),
        "svod": counts("svod"),
        "svod, as published (2K candidates)": counts("svod", candidates="paper"),
        "closed form": squared,
        "closed form, signal to noise": per_noise,
        "random": counts("random"),
        "narrowest first": {group.name: 1 / group.width for group in groups},
    }


def run(family, number):
    """One network: its widths, true gains, and what was measured."""
    data, part, kind, fixed, choices, (before, after) = FAMILIES[family]
    rng = np.random.default_rng(number)
    widths = (*fixed, *(int(rng.choice(some)) for some in choices))
    split = DATA[data]()
    train_data = tuple(t[: int(part * len(t))] for t in split.train)
    torch.manual_seed(number)
    net = kind(widths)
    train(net, train_data, before, number)
    groups = fxgrow.inspect(net, train_data[0][:2]).groups
    gains = true_gains(net, train_data, split.valid, [g.name for g in groups], after)
    by_draw = [measured(net, train_data, groups, draw) for draw in range(DRAWS)]
    return {
        "family": family,
        "number": number,
        "widths": widths,
        "gains": gains,
        "measured": {name: [draw[name] for draw in by_draw] for name in by_draw[0]},
    }


def rank(a, b):
    """Spearman's correlation, 0 where one side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def judged(record, name):
    """Rank correlation, share of the best gain that the shares would reach, noise of shares."""
    groups = list(record["gains"])
    truth = np.array([np.mean(record["gains"][g]) for g in groups])
    draws = np.array([[draw.get(g, 0.0) for g in groups] for draw in record["measured"][name]])
    shares = np.clip(draws, 0, None)
    sums = shares.sum(axis=1, keepdims=True)
    shares = np.where(sums > 0, shares / np.where(sums > 0, sums, 1), 1 / len(groups))
    reached = (shares * np.clip(truth, 0, None)).sum(axis=1).mean() / truth.max()
    return np.mean([rank(d, truth) for d in draws]), reached, shares.std(axis=0).mean()


def repeatability(record):
    """Rank correlation between the two draws of the truth itself: the most one can ask for."""
    first, second = np.array(list(record["gains"].values())).T[:2]
    return rank(first, second)


def derived(record):
    """Measures that follow from those of a record: two draws averaged, votes per parameter."""
    kind, data = FAMILIES[record["family"]][2], FAMILIES[record["family"]][0]
    groups = fxgrow.inspect(kind(record["widths"]), DATA[data]().train[0][:2]).groups
    found = record["measured"]
    more = {}
    for name in ("gain", "svod"):
        mean = {g: float(np.mean([draw[g] for draw in found[name]])) for g in record["gains"]}
        more[f"{name}, two draws averaged"] = [mean]
    more["svod, votes per parameter"] = [
        {g.name: draw[g.name] / g.params_per_unit for g in groups} for draw in found["svod"]
    ]
    return {**record, "measured": {**found, **more}}


def table(records):
    lines = [
        "| measured by | rank correlation | of the best gain | noise of a share |",
        "|---|--:|--:|--:|",
    ]
    even = [
        np.clip(gains, 0, None).mean() / gains.max()
        for gains in (np.array([np.mean(v) for v in r["gains"].values()]) for r in records)
    ]
    for name in records[0]["measured"]:
        found = np.array([judged(r, name) for r in records])
        error = found[:, 0].std() / len(records) ** 0.5
        noise = "" if name.endswith("averaged") else f"{found[:, 2].mean():.3f}"
        lines.append(
            f"| {name} | {found[:, 0].mean():+.2f} ± {error:.2f} | {found[:, 1].mean():.0%} | "
            f"{noise} |"
        )
    again = np.array([repeatability(r) for r in records])
    lines.append(f"| uniform | 0 | {np.mean(even):.0%} | 0 |")
    lines.append(f"| (the truth, drawn again) | {again.mean():+.2f} | | |")
    return "\n".join(lines)


HEAD = """# Does the vote find the layers that gain?

Written by `python benchmarks/oracle.py` from `benchmarks/results/oracle.jsonl`; do not edit.

Networks of random widths, each trained for a while. The *true gain* of a group: it alone gets
{added} units (active rows), the network trains on, and its loss is compared with that of the same
training without growth (training and validation data, {draws} draws). Columns, means over the
networks:

- **rank correlation** (Spearman, ± standard error) between what is measured before growth and the
  true gains;
- **of the best gain**: the gain per unit that shares in proportion to the measure would reach, as
  a part of what the best group has (one group at a time: it leaves aside that gains diminish);
- **noise of a share**: its standard deviation over {draws} seeds of the measure.

`gain` is `distributor="gain"` ([concepts](concepts.md)); `svod` the vote with as many candidates
in every group as it takes for four times the budget, `as published` with 2K in every group;
`closed form` the squared gradient of new outgoing entries without any training, `signal to
noise` the same over its second moment, entry by entry.

What these runs say: SVoD and gain rank groups about equally well, somewhat better than their
widths alone do (narrowest first); two draws averaged rank a little better still, at twice the
cost, and come near to what two draws of the truth have in common. On the small residual network
the true gains are noise, and so is every measure. Neither more candidates (2K, at several times
the cost), nor votes per parameter, nor gradients without any training, nor their signal to noise
are better. Gain varies least over seeds, half of its shares being even. Networks that gain nothing
anywhere are left out: their units are dead.
"""


def page(path=RESULTS):
    # a network that is dead gains nothing anywhere: there is nothing to rank
    alive = (r for r in read(path).values() if np.max(list(r["gains"].values())) > 0)
    records = [derived(record) for record in alive]
    parts = [HEAD.format(added=ADDED, draws=DRAWS)]
    for family in FAMILIES:
        some = [r for r in records if r["family"] == family]
        if some:
            parts.append(f"## {family}\n\n{len(some)} networks.\n\n{table(some)}\n")
    if records:
        parts.append(f"## All\n\n{len(records)} networks.\n\n{table(records)}\n")
    PAGE.write_text("\n".join(parts), encoding="utf-8")


def read(path):
    """Runs made so far."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {(r["family"], r["number"]): r for r in map(json.loads, lines)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--networks", type=int, default=12, help="networks of a family")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="only write the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for number in range(0 if options.page else options.networks):
        for family in options.families:
            if (family, number) in read(options.out):
                continue
            record = run(family, number)
            with options.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(record) + "\n")
            print(family, number, record["widths"], flush=True)
    page(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
