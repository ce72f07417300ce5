"""Write ``docs/cost.md`` from the figures of ``cost.py``."""

from __future__ import annotations

import math

import torch
from cost import BATCH, BUDGET, MODELS, PUBLISHED, ROOT, SIZE, WIDTHS, cases

TEXT = """# Cost of voting and adjusting

Written by `python benchmarks/cost.py` from `benchmarks/results/cost.json`; do not edit.

Models are torchvision's resnet50 and a vision transformer of 12 layers, 384 wide (patches of
8 x 8, 6 heads), on batches of {batch} images of {size} x {size}; the budget is {budget} neurons.
A *plain step* is forward, backward and a fused Adam step of the original (for voting) or of the
widened model (for adjusting). A plain step runs before every batch of what is measured, in the
same process on one thread, so that other work on the machine slows both; ratios are medians over
these pairs, of wall-clock and of processor time, and milliseconds are processor time. Voting counts
all its passes over the data. torch {torch}, CPU.

## Time per batch

| model | what | ms | plain step, ms | ratio, wall | ratio, processor | aim |
|---|---|--:|--:|--:|--:|--:|
{time}

{verdict}

Adjusting takes its batches for each group that grew; the table has the widest group and the
first one, whose gradient passes through the whole model. What voting costs once (analysis and
making the clone) is {once}.

## Memory

Counted are all bytes that torch allocates and frees while it works (its profiler's memory
events), at their peak, without what one forward and backward pass of the same model for the same
parameters needs (activations and gradients). The widened clone of the vote counts, the model that
is to grow does not. The aim is one copy of the grown slices and their optimizer state, that is two
moments: three times the bytes of the parameters that grow. For the vote those are all parameters
of the clone, and its buffers once.

| model | what | extra, MB | grown slices, MB | aim, MB | extra / aim |
|---|---|--:|--:|--:|--:|
{memory}

## GradMax's rows

The default extender turns new rows, before it adjusts, by five steps over about 1,024 samples,
each two passes (forward and backward), and one more forward where norms follow. That is one
search for all groups, whatever the number of data. Measured on {looked} batches with the whole
budget shared evenly: time over that of as many plain steps of the widened model, and, times the
batches of {batch} that make 1,024 samples, what a growth takes. Memory is counted as above: a copy
of the model, and gradients of what makes and reads new units.

| model | ms a batch | plain step, ms | ratio, wall | ratio, processor | steps a growth | \
extra, MB | model, MB | grown slices, MB |
|---|--:|--:|--:|--:|--:|--:|--:|--:|
{gradmax}

So a growth costs as much as {epochs} plain epochs over 1,024 samples at most (what is done once a
step, such as making rows orthogonal, weighs less with more batches): little beside an epoch over
tens of thousands, and more than all else where there are a thousand. Fewer steps or samples had
higher validation losses on digits: [benchmarks](benchmarks.md#what-was-tried).

## Against the published formulation

The published vote has 2K candidates in every layer and a second pass over the data; the published
coupling stores a vector for each pair of a new and an old row, with two moments of Adam and a
gradient. At a budget of {budget} neither fits into the memory here, so those figures are
*extrapolated*: for the vote, by the parabola through the ratios at {published} neurons (a clone
grows quadratically); for pairs of rows, from time and bytes of one entry of D in the largest layer
of the last section, times the entries that D has in the model's widest group. Everything else is
measured. `pairwise` has the dynamics of dense couplings without storing them.

| model | what | new units | ratio, processor | extra, MB | |
|---|---|--:|--:|--:|---|
{published_rows}

{missing}
## Linear in new + old

One layer (`linear`: 128 inputs; `conv`: 14 channels, 3 x 3; then ReLU and a reader of 10) whose
n units grow by as many. Processor milliseconds of a whole adjusting step, model included, and
bytes as above. The exponent is that of n + k, fitted to the three largest; 1 is linear.

| layer | coupling | n = k | ms a step | extra, MB |
|---|---|--:|--:|--:|
{sweep}

| layer | coupling | exponent of time | exponent of memory |
|---|---|--:|--:|
{exponents}
"""

