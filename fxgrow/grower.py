"""Growth inside a training loop: when, by how much, and with nothing lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from .budgets import Budget, Limits, budget_of
from .checkpoint import plain, sorted_out, undisturbed
from .errors import BudgetError, InputError
from .growing import GrowthSettings, with_own_iterator
from .history import GrowthRow
from .io import growth_step
from .revival import Revival, revive
from .run import Run
from .schedules import Schedule, every
from .sharding import is_sharded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .data import LossFn
    from .ir import Fill, Growth, Unit
    from .schedules import Boundary

__all__ = ["Grower"]


class Grower(Run):
    r"""Grows a model while it is trained; optimizers, averages and schedulers follow.

    Call :meth:`epoch_end` (or :meth:`step_end`) in the training loop and go on with the
    model that it returns. The optimizer stays the same object, so schedulers and gradient
    scalers keep working.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed; ``torch.compile``, DDP and FSDP2 are taken off before growth and put
        on again after it. Under the latter two all ranks make the same calls.
    optimizer : torch.optim.Optimizer, or a sequence of them, optional
        Changed in place when the model grows (see :meth:`fxgrow.Growth.migrate`).
    data : re-iterable of (inputs, targets), optional
        E.g. the training DataLoader. Without it growth needs ``example_inputs`` and a
        ``distributor`` that does without.
    budget : float, str, sequence of float, or callable
        Per growth, in ``unit``: the same number, a share of the present size (``"+25%"``),
        one for each growth, :func:`fxgrow.geometric`, or ``(round, size) -> float or None``.
    schedule : callable
        :func:`fxgrow.every`, :func:`fxgrow.at`, :func:`fxgrow.plateau`, or any
        ``Moment -> bool``; every epoch by default.
    unit : {"neurons", "params", "flops"}
    rounds, max_neurons, max_params : int, optional
        Most growths; sizes that are never exceeded.
    patience : int, optional
        Stop growing after so many growths that made the best epoch metric no better.
    min_delta : float
        What ``patience`` calls better.
    mode : {"min", "max"}
        Which metrics are better.
    loss : callable, str or None
        As in :func:`fxgrow.expand`.
    fill : {"zero", "mean", "reset"}
        What the optimizers hold for new entries (see :meth:`fxgrow.Growth.migrate`).
    new_options : dict, optional
        Passed to :meth:`fxgrow.Growth.migrate`.
    ema : torch.optim.swa_utils.AveragedModel, optional
        Grows too; the current one is :attr:`ema`.
    track : dict of str to object, optional
        Whatever else belongs into a checkpoint: schedulers, gradient scalers (anything
        with ``state_dict``), and ``torch.Generator``\\ s. Those of ``data`` are found.
    unwrap, wrap : callable, optional
        Your own wrapper off (``model -> module``) and on (``module -> model``).
    seed : int
        Of everything random in growth. The training's random states are left alone.
    emit : {"graph", "module"}
        A graph, or the user's own class; also the latter where no graph can be had, which
        ``report["obstacle"]`` explains.
    example_inputs : tensor, tuple or dict, optional
        Taken from the first batch by default.
    adjust_epochs : int
        0, the default: growth keeps the function, so the loss does not jump.
    revive : int
        After every epoch that follows a growth, look at so many samples, and give units that
        are zero on all of them a new start (:func:`fxgrow.revive`); 0: do not. Not done under
        FSDP2, nor without ``data``.
    **options
        More arguments of :func:`fxgrow.expand`: ``distributor``, ``extender``, ``include``,
        ``exclude``, ``round_to``, ...

    Raises
    ------
    InputError
        For arguments that are of no use: here, not in the middle of a training.
    NothingToGrow
        When every group of the model is frozen.

    Examples
    --------
    >>> import torch, fxgrow
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> data = [(torch.randn(16, 4), torch.randint(2, (16,)))]
    >>> grower = fxgrow.Grower(net, data=data, budget=[4, 6], schedule=fxgrow.every(epochs=2))
    >>> for epoch in range(5):
    ...     net = grower.epoch_end()
    >>> net.get_submodule("0")
    Linear(in_features=4, out_features=18, bias=True)
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        *,
        budget: Budget,
        data: Iterable[Any] | None = None,
        schedule: Schedule | None = None,
        unit: Unit = "neurons",
        rounds: int | None = None,
        max_neurons: int | None = None,
        max_params: int | None = None,
        patience: int | None = None,
        min_delta: float = 0.0,
        mode: str = "min",
        loss: LossFn | str | None = None,
        fill: Fill = "zero",
        new_options: Mapping[str, Any] | None = None,
        ema: Any = None,
        track: Mapping[str, Any] | None = None,
        unwrap: Callable[[torch.nn.Module], torch.nn.Module] | None = None,
        wrap: Callable[[torch.nn.Module], torch.nn.Module] | None = None,
        seed: int = 0,
        emit: str = "graph",
        example_inputs: Any = None,
        adjust_epochs: int = 0,
        revive: int = 2048,
        **options: Any,
    ) -> None:
        if mode not in {"min", "max"}:
            raise InputError(f"mode is {mode!r}; take 'min' or 'max'")
        self._limits = Limits(rounds, max_neurons, max_params, patience, min_delta)
        self._schedule = schedule or every(epochs=1)
        self._budget = budget
        self._revive = revive
        generators, objects = sorted_out(track or {}, data)
        options["adjust_epochs"] = adjust_epochs
        settings = GrowthSettings(data, generators, unit, loss, seed, emit, fill, options)
        super().__init__(
            model,
            _as_tuple(optimizer),
            settings,
            mode=mode,
            ema=ema,
            new_options=new_options,
            objects=objects,
            unwrap=unwrap,
            wrap=wrap,
            example_inputs=example_inputs,
        )
        budget_of(budget, 0, self.size.in_unit(unit))  # an impossible one is refused now

    def step_end(self, metric: float | None = None) -> torch.nn.Module:
        """Count a step, and grow when that is due.

        Parameters
        ----------
        metric : float, optional
            E.g. the loss of the step.

        Returns
        -------
        torch.nn.Module
            The model to go on with.
        """
        return self._boundary("step", metric)

    def epoch_end(self, metric: float | None = None) -> torch.nn.Module:
        """Count an epoch, and grow when that is due.

        Parameters
        ----------
        metric : float, optional
            E.g. the validation loss; schedules and ``patience`` look at it.

        Returns
        -------
        torch.nn.Module
            The model to go on with.
        """
        self._epoch_random = None
        if self.round and self._revive:
            self.revive()
        return self._boundary("epoch", metric)

    def _boundary(self, boundary: Boundary, metric: float | None) -> torch.nn.Module:
        ledger = self._ledger
        ledger.count(boundary, self._agreed(metric))
        if not ledger.finished and self._schedule(ledger.moment(boundary, self._size)):
            ledger.finished = self._limits.reason(
                self._size, ledger.bests(), self.round, ledger.mode
            )
            if not ledger.finished:
                self.grow()
        return self._model

    # ------------------------------------------------------------------- growth

    def revive(self) -> Revival:
        """Give units that died a new start, as after an epoch; random states are left alone.

        Returns
        -------
        Revival
            Empty without data and under FSDP2, where nothing is looked at.
        """
        settings, seed = self._settings, self._settings.seed + self.epoch
        if settings.data is None or is_sharded(self._model):
            return Revival({}, {}, 0)
        with undisturbed(settings.generators, seed):
            return revive(
                self.module,
                with_own_iterator(settings.data),
                optimizer=self._optimizers,
                samples=self._revive,
                example_inputs=self._example,
                seed=seed,
                rules=settings.options.get("rules", ()),
                process_group=self._team,
            )

    def grow(self) -> torch.nn.Module:
        """Grow now, whatever the schedule says.

        Returns
        -------
        torch.nn.Module
            The model to go on with; the same as before when :attr:`finished` says that
            the budgets or the room are used up.

        Raises
        ------
        FxgrowError
            When the model can't grow; nothing has changed then.
        """
        with self._team.together():
            return self._grow()

    def _grow(self) -> torch.nn.Module:
        begin = time.perf_counter()
        unit, module = self._settings.unit, self.module
        asked = budget_of(self._budget, self.round, self._size.in_unit(unit))
        if asked is None:
            return self._finish("the budgets are used up")
        budget = min(asked, self._limits.room(unit, self._size))
        try:
            growth, losses = self._settings.grow(
                module, self._example, budget, self.round, self._team
            )
        except BudgetError:
            if budget == asked:
                raise
            return self._finish(f"no unit fits into the last {budget:g} {unit}")
        size = self._settings.size(growth.module, self._example)
        if over := self._limits.exceeded(size):
            return self._finish(over)
        self._follow(module, [growth])
        row = self._row(growth, budget, losses, time.perf_counter() - begin)
        step = {**growth_step(growth), "inputs": growth.report["inputs"]}
        self._ledger.grew(plain(step, "growth"), row)
        self._size = size
        return self._model

    def _agreed(self, metric: float | None) -> float | None:
        """Average a metric over the ranks, so that all decide alike."""
        if metric is None:
            return None
        (mean,) = self._team.mean([torch.tensor(float(metric)).double()], 1.0, "a metric")
        return metric if mean is None else float(mean)

    def _finish(self, reason: str) -> torch.nn.Module:
        self._ledger.finished = reason
        return self._model

    def _row(
        self, growth: Growth, budget: float, losses: tuple[float | None, ...], seconds: float
    ) -> GrowthRow:
        now, metrics = self._ledger.now, self._ledger.metrics
        totals = growth.report["totals"]
        return GrowthRow(
            step=now.step,
            epoch=now.epoch,
            round=now.round + 1,
            budget=float(budget),
            unit=self._settings.unit,
            params_before=totals["params"],
            params_after=totals["new_params"],
            widths={g.name: (g.width, g.width + g.added) for g in growth.groups if g.added},
            metric=metrics[-1].value if metrics else None,
            loss_before=losses[0],
            loss_after=losses[1],
            seconds=seconds,
        )


def _as_tuple(optimizer: Any) -> tuple[torch.optim.Optimizer, ...]:
    if optimizer is None:
        return ()
    return (optimizer,) if isinstance(optimizer, torch.optim.Optimizer) else tuple(optimizer)
