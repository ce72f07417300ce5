"""Running statistics for new channels of norms, measured on the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from .data import Progress, batches, call_model, count_batches
from .ir import GrownGroup, GrownSlot
from .reduce import Mean, alone


def calibrate_norms(
    module: torch.nn.Module,
    grown: Sequence[GrownGroup],
    data: Iterable[Any],
    *,
    progress: Progress | None = None,
    mean: Mean = alone,
) -> tuple[str, ...]:
    """Set the running statistics of new norm entries from one pass over the data, in place.

    All norms with running statistics use those of the batch meanwhile; everything else is
    in eval mode. Old entries, counters and modes stay as they are, bit for bit. New
    statistics are averages over the batches, weighted by their sizes. Groups of exact
    copies are passed over, since their copied statistics are right.

    Parameters
    ----------
    module : torch.nn.Module
        The widened module.
    grown : sequence of GrownGroup
        Its groups.
    data : iterable of (inputs, targets)
        Targets are not used. See :mod:`fxgrow.data`.
    progress : callable, optional
        Told ``(stage, done, total)``.
    mean : callable
        Averages over processes (see :mod:`fxgrow.reduce`).

    Returns
    -------
    tuple of str
        Names of the buffers that were set.

    Raises
    ------
    DataError
        See :func:`fxgrow.data.batches` and :func:`fxgrow.data.call_model`.

    Notes
    -----
    Statistics are taken at the calls of ``batch_norm`` and ``instance_norm``, by the
    identity of their running mean, so norms written with functions count too.
    """
    buffers = dict(module.named_buffers(remove_duplicate=False))
    slots = {
        slot.tensor: slot
        for group in grown
        if group.recipe != "copies"
        for slot in group.slots
        if slot.role == "norm" and slot.tensor in buffers
    }
    if not slots:
        return ()
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    total = count_batches(data)
    done = 0
    watch = _BatchStatistics({id(buffers[name]): name for name in slots})
    try:
        with torch.no_grad(), watch:
            for inputs, _ in batches(data, module):
                call_model(module, inputs)
                done += 1
                if progress:
                    progress("calibrating norms", done, total)
    finally:
        for part, training in modes:
            part.training = training
    found = _everywhere(watch.seen, buffers, sorted(slots), mean, done)
    for name, values in found.items():
        _write(buffers[name], slots[name], values)
    return tuple(found)


def _everywhere(
    seen: Mapping[str, _Seen],
    buffers: Mapping[str, torch.Tensor],
    names: Sequence[str],
    mean: Mean,
    done: int,
) -> dict[str, torch.Tensor]:
    """Average what all processes saw, each weighted by what it is worth."""
    totals = [seen[name].total if name in seen else None for name in names]
    weights = torch.tensor([seen[name].weight if name in seen else 0.0 for name in names]).double()
    like = [_exact(buffers[name]) for name in names]
    *sums, worth = mean([*totals, weights], 1.0, f"calibration, batch {done}", [*like, weights])
    shares = [0.0] * len(names) if worth is None else worth.tolist()
    return {
        name: total / share
        for name, total, share in zip(names, sums, shares, strict=True)
        if total is not None
    }


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@torch.no_grad()
def _write(buffer: torch.Tensor, slot: GrownSlot, values: torch.Tensor) -> None:
    index = torch.from_numpy(slot.new.reshape(-1)).to(buffer.device)
    buffer[index] = values.to(buffer)[index]


@dataclass
class _Seen:
    """Weighted sum of a statistic."""

    total: torch.Tensor
    weight: float


class _BatchStatistics(TorchFunctionMode):
    """Makes norms use the statistics of the batch, and collects those by buffer name."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.seen: dict[str, _Seen] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        signature = _SIGNATURES.get(func)
        if signature is None:
            return func(*args, **(kwargs or {}))
        names, switch = signature
        call = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        mean, var, values = call.get("running_mean"), call.get("running_var"), call["input"]
        count = values.numel() // values.shape[1]
        if mean is None or count < 2 or (func in _PER_SAMPLE and values[0, 0].numel() < 2):
            return func(**call)
        self._collect(mean, var, values, func in _PER_SAMPLE)
        return func(**{**call, "running_mean": None, "running_var": None, switch: True})

    def _collect(
        self, mean: torch.Tensor, var: torch.Tensor | None, values: torch.Tensor, single: bool
    ) -> None:
        """Average per channel, over samples too unless each sample counts by itself."""
        if id(mean) not in self.names and id(var) not in self.names:
            return
        dims = [dim for dim in range(values.ndim) if dim > 1 or (dim == 0 and not single)]
        batch_var, batch_mean = torch.var_mean(_exact(values), dim=dims)
        if single:
            batch_var, batch_mean = batch_var.mean(0), batch_mean.mean(0)
        for buffer, value in ((mean, batch_mean), (var, batch_var)):
            name = self.names.get(id(buffer))
            if name is None:
                continue
            weight = float(values.shape[0])
            seen = self.seen.setdefault(name, _Seen(torch.zeros_like(value), 0.0))
            seen.total += value * weight
            seen.weight += weight


_PYTHON = ("input", "running_mean", "running_var", "weight", "bias")
_NATIVE = ("input", "weight", "bias", "running_mean", "running_var")
_SIGNATURES: Mapping[Callable[..., Any], tuple[tuple[str, ...], str]] = {
    F.batch_norm: ((*_PYTHON, "training", "momentum", "eps"), "training"),
    torch.batch_norm: (
        (*_NATIVE, "training", "momentum", "eps", "cudnn_enabled"),
        "training",
    ),
    F.instance_norm: ((*_PYTHON, "use_input_stats", "momentum", "eps"), "use_input_stats"),
    torch.instance_norm: (
        (*_NATIVE, "use_input_stats", "momentum", "eps", "cudnn_enabled"),
        "use_input_stats",
    ),
}
"""Order of the arguments, and the name of the switch to statistics of the batch."""

_PER_SAMPLE = frozenset({F.instance_norm, torch.instance_norm})
