"""Where the units of each group are read, and on how many samples they are active there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import fx

from .data import Progress, batches, count_batches
from .errors import DataError
from .execute import Executor
from .plain import eagerly, modes_kept
from .propagate import Noted
from .reduce import samples
from .trace import Inputs

if TYPE_CHECKING:
    from .inspection import Inspection

__all__ = ["Meter", "watch"]


class _Spot(NamedTuple):
    """Units of one group in the output of one node: ``units`` has the planes' shape, -1: none."""

    group: str
    units: np.ndarray


@dataclass(frozen=True, eq=False)
class _Places:
    spots: Mapping[fx.Node, Sequence[_Spot]]
    groups: frozenset[str]


def _places(inspection: Inspection) -> _Places:
    """Find the nodes whose output is read: a user of theirs no longer carries the units."""
    analysis = inspection.analysis
    owners = _Owners(inspection)
    graph = analysis.traced.graphs["eval"]
    carried: dict[fx.Node, dict[str, _Spot]] = {}
    live: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(arg in live for arg in node.all_input_nodes):
            live.add(node)
        noted = analysis.planes.get(node)
        carried[node] = dict(owners.spots(noted)) if isinstance(noted, Noted) else {}
    spots: dict[fx.Node, list[_Spot]] = {}
    for node in graph.nodes:
        if node not in live or not isinstance(analysis.planes.get(node), Noted):
            continue
        for name, spot in carried[node].items():
            if any(_reads(user, name, carried, analysis.planes) for user in node.users):
                spots.setdefault(node, []).append(spot)
    named = frozenset(spot.group for several in spots.values() for spot in several)
    return _Places(spots, named)


def _reads(
    user: fx.Node, name: str, carried: Mapping[fx.Node, Mapping[str, _Spot]], planes: Any
) -> bool:
    """Whether a node uses a group's units up; sizes and containers do not count as reading."""
    noted = planes.get(user)
    return isinstance(noted, Noted) and bool(noted.shape) and name not in carried[user]


class _Owners:
    """Maps labels to units of growable groups."""

    def __init__(self, inspection: Inspection) -> None:
        state = inspection.analysis.state
        self.book = state.book
        self.names = [group.name for group in inspection.groups]
        self.unit = np.full(self.book.size, -1, dtype=np.int64)
        self.group = np.full(self.book.size, -1, dtype=np.int64)
        for number, group in enumerate(inspection.groups):
            for slot in group.slots:
                labels = state.axes.get((slot.tensor, slot.dim))
                if labels is None:
                    continue
                roots = self.book.find(labels.reshape(-1)[slot.positions])
                self.unit[roots] = np.arange(group.width).reshape(-1, 1)
                self.group[roots] = number

    def spots(self, noted: Noted) -> Iterator[tuple[str, _Spot]]:
        """Yield the groups whose units lie in a tensor, and where."""
        for plane in noted.planes:
            if not plane.dims:
                continue
            roots = self.book.find(plane.labels)
            groups = self.group[roots]
            for number in np.unique(groups[groups >= 0]):
                units = np.where(groups == number, self.unit[roots], -1)
                name = self.names[number]
                yield name, _Spot(name, units)


# ------------------------------------------------------------------- counting


