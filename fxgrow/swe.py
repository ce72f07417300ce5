"""SWE: adjust new units and their neighbours, group by group (paper arXiv 2509.18842).

New units come in with zero outgoing entries. For each group, deepest first, only two
things train: couplings between its new and old rows (:mod:`fxgrow.coupling`) and the next
layer, i.e. every tensor that reads the group. Everything else is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .calibrate import calibrate_norms
from .coupling import COUPLINGS, AdamSettings, CouplingSetup, DenseCoupling
from .data import LossFn, Progress, batch_loss, batches, count_batches, seeded
from .errors import InputError
from .ir import GrownGroup
from .reduce import Mean, alone, samples
from .sites import NormsFixed, OnlyThese, Site, collect

__all__ = ["AdjustReport", "AdjustedGroup", "adjust", "calibrate_norms"]

OptimizerFactory = Callable[[list[torch.Tensor]], torch.optim.Optimizer]

PAPER_DECAY = 1e-4
"""L2 coefficient of the published program's Adam."""


@dataclass(frozen=True)
class AdjustedGroup:
    """What adjusting did to one group.

    Attributes
    ----------
    name : str
        The group.
    coupled : tuple of str
        Tensors whose rows were coupled.
    trained : tuple of str
        Tensors of the next layer.
    losses : tuple of float
        Mean loss of every epoch.
    skipped : str
        Why nothing was done, else empty.
    couplings : dict of str to torch.Tensor, shape ``(new, old, entries)``
        Final D by tensor, if asked for with ``keep_couplings``.
    """

    name: str
    coupled: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    losses: tuple[float, ...] = ()
    skipped: str = ""
    couplings: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class AdjustReport:
    """What :func:`adjust` did, in the order in which it did it."""

    coupling: str
    epochs: int
    groups: tuple[AdjustedGroup, ...] = ()


@dataclass(frozen=True, eq=False)
class _Settings:
    """Checked arguments of :func:`adjust`."""

    coupling: str
    paper: bool
    epochs: int
    adam: AdamSettings
    optimizer: OptimizerFactory
    keep: bool
    initial: Mapping[str, Mapping[str, torch.Tensor]]
    mean: Mean


def adjust(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any],
    loss: LossFn | str | None = None,
    *,
    coupling: str = "laplacian",
    paper: bool = False,
    epochs: int = 1,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float | None = None,
    order: Sequence[str] | None = None,
    couplings: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    keep_couplings: bool = False,
    optimizer: OptimizerFactory | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    mean: Mean = alone,
) -> AdjustReport:
    """Couple, adjust and fold every group of a widened module, in place.

    Norms with running statistics are in eval mode meanwhile. Entries of groups whose turn
    is still to come rest, as if those were not inserted yet. Parameters that don't require
    gradients are left alone.

    Parameters
    ----------
    module : torch.nn.Module
        The widened module.
    grown : sequence of GrownGroup
        Its groups, shallowest first.
    data : iterable of (inputs, targets)
        See :mod:`fxgrow.data`.
    loss : callable, str or None
        See :func:`fxgrow.data.resolve_loss`.
    coupling : {"laplacian", "pairwise", "dense"}
        See :mod:`fxgrow.coupling`. Dense needs O(new * old * entries) memory.
    paper : bool
        As published: dense, and the group's own rows stay in Adam with zero gradients, so
        that its L2 term shrinks them by about ``lr`` per step.
    epochs : int
        Epochs per group; 0 leaves the insertion as it is.
    lr, betas : float, tuple of float
        Adam's, afresh for every group.
    weight_decay : float, optional
        Adam's L2 coefficient on couplings and next layer, 0 by default (1e-4 with
        ``paper``). In laplacian coupling it pulls towards the rows before adjusting.
    order : sequence of str, optional
        Names of the groups to adjust, in that order; deepest first by default.
    couplings : dict of str to dict of str to torch.Tensor, optional
        Initial D by group and tensor, shape ``(new, old, ...)``; dense only.
    keep_couplings : bool
        Put the final D into the report, where D is stored (dense).
    optimizer : callable, optional
        Makes the optimizer of a list of tensors, in place of Adam. (Pairwise couplings
        step by themselves.)
    seed : int
        Of the couplings, dropout masks and a shuffling loader. The caller's random state
        is left alone.
    progress : callable, optional
        Told ``(stage, done, total)``.
    mean : callable
        Averages over processes (see :mod:`fxgrow.reduce`).

    Returns
    -------
    AdjustReport
        One entry per group.

    Raises
    ------
    InputError
        Arguments that make no sense.
    DataError
        See :func:`fxgrow.data.batch_loss`.
    """
    settings = _settings(
        coupling, paper, epochs, lr, betas, weight_decay, couplings, keep_couplings, optimizer, mean
    )
    turns = _turns(grown, order)
    report = AdjustReport(settings.coupling, epochs)
    if not epochs:
        return report
    generator = torch.Generator().manual_seed(seed)
    done = []
    in_place = optimizer is None and not settings.adam.weight_decay
    setup = CouplingSetup(settings.adam, generator, in_place=in_place)
    with seeded(seed, module), NormsFixed(module):
        for number, group in enumerate(turns):
            initial = settings.initial.get(group.name, {})
            later = turns[number + 1 :]
            sites = collect(module, group, later, settings.coupling, setup, initial)
            tell = _stage(progress, group.name, number, len(turns), data, epochs)
            done.append(_adjust_group(module, group, sites, data, loss, settings, tell))
    return AdjustReport(settings.coupling, epochs, tuple(done))