NAMES = {"resnet50": "resnet50", "vit": "ViT, 12 layers"}
KIND = {"resnet50": "conv", "vit": "linear"}
WHAT = {
    "vote": ("vote", 2.0),
    "adjust laplacian": ("adjust, widest group", 1.2),
    "adjust laplacian, first group": ("adjust, first group", 1.2),
}
MB = 1e6


def good(found, name):
    """The figure, if it was measured."""
    figure = found.get(name, {"failed": "not measured"})
    return None if "failed" in figure else figure


def rows(found, line):
    """Lines of one table over models and defaults."""
    lines = []
    for model, title in NAMES.items():
        for what, (words, aim) in WHAT.items():
            figure = good(found, f"{model}/{what}")
            if figure:
                where = f" (`{figure['group']}`, {figure['old']})" if "group" in figure else ""
                lines.append(f"| {title} | {words}{where} | {line(figure, aim)} |")
    return "\n".join(lines)


def time_cells(figure, aim):
    own, plain = 1e3 * figure["own_cpu"], 1e3 * figure["plain_cpu"]
    ratios = f"{figure['ratio_wall']:.2f} | {figure['ratio_cpu']:.2f}"
    return f"{own:.0f} | {plain:.0f} | {ratios} | ≤ {aim}"


def memory_cells(figure, _):
    extra, slices, aim = (figure[f"{key}_bytes"] for key in ("extra", "slices", "aim"))
    return f"{extra / MB:.1f} | {slices / MB:.1f} | {aim / MB:.1f} | {extra / aim:.3f}"


def gradmax(found):
    """Lines on the search of GradMax's rows."""
    lines = []
    for model, figure in searches(found):
        own, plain = 1e3 * figure["own_cpu"], 1e3 * figure["plain_cpu"]
        ratios = f"{figure['ratio_wall']:.1f} | {figure['ratio_cpu']:.1f}"
        growth = figure["ratio_cpu"] * 1024 / BATCH
        sizes = " | ".join(f"{figure[f'{k}_bytes'] / MB:.0f}" for k in ("extra", "model", "slices"))
        lines.append(
            f"| {NAMES[model]} | {own:.0f} | {plain:.0f} | {ratios} | {growth:.0f} | {sizes} |"
        )
    return "\n".join(lines)


def searches(found):
    figures = [(model, good(found, f"{model}/gradmax rows")) for model in MODELS]
    return [(model, figure) for model, figure in figures if figure]


def epochs(found):
    """Plain epochs over the samples that the search looks at, least and most."""
    ratios = sorted(round(figure["ratio_cpu"]) for _, figure in searches(found))
    return " to ".join(map(str, dict.fromkeys((ratios[0], ratios[-1])))) if ratios else "?"


def verdict(found):
    """Which aims are missed."""
    missed = [
        f"{title}, {words}: {max(figure['ratio_wall'], figure['ratio_cpu']):.2f}"
        for model, title in NAMES.items()
        for what, (words, aim) in WHAT.items()
        if (figure := good(found, f"{model}/{what}"))
        and max(figure["ratio_wall"], figure["ratio_cpu"]) > aim
    ]
    return (
        f"Missed: {'; '.join(missed)}."
        if missed
        else "What is listed meets its aim, by both clocks."
    )


def once(found):
    figures = [(NAMES[m], good(found, f"{m}/vote")) for m in MODELS]
    return " and ".join(
        f"{f['once_wall'] / f['plain_wall']:.1f} plain steps ({name})" for name, f in figures if f
    )


def parabola(points, at):
    """Value at ``at`` of the parabola through three points (Lagrange)."""
    total = 0.0
    for x, y in points:
        others = [z for z, _ in points if z != x]
        total += y * math.prod((at - z) / (x - z) for z in others)
    return total


def published(found):
    lines = []
    for model, title in NAMES.items():
        ours = good(found, f"{model}/vote")
        if ours:
            extra = f"{ours['extra_bytes'] / MB:.0f}"
            lines.append(
                f"| {title} | vote, default | {BUDGET} | {ours['ratio_cpu']:.2f} | {extra} | |"
            )
        lines += _published_votes(found, model, title)
        lines += _couplings(found, model, title)
    return "\n".join(lines)


