"""The loss through growth: does it jump, and how calm are the steps that follow?

One network learns digits for some epochs and grows by half, once, in the middle. From the
same checkpoint it goes on in several ways: not grown, and grown with each ``fill`` of the
optimizer's state, all on the same batches. Writes docs/through-growth.png and .json.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

import torch
from torch import nn

import fxgrow

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from digits_cnn import DigitsCNN, digits, train_loader  # noqa: E402  the path comes first

FILLS = ("zero", "mean", "reset")
NEAR = 10  # steps after growth that count as those that follow


def batches(epochs, seed):
    """The same batches for every arm."""
    loader = train_loader(seed)
    return [batch for _ in range(epochs) for batch in loader]


@torch.no_grad()
def evaluated(model, data):
    """Loss on a fixed set, in eval mode; the mode is restored."""
    training = model.training
    images, labels = data
    loss = float(nn.functional.cross_entropy(model.eval()(images), labels))
    model.train(training)
    return loss


def trained(model, optimizer, steps, data):
    """Train on; the loss on the fixed set before every step and after the last."""
    model.train()
    curve = [evaluated(model, data)]
    for images, labels in steps:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        curve.append(evaluated(model, data))
    return curve


def arms(seed, epochs, share):
    """Curves of all arms; growth is after the first half."""
    torch.manual_seed(seed)
    data = digits()[1].tensors
    model = DigitsCNN(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    first = trained(model, optimizer, batches(epochs, seed), data)
    later = batches(epochs, seed + 100)
    state = optimizer.state_dict()
    curves = {}
    for fill in ("not grown", *FILLS):
        part = copy.deepcopy(model)
        follower = torch.optim.AdamW(part.parameters(), lr=2e-3)
        follower.load_state_dict(copy.deepcopy(state))
        seconds = 0.0
        if fill != "not grown":
            grower = fxgrow.Grower(
                part, follower, data=train_loader(seed), budget=share, fill=fill, seed=seed
            )
            part = grower.grow()
            seconds = grower.history.growths[0].seconds
        curves[fill] = {"curve": trained(part, follower, later, data), "seconds": seconds}
    return first, curves


def summary(first, curves):
    """Figures of one seed."""
    level = first[-1]
    return {
        "loss at growth": level,
        "arms": {
            name: {
                "jump": arm["curve"][0] - level,
                f"worst of {NEAR} steps": max(arm["curve"][1 : NEAR + 1]) - level,
                "end": arm["curve"][-1],
                "growth seconds": arm["seconds"],
            }
            for name, arm in curves.items()
        },
    }


def draw(path, first, curves):
    """One seed: the whole run, and a closer look at the steps around growth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    whole, near = figure.subplots(1, 2)
    steps = len(first) - 1
    for axes in (whole, near):
        axes.axvline(steps, color="0.6", linestyle="--", linewidth=1)
        axes.plot(first, color="black", label="before growth")
        for (name, arm), style in zip(curves.items(), (":", "-", "-", "-"), strict=True):
            label = name if name == "not grown" else f"fill={name!r}"
            xs = range(steps, steps + len(arm["curve"]))
            axes.plot(xs, arm["curve"], label=label, linestyle=style, linewidth=1.4)
        axes.set_xlabel("step (dashed: growth)")
    whole.set_ylabel("test loss")
    whole.set_yscale("log")
    near.set_xlim(steps - NEAR, steps + 2 * NEAR)
    seen = first[-NEAR:] + [v for arm in curves.values() for v in arm["curve"][: 2 * NEAR]]
    margin = 0.1 * (max(seen) - min(seen))
    near.set_ylim(min(seen) - margin, max(seen) + margin)
    whole.set_title("the whole run")
    near.set_title("around growth")
    whole.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(arguments=None):
    """Run the arms for every seed, write the picture of the first, and the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="before growth, and after it")
    parser.add_argument("--share", default="+50%", help="how much the network grows")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for seed in range(asked.seeds):
        first, curves = arms(seed, asked.epochs, asked.share)
        rows.append({"seed": seed, **summary(first, curves)})
        if seed == 0:
            draw(asked.out / "through-growth.png", first, curves)
    path = asked.out / "through-growth.json"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for name in ("not grown", *FILLS):
        figures = {key: [row["arms"][name][key] for row in rows] for key in rows[0]["arms"][name]}
        print(f"{name:10}", {key: [round(v, 6) for v in values] for key, values in figures.items()})
    return rows


if __name__ == "__main__":
    main()
