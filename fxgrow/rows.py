"""Active rows: new units that are on for half of the samples, as strong as the old ones.

Rows as published are drawn like those of an untrained layer. In a trained network such units may
be off for every sample, and then nothing can revive them. Active rows keep the random direction,
get the norm of the old rows, and a bias at which the unit is on for half of the samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from .data import Progress, batches, call_model, count_batches
from .groups import layer_of
from .ir import GrownGroup, GrownSlot
from .preserve import weight_of
from .reduce import Mean, alone

__all__ = ["activate_rows", "biased_rows", "drawn_rows"]


def activate_rows(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any] | None,
    *,
    samples: int = 1024,
    on: float | None = 0.5,
    seed: int = 0,
    progress: Progress | None = None,
    mean: Mean = alone,
) -> tuple[str, ...]:
    """Give new rows the mean norm of the old ones, and biases of median activity, in place.

    Only rows that were drawn afresh change; what reads them is zero, so the function is kept.
    Biases are set where no norm follows (a norm takes any bias out again) and where there are
    data.

    Parameters
    ----------
    module : torch.nn.Module
        The widened module.
    grown : sequence of GrownGroup
        Its groups.
    data : iterable of (inputs, targets), optional
        Targets are not used. See :mod:`fxgrow.data`.
    samples : int
        Pre-activations to take the median of, per unit, about.
    on : float or None
        Share of the samples that new units are on for, if another than half (0 to 1). None: on
        where they are above their mean, which processes agree on exactly.
    seed : int
        Of the positions that are looked at, in images and sequences.
    progress : callable, optional
        Told ``(stage, done, total)``.
    mean : callable
        Averages over processes (see :mod:`fxgrow.reduce`).

    Returns
    -------
    tuple of str
        Names of the biases that were set.

    Raises
    ------
    DataError
        See :func:`fxgrow.data.batches` and :func:`fxgrow.data.call_model`.
    """
    tensors = dict(module.named_parameters(remove_duplicate=False))
    fresh = [group for group in grown if group.recipe == "fresh"]
    for group in fresh:
        for slot in drawn_rows(group):
            if slot.tensor in tensors and tensors[slot.tensor].ndim > 1:
                _rescale(tensors[slot.tensor], slot)
    biased = biased_rows(fresh, tensors)
    if data is None or not biased:
        return ()
    slots = {id(tensors[weight_of(name)]): slot for name, slot in biased.items()}
    beside = {id(tensors[name]): id(tensors[weight_of(name)]) for name in biased}
    watch = (
        _Means(slots, beside, samples, seed)
        if on is None
        else _PreActivations(slots, beside, samples, seed, 1 - on)
    )
    _look(module, data, watch, progress)
    names = sorted(biased)
    like = [tensors[name].detach()[_index(biased[name], tensors[name])] for name in names]
    keys = [id(tensors[weight_of(name)]) for name in names]
    shared = watch.middles(keys, like, mean)
    found = [name for name, median in zip(names, shared, strict=True) if median is not None]
    for name, median in zip(names, shared, strict=True):
        if median is not None:
            with torch.no_grad():
                bias = tensors[name]
                bias.index_add_(0, _index(biased[name], bias), -median.to(bias))
    return tuple(found)


def drawn_rows(group: GrownGroup) -> list[GrownSlot]:
    """Return the producers whose new rows were drawn.

    Parameters
    ----------
    group : GrownGroup

    Returns
    -------
    list of GrownSlot
    """
    return [s for s in group.slots if s.role == "producer" and not s.filling.kind]


@torch.no_grad()
def _rescale(tensor: torch.Tensor, slot: GrownSlot) -> None:
    index = _index(slot, tensor)
    old = torch.from_numpy(slot.old.reshape(-1)).to(tensor.device)
    rows = tensor.index_select(slot.dim, index)
    wanted = _norms(tensor.index_select(slot.dim, old), slot.dim).mean()
    norms = _norms(rows, slot.dim)
    if not wanted > 0:  # old rows that have not trained yet
        return
    shape = [-1 if dim == slot.dim else 1 for dim in range(tensor.ndim)]
    factors = torch.where(norms > 0, wanted / norms, 1.0)
    tensor.index_copy_(slot.dim, index, rows * factors.reshape(shape).to(rows))


def _norms(rows: torch.Tensor, dim: int) -> torch.Tensor:
    flat = rows.movedim(dim, 0).reshape(rows.shape[dim], -1)
    norms: torch.Tensor = flat.to(torch.promote_types(rows.dtype, torch.float32)).norm(dim=1)
    return norms


def biased_rows(
    grown: Sequence[GrownGroup], tensors: Mapping[str, torch.Tensor]
) -> dict[str, GrownSlot]:
    """Return the biases of new rows, by name, where no norm follows.

    Parameters
    ----------
    grown : sequence of GrownGroup
    tensors : dict of str to torch.Tensor
        Parameters of the module, by name.

    Returns
    -------
    dict of str to GrownSlot
    """
    found = {}
    for group in grown:
        drawn = {slot.tensor: slot for slot in drawn_rows(group)}
        own = {layer_of(name) for name in drawn}  # gains of standardised rows, which are no norm
        if any(s.role == "norm" and layer_of(s.tensor) not in own for s in group.slots):
            continue
        for name, slot in drawn.items():
            if name in tensors and tensors[name].ndim == 1 and weight_of(name) in drawn:
                found[name] = slot
    return found


def _index(slot: GrownSlot, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(slot.new.reshape(-1)).to(like.device)


def _look(
    module: torch.nn.Module, data: Iterable[Any], watch: _PreActivations, progress: Progress | None
) -> None:
    """Run batches in eval mode until enough has been seen."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), watch:
            for number, (inputs, _) in enumerate(batches(data, module)):
                call_model(module, inputs)
                if progress:
                    progress("looking at new units", number + 1, count_batches(data))
                if watch.enough():
                    break
    finally:
        for part, training in modes:
            part.training = training


