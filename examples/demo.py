"""``make demo``: a trained network is inspected, grown and trained on.

Trains a small CNN on scikit-learn's digits, runs the two commands on it as you would,
trains the grown network on, and compares. The first seed goes through the command line,
the others through the Python API; everything is written to ``demo-out/``.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch
from digits_cnn import DigitsCNN, accuracy, digits, train, train_loader
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

import fxgrow

HERE = Path(__file__).resolve().parent
OUT = Path("demo-out")
SEEDS = (0, 1, 2)
EPOCHS = 8
BUDGET = 64
PROBES = 200  # test images on which new units are tried out
EXAMPLE = torch.zeros(2, 1, 8, 8)
CONSOLE = Console(width=None if sys.stdout.isatty() else 100, highlight=False)


@dataclass(frozen=True)
class Outcome:
    """Test accuracies of one seed, with what was grown."""

    before: float
    inserted: float
    adjusted: float
    grown: float
    narrow: float
    scratch: float
    inactive: float
    new_units: int
    extra_epochs: int
    params: tuple[int, int]


def main() -> None:
    """Run the demo."""
    begin = time.perf_counter()
    torch.set_num_threads(1)  # so small a network: more threads only wait for each other
    OUT.mkdir(exist_ok=True)
    outcomes = [one_seed(seed, first=seed == SEEDS[0]) for seed in SEEDS]
    CONSOLE.print(Rule("What came of it"))
    CONSOLE.print(table(outcomes))
    CONSOLE.print(summary(outcomes))
    CONSOLE.print(f"\nThis took {time.perf_counter() - begin:.0f} s. Files: {OUT}/")


def one_seed(seed: int, *, first: bool) -> Outcome:
    """Train, grow, train on, and train the two networks to compare with."""
    torch.manual_seed(seed)
    model = DigitsCNN()
    if first:
        CONSOLE.print(Rule(f"A small CNN learns digits for {EPOCHS} epochs"))
    train(model, EPOCHS, seed)
    path = OUT / f"model-seed{seed}.pt"
    if first:
        path = OUT / "model.pt"
        CONSOLE.print(f"{count(model):,} parameters, test accuracy {accuracy(model):.1%} → {path}")
    torch.save(model.state_dict(), path)
    growth = grow_by_command(model, path) if first else grow_by_api(model, seed)
    if first:
        CONSOLE.print(Rule("All of them are trained on; two more seeds follow"))
    return compare(model, growth, seed)


def grow_by_command(model: DigitsCNN, path: Path) -> fxgrow.Growth:
    """Inspect and expand on the command line, then read the result back."""
    code = os.path.relpath(HERE / "digits_cnn.py")
    grown = OUT / "model-grown.safetensors"
    shared = [str(path), "--arch", f"{code}:DigitsCNN"]
    command("inspect", *shared)
    growing = ["--budget", str(BUDGET), "--data", f"{code}:train_loader"]
    command("expand", *shared, *growing, "-o", str(grown), "--force")
    return fxgrow.load(grown, base=model)


def command(*arguments: str) -> None:
    """Run ``fxgrow`` as a person would, its output shown as it comes."""
    CONSOLE.print(Rule("In the shell"))
    CONSOLE.print("$ fxgrow " + " ".join(arguments), style="bold", soft_wrap=True)
    CONSOLE.file.flush()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as this process
    program = [sys.executable, "-m", "fxgrow", *arguments]
    done = subprocess.run(program, env=environment, check=False)
    if done.returncode:
        sys.exit(f"the command failed with exit code {done.returncode}")


def grow_by_api(model: DigitsCNN, seed: int) -> fxgrow.Growth:
    """Do the same in Python."""
    return fxgrow.expand(model, train_loader(), budget=BUDGET, seed=seed)


def compare(model: DigitsCNN, growth: fxgrow.Growth, seed: int) -> Outcome:
    """Train the grown network on; train one that stayed narrow and one from scratch."""
    inserted = fxgrow.widen(model, EXAMPLE, growth.plan).module
    outcome = Outcome(
        before=accuracy(model),
        inserted=accuracy(inserted),
        adjusted=accuracy(growth.module),
        grown=0.0,
        narrow=0.0,
        scratch=0.0,
        inactive=0.0,
        new_units=sum(growth.plan.additions.values()),
        # one for the vote, one per group for adjusting: the others get them too
        extra_epochs=1 + len(growth.plan.additions),
        params=(count(model), count(growth.module)),
    )
    more = EPOCHS + outcome.extra_epochs
    narrow = copy.deepcopy(model)
    scratch = reinitialised(growth.module, seed)
    train(growth.module, EPOCHS, seed + 100)
    train(narrow, more, seed + 100)
    train(scratch, EPOCHS + more, seed)
    return replace(
        outcome,
        grown=accuracy(growth.module),
        narrow=accuracy(narrow),
        scratch=accuracy(scratch),
        inactive=inactive_share(growth),
    )


def reinitialised(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Return a network of the same shape that has learnt nothing."""
    fresh = copy.deepcopy(module)
    torch.manual_seed(seed)
    for layer in fresh.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear, torch.nn.BatchNorm2d)):
            layer.reset_parameters()
    return fresh