def _settings(
    coupling: str,
    paper: bool,
    epochs: int,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float | None,
    couplings: Mapping[str, Mapping[str, torch.Tensor]] | None,
    keep: bool,
    optimizer: OptimizerFactory | None,
    mean: Mean,
) -> _Settings:
    name = "dense" if paper else coupling
    if name not in COUPLINGS:
        known = ", ".join(sorted(COUPLINGS))
        raise InputError(f"unknown coupling {name!r}; take one of {known}")
    if epochs < 0 or lr <= 0:
        raise InputError(
            f"adjusting epochs are {epochs} and lr is {lr}; take epochs >= 0 and lr > 0"
        )
    decay = weight_decay if weight_decay is not None else PAPER_DECAY if paper else 0.0
    if name == "pairwise" and decay:
        raise InputError(
            "coupling 'pairwise' stores no couplings to decay; "
            "take weight_decay=0, or coupling 'laplacian' or 'dense'"
        )
    if couplings and name != "dense":
        raise InputError(f"coupling {name!r} stores no couplings; initial ones need 'dense'")
    adam = AdamSettings(lr=lr, betas=betas, weight_decay=decay)
    factory = optimizer or (lambda tensors: _adam(tensors, adam))
    return _Settings(name, paper, epochs, adam, factory, keep, couplings or {}, mean)


def _adam(tensors: list[torch.Tensor], adam: AdamSettings) -> torch.optim.Optimizer:
    # one kernel for all tensors where there is one; it is several times as fast
    fused = all(tensor.device.type in ("cpu", "cuda") for tensor in tensors)
    return torch.optim.Adam(
        tensors,
        lr=adam.lr,
        betas=adam.betas,
        eps=adam.eps,
        weight_decay=adam.weight_decay,
        fused=fused or None,
    )


def _turns(grown: Sequence[GrownGroup], order: Sequence[str] | None) -> list[GrownGroup]:
    """Return the groups in the order in which they are adjusted."""
    by_name = {group.name: group for group in grown}
    if order is None:
        return list(reversed(grown))
    unknown = [name for name in order if name not in by_name]
    if unknown:
        raise InputError(
            f"order names {unknown[0]!r}, which did not grow; grown groups are {', '.join(by_name)}"
        )
    return [by_name[name] for name in order]


def _adjust_group(
    module: torch.nn.Module,
    group: GrownGroup,
    sites: list[Site],
    data: Iterable[Any],
    loss: LossFn | str | None,
    settings: _Settings,
    tell: Callable[[int, int], None],
) -> AdjustedGroup:
    if not sites:
        return AdjustedGroup(group.name, skipped="none of its tensors requires gradients")
    trained = [part for site in sites for part in site.trained(settings.paper)]
    stepper = settings.optimizer(trained) if trained else None
    losses: list[float] = []
    with OnlyThese(module, [site.param for site in sites]):
        for epoch in range(settings.epochs):
            values: list[float] = []
            for number, (inputs, targets) in enumerate(batches(data, module)):
                where = f"adjusting {group.name}, epoch {epoch}, batch {number}"
                value = _step(module, sites, inputs, targets, loss, number, settings, where)
                if value is None and not (epoch or values):
                    _for_all(sites, Site.reset)
                    return AdjustedGroup(group.name, skipped="the loss does not depend on it")
                if value is not None:  # else this batch took another way through the model
                    if stepper is not None:
                        stepper.step()
                    values.append(value)
                tell(epoch, number + 1)
            losses.append(sum(values) / max(1, len(values)))
        _for_all(sites, Site.place)
    return AdjustedGroup(
        group.name,
        coupled=tuple(site.name for site in sites if site.views or site.turned),
        trained=tuple(site.name for site in sites if site.next_layer),
        losses=tuple(losses),
        couplings={
            site.name: coupling.couplings.detach()
            for site in sites
            for _, coupling in site.views
            if settings.keep and isinstance(coupling, DenseCoupling)
        },
    )


@torch.no_grad()
def _for_all(sites: list[Site], action: Callable[[Site], None]) -> None:
    for site in sites:
        action(site)


def _step(
    module: torch.nn.Module,
    sites: list[Site],
    inputs: Any,
    targets: Any,
    loss: LossFn | str | None,
    number: int,
    settings: _Settings,
    where: str,
) -> float | None:
    """One batch up to the gradients; None when the loss depends on none of ``sites``."""
    _for_all(sites, Site.place)
    value = batch_loss(module, inputs, targets, loss, number)
    if value.requires_grad:
        torch.autograd.backward(value)
    value = value.detach()
    params = [site.param for site in sites]
    # one exchange for loss and gradients
    average, *grads = settings.mean(
        [value, *(param.grad for param in params)], samples(inputs), where, [value, *params]
    )
    if average is None or all(grad is None for grad in grads):
        return None
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    _for_all(sites, lambda site: site.pull(settings.paper))
    return float(average)


def _stage(
    progress: Progress | None,
    name: str,
    number: int,
    groups: int,
    data: Iterable[Any],
    epochs: int,
) -> Callable[[int, int], None]:
    """Return a function of (epoch, batches done in it) that reports one group's progress."""
    size = count_batches(data)

    def tell(epoch: int, done: int) -> None:
        if progress:
            stage = f"adjust: {name} ({number + 1} of {groups})"
            progress(stage, epoch * size + done, epochs * size)

    return tell
