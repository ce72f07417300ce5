"""Which units of a network are active, and whether new ones keep up with old ones.

A unit is observed where it is read: at the last values that carry its labels before an
operation contracts them away (the input of the next layer). The graph and the labels are
those of :func:`fxgrow.inspect`, so nothing is said about layer types here either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .data import LossFn, Progress, batch_loss, batches, count_batches, seeded
from .errors import InputError
from .inspection import inspect_model
from .ir import Growth
from .plain import duplicate, plain
from .stages import example_of
from .watch import watch
from .wrapping import unwrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .inspection import Inspection
    from .ir import Group, GrownGroup
    from .rules.own import Declaration

__all__ = ["SCHEMA", "Activity", "GroupActivity", "activity"]

SCHEMA = "fxgrow.activity/1"
NEARLY = 0.01
"""A unit is nearly inactive when it is active on a smaller share of the samples."""


@dataclass(frozen=True, eq=False)
class GroupActivity:
    """Activity of the units of one group.

    Attributes
    ----------
    name : str
        Of the group.
    active : numpy.ndarray, shape ``(width,)``
        Share of the samples on which each unit is active (0 to 1), units in group order.
    magnitude : numpy.ndarray, shape ``(width,)``
        Mean absolute activation of each unit over samples and positions.
    gradient : numpy.ndarray, shape ``(width,)``, or None
        Norm of the loss gradient of the rows that compute each unit, averaged over batches;
        None where it was not measured.
    new : numpy.ndarray of bool, shape ``(width,)``
        Which units the last growth added; none for a model that was not grown.
    """

    name: str
    active: np.ndarray
    magnitude: np.ndarray
    gradient: np.ndarray | None
    new: np.ndarray

    @property
    def width(self) -> int:
        """Number of units."""
        return len(self.active)

    @property
    def inactive(self) -> np.ndarray:
        """Units that are active on no sample, as a mask of shape ``(width,)``."""
        mask: np.ndarray = self.active == 0
        return mask

    @property
    def nearly_inactive(self) -> np.ndarray:
        """Units active on fewer than 1 % of the samples, inactive ones included, as a mask."""
        mask: np.ndarray = self.active < NEARLY
        return mask

    @property
    def activation_parity(self) -> float | None:
        """Mean magnitude of new units divided by that of old ones; None without new ones."""
        return self._parity(self.magnitude)

    @property
    def gradient_parity(self) -> float | None:
        """Mean gradient norm of new units divided by that of old ones; None if not known."""
        return None if self.gradient is None else self._parity(self.gradient)

    def _parity(self, values: np.ndarray) -> float | None:
        if not self.new.any() or self.new.all():
            return None
        old = float(values[~self.new].mean())
        return float(values[self.new].mean()) / old if old else None

    def to_dict(self) -> dict[str, Any]:
        """Return counts and parities as JSON types."""
        return {
            "name": self.name,
            "width": self.width,
            "inactive": int(self.inactive.sum()),
            "nearly_inactive": int(self.nearly_inactive.sum()),
            "mean_active": float(self.active.mean()),
            "new": int(self.new.sum()),
            "new_inactive": int((self.inactive & self.new).sum()),
            "new_nearly_inactive": int((self.nearly_inactive & self.new).sum()),
            "activation_parity": self.activation_parity,
            "gradient_parity": self.gradient_parity,
        }


@dataclass(frozen=True, eq=False)
class Activity:
    """What :func:`activity` returns.

    Attributes
    ----------
    groups : tuple of GroupActivity
        Growable groups that could be observed, in execution order.
    unobserved : dict of str to str
        Groups that could not, and why.
    samples : int
        How many were looked at.
    threshold : float
        See :func:`activity`.
    """

    groups: tuple[GroupActivity, ...]
    unobserved: Mapping[str, str]
    samples: int
    threshold: float

    def group(self, name: str) -> GroupActivity:
        """Return one group.

        Raises
        ------
        InputError
            When it was not observed, with the reason.
        """
        for group in self.groups:
            if group.name == name:
                return group
        why = self.unobserved.get(name, "there is no growable group of that name")
        raise InputError(f"no activity of group {name!r}: {why}")

    def to_dict(self) -> dict[str, Any]:
        """Return counts as JSON types (schema ``fxgrow.activity/1``)."""
        rows = [group.to_dict() for group in self.groups]
        return {
            "schema": SCHEMA,
            "samples": self.samples,
            "threshold": self.threshold,
            "units": sum(row["width"] for row in rows),
            "inactive": sum(row["inactive"] for row in rows),
            "nearly_inactive": sum(row["nearly_inactive"] for row in rows),
            "groups": rows,
            "unobserved": [{"name": n, "reason": why} for n, why in self.unobserved.items()],
        }

    def plot(self) -> Any:
        """Draw how often units are active, a line per group, sorted; new units in colour.

        Returns
        -------
        matplotlib.figure.Figure
            Needs the ``plot`` extra.
        """
        from .pictures import activity_figure

        return activity_figure(self)


def activity(
    model: torch.nn.Module | Growth,
    data: Iterable[Any],
    *,
    loss: LossFn | str | None = None,
    threshold: float = 1e-4,
    example_inputs: Any = None,
    progress: Progress | None = None,
    seed: int = 0,
    rules: Iterable[Declaration] = (),
) -> Activity:
    """Measure on how many samples each unit of each growable group is active.

    Parameters
    ----------
    model : torch.nn.Module or Growth
        Never changed; run in eval mode. Of a growth, new units are compared with old ones.
    data : re-iterable of (inputs, targets)
        E.g. a DataLoader; read once. Targets are used only for a growth, for gradients.
    loss : callable, str or None
        For the gradients of a growth; ``None``: cross entropy for integer targets, MSE for
        float.
    threshold : float
        A unit is active on a sample where one of its values there is larger, in absolute
        value, than ``threshold`` times the root mean square of its group's values (on the
        first batch). 0: where one is not exactly zero, which units of smooth activations
        (GELU, SiLU) never are.
    example_inputs : tensor, tuple or dict, optional
        Taken from the first batch by default.
    progress : callable, optional
        Told ``(stage, done, total)``.
    seed : int
        Of what is random in the data.
    rules : sequence of Declaration
        For custom operations and opaque modules, see :func:`inspect`.

    Returns
    -------
    Activity

    Raises
    ------
    DataError
        When data or loss are of no use.
    InputError
        When ``threshold`` is negative.
    TraceError
        When no graph of the model can be had.

    Examples
    --------
    >>> import torch, fxgrow
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> for bias, start in ((net[0].bias[:3], -99.0), (net[0].bias[3:], 99.0)):
    ...     _ = torch.nn.init.constant_(bias, start)
    >>> data = [(torch.rand(16, 4), torch.zeros(16, dtype=torch.long))]
    >>> fxgrow.activity(net, data).group("0").inactive.tolist()
    [True, True, True, False, False, False, False, False]

    Notes
    -----
    Memory: that of one forward pass (for a growth, of a forward and a backward pass and a
    copy of the model), and a few numbers per unit.
    """
    if not threshold >= 0:
        raise InputError(f"threshold is {threshold}; it must be 0 or more")
    growth = model if isinstance(model, Growth) else None
    module = plain(unwrap(model.module if isinstance(model, Growth) else model))
    rules = tuple(rules)
    with seeded(seed, module):
        example = example_of(module, data, example_inputs)
        inspection = inspect_model(module, example, rules=rules)
        meters, count = watch(inspection, module, data, threshold, progress)
        slopes = {} if growth is None else _gradients(inspection, module, data, loss, progress)
    grown = {} if growth is None else {group.name: group for group in growth.groups}
    rows = tuple(
        GroupActivity(
            group.name,
            *meters[group.name].result(count),
            slopes.get(group.name),
            _new_units(group, grown.get(group.name)),
        )
        for group in inspection.groups
        if group.name in meters
    )
    known = {row.name for row in rows}
    hidden = {g.name: _UNSEEN for g in inspection.groups if g.name not in known}
    return Activity(rows, hidden, count, threshold)


_UNSEEN = (
    "no value of the eval graph shows its units: they serve in training only, or are read inside "
    "a module that runs as a whole"
)


# ------------------------------------------------------------ new against old


def _new_units(group: Group, grown: GrownGroup | None) -> np.ndarray:
    """Which units of a widened group the growth added: by where their slices lie."""
    new = np.zeros(group.width, dtype=bool)
    if grown is None:
        return new
    added = {(slot.tensor, slot.dim): slot.new for slot in grown.slots}
    for slot in group.slots:
        positions = added.get((slot.tensor, slot.dim))
        if positions is not None:
            new |= np.isin(slot.positions, positions).all(axis=1)
    return new


def _gradients(
    inspection: Inspection,
    module: torch.nn.Module,
    data: Iterable[Any],
    loss: LossFn | str | None,
    progress: Progress | None,
) -> dict[str, np.ndarray]:
    """Mean over batches of the gradient norm of every unit's rows, by group."""
    twin = duplicate(module).eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    tensors = dict(twin.named_parameters(remove_duplicate=False))
    sums = {group.name: np.zeros(group.width) for group in inspection.groups}
    total, count = count_batches(data), 0
    for number, (inputs, targets) in enumerate(batches(data, twin)):
        twin.zero_grad(set_to_none=True)
        torch.autograd.backward(batch_loss(twin, inputs, targets, loss, number))
        for group in inspection.groups:
            sums[group.name] += np.sqrt(_squares(group, tensors))
        count += 1
        if progress:
            progress("comparing gradients", count, total)
    return {name: values / max(count, 1) for name, values in sums.items()}


def _squares(group: Group, tensors: Mapping[str, torch.nn.Parameter]) -> np.ndarray:
    """Squared gradient norm of each unit's producer rows, shape ``(width,)``."""
    squares = np.zeros(group.width)
    for slot in group.slots:
        tensor = tensors.get(slot.tensor)
        if slot.role != "producer" or tensor is None or tensor.grad is None:
            continue
        rows = tensor.grad.detach().double().movedim(slot.dim, 0)
        by_row = rows.reshape(len(rows), -1).square().sum(1)
        squares += by_row.cpu().numpy()[slot.positions].sum(axis=1)
    return squares
