"""The frozen dataclasses that flow between the stages.

``Traced → Analysis → Groups (Inspection) → Votes → Plan → Rewritten → Growth``.
The dataclasses of the first two stages live beside their code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from .pages.show import Shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import torch
    from torch.optim import Optimizer
    from torch.optim.swa_utils import AveragedModel

    from .inspection import Inspection
    from .pages.view import View

Role = Literal["producer", "norm", "per_unit", "consumer"]
Unit = Literal["neurons", "params", "flops"]
Fill = Literal["zero", "mean", "reset"]


@dataclass(frozen=True)
class Reason:
    """Why a group can't grow.

    Attributes
    ----------
    code : str
        Stable identifier, e.g. ``"output"``, ``"layer_norm"``, ``"unknown_op"``.
    message : str
        One sentence for people.
    node : str
        Name of the graph node at which it happens.
    source : str
        ``file:line`` of the user's code, or ``""``.
    """

    code: str
    message: str
    node: str = ""
    source: str = ""


class Filling(NamedTuple):
    """How new entries of a stream, or of standardised weights, are made.

    ``kind``: ``"mean"`` (what makes the units of the stream the mean over the old ones,
    given the entries of ``scales`` that they are multiplied with), ``"zero"``, ``"random"``,
    ``"gain"`` (weights of the norms, which make up for the new width), ``"scale"`` (mean
    square over the old ones), or ``""`` (as in a fresh group). In any group, columns are
    ``"centre"`` (standardised: the mean of their row over ``scales``) or ``"zero"`` (for ECA).
    """

    kind: str = ""
    scales: tuple[tuple[str, int], ...] = ()


PLAIN = Filling()


class Norm(NamedTuple):
    """A graph node whose result must not change with the width of a stream.

    ``kind``: ``"eps"`` (of a norm, scaled as its weights ``gains``), a kind of results that
    are scaled (:data:`fxgrow.counts.MADE_UP`), or ``""``.
    """

    node: Any
    kind: str
    gains: tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class Slot:
    """One axis of one tensor that a group's units have slices in.

    Attributes
    ----------
    tensor : str
        Dotted name of the parameter or buffer (its first name when shared).
    dim : int
        The axis.
    role : {"producer", "norm", "per_unit", "consumer"}
        ``producer``: rows that compute the unit (fresh when new);
        ``norm``: entries of a normalisation, running statistics included;
        ``per_unit``: other entries (LayerScale, PReLU, tables);
        ``consumer``: columns that read the unit (zero when new).
    positions : numpy.ndarray of int64, shape ``(width, slices_per_unit)``
        Which indices along ``dim`` belong to each unit, units in group order.
    filling : Filling
        Of streams (see :class:`Group`).
    """

    tensor: str
    dim: int
    role: Role
    positions: np.ndarray
    filling: Filling = PLAIN


@dataclass(frozen=True, eq=False)
class Group:
    """Units that are alike: one width of the network.

    ``width`` and additions are in units; a unit costs ``rows_per_unit`` neurons.
    ``recipe`` says how new units are filled:

    - ``"fresh"``: producers random, consumers zero.
    - ``"mean"``, for streams under layer normalisation: a new unit is the mean over the
      old ones, so normalised it is zero; what reads it normalised is random, what reads it
      raw is zero. The norms' weights and eps make up for the new width.
    - ``"zero"``, for units under RMS normalisation, GRN and other means over channels: a
      new unit is zero, what reads it is random, the counts of the means are made up for.
    - ``"copies"``: every unit is copied, consumers are split, so ``multiple_of`` is the
      whole width; for units that are mixed where neither of these is exact.

    ``norms`` are the nodes that a stream's width is made up for at. ``tied`` says that an axis
    is both written and read (an embedding that is the head, too).
    ``params_per_unit`` (elements) and ``flops_per_unit`` (2 per multiply-add on the
    example inputs) hold while all other groups keep their width.
    """

    name: str
    width: int
    multiple_of: int
    rows_per_unit: int
    params_per_unit: int
    flops_per_unit: int
    layers: tuple[str, ...]
    slots: tuple[Slot, ...]
    reason: Reason | None = None
    recipe: str = "fresh"
    norms: tuple[Norm, ...] = ()
    tied: bool = False

    @property
    def growable(self) -> bool:
        """Whether nothing keeps the group from growing."""
        return self.reason is None


@dataclass(frozen=True)
class Unsupported:
    """An operation without a rule: what it touches is frozen."""

    op: str
    count: int
    node: str
    source: str


@dataclass(frozen=True)
class Votes:
    """Outcome of a vote (paper section SVoD).

    Attributes
    ----------
    values : dict of str to numpy.ndarray, shape ``(candidates,)``
        Mean dL/dy (gain: change of the loss) of every candidate of every group; negative is good.
    counts : dict of str to int
        How many of the K steepest candidates belong to each group; in general, shares.
    noise : dict of str to float
        Standard deviation of a group's count over batches or draws.
    """

    values: Mapping[str, np.ndarray]
    counts: Mapping[str, int]
    noise: Mapping[str, float] = field(default_factory=dict)
    distributor: str = "svod"
    budget: float = 0.0
    unit: Unit = "neurons"
    seed: int = 0

    def _repr_html_(self) -> str:
        from .pages.notebook import votes_snippet

        return votes_snippet(self)


@dataclass(frozen=True)
class Plan:
    """How many units each group gains.

    Attributes
    ----------
    additions : dict of str to int
        Group name to units (> 0, multiples of the group's ``multiple_of``).
    spent : int
        Cost of the additions in ``unit``; never more than ``budget``.
    unspent_reason : str
        Why something of the budget is left (empty when nothing is).
    """

    additions: Mapping[str, int]
    budget: float = 0.0
    unit: Unit = "neurons"
    spent: int = 0
    unspent_reason: str = ""


@dataclass(frozen=True, eq=False)
class AxisMap:
    """Where an axis' old entries went.

    Attributes
    ----------
    size : int
        New size of the axis.
    old : numpy.ndarray of int64, shape ``(old_size,)``
        New position of every old position (increasing, but for transfers: any order).
    """

    size: int
    old: np.ndarray

    @property
    def new(self) -> np.ndarray:
        """Positions that hold new entries, ascending, shape ``(size - old_size,)``."""
        mask = np.ones(self.size, dtype=bool)
        mask[self.old] = False
        return np.flatnonzero(mask)


@dataclass(frozen=True, eq=False)
class IndexMap:
    """tensor name → dim → :class:`AxisMap`; tensors not named kept their shape."""

    axes: Mapping[str, Mapping[int, AxisMap]]

    def apply(self, name: str, old: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """Spread ``old`` (a weight, gradient or moment) over the new shape.

        Entries without an old counterpart hold ``fill``. Dtype and device are kept.
        """
        axes = self.axes.get(name)
        if not axes:
            return old.clone()
        shape = list(old.shape)
        for dim, axis in axes.items():
            shape[dim] = axis.size
        new = old.new_full(shape, fill)
        new[self.region(name, old)] = old
        return new

    def region(self, name: str, like: torch.Tensor) -> tuple[Any, ...]:
        """Index of the old entries inside the new tensor (``new[region] == old``)."""
        import torch

        axes = self.axes.get(name, {})
        if len(axes) == 1:  # one axis: a cheap single-axis index
            (dim, axis), *_ = axes.items()
            return (*(slice(None),) * dim, torch.from_numpy(axis.old).to(like.device))
        grid: list[Any] = []
        for dim, size in enumerate(like.shape):
            pos = axes[dim].old if dim in axes else np.arange(size)
            view = [1] * like.ndim
            view[dim] = size
            grid.append(torch.from_numpy(pos).to(like.device).reshape(view))
        return tuple(grid)


class GrownSlot(NamedTuple):
    """A :class:`Slot` after growth: positions along ``dim`` of the *new* tensor.

    ``old`` has shape ``(width, slices)``, ``new`` has shape ``(added, slices)``.
    """

    tensor: str
    dim: int
    role: Role
    old: np.ndarray
    new: np.ndarray
    filling: Filling = PLAIN


@dataclass(frozen=True, eq=False)
class GrownGroup:
    """One group after growth: what SWE and SVoD need to know of it.

    ``recipe`` is how new units were filled (see :class:`Group`).
    """

    name: str
    width: int
    added: int
    slots: tuple[GrownSlot, ...]
    recipe: str = "fresh"
    tied: bool = False


@dataclass(frozen=True, eq=False)
class Rewritten:
    """A widened module and how it came about. Old entries hold their old values.

    ``inlined``: numbers in the graph were changed, which the model's own code may hold.
    """

    module: torch.nn.Module
    index_map: IndexMap
    groups: tuple[GrownGroup, ...]
    edits: tuple[str, ...] = ()
    inlined: bool = False


@dataclass(frozen=True)
class Verification:
    """Outcome of the partition check and the numeric check.

    ``eval_error`` and ``train_error`` are the largest differences of old and new
    outputs, relative to the largest absolute old output.
    """

    eval_error: float
    train_error: float
    partition: bool
    tolerance: float
    dtype: str

    @property
    def passed(self) -> bool:
        """Whether the function was kept."""
        worst = max(self.eval_error, self.train_error)
        return self.partition and worst <= self.tolerance


@dataclass(frozen=True, eq=False)
class Growth(Shown):
    """What :func:`fxgrow.widen` and :func:`fxgrow.expand` return.

    ``sources`` holds the parameters of the caller's model by their (first) name, the very
    objects that an optimizer knows; it keeps them alive. ``inspection`` is that of the model
    before growth, for reports (None after a transfer). Neither is saved to files.
    ``base`` describes every tensor of that model before growth: type, shape, checksum.
    """

    module: torch.nn.Module
    plan: Plan
    votes: Votes | None
    index_map: IndexMap
    verification: Verification | None
    report: Mapping[str, Any]
    groups: tuple[GrownGroup, ...] = ()
    sources: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    inspection: Inspection | None = field(default=None, repr=False)
    base: Mapping[str, str] = field(default_factory=dict, repr=False)

    def save(self, path: str | Path) -> None:
        """Write the grown weights and the plan: a file, shards, or the plan alone.

        See :func:`fxgrow.save`.
        """
        from .io import save

        save(self, path)

    def migrate(
        self,
        optimizer: Optimizer,
        *,
        fill: Fill = "zero",
        new_options: Mapping[str, Any] | None = None,
        schedulers: Iterable[Any] = (),
        model: torch.nn.Module | None = None,
    ) -> Optimizer:
        """Hand the optimizer the grown parameters, its state kept; in place.

        See :func:`fxgrow.optim.migrate`.
        """
        from .optim import migrate

        return migrate(
            self, optimizer, fill=fill, new_options=new_options, schedulers=schedulers, model=model
        )

    def migrate_ema(self, averaged: AveragedModel) -> AveragedModel:
        """Return the averaged model in the grown shape, its function kept.

        See :func:`fxgrow.optim.migrate_ema`.
        """
        from .optim import migrate_ema

        return migrate_ema(self, averaged)

    def _view(self, **given: Any) -> View:
        from .pages.view import growth_view

        return growth_view(self, **given)

    def _data(self) -> Mapping[str, Any]:
        return self.report
