"""What ``fxgrow activity`` and ``fxgrow inspect --data`` do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import fxgrow
from fxgrow import io
from fxgrow.data import batches
from fxgrow.errors import InputError

from .data import find_data, random_data
from .work import DATA_BATCH, RANDOM_BATCH, Opened

if TYPE_CHECKING:
    from pathlib import Path

    from fxgrow.activity import Activity


def with_inputs_of(opened: Opened, data: str, seed: int) -> Opened:
    """Take example inputs from the data, where nothing else tells of them."""
    loader = find_data(data, opened.found.model, seed=seed)
    inputs, _ = next(iter(batches(loader, opened.found.model)))
    return replace(opened, inputs=inputs)


def activity(
    opened: Opened,
    data: str | None,
    loss: Any,
    batch_size: int | None,
    seed: int,
    progress: Any = None,
) -> Activity:
    """Measure the activity of a model's units on data, or on random inputs."""
    found = opened.found
    loader: Any
    if data is None:
        size = batch_size or RANDOM_BATCH
        loader = random_data(found.model, opened.inputs, batch_size=size, seed=seed)
    else:
        size = batch_size or DATA_BATCH
        loader = find_data(data, found.model, inputs=opened.inputs, batch_size=size, seed=seed)
    example = opened.inputs if data is None or opened.given else None
    model = found.model if found.growth is None else found.growth
    return fxgrow.activity(model, loader, loss=loss, example_inputs=example, progress=progress)


def check_plot() -> None:
    """Raise early where no picture could be drawn at the end."""
    try:
        import matplotlib  # noqa: F401  only whether it is there
    except ModuleNotFoundError:
        msg = "--plot needs matplotlib; `pip install 'fxgrow[plot]'` brings it"
        raise InputError(msg) from None


def write_plot(seen: Activity, path: Path) -> None:
    """Draw the picture and write it, atomically."""
    kind = path.suffix.removeprefix(".")
    figure = seen.plot()
    io.atomic_write(path, lambda temporary: figure.savefig(temporary, format=kind))
