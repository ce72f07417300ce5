"""Tables, progress and messages; the only place that knows rich."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape as rich_escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fxgrow.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def escape(text: str) -> str:
    """Make text fit for a terminal: no markup, nothing that moves the cursor or hides."""
    return rich_escape(printable(text))


def error(message: str) -> None:
    """Write one sentence to stderr."""
    text = printable(" ".join(message.split()))
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        Text("error: ", style="bold red") + Text(text)
    )


def note(message: str) -> None:
    """Write one plain line to stderr."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(escape(message))


def as_json(data: Mapping[str, Any]) -> None:
    """Write JSON, and nothing else, to stdout."""
    sys.stdout.write(json.dumps(data, indent=2, default=str) + "\n")


@contextlib.contextmanager
def progress(visible: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar per stage on stderr while the block runs."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not visible) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total or None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield show


def inspection(data: Mapping[str, Any], inputs: str) -> None:
    """Write an inspection (``inspection_dict``) as tables."""
    out = _stdout()
    table = Table(title="Groups that can grow", title_justify="left")
    table.add_column("group", overflow="fold")
    for name in ("width", "step", "params/unit", "flops/unit"):
        table.add_column(name, justify="right")
    table.add_column("layers", overflow="fold")
    for group in data["groups"]:
        table.add_row(
            escape(group["name"]),
            f"{group['width']:,}",
            str(group["multiple_of"]),
            f"{group['params_per_unit']:,}",
            f"{group['flops_per_unit']:,}",
            escape(_shortened(group["layers"])),
        )
    out.print(table)
    _frozen(out, data["frozen"])
    _unsupported(out, data["unsupported"])
    out.print(
        f"{len(data['groups'])} growable groups hold {data['coverage']:.1%} of "
        f"{data['params']:,} parameters; {data['flops']:,} flops on inputs of {inputs}."
    )


def _frozen(out: Console, groups: list[Mapping[str, Any]]) -> None:
    if not groups:
        return
    table = Table(title="Groups that cannot, and why", title_justify="left")
    table.add_column("group", overflow="fold")
    table.add_column("width", justify="right")
    table.add_column("reason", overflow="fold")
    table.add_column("at", overflow="fold")
    for group in groups:
        reason = group["reason"] or {"message": "", "source": "", "node": ""}
        where = _short_path(reason["source"]) or reason["node"]
        table.add_row(
            escape(group["name"]), f"{group['width']:,}", escape(reason["message"]), escape(where)
        )
    out.print(table)


def _unsupported(out: Console, operations: list[Mapping[str, Any]]) -> None:
    if not operations:
        return
    table = Table(title="Operations without a rule (what they touch is frozen)")
    for name in ("operation", "calls", "first at"):
        table.add_column(name, overflow="fold")
    for op in operations:
        table.add_row(
            escape(op["op"]), str(op["count"]), escape(_short_path(op["source"]) or op["node"])
        )
    out.print(table)


def growth(data: Mapping[str, Any]) -> None:
    """Write a growth (``growth_dict``) as a table with totals and the preservation figure."""
    out = _stdout()
    table = Table(title="Widths before and after", title_justify="left")
    table.add_column("group", overflow="fold")
    for name in ("width", "new width", "votes", "params/unit"):
        table.add_column(name, justify="right")
    for row in data["groups"]:
        table.add_row(
            escape(row["name"]),
            f"{row['width']:,}",
            f"{row['new_width']:,}" if row["added"] else "·",
            "" if row["votes"] is None else f"{row['votes']:,}",
            f"{row['params_per_unit']:,}",
            style="bold" if row["added"] else "",
        )
    out.print(table)
    for line in _summary(data):
        out.print(line, soft_wrap=True)


def _summary(data: Mapping[str, Any]) -> Iterator[str]:
    plan, totals = data["plan"], data["totals"]
    yield (
        f"{totals['groups_grown']} of {totals['groups']} groups grow; "
        f"{plan['spent']:,} of {plan['budget']:,.0f} {plan['unit']} spent."
    )
    if plan["unspent_reason"]:
        yield f"Not all was spent: {escape(plan['unspent_reason'])}."
    factor = totals["new_params"] / max(totals["params"], 1)
    yield f"Parameters: {totals['params']:,} → {totals['new_params']:,} (×{factor:.2f})."
    check = data["verification"]
    if check is not None:
        yield (
            f"Function kept at insertion: outputs differ by {check['eval_error']:.1e} (eval) and "
            f"{check['train_error']:.1e} (train), relative, in {check['dtype']}."
        )


def line(message: str) -> None:
    """Write one plain line to stdout."""
    _stdout().print(escape(message), soft_wrap=True)


def _stdout() -> Console:
    # to a file or pipe: wide enough that no table is squeezed
    width = None if sys.stdout.isatty() else 120
    return Console(soft_wrap=False, highlight=False, width=width)


def _short_path(source: str) -> str:
    """Drop where packages are installed, and the current folder."""
    return source.rpartition("site-packages/")[2].removeprefix(f"{Path.cwd()}/")


def _shortened(layers: list[str], most: int = 4) -> str:
    more = len(layers) - most
    return ", ".join(layers[:most]) + (f" and {more} more" if more > 0 else "")