@torch.no_grad()
def inactive_share(growth: fxgrow.Growth) -> float:
    """Share of the new units whose removal changes no score by 0.1 % of their spread."""
    module = growth.module.eval()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    images = digits()[1].tensors[0][:PROBES]
    scores = module(images)
    limit = 1e-3 * scores.std()
    inactive = total = 0
    for group in growth.groups:
        readers = [slot for slot in group.slots if slot.role == "consumer"]
        for unit in range(group.added):
            kept = [tensors[slot.tensor].clone() for slot in readers]
            for slot in readers:
                index = torch.from_numpy(slot.new[unit])
                tensors[slot.tensor].index_fill_(slot.dim, index, 0.0)
            inactive += bool((module(images) - scores).abs().max() <= limit)
            total += 1
            for slot, values in zip(readers, kept, strict=True):
                tensors[slot.tensor].copy_(values)
    return inactive / max(total, 1)


def count(module: torch.nn.Module) -> int:
    """Count parameter elements."""
    return sum(parameter.numel() for parameter in module.parameters())


def table(outcomes: list[Outcome]) -> Table:
    """Lay out one row per network, one column per seed."""
    before, after = outcomes[0].params
    extra = outcomes[0].extra_epochs
    result = Table(title="Test accuracy", title_justify="left")
    result.add_column("network")
    result.add_column("epochs", justify="right")
    result.add_column("parameters", justify="right")
    for seed in SEEDS:
        result.add_column(f"seed {seed}", justify="right")
    result.add_column("mean", justify="right", style="bold")
    rows = (
        ("before growth", "before", f"{EPOCHS}", before),
        ("right after insertion", "inserted", f"{EPOCHS}", after),
        ("after adjusting", "adjusted", f"{EPOCHS}+{extra}", after),
        ("grown, trained on", "grown", f"{EPOCHS}+{extra}+{EPOCHS}", after),
        ("not grown, trained as long", "narrow", f"{2 * EPOCHS + extra}", before),
        ("final size from scratch", "scratch", f"{2 * EPOCHS + extra}", after),
    )
    for name, field, epochs, params in rows:
        values = [getattr(outcome, field) for outcome in outcomes]
        cells = [f"{value:.1%}" for value in (*values, mean(values))]
        result.add_row(name, epochs, f"{params:,}", *cells)
    values = [outcome.inactive for outcome in outcomes]
    cells = [f"{value:.0%}" for value in (*values, mean(values))]
    result.add_row("inactive among the new units", "", "", *cells)
    return result


def summary(outcomes: list[Outcome]) -> str:
    """Say what the table shows, and what it does not."""
    grown, narrow, scratch = (
        mean(getattr(outcome, field) for outcome in outcomes)
        for field in ("grown", "narrow", "scratch")
    )
    kept = all(outcome.inserted == outcome.before for outcome in outcomes)
    first = "left every" if kept else "did NOT leave every"
    gain = 100 * (grown - narrow)
    gap = 100 * (grown - scratch)
    return (
        f"Insertion {first} accuracy as it was. Growing made {gain:+.1f} points against the "
        f"network that stayed narrow, and {gap:+.1f} points against the final size from scratch, "
        "which pays for all its parameters from the first epoch on. Epochs count passes over the "
        "data, those of the vote and of adjusting included. "
        f"{len(digits()[1])} test images: differences below half a point mean nothing. "
        "Digits are easy: this shows that growing works, not that it is the best way to train."
    )


if __name__ == "__main__":
    main()
