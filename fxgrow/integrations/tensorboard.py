"""Growth in TensorBoard: sizes, widths and metrics over steps, from a Grower's history."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from ..grower import Grower
    from ..history import GrowthRow, History

__all__ = ["GrowthLog"]


class GrowthLog:
    """Writes what is new in a history each time it is called.

    Parameters
    ----------
    writer : str, Path or torch.utils.tensorboard.SummaryWriter
        A folder for event files, or your own writer (anything with ``add_scalar`` and
        ``add_text``).
    prefix : str
        Of all tags.

    Raises
    ------
    InputError
        When a folder is named and TensorBoard is not installed.

    Notes
    -----
    Steps are those of ``step_end``, or epochs where the loop never called that. Tags:
    ``growth/parameters`` and ``growth/loss`` before and after each growth,
    ``growth/seconds``, ``width/<group>``, ``metric/step`` and ``metric/epoch``, and the
    history's table as text.

    Examples
    --------
    >>> import torch, fxgrow
    >>> from fxgrow.integrations.tensorboard import GrowthLog
    >>> class Writer:  # stands for a SummaryWriter
    ...     def add_scalar(self, tag, value, step): print(tag, value, step)
    ...     def add_text(self, tag, text, step): pass
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> grower = fxgrow.Grower(net, data=[(torch.randn(16, 4), torch.randint(2, (16,)))], budget=2)
    >>> log = GrowthLog(Writer())
    >>> net = grower.epoch_end(metric=0.5)
    >>> log(grower)  # doctest: +ELLIPSIS
    metric/epoch 0.5 1
    growth/parameters 58 1
    growth/parameters 72 1
    ...
    """

    def __init__(self, writer: Any, *, prefix: str = "") -> None:
        self._writer = _writer(writer) if isinstance(writer, (str, Path)) else writer
        self._prefix = prefix
        self._growths = self._metrics = 0  # how many have been written

    def __call__(self, grower: Grower | History) -> None:
        """Write the growths and metrics that were not there at the last call.

        Parameters
        ----------
        grower : Grower or History
        """
        source: Any = grower
        history: History = getattr(source, "history", source)
        rows: tuple[Any, ...] = (*history.metrics, *history.growths)
        unit = "step" if any(row.step for row in rows) else "epoch"
        for measured in history.metrics[self._metrics :]:
            tag = f"metric/{measured.boundary}"
            self._scalar(tag, measured.value, getattr(measured, unit))
        for row in history.growths[self._growths :]:
            self._growth(row, getattr(row, unit))
        if len(history.growths) > self._growths:
            last = getattr(history.growths[-1], unit)
            self._writer.add_text(f"{self._prefix}growth", history.table(), last)
        self._metrics, self._growths = len(history.metrics), len(history.growths)

    def close(self) -> None:
        """Close the writer, so that all is on disk."""
        self._writer.close()

    def _growth(self, row: GrowthRow, step: int) -> None:
        pairs: list[tuple[str, float | None]] = [("parameters", row.params_before)]
        pairs.append(("parameters", row.params_after))
        pairs += [("loss", row.loss_before), ("loss", row.loss_after), ("seconds", row.seconds)]
        for name, value in pairs:
            if value is not None:
                self._scalar(f"growth/{name}", value, step)
        for group, widths in row.widths.items():
            for width in widths:
                self._scalar(f"width/{group}", width, step)

    def _scalar(self, tag: str, value: float, step: int) -> None:
        self._writer.add_scalar(f"{self._prefix}{tag}", value, step)


def _writer(folder: str | Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "logging to a folder needs TensorBoard; install it with: "
            "pip install 'fxgrow[tensorboard]', or pass a writer of your own"
        ) from error
    writer: Any = SummaryWriter  # partly annotated
    return writer(str(folder))
