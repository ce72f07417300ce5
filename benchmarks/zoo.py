"""Which models of torchvision grow, and how well: one process a model, resumable.

Results lie in ``zoo-out/NAME.json``; models that have a good one are not run again. The page
``docs/coverage.md`` is written from all of them at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = """# Coverage

Written by `benchmarks/zoo.py` ({versions}); do not edit.

Every model gets random weights and runs in float64 on a batch of two small images. It is
inspected, then all groups at once grow by 8 units (or the next step they allow), then
{singles}. Outputs before and after are compared in eval and in train mode (dropout off).
Errors are the largest difference, relative to the largest output. "Trained": every new
parameter has a gradient where it should, and moves. "Coverage": share of the parameters that
lie in a growable group.

{verdict}

{head}
{rows}

{notes}
"""

COLUMNS = (
    "model", "params (M)", "px", "groups", "frozen", "coverage", "all at once: eval", "train",
    "alone: checked", "worst", "trained", "s",
)  # fmt: skip


def measure_here(name, singles, train):
    """Check one model in this process and return its outcome."""
    sys.path.insert(0, str(ROOT / "tests"))  # before this folder, whose zoo.py is this file
    import zoo

    return zoo.check_model(name, singles=singles, train=train).as_dict()


def measure(name, options):
    """Check one model in a process of its own; what went wrong is part of the result."""
    command = [sys.executable, __file__, "--one", name]
    if options.singles is not None:
        command += ["--singles", str(options.singles)]
    if options.no_train:
        command += ["--no-train"]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=options.timeout, check=False
        )
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        lines = done.stderr.strip().splitlines()
        problem = f"exit code {done.returncode}: {lines[-1] if lines else 'killed'}"
    except subprocess.TimeoutExpired:
        problem = f"not done after {options.timeout} s"
    return {
        "name": name,
        "failed": problem,
        "seconds": round(time.perf_counter() - start, 1),
    }


def is_right(result):
    """Whether a model was checked to the end, with nothing wrong."""
    return "failed" not in result and not result["wrong"]


def result_of(name, options):
    """Result of a model: the good one that lies there, else a new one, which is kept."""
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}.json"
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if is_right(known):
            return known
    result = measure(name, options)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1), encoding="utf-8")
    part.replace(path)
    verdict = result.get("failed") or "; ".join(result["wrong"]) or "right"
    print(f"{name}: {verdict} ({result['seconds']} s)", flush=True)
    return result


def row(r):
    """One line of the page."""
    cells = (
        r["name"] + (" **wrong**" if r["wrong"] else ""),
        f"{r['params'] / 1e6:.1f}",
        r["size"],
        r["groups"],
        r["frozen"],
        f"{100 * r['coverage']:.2f} %",
        f"{r['all_eval']:.0e}",
        f"{r['all_train']:.0e}",
        r["singles_checked"],
        f"{r['singles_worst']:.0e}" if r["singles_checked"] else "",
        "yes" if r["trained"] else "not checked",
        f"{r['seconds']:.0f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def page(results, missing, too_large, options):
    """The page as text."""
    import torch
    import torchvision

    done = sorted((r for r in results if "failed" not in r), key=lambda r: r["name"])
    wrong = [r for r in done if r["wrong"]]
    notes = [f"- {r['name']}: {problem}" for r in wrong for problem in r["wrong"]]
    notes += [f"- {r['name']}: {r['failed']}" for r in results if "failed" in r]
    sampled = [r["name"] for r in done if r["singles_checked"] < r["groups"]]
    if sampled and options.singles is None:
        notes.append(f"- Only a sample of groups alone (`--singles`): {', '.join(sampled)}.")
    if too_large:
        limit = f"{options.max_params:g} million parameters"
        notes.append(f"- Not run, more than {limit}: {', '.join(too_large)}.")
    if missing:
        notes.append(f"- Not run yet: {', '.join(missing)}.")
    reasons = sorted({code for r in done for code in r["reasons"]})
    notes.append(
        f"- Reasons of frozen groups: {', '.join(reasons)} (`fxgrow inspect` explains each)."
    )
    unknown = sorted({op for r in done for op in r["unsupported"]})
    notes.append(f"- Operations without a rule: {', '.join(unknown) or 'none'}.")
    lowest = min((r["coverage"] for r in done), default=0.0)
    verdict = (
        f"**{len(done)} models, {len(wrong)} with something wrong; "
        f"lowest coverage {100 * lowest:.2f} %.**"
    )
    count = "every group alone" if options.singles is None else f"{options.singles} of them alone"
    return PAGE.format(
        versions=f"torch {torch.__version__}, torchvision {torchvision.__version__}",
        singles=f"{count} by one step",
        verdict=verdict,
        head=f"| {' | '.join(COLUMNS)} |\n|---|{'--:|' * (len(COLUMNS) - 1)}",
        rows="\n".join(map(row, done)),
        notes="\n".join(notes),
    )


def catalogue():
    """Name and parameters (millions) of torchvision's classifiers, smallest first."""
    from torchvision import models

    sizes = {
        name: models.get_model_weights(name).DEFAULT.meta["num_params"] / 1e6
        for name in models.list_models(module=models)
    }
    return dict(sorted(sizes.items(), key=lambda item: item[1]))


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="torchvision names; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds a model")
    parser.add_argument("--singles", type=int, help="groups to grow alone; all by default")
    parser.add_argument("--no-train", action="store_true", help="leave out the gradient check")
    parser.add_argument("--max-params", type=float, default=700, help="in millions")
    parser.add_argument("--out", type=Path, default=ROOT / "zoo-out")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "coverage.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main():
    options = arguments()
    if options.one:
        outcome = measure_here(options.one, options.singles, not options.no_train)
        print(json.dumps(outcome))
        return 0
    sizes = catalogue()
    names = [n for n in sizes if n in options.models or not options.models]
    fitting = [n for n in names if sizes[n] <= options.max_params]
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // options.jobs, 1)))
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda name: result_of(name, options), fitting))
    paths = {n: options.out / f"{n}.json" for n in sizes}
    found = [json.loads(p.read_text(encoding="utf-8")) for p in paths.values() if p.exists()]
    absent = [n for n, p in paths.items() if not p.exists()]
    too_large = [n for n in absent if sizes[n] > options.max_params]
    missing = [n for n in absent if n not in too_large]
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(page(found, missing, too_large, options), encoding="utf-8")
    return 0 if all(map(is_right, found)) else 1


if __name__ == "__main__":
    sys.exit(main())
