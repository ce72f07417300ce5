"""The page ``docs/coverage.md``, from the results of ``benchmarks/zoo.py``."""

from __future__ import annotations

import statistics
from collections import Counter
from importlib.metadata import version

PAGE = """# Coverage

Written by `benchmarks/zoo.py` ({versions}) from `benchmarks/results/zoo.json`; do not edit.

Every model gets random weights and runs in float64 on a batch of two small inputs (casts of its
own code to float32 are left out). It is inspected, then all groups at once grow by 8 units (or
the next step they allow), then {singles} by one step. Outputs before
and after are compared in eval and in train mode (dropout off; detectors with targets, so the
losses are compared, and with no score too low to be a detection). Errors are the largest
difference, relative to the largest output. "Trained": every new parameter has a gradient where
it should, and moves; "loss": before and after five steps of Adam on one batch. "Coverage": share
of the parameters that lie in a growable group. "Front end": a graph of the whole model (with so
many leaves: modules that stay as they are in it), or the user's own class, where no graph can be
had. "Inspect": seconds of `fxgrow.inspect` over those of one forward pass, on these inputs.

{summary}
{first}
{tables}

{notes}
"""

HEADS = (
    "model", "params (M)", "input", "front end", "groups", "frozen", "coverage",
    "all at once: eval", "train", "alone", "worst", "trained", "loss", "inspect", "s",
)  # fmt: skip


def cells(r):
    """One line of a table."""
    leaves = f", {r['leaves']} leaves" if r.get("leaves") else ""
    loss = r.get("loss") or (0, 0)
    forward = r.get("forward_seconds")
    return (
        r["name"].partition(":")[2] + (" **wrong**" if r["wrong"] else ""),
        f"{r['params'] / 1e6:.1f}",
        r["size"],
        r.get("front_end", "graph") + leaves,
        r["groups"],
        ", ".join(f"{code} {n}" for code, n in sorted(r["reasons"].items())) or r["frozen"],
        f"{100 * r['coverage']:.2f} %",
        f"{r['all_eval']:.0e}",
        f"{r['all_train']:.0e}",
        r["singles_checked"],
        f"{r['singles_worst']:.0e}" if r["singles_checked"] else "",
        "yes" if r["trained"] else "not checked",
        f"{loss[0]:.3g} → {loss[1]:.3g}" if loss[0] else "",
        f"{r['inspect_seconds'] / forward:.1f}" if forward else "",
        f"{r['seconds']:.0f}",
    )


def table(heads, rows):
    """A Markdown table, numbers to the right."""
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def ended(results):
    return [r for r in results if "failed" not in r]


def zoo_of(result):
    return result["name"].partition(":")[0]


def summary(results, absent):
    """A line a zoo."""
    heads = (
        "zoo", "models", "checked", "all groups at once exact", "wrong", "groups grown alone",
        "median coverage", "own class", "with leaves",
    )  # fmt: skip
    rows = []
    for zoo in dict.fromkeys([*map(zoo_of, results), *(n.partition(":")[0] for n in absent)]):
        own = [r for r in results if zoo_of(r) == zoo]
        done = ended(own)
        missing = sum(n.startswith(f"{zoo}:") for n in absent)
        exact = [r for r in done if r["groups"] and max(r["all_eval"], r["all_train"]) <= 1e-10]
        median = statistics.median([r["coverage"] for r in done] or [0])
        rows.append(
            (
                zoo,
                len(own) + missing,
                len(done),
                sum(not any(w.startswith("all:") for w in r["wrong"]) for r in exact),
                sum(bool(r["wrong"]) for r in done),
                f"{sum(r['singles_checked'] for r in done)} of {sum(r['groups'] for r in done)}",
                f"{100 * median:.2f} %",
                sum(r.get("front_end") == "own class" for r in done),
                sum(bool(r.get("leaves")) for r in done),
            )
        )
    return table(heads, rows)


