"""Tables, progress and messages; the only place that knows rich."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape as rich_escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fxgrow.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ERROR_SCHEMA = "fxgrow.error/1"


@dataclass(frozen=True)
class Screen:
    """Where a command writes, and how much.

    Attributes
    ----------
    as_json : bool
        Stdout holds JSON and nothing else.
    level : int
        -1 quiet, 0 normal, 1 verbose.
    """

    as_json: bool = False
    level: int = 0

    def show(self, data: Mapping[str, Any], table: Callable[[Mapping[str, Any]], None]) -> None:
        """Write a result: as JSON, as ``table`` writes it, or (quiet) not at all."""
        if self.as_json:
            _write_json(data)
        elif self.level >= 0:
            table(data)

    def line(self, message: str) -> None:
        """Write one line of the result, for people."""
        if not self.as_json and self.level >= 0:
            _stdout().print(escape(message), soft_wrap=True)

    def note(self, message: str) -> None:
        """Write to stderr what is being done, when asked to (verbose)."""
        if self.level > 0:
            Console(stderr=True, soft_wrap=True, highlight=False).print(Text(message, style="dim"))

    def error(self, message: str, kind: str, code: int) -> None:
        """Write one sentence to stderr; with JSON also an object to stdout."""
        sentence = printable(" ".join(message.split()))
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            Text("error: ", style="bold red") + Text(sentence)
        )
        if self.as_json:
            reason = {"type": kind, "message": sentence}
            _write_json({"schema": ERROR_SCHEMA, "error": reason, "exit_code": code})

    @contextlib.contextmanager
    def progress(self, visible: bool = True) -> Iterator[Callable[[str, int, int], None]]:
        """Show one bar per stage on stderr while the block runs."""
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        shown = visible and not self.as_json and self.level >= 0 and sys.stderr.isatty()
        with Progress(*columns, console=Console(stderr=True), disable=not shown) as bars:
            tasks: dict[str, Any] = {}

            def show(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total or None)
                bars.update(tasks[stage], completed=done, total=total or None)

            yield show


def escape(text: str) -> str:
    """Make text fit for a terminal: no markup, nothing that moves the cursor or hides."""
    return rich_escape(printable(text))


def _write_json(data: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(_finite(data), indent=2, default=str, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """Replace what JSON has no number for (NaN, infinity) by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def inspection(data: Mapping[str, Any], inputs: str) -> None:
    """Write an inspection (``inspection_dict``) as tables, with activity where measured."""
    out = _stdout()
    seen = {group["name"]: group for group in data.get("activity", {}).get("groups", ())}
    table = _table(
        "Groups that can grow", "group", "width", "step", "params per unit", "flops per unit"
    )
    for name in ("inactive", "<1 %") if seen else ():
        table.add_column(name, justify="right")
    table.add_column("layers", overflow="fold")
    for group in data["groups"]:
        found = seen.get(group["name"], {})
        table.add_row(
            escape(group["name"]),
            f"{group['width']:,}",
            str(group["multiple_of"]),
            f"{group['params_per_unit']:,}",
            f"{group['flops_per_unit']:,}",
            *(str(found.get(key, "")) for key in ("inactive", "nearly_inactive") if seen),
            escape(_shortened(group["layers"])),
        )
    _draw(out, table)
    _frozen(out, data["frozen"])
    _unsupported(out, data["unsupported"])
    _say(
        out,
        f"{len(data['groups'])} growable groups hold {data['coverage']:.1%} of "
        f"{data['params']:,} parameters; {data['flops']:,} flops on inputs of {inputs}.",
    )


def _frozen(out: Console, groups: list[Mapping[str, Any]]) -> None:
    if not groups:
        return
    table = _table("Groups that cannot, and why", "group", "width", texts=("reason", "at"))
    for group in groups:
        reason = group["reason"] or {"message": "", "source": "", "node": ""}
        where = _short_path(reason["source"]) or reason["node"]
        table.add_row(
            escape(group["name"]), f"{group['width']:,}", escape(reason["message"]), escape(where)
        )
    _draw(out, table)


def _unsupported(out: Console, operations: list[Mapping[str, Any]]) -> None:
    if not operations:
        return
    title = "Operations without a rule (what they touch is frozen)"
    table = _table(title, "operation", "calls", texts=("first at",))
    for op in operations:
        table.add_row(
            escape(op["op"]), str(op["count"]), escape(_short_path(op["source"]) or op["node"])
        )
    _draw(out, table)


