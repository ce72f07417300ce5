"""All architectures of transformers, whether anything was built for them or not.

    python benchmarks/architectures.py              # hundreds of models, some seconds each
    python benchmarks/architectures.py bert gpt2

Every architecture gets a small configuration without anybody's help (tests/zoo_architectures.py);
those whose own code takes it, and some inputs, are checked as the models of the zoos are: all
groups at once and three alone, in float64, eval and train, and training. Results lie in
``architectures-out/``, one file each, and are not made again; the summary goes to
``benchmarks/results/architectures.json`` and ``docs/architectures.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from zoo_page import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"
MOST = 160  # letters of a verdict
TEXT = """# Architectures of transformers

Written by `python benchmarks/architectures.py` from `benchmarks/results/architectures.json`; do
not edit. transformers {version}.

Every architecture that transformers has gets a small configuration and inputs by the names of its
sizes and arguments, without anybody's help; of the {all} architectures that were tried {built}
take what they get: the others want arguments of their own, or sizes that fit each other in ways of
their own. These are checked as in [coverage](coverage.md): all groups at once and three alone, in
float64, in eval and train mode, and whether all that is new trains.

**{right} of {built} right, {wrong} wrong; median coverage {median}.**

"Wrong" is anything that must not happen: other outputs, an error of inspection or growth, new
entries that do not train, outputs that are no test. Where a model has no head, or its outputs are
its stream (CLIP), that stream can't grow, and coverage is low.

{table}
"""


def check_here(kind):
    """Check one architecture in this process."""
    import zoo
    import zoo_architectures

    try:
        built = zoo_architectures.of_transformers_type(kind)
    except Exception as error:  # noqa: BLE001  # of the architecture's own code: there is nothing to check
        return {"name": kind, "unbuilt": f"{type(error).__name__}: {error}"[:300]}
    return zoo.check_model(kind, singles=3, built=built).as_dict()


def result_of(kind, options):
    """What lies there, else what a process of its own finds."""
    path = options.out / f"{kind}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    command = [sys.executable, __file__, "--one", kind]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=options.timeout, check=False
        )
        lines = done.stderr.strip().splitlines()
        found = {"name": kind, "failed": lines[-1] if lines else "killed"}
        if done.returncode == 0:
            found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        found = {"name": kind, "failed": f"not done after {options.timeout} s"}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1), encoding="utf-8")
    part.replace(path)
    print(f"{kind}: {verdict(found)}", flush=True)
    return found


def verdict(found):
    """In a word, or in the words of what went wrong."""
    if "unbuilt" in found:
        return "not built"
    words = found.get("failed") or "; ".join(found["wrong"]) or "right"
    return words if len(words) <= MOST else f"{words[:MOST]} …"


def page(results):
    """The page: a line for each architecture that could be built."""
    built = [r for r in results if "unbuilt" not in r]
    done = [r for r in built if "failed" not in r]
    right = [r for r in built if verdict(r) == "right"]
    rows = [
        (
            r["name"],
            r["front_end"],
            r["groups"],
            ", ".join(f"{code} {n}" for code, n in sorted(r["reasons"].items())),
            f"{100 * r['coverage']:.1f} %",
            f"{max(r['all_eval'], r['all_train'], r['singles_worst']):.0e}",
            verdict(r),
        )
        for r in done
    ]
    rows += [(r["name"], "", "", "", "", "", verdict(r)) for r in built if "failed" in r]
    median = statistics.median([r["coverage"] for r in done] or [0])
    heads = ("architecture", "front end", "groups", "frozen", "coverage", "worst error", "verdict")
    return TEXT.format(
        version=metadata.version("transformers"),
        all=len(results),
        built=len(built),
        right=len(right),
        wrong=len(built) - len(right),
        median=f"{100 * median:.1f} %",
        table=table(heads, rows),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", help="by default all")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a model")
    parser.add_argument("--out", type=Path, default=ROOT / "architectures-out")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    import zoo_architectures

    if options.one:
        print(json.dumps(check_here(options.one)))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    kinds = options.kinds or zoo_architectures.architectures()
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda kind: result_of(kind, options), kinds))
    results = [json.loads(p.read_text("utf-8")) for p in sorted(options.out.glob("*.json"))]
    text = re.sub(r"/[^ \"]*/(?=[\w.-]+/[\w.-]+\.py)", "", json.dumps(results, indent=1))
    text = re.sub(r"/[^ \"']*/site-packages/", "", text)  # of a machine, as those were
    RESULTS.write_text(text + "\n", encoding="utf-8")
    PAGE.write_text(page(json.loads(text)), encoding="utf-8")
    return 0 if all(verdict(r) in {"right", "not built"} for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
