"""Revival: dead units get rows that live again, which changes nothing that the model computes.

A unit that is zero on every sample gets no gradient, neither for its row nor for what reads it:
training can't bring it back. What reads it may as well be zero, and then its row is free: it
becomes an active row (:mod:`fxgrow.rows`), on for about half of the samples, as a new unit would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .data import check_data, seeded
from .distributed import together
from .errors import UnsupportedError
from .inspection import inspect_model
from .ir import GrownGroup, GrownSlot
from .plain import duplicate, plain
from .reduce import samples as samples_of
from .rows import activate_rows, biased_rows
from .sharding import is_sharded
from .stages import shared_example
from .verify import verify
from .watch import watch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch.distributed import ProcessGroup

    from .data import Progress
    from .distributed import Team
    from .inspection import Inspection
    from .ir import Group
    from .rules.own import Declaration

__all__ = ["Revival", "revive"]

STRICTER = 1e-2
"""Zeros times something are zeros, so there is less rounding here than where a model grows."""


@dataclass(frozen=True)
class Revival:
    """What :func:`revive` did.

    Attributes
    ----------
    revived : dict of str to int
        Units that were given a new start, by group.
    left : dict of str to str
        Groups with dead units that were left as they are, and why.
    samples : int
        How many were looked at.
    """

    revived: Mapping[str, int]
    left: Mapping[str, str]
    samples: int


def revive(
    model: torch.nn.Module,
    data: Iterable[Any],
    *,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] = (),
    samples: int = 2048,
    example_inputs: Any = None,
    progress: Progress | None = None,
    seed: int = 0,
    rules: Iterable[Declaration] = (),
    process_group: ProcessGroup | Team | None = None,
) -> Revival:
    """Give units that are zero on all samples a new start, in place, as a training step would.

    Their rows get the mean norm of the living ones, their biases let them be on where they are
    above their mean, and what reads them becomes zero. So on these samples the function is kept; on
    others, where a unit may have been on, it loses that unit's share. Only units whose row and bias
    are their own can be revived: of those behind a norm the bias is the norm's.

    Parameters
    ----------
    model : torch.nn.Module
        Its weights change.
    data : re-iterable of (inputs, targets)
        E.g. the training DataLoader; read three times, up to ``samples``. Targets are not used.
    optimizer : torch.optim.Optimizer or sequence of them, optional
        What it holds for the changed entries becomes zero.
    samples : int
        To look at, at least; all of the data if there are fewer.
    example_inputs : tensor, tuple or dict, optional
        Taken from the first batch by default.
    progress : callable, optional
        Told ``(stage, done, total)``.
    seed : int
        Of what is random in the data.
    rules : sequence of Declaration
        See :func:`fxgrow.inspect`.
    process_group : torch.distributed.ProcessGroup, optional
        Ranks that train the model together; found from DDP. Units that are dead on all ranks are
        revived, alike on all.

    Returns
    -------
    Revival

    Raises
    ------
    DataError
        When the data are of no use.
    TraceError
        When no graph of the model can be had.
    UnsupportedError
        Under FSDP2, which holds a part of every tensor.

    Examples
    --------
    >>> import torch, fxgrow
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> _ = torch.nn.init.constant_(net[0].bias[:3], -99.0)
    >>> _ = torch.nn.init.constant_(net[0].bias[3:], 99.0)
    >>> data = [(torch.rand(16, 4), torch.zeros(16, dtype=torch.long))]
    >>> fxgrow.revive(net, data).revived
    {'0': 3}
    >>> fxgrow.activity(net, data).group("0").inactive.any().item()
    False

    Notes
    -----
    For ReLU and the like: units of smooth activations (GELU, SiLU) are never exactly zero.
    """
    if is_sharded(model):
        raise UnsupportedError(
            "units can't be revived under FSDP2, where every rank holds a part of them; "
            "revive the plain model before it is sharded"
        )
    check_data(data)
    first = _First(data, samples)
    with together(model, process_group) as (team, module):
        module = plain(module)
        with seeded(seed, module):
            example = shared_example(team, module, first, example_inputs)
            inspection = inspect_model(module, example, rules=tuple(rules))
            dead, count = _dead(inspection, module, first, team, progress)
            chosen, left = _chosen(inspection, module, dead)
            chosen, refused = _released(module, chosen, example)
            activate_rows(  # above their means: medians of many processes are not those of one
                module, chosen, first, on=None, seed=seed, progress=progress, mean=team.mean
            )
    tensors = dict(module.named_parameters(remove_duplicate=False))
    several = (optimizer,) if isinstance(optimizer, torch.optim.Optimizer) else tuple(optimizer)
    for each in several:
        _forget(each, tensors, chosen)
    return Revival({g.name: g.added for g in chosen}, {**left, **refused}, count)


@dataclass(frozen=True)
class _First:
    """The first batches of some data, as many as hold the samples asked for."""

    data: Iterable[Any]
    samples: int

    def __iter__(self) -> Iterator[Any]:
        seen = 0
        for batch in self.data:
            yield batch
            seen += samples_of(batch)
            if seen >= self.samples:
                return


def _dead(
    inspection: Inspection,
    module: torch.nn.Module,
    data: Iterable[Any],
    team: Team,
    progress: Progress | None,
) -> tuple[dict[str, np.ndarray], int]:
    """Masks of units that are zero on all samples of all ranks, of groups that have any."""
    meters, count = watch(inspection, module, data, 0.0, progress)
    names = sorted(meters)
    shares = [torch.from_numpy(meters[name].result(count)[0]) for name in names]
    means = team.mean(shares, 1.0, "looking for dead units")
    masks = {
        n: (mean == 0).numpy() for n, mean in zip(names, means, strict=True) if mean is not None
    }
    return {name: mask for name, mask in masks.items() if mask.any()}, count


def _chosen(
    inspection: Inspection, module: torch.nn.Module, dead: Mapping[str, np.ndarray]
) -> tuple[list[GrownGroup], dict[str, str]]:
    """Choose groups whose dead units can be revived, these as new ones; tell why others can't."""
    tensors = dict(module.named_parameters(remove_duplicate=False))
    chosen, left = [], {}
    for group in inspection.groups:
        if group.name not in dead:
            continue
        found = _as_grown(group, dead[group.name])
        why = _obstacle(group, found, tensors)
        if why:
            left[group.name] = why
        else:
            chosen.append(found)
    return chosen, left


