"""What people do with networks, done with grown ones: trained, compiled, exported, copied.

``python benchmarks/downstream.py`` writes ``benchmarks/results/downstream.json`` and the page
``docs/downstream.md``. Every check of ``tests/usage.py`` is made on the original, on the grown
graph and on the grown own class; one process a model. What has worked is not done again:
``--again CHECK`` does, ``--page-only`` writes the page alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
RESULTS = ROOT / "benchmarks" / "results" / "downstream.json"
FORMS = ("graph", "module")
COMPILED = ("densenet", "timm_vit", "hf_bert")  # with the default backend, which is slow

# ruff: noqa: E501 -- lines of a table
PAGE = """# After growth

Written by `benchmarks/downstream.py` ({versions}); do not edit.

{models} networks of torchvision, timm and transformers (random weights, small inputs, float32) are grown: every
group by its smallest step of at least 8 units, once as a graph, once as their own class. Then everything below is done
with the result **and with the original**:

| check | what must be true |
|---|---|
| trains | Adam and SGD, 8 steps each on one batch: the loss falls, every parameter and buffer stays finite |
| compile | `torch.compile` (`aot_eager`): outputs and gradients; no more graph breaks than the original has |
| inductor | the same with the default backend ({compiled} only) |
| bf16 | autocast: outputs near those in float32, loss and gradients finite |
| channels_last | outputs of `.to(memory_format=torch.channels_last)`; growth of such a network keeps its weights so |
| deepcopy | the same outputs, no memory in common, ties kept |
| state_dict | strictly into a changed copy, and into another network grown by the same plan; `torch.load(weights_only=True)`; the keys are those of the original |
| save | `fxgrow.save`, `fxgrow.load` onto the original |
| pickle | `torch.save` of the module itself |
| export | `torch.export` (not strict): outputs of the program |
| onnx | `fxgrow.export` as ONNX, run in onnxruntime |
| truth | attributes of layers are the sizes of their tensors; widths that other modules hold are no old ones |
| methods | timm: `forward_features`, `forward_head`, `forward_intermediates`, `get_classifier`, `reset_classifier`, widths they tell; transformers: `generate` (the same tokens), `save_pretrained`/`from_pretrained`, `resize_token_embeddings`; torchvision: another head, `fuse_model` |

**{verdict}**

✓ works; · does not apply; ○ fails, and fails on the original as well: not by growth; **✗** works on the original
only: ours.

{tables}

## Not by growth

{outside}

## Ours

{ours}

## No graph

{no_graph}

## Groups that the own class can't take

With `emit="module"` the model's own code runs, so sizes that it holds as numbers, or ties to others, can't
follow. A share or number for every group (`"+12.5%"`, `8`), and budgets, leave these groups out; named one by one they
are refused with the reason. As a graph they grow.

{left}

## Not run yet

{missing}

## Run it

    python benchmarks/downstream.py --jobs 2
"""


# --------------------------------------------------------------------- one model


def measure_here(name, wanted):
    """Make checks on one model; ``wanted`` has (form, check) pairs."""
    import torch
    import usage
    import usage_models

    import fxgrow
    from fxgrow.errors import FxgrowError
    from fxgrow.ownclass import followed

    torch.set_num_threads(1)
    library, model, example = usage_models.build(name)
    result = {"library": library, "params": sum(p.numel() for p in model.parameters())}

    def other():
        return usage_models.build(name, 1)[1]

    original = usage.Subject(model, example, library, again=other)
    result["original"] = _made(usage, original, wanted, "original")
    inspection = fxgrow.inspect(model, example)
    result["groups"] = len(inspection.groups)
    for form in FORMS:
        offered = inspection if form == "graph" else followed(model, inspection)
        try:
            growth = fxgrow.widen(model, example, usage.everything(offered), emit=form)
        except FxgrowError as error:
            result[form] = {"refused": str(error).splitlines()[0]}
            continue
        if form == "module":
            names = {g.name for g in inspection.groups} - {g.name for g in offered.groups}
            lost = [g.reason.message for g in offered.frozen if g.name in names]
            result["left_out"] = {"groups": len(lost), "why": sorted(set(lost))[:2]}

        def again(plan=growth.plan, form=form):
            return fxgrow.widen(other(), example, plan, emit=form, seed=3).module

        breaks = original.notes.get("breaks", 0)
        grown = usage.Subject(growth.module, example, library, model, growth, again, breaks)
        result[form] = _made(usage, grown, wanted, form)
        result[form]["params"] = sum(p.numel() for p in growth.module.parameters())
    return result


def _made(usage, subject, wanted, form):
    checks = [c for c in usage.CHECKS if (form, c) in wanted]
    return {check: usage.attempt(check, subject) for check in checks}


def checks_of(name):
    import usage

    return [c for c in usage.CHECKS if c != "inductor" or name in COMPILED]


def open_pairs(name, known, again):
    """Checks that are to be made: new ones, those that failed on growth, those asked for."""
    pairs = set()
    for check in checks_of(name):
        states = {f: known.get(f, {}).get(check, {}).get("state") for f in ("original", *FORMS)}
        refused = {f for f in FORMS if "refused" in known.get(f, {})}
        missing = any(s is None for f, s in states.items() if f not in refused)
        ours = states["original"] != "fails" and "fails" in states.values()
        if missing or ours or check in again:
            pairs |= {(form, check) for form in states}
    return pairs


def merged(known, new):
    """New results over the known ones, check by check."""
    result = {**known, **new}
    for form in ("original", *FORMS):
        own = new.get(form, {})
        result[form] = own if "refused" in own else {**known.get(form, {}), **own}
        if "refused" not in own:
            result[form].pop("refused", None)
    return result


def measure(name, pairs, timeout):
    """Check one model in a process of its own."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result.json"
        listing = ",".join(f"{form}:{check}" for form, check in sorted(pairs))
        command = [sys.executable, __file__, "--one", name, "--pairs", listing, "--to", str(target)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout, check=False
            )
            lines = done.stderr.strip().splitlines()
            problem = f"exit code {done.returncode}: {lines[-1] if lines else 'killed'}"
        except subprocess.TimeoutExpired:
            problem = f"not done after {timeout:g} s"
        if target.exists():
            result = json.loads(target.read_text(encoding="utf-8"))
            result.pop("failed", None)
        else:
            result = {"failed": problem}
    result["seconds"] = round(time.perf_counter() - start)
    return result


