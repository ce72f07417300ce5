"""Write ``docs/speed.md`` from the figures of ``speed.py``."""

from __future__ import annotations

import json
import statistics

from speed import AIM, PAGE, RESULTS, ratio, slope

TEXT = """# Speed of analysis

Written by `python benchmarks/analysis.py --page` from `benchmarks/results/analysis.json`. Do not
edit. The figures are made by

    pip install 'fxgrow[bench]'
    python benchmarks/analysis.py --peer
    python benchmarks/analysis.py --depth

`inspect` is all of `fxgrow.inspect`: tracing both modes, propagating labels, grouping units and
pricing them. The peer is Torch-Pruning {peer}: `DependencyGraph().build_dependency(model, example)`
and `get_all_groups` from all convolutions and linear layers. Both run on the same model (float32,
eval mode, random weights, one example, 224 px unless the model asks for another size), in turns in
one process on one thread, every model in a process of its own; medians of processor time.
torch {torch}, torchvision {torchvision}, timm {timm}, Python {python}.

## Against the peer

{summary}

| model | operations | forward, ms | deep copy | inspect | peer | peer / inspect | / forward |
|---|--:|--:|--:|--:|--:|--:|--:|
{rows}

`/ forward` is `inspect` in forward passes; `operations` are the nodes of the graphs (of both
modes, where they differ).

## Depth

Residual networks for images of 32 px. Seconds of `inspect` grow with the number of operations
to the power of {slope:.2f} (1 is linear), fitted to all rows; to those from 110 layers, where what
every analysis costs once hardly counts, {steep:.2f} (a forward pass: {forward:.2f}). The number
of function calls per operation does not grow (`tests/test_speed.py`).

| layers | operations | inspect, ms | per operation, µs | peer, ms | peer / inspect |
|--:|--:|--:|--:|--:|--:|
{depths}
"""


def ms(row, what):
    return f"{row[what]['seconds'] * 1e3:.1f}" if what in row else ""


def peer_cell(row):
    return ms(row, "peer") or row["peer_error"].replace("|", "/")


def times(value):
    return "" if value is None else f"{value:.1f}"


def summary(rows):
    ratios = {row["model"]: ratio(row) for row in rows if ratio(row) is not None}
    slower = {name: value for name, value in ratios.items() if value < 1}
    failed = len(rows) - len(ratios)
    worst = min(ratios, key=ratios.get)
    text = [
        f"Of {len(rows)} models the peer finishes {len(ratios)} ({failed} fail or pass the time "
        f"limit). There `inspect` is {statistics.median(ratios.values()):.1f} times as fast at the "
        f"median, {max(ratios.values()):.1f} times at best and {ratios[worst]:.2f} times at worst "
        f"({worst.removeprefix('timm:')})."
    ]
    if statistics.median(ratios.values()) < AIM:
        text.append(f"The aim, {AIM:g} times at the median, is not reached.")
    if slower:
        names = ", ".join(name.removeprefix("timm:") for name in sorted(slower))
        text.append(f"It is slower than the peer on {len(slower)}: {names}.")
    return "\n".join(text)


def page():
    data = json.loads(RESULTS.read_text())
    rows = [row for row in data["peer"] if "error" not in row]
    deep = [row for row in data["depth"] if "error" not in row]
    table = [
        f"| {row['model'].removeprefix('timm:')} | {row['operations']} | {ms(row, 'forward')} "
        f"| {ms(row, 'deepcopy')} | {ms(row, 'inspect')} | {peer_cell(row)} | {times(ratio(row))} "
        f"| {row['inspect']['seconds'] / row['forward']['seconds']:.2f} |"
        for row in rows
    ]
    depths = [
        f"| {row['model'][6:]} | {row['operations']} | {ms(row, 'inspect')} "
        f"| {row['inspect']['seconds'] / row['operations'] * 1e6:.0f} | {peer_cell(row)} "
        f"| {times(ratio(row))} |"
        for row in deep
    ]
    versions = data["versions"]
    text = TEXT.format(
        peer=versions["torch-pruning"],
        torch=versions["torch"].partition("+")[0],
        torchvision=versions["torchvision"].partition("+")[0],
        timm=versions["timm"],
        python=versions["python"],
        summary=summary(rows),
        rows="\n".join(table),
        slope=slope(deep),
        steep=slope([row for row in deep if row["operations"] > 400]),
        forward=slope([row for row in deep if row["operations"] > 400], "forward"),
        depths="\n".join(depths),
    )
    PAGE.write_text(text, encoding="utf-8")