def growth(data: Mapping[str, Any]) -> None:
    """Write a growth (``growth_dict``) as a table with totals and the preservation figure."""
    out = _stdout()
    voted = any(row["votes"] is not None for row in data["groups"])
    heads = ("width", "new width", *(("votes",) if voted else ()), "params per unit")
    table = _table("Widths before and after", "group", *heads)
    for row in data["groups"]:
        votes = ("" if row["votes"] is None else f"{row['votes']:,}",) if voted else ()
        table.add_row(
            escape(row["name"]),
            f"{row['width']:,}",
            f"{row['new_width']:,}" if row["added"] else "·",
            *votes,
            f"{row['params_per_unit']:,}",
            style="bold" if row["added"] else "",
        )
    _draw(out, table)
    for line in _summary(data):
        _say(out, line)


def _summary(data: Mapping[str, Any]) -> Iterator[str]:
    plan, totals = data["plan"], data["totals"]
    yield (
        f"{totals['groups_grown']} of {totals['groups']} groups grow; "
        f"{plan['spent']:,} of {plan['budget']:,.0f} {plan['unit']} spent."
    )
    if plan["unspent_reason"]:
        yield f"Not all was spent: {plan['unspent_reason']}."
    factor = totals["new_params"] / max(totals["params"], 1)
    yield f"Parameters: {totals['params']:,} → {totals['new_params']:,} (×{factor:.2f})."
    check = data["verification"]
    if check is not None:
        yield (
            f"Function kept at insertion: outputs differ by {check['eval_error']:.1e} (eval) and "
            f"{check['train_error']:.1e} (train), relative, in {check['dtype']}."
        )


def activity(data: Mapping[str, Any]) -> None:
    """Write an activity (``Activity.to_dict``) as a table."""
    out = _stdout()
    title = f"Units on {data['samples']:,} samples"
    table = _table(title, "group", "width", "inactive", "<1 %", "active on")
    for group in data["groups"]:
        own = [group[key] for key in ("width", "inactive", "nearly_inactive")]
        counts = (f"{count:,}" for count in own)
        table.add_row(escape(group["name"]), *counts, f"{group['mean_active']:.1%}")
    _draw(out, table)
    _new_units(out, [group for group in data["groups"] if group["new"]])
    for group in data["unobserved"]:
        _say(out, f"{group['name']} was not observed: {group['reason']}.")
    _say(
        out,
        f"{data['inactive']:,} of {data['units']:,} units are never active, "
        f"{data['nearly_inactive']:,} on fewer than 1 % of the samples.",
    )


def _new_units(out: Console, groups: Sequence[Mapping[str, Any]]) -> None:
    if not groups:
        return
    heads = ("new units", "inactive", "<1 %", "activation", "gradient")
    table = _table("New units; activation and gradient as parts of the old ones'", "group", *heads)
    for group in groups:
        new = (group[key] for key in ("new", "new_inactive", "new_nearly_inactive"))
        parity = (group["activation_parity"], group["gradient_parity"])
        table.add_row(escape(group["name"]), *(f"{n:,}" for n in new), *map(_factor, parity))
    _draw(out, table)


def verification(data: Mapping[str, Any]) -> None:
    """Write a comparison of two models as tables."""
    out = _stdout()
    if data["changed"]:
        table = _table("Tensors of another shape", "tensor", texts=("first", "second"))
        for row in data["changed"]:
            table.add_row(escape(row["name"]), _shape(row["first"]), _shape(row["second"]))
        _draw(out, table)
    for which in ("first", "second"):
        if names := data[f"only_{which}"]:
            _say(out, f"Only the {which} has {_shortened(names)}.")
    _say(
        out,
        f"Parameters: {data['params']['first']:,} and {data['params']['second']:,}; "
        f"{data['tensors_alike']:,} tensors have the same shape.",
    )
    table = _table(f"Outputs on {data['samples']:,} samples ({data['inputs']})", "mode",
                   "largest difference", "relative", "mean difference", "same class")  # fmt: skip
    for mode in ("eval", "train"):
        row = data[mode]
        same = row["same_class"]
        numbers = (row["largest"], row["relative"], row["mean"])
        shown = "" if same is None else f"{same:.1%}"
        table.add_row(mode, *(_figure(number) for number in numbers), shown)
    _draw(out, table)
    word = "compute" if data["same_function"] else "do NOT compute"
    allowed = f"relative differences up to {data['tolerance']:.0e} are allowed"
    _say(out, f"They {word} the same function ({allowed}).")


