"""What a Grower knows of its run: counters, metrics, growths. No model, no optimizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .history import GrowthRow, History, Measured
from .schedules import Moment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .budgets import Size
    from .schedules import Boundary

__all__ = ["Counters", "Ledger"]

SCHEMA = "fxgrow.grower/1"


@dataclass(frozen=True)
class Counters:
    """How often what has ended; ``round_step`` and ``round_epoch`` at the last growth."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    round: int = 0
    round_step: int = 0
    round_epoch: int = 0


@dataclass
class Ledger:
    """Bookkeeping of one run, in plain types.

    Attributes
    ----------
    mode : {"min", "max"}
        Which metrics are better.
    now : Counters
    finished : str
        Why there will be no further growth, or "".
    steps : list of dict
        :func:`fxgrow.io.growth_step` of every growth: what repeats them.
    rows : list of GrowthRow
    metrics : list of Measured
    """

    mode: str = "min"
    now: Counters = Counters()
    finished: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    rows: list[GrowthRow] = field(default_factory=list)
    metrics: list[Measured] = field(default_factory=list)

    def count(self, boundary: Boundary, metric: float | None) -> None:
        """Count a step or an epoch that has ended, and note its metric."""
        now = self.now
        if boundary == "step":
            self.now = replace(now, step=now.step + 1, step_in_epoch=now.step_in_epoch + 1)
        else:
            self.now = replace(now, epoch=now.epoch + 1, step_in_epoch=0)
        if metric is not None:
            now = self.now
            value = float(metric)
            self.metrics.append(Measured(boundary, now.step, now.epoch, now.round, value))

    def moment(self, boundary: Boundary, size: Size) -> Moment:
        """Return what a schedule may look at."""
        now = self.now
        return Moment(
            boundary=boundary,
            step=now.step,
            epoch=now.epoch,
            round=now.round,
            steps_in_round=now.step - now.round_step,
            epochs_in_round=now.epoch - now.round_epoch,
            metrics=self._of_round(now.round, boundary),
            mode=self.mode,
            size=size,
        )

    def bests(self) -> tuple[float, ...]:
        """Best epoch metric of every round that has one."""
        best = min if self.mode == "min" else max
        rounds = (self._of_round(number, "epoch") for number in range(self.now.round + 1))
        return tuple(best(values) for values in rounds if values)

    def grew(self, step: dict[str, Any], row: GrowthRow) -> None:
        """Note a growth."""
        now = self.now
        self.now = replace(now, round=now.round + 1, round_step=now.step, round_epoch=now.epoch)
        self.steps.append(step)
        self.rows.append(row)

    @property
    def history(self) -> History:
        """Growths and metrics so far."""
        return History(tuple(self.rows), tuple(self.metrics))

    def to_dict(self) -> dict[str, Any]:
        """Return everything in plain types."""
        return {
            "schema": SCHEMA,
            "now": asdict(self.now),
            "finished": self.finished,
            "steps": list(self.steps),
            "rows": [asdict(row) for row in self.rows],
            # by column: there may be one for every step of a long run
            "metrics": {
                each.name: [getattr(point, each.name) for point in self.metrics]
                for each in fields(Measured)
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], mode: str) -> Ledger:
        """Read :meth:`to_dict` back.

        Raises
        ------
        InputError
            When it is of another kind or version, or incomplete.
        """
        schema = data.get("schema")
        if schema != SCHEMA:
            raise InputError(
                f"the checkpoint's record is of schema {schema!r}, this fxgrow reads {SCHEMA!r}"
            )
        try:
            rows = [GrowthRow(**{**row, "widths": _pairs(row["widths"])}) for row in data["rows"]]
            return cls(
                mode,
                Counters(**data["now"]),
                data["finished"],
                list(data["steps"]),
                rows,
                [
                    Measured(*point)
                    for point in zip(
                        *(data["metrics"][each.name] for each in fields(Measured)), strict=True
                    )
                ],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the checkpoint's record is damaged ({error})") from error

    def _of_round(self, round_: int, boundary: str) -> tuple[float, ...]:
        found = []
        for point in reversed(self.metrics):  # rounds are in order: stop at the first older one
            if point.round < round_:
                break
            if point.round == round_ and point.boundary == boundary:
                found.append(point.value)
        return tuple(reversed(found))


def _pairs(widths: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Widths as they were; JSON knows no tuples."""
    return {name: (int(old), int(new)) for name, (old, new) in widths.items()}