class _PreActivations(TorchFunctionMode):
    """Collects values of new units, by the identity of the weight that makes them.

    Where the layer is given another one, which is computed, its bias is ``beside`` that weight.
    """

    def __init__(
        self,
        slots: Mapping[int, GrownSlot],
        beside: Mapping[int, int],
        samples: int,
        seed: int,
        below: float = 0.5,
    ) -> None:
        super().__init__()
        self.slots = slots
        self.beside = beside
        self.samples = samples
        self.below = below
        self.counts: dict[int, int] = defaultdict(int)
        self.generator = torch.Generator().manual_seed(seed)
        self.seen: dict[int, list[torch.Tensor]] = defaultdict(list)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        if func in _LAYERS:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs or {})
            key = id(given.get("weight"))
            key = key if key in self.slots else self.beside.get(id(given.get("bias")), 0)
            if key in self.slots:
                self._collect(key, out, -_LAYERS[func])
        return out

    def _collect(self, key: int, out: torch.Tensor, dim: int) -> None:
        values = out.index_select(dim, _index(self.slots[key], out)).movedim(dim, -1)
        rows = values.reshape(-1, values.shape[-1])
        # A share of the positions of every image, so that many images are seen.
        most = max(self.samples // 8, 1)
        if len(rows) > most:
            rows = rows[torch.randperm(len(rows), generator=self.generator)[:most].to(out.device)]
        self.seen[key].append(rows)

    def enough(self) -> bool:
        """Whether every unit has been seen often enough."""
        counts = [sum(map(len, self.seen[key])) for key in self.slots]
        return min(counts, default=0) >= self.samples

    def middles(
        self, keys: Sequence[int], like: Sequence[torch.Tensor], mean: Mean
    ) -> list[torch.Tensor | None]:
        """Return what a share of each new unit's values exceed, shape ``(added,)``, by key."""
        own = [self._quantile(seen) if (seen := self.seen.get(key)) else None for key in keys]
        return mean(own, 1.0, "medians of new units", like)

    def _quantile(self, seen: Sequence[torch.Tensor]) -> torch.Tensor:
        values = torch.cat(list(seen))
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        return values.kthvalue(1 + int(self.below * (len(values) - 1)), dim=0).values


class _Means(_PreActivations):
    """Takes means of all batches in place of quantiles: the same on any number of processes."""

    def _collect(self, key: int, out: torch.Tensor, dim: int) -> None:
        values = out.index_select(dim, _index(self.slots[key], out)).movedim(dim, -1)
        rows = values.reshape(-1, values.shape[-1])
        self.counts.setdefault(len(self.seen[key]), len(rows))
        self.seen[key].append(rows.to(torch.promote_types(rows.dtype, torch.float32)).mean(0))

    def enough(self) -> bool:
        return False

    def middles(
        self, keys: Sequence[int], like: Sequence[torch.Tensor], mean: Mean
    ) -> list[torch.Tensor | None]:
        found: dict[int, list[torch.Tensor]] = defaultdict(list)
        for call, count in self.counts.items():
            own = [seen[call] if call < len(seen := self.seen[key]) else None for key in keys]
            values = mean(own, count, f"means of new units, call {call}", like)
            for key, value in zip(keys, values, strict=True):
                if value is not None:
                    found[key].append(value)
        return [torch.stack(found[key]).mean(0) if found[key] else None for key in keys]


# Functions of (input, weight, ...), and which dimension from the end holds the channels.
_LAYERS: Mapping[Callable[..., Any], int] = {
    F.linear: 1,
    **{
        getattr(space, f"conv{transpose}{dims}d"): dims + 1
        for space in (F, torch)
        for transpose in ("", "_transpose")
        for dims in (1, 2, 3)
    },
}