def _as_grown(group: Group, mask: np.ndarray) -> GrownGroup:
    slots = tuple(
        GrownSlot(s.tensor, s.dim, s.role, s.positions[~mask], s.positions[mask], s.filling)
        for s in group.slots
    )
    return GrownGroup(
        group.name, int((~mask).sum()), int(mask.sum()), slots, group.recipe, group.tied
    )


def _obstacle(group: Group, found: GrownGroup, tensors: Mapping[str, torch.Tensor]) -> str:
    if group.recipe != "fresh" or group.tied:
        return "its units are mixed with each other, or read where they are written"
    if not found.width:
        return "all of its units are dead, so there is no living one to take the norm from"
    if not biased_rows([found], tensors):
        return "its units have no bias of their own: there is none, or a norm follows"
    if any(s.role == "consumer" and s.tensor not in tensors for s in found.slots):
        return "what reads it is no parameter"
    return ""


@torch.no_grad()
def _released(
    module: torch.nn.Module, groups: Sequence[GrownGroup], example: Any
) -> tuple[list[GrownGroup], dict[str, str]]:
    """Set what reads the dead units to zero, where that changes nothing; and where it does.

    It does where columns count for more than what they read: in weight normalisation.
    """
    tensors = dict(module.named_parameters(remove_duplicate=False))
    before = duplicate(module) if groups else module
    free, refused = [], {}
    for group in groups:
        columns = [slot for slot in group.slots if slot.role == "consumer"]
        kept = [_entries(tensors[slot.tensor], slot) for slot in columns]
        for slot in columns:
            tensors[slot.tensor].index_fill_(slot.dim, _index(slot, tensors[slot.tensor]), 0.0)
        found = verify(before, module, example)
        if max(found.eval_error, found.train_error) <= found.tolerance * STRICTER:
            free.append(group)
            continue
        refused[group.name] = "setting what reads it to zero changes the outputs"
        for slot, old in zip(columns, kept, strict=True):
            tensors[slot.tensor].index_copy_(slot.dim, _index(slot, old), old)
    return free, refused


def _index(slot: GrownSlot, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(slot.new.reshape(-1)).to(like.device)


def _entries(tensor: torch.Tensor, slot: GrownSlot) -> torch.Tensor:
    return tensor.detach().index_select(slot.dim, _index(slot, tensor))


@torch.no_grad()
def _forget(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    groups: Sequence[GrownGroup],
) -> None:
    """Set what an optimizer holds for the changed entries to zero."""
    for slot in (slot for group in groups for slot in group.slots):
        parameter = tensors.get(slot.tensor)
        if parameter is None or parameter not in optimizer.state:
            continue
        for value in optimizer.state[parameter].values():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                value.index_fill_(slot.dim, _index(slot, value), 0)