@dataclass
class Meter:
    """Counts, for each unit of a group, the samples on which it is active."""

    inspection: Inspection
    name: str
    threshold: float
    level: float | None = None
    seen: bool = False
    active: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    total: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    worth: torch.Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        width = self.inspection.group(self.name).width
        self.active, self.total, self.worth = (torch.zeros(width).double() for _ in range(3))

    def add(self, reads: Sequence[tuple[torch.Tensor, np.ndarray]], count: int) -> None:
        """Take in all places of one batch at which the group is read."""
        usable = [(value, units) for value, units in reads if _fits(value, units)]
        if not usable:
            return
        self.seen = True
        if self.level is None:
            squares = [_mean_square(value, units) for value, units in usable]
            self.level = self.threshold * max(squares) ** 0.5
        width = len(self.active)
        on = torch.zeros(count, width, dtype=torch.bool)
        for value, units in usable:
            peaks, sums, sizes = _by_unit(value, units, width, count)
            on |= peaks > self.level
            self.total += sums
            self.worth += sizes
        self.active += on.sum(0)

    def result(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the share of active samples and the mean magnitude of every unit."""
        magnitude = self.total / self.worth.clamp(min=1)
        return (self.active / max(count, 1)).numpy(), magnitude.numpy()


def _fits(value: torch.Tensor, units: np.ndarray) -> bool:
    """Whether real data have the shape that the labels were found for."""
    return (
        value.is_floating_point()
        and value.ndim == units.ndim
        and all(n in (1, size) for n, size in zip(units.shape, value.shape, strict=True))
    )


def _mean_square(value: torch.Tensor, units: np.ndarray) -> float:
    """Mean square of a group's values in a tensor, 0 where there is none."""
    here = torch.from_numpy(units >= 0).to(value.device)
    squares = torch.where(here, value.detach().float().square(), 0.0)
    share = here.double().mean().item()
    return float(squares.mean(dtype=torch.float64).item() / share) if share else 0.0


def _by_unit(
    value: torch.Tensor, units: np.ndarray, width: int, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Peak by (sample, unit), and by unit the sum of magnitudes and how many were added."""
    kept = [dim for dim, size in enumerate(units.shape) if size > 1]
    sample = _sample_dim(value, kept, count)
    others = [dim for dim in range(value.ndim) if dim not in kept and dim != sample]
    size = value.detach().abs()
    if size.dtype in (torch.float16, torch.bfloat16):
        size = size.float()
    order = ([] if sample is None else [sample]) + others + kept
    rows = count if sample is not None else 1
    flat = size.permute(order).reshape(rows, -1, int(np.prod([value.shape[d] for d in kept])))
    index = torch.from_numpy(units.reshape(-1)).to(value.device)
    inside = index >= 0
    index, flat = index[inside], flat[:, :, inside]
    peaks = flat.new_zeros(rows, width)
    peaks.scatter_reduce_(1, index.expand(rows, -1), flat.amax(1), "amax")
    exact = torch.zeros(width, dtype=torch.float64, device=flat.device)
    sums = exact.index_add(0, index, flat.sum((0, 1), dtype=torch.float64))
    sizes = torch.bincount(index, minlength=width).double() * (flat.shape[0] * flat.shape[1])
    return peaks.cpu().expand(count, width), sums.cpu(), sizes.cpu()


def _sample_dim(value: torch.Tensor, kept: Sequence[int], count: int) -> int | None:
    """Dimension of the samples: the first one (windows count to their sample), else one as long."""
    if 0 not in kept and value.shape[0] % count == 0:
        return 0
    alike = [d for d in range(value.ndim) if d not in kept and value.shape[d] == count]
    return alike[0] if alike else None


def watch(
    inspection: Inspection,
    module: torch.nn.Module,
    data: Iterable[Any],
    threshold: float,
    progress: Progress | None,
) -> tuple[dict[str, Meter], int]:
    """Run the eval graph over the data.

    Parameters
    ----------
    inspection : Inspection
        Of the module.
    module : torch.nn.Module
        Gives device and dtype of the inputs.
    data : iterable of (inputs, targets)
        See :mod:`fxgrow.data`.
    threshold : float
        See :func:`fxgrow.activity`.
    progress : callable, optional
        Told ``(stage, done, total)``.

    Returns
    -------
    meters : dict of str to Meter
        By group, those that were seen.
    samples : int

    Raises
    ------
    DataError
        When the model does not run on a batch.
    """
    places = _places(inspection)
    meters = {name: Meter(inspection, name, threshold) for name in places.groups}
    traced = inspection.analysis.traced
    graph, root = traced.graphs["eval"], traced.root
    total, count = count_batches(data), 0
    with modes_kept(root, training=False), eagerly(), torch.no_grad():
        for number, (inputs, _) in enumerate(batches(data, module)):
            size = samples(inputs)
            reads: dict[str, list[tuple[torch.Tensor, np.ndarray]]] = {}
            for node, value in _values(root, graph, inputs, number):
                for spot in places.spots.get(node, ()):
                    if isinstance(value, torch.Tensor):
                        reads.setdefault(spot.group, []).append((value, spot.units))
            for name, several in reads.items():
                meters[name].add(several, size)
            count += size
            if progress:
                progress("watching units", number + 1, total)
    return {name: meter for name, meter in meters.items() if meter.seen}, count


def _values(
    root: torch.nn.Module, graph: fx.Graph, inputs: Any, number: int
) -> Iterator[tuple[fx.Node, Any]]:
    """Run a graph node by node; values are dropped after their last use."""
    last: dict[fx.Node, list[fx.Node]] = {}
    done: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for used in node.all_input_nodes:
            if used not in done:
                done.add(used)
                last.setdefault(node, []).append(used)
    executor = Executor(root, Inputs.of(tuple(inputs) if isinstance(inputs, list) else inputs))
    for node in graph.nodes:
        try:
            value = executor.values[node] = executor.compute(node)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise DataError(
                f"the model does not run on batch {number} of the data: {error}; check the "
                "batches' shapes against what the model expects"
            ) from error
        yield node, value
        for used in last.get(node, ()):
            executor.values.pop(used, None)