# ------------------------------------------------------------------------- page


def state_of(entry, form, check):
    """Sign of one check: what the form and the original came to."""
    own = entry.get(form, {})
    if "refused" in own or check not in own:
        return ""
    state = own[check]["state"]
    if state == "works":
        return "✓"
    if state == "none":
        return "·"
    return "○" if entry["original"].get(check, {}).get("state") == "fails" else "**✗**"


def table(results, form, checks):
    head = f"| model | params (M) | grown (M) | {' | '.join(checks)} |"
    lines = [head, "|---|--:|--:|" + ":-:|" * len(checks)]
    for name, entry in results.items():
        if form not in entry or "refused" in entry[form]:
            continue
        sizes = [f"{n / 1e6:.2f}" for n in (entry["params"], entry[form]["params"])]
        signs = [state_of(entry, form, check) for check in checks]
        lines.append("| " + " | ".join([name, *sizes, *signs]) + " |")
    return "\n".join(lines)


def notes(results, sign):
    lines = {}
    for name, entry in results.items():
        for form in FORMS:
            for check, found in entry.get(form, {}).items():
                if isinstance(found, dict) and state_of(entry, form, check) == sign:
                    key = (
                        check,
                        found["note"] if sign != "○" else entry["original"][check]["note"],
                    )
                    lines.setdefault(key, []).append(f"{name} ({form})")
    shown = [f"- {check}: {', '.join(who)}: {_safe(note)}" for (check, note), who in lines.items()]
    return "\n".join(shown) or "Nothing."


def _safe(text):
    """Text of errors in Markdown, without paths of this machine."""
    short = " ".join(text.split())[:260].replace("`", "'").replace("|", "¦")
    return "`" + short.replace(str(ROOT) + "/", "").replace(sys.prefix + "/", "") + "`"


def page(results):
    import timm
    import torch
    import torchvision
    import transformers
    import usage
    import usage_models

    good = {n: r for n, r in results.items() if "failed" not in r}
    checks = list(usage.CHECKS)
    signs = [state_of(r, f, c) for r in good.values() for f in FORMS for c in checks]
    counts = {s: signs.count(s) for s in ("✓", "○", "**✗**")}
    verdict = (
        f"{sum(counts.values())} checks of grown networks: {counts['✓']} work, {counts['○']} fail "
        f"on the original as well, {counts['**✗**']} fail by growth."
    )
    refused = {n: r["graph"]["refused"] for n, r in good.items() if "refused" in r.get("graph", {})}
    broken = [f"- {n}: {r['failed']}" for n, r in results.items() if "failed" in r]
    left = [
        f"- {n}: {r['left_out']['groups']} of {r['groups']}: {_safe(r['left_out']['why'][0])}"
        for n, r in good.items()
        if r.get("left_out", {}).get("groups")
    ]
    titles = {"graph": "As a graph", "module": "As its own class"}
    modules = (torch, torchvision, timm, transformers)
    return PAGE.format(
        versions=", ".join(f"{m.__name__} {m.__version__}" for m in modules),
        models=len(good),
        compiled=", ".join(COMPILED),
        verdict=verdict,
        tables="\n\n".join(f"## {titles[f]}\n\n{table(good, f, checks)}" for f in FORMS),
        outside=notes(good, "○"),
        ours="\n".join([notes(good, "**✗**"), *broken]),
        no_graph="\n".join(f"- {n}: {_safe(why)}" for n, why in refused.items()) or "None.",
        left="\n".join(left) or "None.",
        missing=", ".join(n for n in usage_models.MODELS if n not in good)
        or "None: all have been run.",
    )


# ------------------------------------------------------------------------- main


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="names in tests/usage_models.py; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds a model")
    parser.add_argument("--again", default="", help="checks to make again, with commas")
    parser.add_argument("--page-only", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "downstream.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--pairs", default="", help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(options):
    from usage_models import MODELS

    lock = Lock()
    known = {}
    if options.results.exists():
        known = json.loads(options.results.read_text(encoding="utf-8"))
    again = set(filter(None, options.again.split(",")))

    def one(name):
        pairs = open_pairs(name, known.get(name, {}), again)
        if not pairs:
            return
        result = measure(name, pairs, options.timeout)
        with lock:
            known[name] = merged(known.get(name, {}), result)
            if "failed" not in result:
                known[name].pop("failed", None)
            ordered = {n: known[n] for n in MODELS if n in known}
            part = options.results.with_suffix(".part")
            part.write_text(json.dumps(ordered, indent=1, ensure_ascii=False), encoding="utf-8")
            part.replace(options.results)
            print(f"{name}: {result.get('failed', 'done')} ({result['seconds']} s)", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, [n for n in MODELS if n in options.models or not options.models]))


def main():
    options = arguments()
    if options.one:
        pairs = {tuple(pair.split(":")) for pair in options.pairs.split(",")}
        result = measure_here(options.one, pairs)
        options.to.write_text(json.dumps(result), encoding="utf-8")
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not options.page_only:
        run(options)
    results = json.loads(options.results.read_text(encoding="utf-8"))
    options.page.write_text(page(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