def _published_votes(found, model, title):
    lines, points = [], []
    for budget in PUBLISHED:
        figure = good(found, f"{model}/vote as published, {budget}")
        if figure:
            points.append((budget, figure))
            state = 3 * figure["slices_bytes"] / MB
            lines.append(
                f"| {title} | vote as published | {budget} | {figure['ratio_cpu']:.1f} "
                f"| {state:.0f} (clone and state) | |"
            )
    if len(points) == 3:
        ratio = parabola([(b, f["ratio_cpu"]) for b, f in points], BUDGET)
        state = 3 * parabola([(b, f["slices_bytes"]) for b, f in points], BUDGET) / MB
        lines.append(
            f"| {title} | vote as published | {BUDGET} | {ratio:.0f} "
            f"| {state:.0f} (clone and state) | extrapolated |"
        )
    return lines


def _couplings(found, model, title):
    figure = good(found, f"{model}/adjust laplacian")
    if not figure:
        return []
    extra = f"{figure['extra_bytes'] / MB:.0f}"
    lines = [f"| {title} | adjust, default | {BUDGET} | {figure['ratio_cpu']:.2f} | {extra} | |"]
    for coupling in ("pairwise", "dense"):
        layers = good(found, f"{KIND[model]}/{coupling}")
        if layers:
            layer = layers[str(WIDTHS[coupling][-1])]
            scale = figure["pairs_entries"] / layer["pairs_entries"]
            ratio = scale * layer["own_cpu"] / figure["plain_cpu"]
            # pairwise holds a chunk of D at a time, whatever the layer
            extra = f"{scale * layer['extra_bytes'] / MB:.0f}" if coupling == "dense" else ""
            cells = f"adjust, {coupling} | {BUDGET} | {ratio:.0f} | {extra} | extrapolated"
            lines.append(f"| {title} | {cells} |")
    return lines


def sweeps(found):
    lines, exponents = [], []
    for kind in ("linear", "conv"):
        for coupling, widths in WIDTHS.items():
            measured = good(found, f"{kind}/{coupling}") or {}
            figures = [(width, measured[str(width)]) for width in widths if measured]
            for width, figure in figures:
                ms, extra = 1e3 * figure["own_cpu"], figure["extra_bytes"] / MB
                lines.append(f"| {kind} | {coupling} | {width} | {ms:.2f} | {extra:.2f} |")
            if len(figures) >= 3:
                last = figures[-3:]
                time = exponent([(w, f["own_cpu"]) for w, f in last])
                memory = exponent([(w, f["extra_bytes"]) for w, f in last])
                exponents.append(f"| {kind} | {coupling} | {time:.2f} | {memory:.2f} |")
    return "\n".join(lines), "\n".join(exponents)


def exponent(points):
    """Slope of a line fitted to the logarithms."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    middle, level = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - middle) * (y - level) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - middle) ** 2 for x in xs)


def missing(found):
    """What has not been measured, so that no table seems complete that is not."""
    names = [f"`{name}`" for name in cases() if not good(found, name)]
    return (
        f"Not measured yet (`python benchmarks/cost.py` does): {', '.join(names)}.\n"
        if names
        else ""
    )


def words(numbers):
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}"


def write(found):
    """Write the page."""
    sweep, exponents = sweeps(found)
    text = TEXT.format(
        batch=BATCH, size=SIZE, budget=BUDGET, torch=torch.__version__.split("+")[0],
        time=rows(found, time_cells), memory=rows(found, memory_cells), verdict=verdict(found),
        once=once(found), gradmax=gradmax(found), epochs=epochs(found),
        looked=max((f["looked_at"] for _, f in searches(found)), default="?"),
        published=words(PUBLISHED),
        published_rows=published(found), missing=missing(found), sweep=sweep, exponents=exponents,
    )  # fmt: skip
    (ROOT / "docs" / "cost.md").write_text(text, encoding="utf-8")