def health(data: Mapping[str, Any]) -> None:
    """Write what ``fxgrow doctor`` found."""
    rows = [("fxgrow", data["fxgrow"]), ("Python", f"{data['python']}, {data['system']}")]
    rows.append(("CUDA of torch", data["cuda"] or "none"))
    rows += [(name, found or "MISSING") for name, found in data["packages"].items()]
    for name, entry in data["optional"].items():
        missing = f"not installed (pip install 'fxgrow[{entry['extra']}]')"
        rows.append((name, entry["version"] or missing))
    for device in data["devices"]:
        memory = "" if device["bytes"] is None else f", {_bytes(device['bytes'])}"
        rows.append((device["name"], device["what"] + memory))
    pairs("Installed here", rows)
    if data["model"] is not None:
        _model_health(data["model"])


def _model_health(model: Mapping[str, Any]) -> None:
    writers: Mapping[str, Callable[[Any], str]] = {
        "class": str,
        "params": "{:,}".format,
        "dtype": str,
        "inputs": str,
        "forward_seconds": "{:.2f} s".format,
        "analysis_seconds": "{:.2f} s".format,
        "groups": str,
        "frozen": str,
        "coverage": "{:.1%}".format,
        "unsupported": lambda names: ", ".join(names) or "none",
        "grow_bytes": lambda count: f"about {_bytes(count)} and the activations of a batch",
        "train_bytes": lambda count: f"about {_bytes(count)} with Adam, and activations",
    }
    names = {"grow_bytes": "memory to grow", "train_bytes": "memory to train"}
    rows = [
        (names.get(key, key.replace("_seconds", "")), write(model[key]))
        for key, write in writers.items()
        if model[key] is not None
    ]
    if rows:
        pairs(model["reference"], rows)
    out = _stdout()
    if model["problem"]:
        _say(out, f"It needs something more: {model['problem']}")
    else:
        _say(out, "It can be opened, run and analysed.")


def exported(data: Mapping[str, Any]) -> None:
    """Write what was exported."""
    out = _stdout()
    for row in data["checks"]:
        _say(
            out,
            f"Checked with {row['runtime']} on inputs of {row['inputs']}: outputs differ by "
            f"{_figure(row['relative'])}, relative.",
        )
    for note in data["notes"]:
        _say(out, note)
    _say(out, f"Written to {data['path']} ({_bytes(data['size'])}).")


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def pairs(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Write names and values."""
    out = _stdout()
    table = _table(title, "what", texts=("value",))
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    _draw(out, table)


def _figure(number: float | None) -> str:
    return "not finite" if number is None or not math.isfinite(number) else f"{number:.1e}"


def _factor(number: float | None) -> str:
    return "" if number is None else f"{number:.2f}"


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _table(title: str, first: str, *numbers: str, texts: Sequence[str] = ()) -> Table:
    """Make a table: borders in a terminal, plain columns elsewhere."""
    plain = not sys.stdout.isatty()
    options: dict[str, Any] = {"box": None, "pad_edge": False} if plain else {}
    style = "" if plain else "bold"
    table = Table(title=title, title_justify="left", header_style=style, **options)
    table.add_column(first, overflow="fold")
    for name in numbers:  # folded where there is no room: no digit is ever cut off
        table.add_column(name, justify="right", overflow="fold")
    for name in texts:
        table.add_column(name, overflow="fold")
    return table


def _draw(out: Console, table: Table) -> None:
    """Print a table; outside of terminals without blanks at line ends."""
    if sys.stdout.isatty():
        out.print(table)
        return
    with out.capture() as drawn:
        out.print(table)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in drawn.get().splitlines()))


def _say(out: Console, sentence: str) -> None:
    """Write a sentence: wrapped at words in a terminal, on one line elsewhere."""
    out.print(escape(sentence), soft_wrap=not sys.stdout.isatty())


def _stdout() -> Console:
    # to a file or pipe: so wide that no row is ever broken, for grep and awk
    width = None if sys.stdout.isatty() else 10_000
    return Console(soft_wrap=False, highlight=False, width=width)


def _short_path(source: str) -> str:
    """Drop where packages are installed, and the current folder."""
    return source.rpartition("site-packages/")[2].removeprefix(f"{Path.cwd()}/")


def _shortened(layers: Sequence[str], most: int = 4) -> str:
    more = len(layers) - most
    return ", ".join(layers[:most]) + (f" and {more} more" if more > 0 else "")
