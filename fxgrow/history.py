"""What happened while a model was trained and grown: rows, a table, a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .io import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["GrowthRow", "History", "Measured"]


@dataclass(frozen=True)
class Measured:
    """One metric that the training loop reported."""

    boundary: str
    step: int
    epoch: int
    round: int
    value: float


@dataclass(frozen=True)
class GrowthRow:
    """One growth.

    Attributes
    ----------
    step, epoch : int
        How many had ended.
    round : int
        1 for the first growth.
    budget, unit
        What there was to spend.
    params_before, params_after : int
        Parameter elements.
    widths : dict of str to (int, int)
        Units before and after, of the groups that grew.
    metric : float or None
        Last one reported before growth.
    loss_before, loss_after : float or None
        On the first batch of the data, in eval mode.
    seconds : float
        Time that the growth took.
    """

    step: int
    epoch: int
    round: int
    budget: float
    unit: str
    params_before: int
    params_after: int
    widths: Mapping[str, tuple[int, int]]
    metric: float | None
    loss_before: float | None
    loss_after: float | None
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class History:
    """All growths and all metrics of a run, oldest first.

    Attributes
    ----------
    growths : tuple of GrowthRow
    metrics : tuple of Measured
    """

    growths: tuple[GrowthRow, ...] = ()
    metrics: tuple[Measured, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict of plain types per growth."""
        return [asdict(row) for row in self.growths]

    def table(self) -> str:
        """Return the growths as a Markdown table."""
        head = ["round", "epoch", "step", "parameters", "grown groups", "metric"]
        head += ["loss before", "loss after", "seconds"]
        lines = [_line(head), _line(["---:"] * 4 + ["---"] + ["---:"] * 4)]
        lines += [_line(_cells(row)) for row in self.growths]
        return "\n".join(lines)

    def plot(self, path: str | Path, *, metric: str = "metric", log: bool = False) -> None:
        """Draw metrics and parameters over steps, growths marked, to an image file.

        Over epochs where the training loop never called ``step_end``.

        Parameters
        ----------
        path : str or Path
            ``.png``, ``.svg`` or ``.pdf``; an older file is replaced only when the new
            one is complete.
        metric : str
            Label of the metric's axis.
        log : bool
            Logarithmic metric axis.

        Raises
        ------
        InputError
            When matplotlib is not installed, or there is nothing to draw.
        FileError
            When the file can't be written.
        """
        if not self.metrics and not self.growths:
            raise InputError("the history is empty; train and grow first")
        kind = str(path).rpartition(".")[2]
        if kind not in {"png", "svg", "pdf"}:
            raise InputError(f"{path}: name a .png, .svg or .pdf file")
        figure = _figure(self, metric, log)
        atomic_write(path, lambda file: figure.savefig(file, format=kind, dpi=120))


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(row: GrowthRow) -> list[str]:
    widths = ", ".join(f"{name} {old} → {new}" for name, (old, new) in row.widths.items())
    numbers = [row.metric, row.loss_before, row.loss_after]
    return [
        *(str(value) for value in (row.round, row.epoch, row.step)),
        f"{row.params_before:,} → {row.params_after:,}",
        widths,
        *("" if value is None else f"{value:.6g}" for value in numbers),
        f"{row.seconds:.2f}",
    ]


def _figure(history: History, metric: str, log: bool) -> Any:
    try:
        from matplotlib.figure import Figure  # no pyplot: it keeps figures in a global list
    except ImportError as error:
        raise InputError(
            "plots need matplotlib; install it with: pip install 'fxgrow[plot]'"
        ) from error
    rows: tuple[Any, ...] = (*history.metrics, *history.growths)
    unit = "step" if any(row.step for row in rows) else "epoch"  # a loop may count epochs only
    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_metrics(above, history.metrics, unit)
    for row in history.growths:
        for axes in (above, below):
            axes.axvline(getattr(row, unit), color="0.6", linewidth=1, linestyle="--", zorder=0)
    if log:
        above.set_yscale("log")
    above.set_ylabel(metric)
    if above.get_legend_handles_labels()[0]:
        above.legend(frameon=False)
    below.step(*_sizes(history, unit), where="post", color="black")
    below.set_ylim(bottom=0)
    below.set_ylabel("parameters")
    below.set_xlabel(f"{unit} (dashed: growth)")
    return figure


def _draw_metrics(axes: Any, metrics: Sequence[Measured], unit: str) -> None:
    styles = {
        "step": {"label": "each step", "linewidth": 0.8, "alpha": 0.6},
        "epoch": {"label": "each epoch", "marker": "o", "markersize": 3},
    }
    for boundary, style in styles.items():
        chosen = [point for point in metrics if point.boundary == boundary]
        if chosen:
            axes.plot([getattr(p, unit) for p in chosen], [p.value for p in chosen], **style)


def _sizes(history: History, unit: str) -> tuple[list[int], list[int]]:
    if not history.growths:
        return [], []
    first, last = history.growths[0], history.growths[-1]
    end = max(getattr(row, unit) for row in (*history.metrics, last))
    steps = [0, *(getattr(row, unit) for row in history.growths), end]
    sizes = [row.params_after for row in history.growths]
    return steps, [first.params_before, *sizes, last.params_after]
