"""Which models of the zoos grow, and how well: one process a model, resumable.

Results lie in ``zoo-out/NAME.json``; models that have a good one are not run again. At the end
all of them are merged into ``benchmarks/results/zoo.json``, and the page ``docs/coverage.md``
is written from that.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

import zoo_page

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "benchmarks" / "results" / "zoo.json"
FIRST = KEPT.with_name("zoo_first_try.json")
PEER_SECONDS = 60


def tests_first():
    """Let ``zoo`` be the one of the tests, not this file."""
    sys.path.insert(0, str(ROOT / "tests"))


def measure_here(name, singles, train):
    """Check one model in this process and return its outcome."""
    tests_first()
    import zoo

    return zoo.check_model(name, singles=singles, train=train).as_dict()


def peer_here(name):
    """What Torch-Pruning makes of a model: a quarter of all channels off, no hints."""
    tests_first()
    import torch
    import torch_pruning
    import zoo_models
    from checks import outputs, run

    model, example = zoo_models.build(name)
    model.eval()
    given = tuple(example.values()) if isinstance(example, dict) else example
    start = time.perf_counter()
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=given)
    found = list(graph.get_all_groups())
    seconds = time.perf_counter() - start
    before = outputs(model, example)
    count = sum(p.numel() for p in model.parameters())
    out = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1:]
    pruner = torch_pruning.pruner.MetaPruner(
        model,
        given,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.25,
        ignored_layers=out,
    )
    pruner.step()
    with torch.no_grad():
        run(model, example)
    same = [t.shape for t in before] == [t.shape for t in outputs(model, example)]
    smaller = sum(p.numel() for p in model.parameters()) < count
    verdict = "runs" if same and smaller else "other outputs" if smaller else "nothing pruned"
    return {"verdict": verdict, "groups": len(found), "seconds": round(seconds, 3)}


def in_a_process(command, timeout):
    """Last line that a command printed, as JSON; and what went wrong."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, *command],
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"not done after {timeout:g} s"
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1]), ""
    lines = done.stderr.strip().splitlines()
    return None, f"exit code {done.returncode}: {lines[-1] if lines else 'killed'}"


def commit():
    """Which code ran."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def measure(name, options):
    """Check one model in a process of its own; what went wrong is part of the result."""
    command = ["--one", name]
    if options.singles is not None:
        command += ["--singles", str(options.singles)]
    if options.no_train:
        command += ["--no-train"]
    start = time.perf_counter()
    result, problem = in_a_process(command, options.timeout)
    if result is None:
        seconds = round(time.perf_counter() - start, 1)
        result = {"name": name, "failed": problem, "seconds": seconds}
    return {**result, "commit": options.commit}


def is_right(result):
    """Whether a model was checked to the end, with nothing wrong."""
    return "failed" not in result and not result["wrong"]


def path_of(name, options):
    return options.out / f"{name.replace(':', '-')}.json"


def save(path, result):
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1), encoding="utf-8")
    part.replace(path)


def result_of(name, options):
    """Result of a model: the good one that lies there, else a new one, which is kept."""
    options.out.mkdir(parents=True, exist_ok=True)
    path = path_of(name, options)
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if result is None or not is_right(result):
        result = measure(name, options)
        save(path, result)
        verdict = result.get("failed") or "; ".join(result["wrong"]) or "right"
        print(f"{name}: {verdict} ({result['seconds']} s)", flush=True)
    if options.peer and "peer" not in result:
        peer, problem = in_a_process(["--one-peer", name], PEER_SECONDS)
        result["peer"] = peer or {"verdict": f"fails: {problem}"[:200]}
        save(path, result)
        print(f"{name}: the peer {result['peer']['verdict']}", flush=True)
    return result


def catalogue(patterns):
    """Names of all models of the zoos; those of further libraries where they are asked for."""
    tests_first()
    import zoo_models
    from zoo_others import others

    asked = [z for z in others() if any(p.startswith(f"{z}:") for p in patterns)]
    return [*zoo_models.names(), *(n for z in asked for n in zoo_models.names(z))]


def merged(names, options):
    """All results that are known: those of earlier runs, and over them those that lie here."""
    known = {r["name"]: r for r in json.loads(KEPT.read_text("utf-8"))} if KEPT.exists() else {}
    for name in names:
        path = path_of(name, options)
        if path.exists():
            result = json.loads(path.read_text(encoding="utf-8"))
            if is_right(result) or not (name in known and is_right(known[name])):
                known[name] = {**result, "name": name}
    known = json.loads(
        re.sub(r"/[^ \"]*/(?=[\w.-]+/[\w.-]+\.py)", "", json.dumps(known))
    )  # of a machine
    listed = [known.pop(name) for name in names if name in known]
    return [*listed, *(known[name] for name in sorted(known))]  # of further libraries


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "models", nargs="*", help="patterns, e.g. 'timm:*', 'smp:*'; by default all"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds a model")
    parser.add_argument("--singles", type=int, help="groups to grow alone; all by default")
    parser.add_argument("--no-train", action="store_true", help="leave out the gradient check")
    parser.add_argument("--peer", action="store_true", help="also Torch-Pruning (extra 'bench')")
    parser.add_argument("--out", type=Path, default=ROOT / "zoo-out")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "coverage.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--one-peer", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    options.commit = commit()
    return options


def main():
    options = arguments()
    if options.one:
        print(json.dumps(measure_here(options.one, options.singles, not options.no_train)))
        return 0
    if options.one_peer:
        print(json.dumps(peer_here(options.one_peer)))
        return 0
    names = catalogue(options.models)
    chosen = [n for n in names if any(fnmatchcase(n, p) for p in options.models or ["*"])]
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // options.jobs, 1)))
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda name: result_of(name, options), chosen))
    found = merged(names, options)
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    absent = [n for n in names if n not in {r["name"] for r in found}]
    options.page.parent.mkdir(parents=True, exist_ok=True)
    first = json.loads(FIRST.read_text(encoding="utf-8"))
    options.page.write_text(zoo_page.page(found, absent, first), encoding="utf-8")
    return 0 if all(map(is_right, found)) else 1


if __name__ == "__main__":
    sys.exit(main())
