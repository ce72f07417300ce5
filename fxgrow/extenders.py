"""Extenders: what becomes of freshly inserted units before ordinary training goes on.

An extender gets a widened module whose function is still that of the original, and
changes it in place. To add one, write a function like :func:`zero` and name it in
:data:`EXTENDERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .calibrate import calibrate_norms
from .data import LossFn, Progress
from .errors import InputError
from .gradmax import maximise_gradients
from .initialisers import copy_units, pair_units
from .ir import GrownGroup
from .reduce import Mean, alone
from .rows import activate_rows
from .swe import AdjustReport, adjust


@dataclass(frozen=True)
class ExtendOptions:
    """Arguments of extenders; each takes what it needs.

    Attributes
    ----------
    coupling, paper, epochs, lr
        See :func:`fxgrow.swe.adjust`.
    rows : {"auto", "active", "gradmax", "kaiming"}
        Of the new units, before they are coupled (``paper`` means the last).
    seed : int
        Of everything random.
    mean : callable
        Averages over processes (see :mod:`fxgrow.reduce`).
    """

    coupling: str = "laplacian"
    paper: bool = False
    epochs: int = 1
    lr: float = 1e-3
    rows: str = "auto"
    seed: int = 0
    mean: Mean = alone


Extender = Callable[
    [
        torch.nn.Module,
        Sequence[GrownGroup],
        Iterable[Any] | None,
        LossFn | str | None,
        ExtendOptions,
        Progress | None,
    ],
    AdjustReport | None,
]


def zero(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any] | None,
    loss: LossFn | str | None,
    options: ExtendOptions,
    progress: Progress | None,
) -> AdjustReport | None:
    """Pure insertion: outgoing entries are zero, so the function is kept.

    Where there are data, running statistics of new norm entries are measured.
    """
    del loss
    if data is not None:
        calibrate_norms(module, grown, data, progress=progress, mean=options.mean)
    return None


def active(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any] | None,
    loss: LossFn | str | None,
    options: ExtendOptions,
    progress: Progress | None,
) -> AdjustReport | None:
    """Insert active rows (:mod:`fxgrow.rows`); nothing is trained."""
    activate_rows(module, grown, data, seed=options.seed, progress=progress, mean=options.mean)
    return zero(module, grown, data, loss, options, progress)


def net2wider(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any] | None,
    loss: LossFn | str | None,
    options: ExtendOptions,
    progress: Progress | None,
) -> AdjustReport | None:
    """Copy old units, and split what reads them; nothing is trained."""
    del data, loss, progress
    copy_units(module, grown, seed=options.seed)
    return None


def paired(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any] | None,
    loss: LossFn | str | None,
    options: ExtendOptions,
    progress: Progress | None,
) -> AdjustReport | None:
    """Insert pairs of units that cancel; nothing is trained."""
    pair_units(module, grown, seed=options.seed)
    return zero(module, grown, data, loss, options, progress)


def gradmax(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any] | None,
    loss: LossFn | str | None,
    options: ExtendOptions,
    progress: Progress | None,
) -> AdjustReport | None:
    """Insert rows of largest outgoing gradients (:mod:`fxgrow.gradmax`); nothing is trained.

    Groups that this is not made for get active rows.
    """
    done = maximise_gradients(
        module, grown, data, loss, seed=options.seed, progress=progress, mean=options.mean
    )
    rest = [group for group in grown if group.name not in done]
    activate_rows(module, rest, data, seed=options.seed, progress=progress, mean=options.mean)
    return zero(module, grown, data, loss, options, progress)


def auto(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any] | None,
    loss: LossFn | str | None,
    options: ExtendOptions,
    progress: Progress | None,
) -> AdjustReport | None:
    """Search rows where a unit might never be on, as :func:`gradmax`; draw them elsewhere.

    A norm with an entry for each unit keeps every unit alive, whatever its row.
    """
    normed = [g for g in grown if any(slot.role == "norm" for slot in g.slots)]
    gradmax(module, [g for g in grown if g not in normed], data, loss, options, progress)
    return zero(module, normed, data, loss, options, progress)


ROWS: Mapping[str, Extender] = {
    "active": active,
    "auto": auto,
    "gradmax": gradmax,
    "kaiming": zero,
}
"""Rows that SWE starts from, by name."""


def swe(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any] | None,
    loss: LossFn | str | None,
    options: ExtendOptions,
    progress: Progress | None,
) -> AdjustReport | None:
    """Calibrate norms, then couple, adjust and fold (paper, section SWE).

    With zero epochs, or without data, this is pure insertion, of the rows that were asked for.
    """
    if options.rows not in ROWS:
        raise InputError(f"unknown rows {options.rows!r}; take one of {', '.join(sorted(ROWS))}")
    start = zero if options.paper else ROWS[options.rows]
    start(module, grown, data, loss, options, progress)
    if data is None or options.epochs == 0:
        return None
    return adjust(
        module,
        grown,
        data,
        loss,
        coupling=options.coupling,
        paper=options.paper,
        epochs=options.epochs,
        lr=options.lr,
        seed=options.seed,
        progress=progress,
        mean=options.mean,
    )


EXTENDERS: Mapping[str, Extender] = {
    "active": active,
    "gradmax": gradmax,
    "net2wider": net2wider,
    "paired": paired,
    "swe": swe,
    "zero": zero,
}
"""Extenders by name."""


def extender(name: str) -> Extender:
    """Look up an extender.

    Parameters
    ----------
    name : str
        Key of :data:`EXTENDERS`.

    Raises
    ------
    InputError
        There is no such extender.
    """
    if name not in EXTENDERS:
        raise InputError(f"unknown extender {name!r}; take one of {', '.join(sorted(EXTENDERS))}")
    return EXTENDERS[name]