def first_try(results, rows):
    """Libraries that nothing was built for: as they were found, and as they are."""
    if not rows:
        return ""
    each = ("right", "median coverage")
    heads = ("library", "at first: checked", *each, "now: checked", *each)
    lines = []
    for zoo in dict.fromkeys(map(zoo_of, rows)):
        line = [zoo]
        for found in (rows, results):
            done = [r for r in ended(found) if zoo_of(r) == zoo]
            median = statistics.median([r["coverage"] for r in done] or [0])
            line += [len(done), sum(not r["wrong"] for r in done), f"{100 * median:.2f} %"]
        lines.append(line)
    return (
        "\n## First try\n\nLibraries that nothing was built for, before anything was mended "
        "(`benchmarks/results/zoo_first_try.json`; the rest of their models needs arguments that "
        f"are not told by their names), and now.\n\n{table(heads, lines)}\n"
    )


def peers(results):
    """What Torch-Pruning does on the same models."""
    compared = [r for r in results if "peer" in r]
    if not compared:
        return ""
    rows = []
    for zoo in dict.fromkeys(map(zoo_of, compared)):
        own = [r for r in compared if zoo_of(r) == zoo]
        runs = [r for r in own if r["peer"]["verdict"] == "runs"]
        rows.append((zoo, len(own), len(runs), sum(map(_grows, own))))
    heads = ("zoo", "models", "Torch-Pruning: pruned by a quarter, runs", "fxgrow: grown, exact")
    failing = Counter(r["peer"]["verdict"].partition(":")[0] for r in compared)
    told = ", ".join(f"{verdict}: {n}" for verdict, n in failing.most_common())
    part = (
        f"{len(compared)} of {len(results)} models were run with it. "
        if len(compared) < len(results)
        else ""
    )
    return (
        f"## The peer\n\n{table(heads, rows)}\n\n{part}No hints to either (`--peer`). "
        f"Torch-Pruning {_version('torch-pruning')}, the last linear layer ignored, "
        "a minute a model on a busy machine; verdicts: "
        f"{told}. Each model's verdict, groups and seconds are in the JSON.\n"
    )


def _grows(result):
    return "failed" not in result and not result["wrong"] and bool(result["groups"])


def _version(package):
    try:
        return version(package)
    except ImportError:
        return "(version unknown here)"


def notes(results, absent):
    """What went wrong, what was not run, reasons, and which code ran."""
    done = ended(results)
    lines = [f"- {r['name']}: {problem}" for r in done for problem in r["wrong"]]
    lines += [f"- {r['name']}: {r['failed']}" for r in results if "failed" in r]
    sampled = [r["name"] for r in done if r["singles_checked"] < r["groups"]]
    if sampled:
        lines.append(f"- Only some groups were grown alone: {', '.join(sampled)}.")
    if absent:
        lines.append(f"- Not run yet: {', '.join(absent)}.")
    reasons = sorted({code for r in done for code in r["reasons"]})
    lines.append(
        f"- Reasons of frozen groups: {', '.join(reasons)} (`fxgrow inspect` explains each)."
    )
    unknown = sorted({op for r in done for op in r["unsupported"]})
    lines.append(f"- Operations without a rule: {', '.join(unknown) or 'none'}.")
    commits = Counter(r.get("commit", "unknown") for r in done)
    lines.append(
        "- Code that ran: " + ", ".join(f"{c} ({n} models)" for c, n in commits.most_common()) + "."
    )
    return "\n".join(lines)


def page(results, absent, first=()):
    """The page as text; ``first``: results of other libraries when they were first tried."""
    tables = []
    for zoo in dict.fromkeys(map(zoo_of, results)):
        own = sorted(
            (r for r in ended(results) if zoo_of(r) == zoo), key=lambda result: result["name"]
        )
        tables.append(f"## {zoo}\n\n{table(HEADS, map(cells, own))}\n")
    every = all(r["singles_checked"] == r["groups"] for r in ended(results))
    return PAGE.format(
        versions=", ".join(
            f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "transformers")
        ),
        singles="every group alone" if every else "every group alone (or some, see below)",
        summary=summary(results, absent),
        first=first_try(results, first),
        tables="\n".join([*tables, peers(results)]).rstrip(),
        notes=notes(results, absent),
    )
