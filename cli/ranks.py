"""The command under ``torchrun``: one process group, a share of every batch each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fxgrow.data import check_data
from fxgrow.distributed import Team
from fxgrow.reduce import samples


@dataclass(frozen=True)
class Here:
    """One process among its ranks.

    Attributes
    ----------
    team : Team
        All ranks; alone without ``torchrun``.
    device : str or None
        Where this rank computes.
    """

    team: Team
    device: str | None

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.team.rank == 0

    def share_of(self, data: Any) -> Any:
        """Return data that yield this rank's share of every batch."""
        own_sampler = hasattr(getattr(data, "sampler", None), "num_replicas")
        if data is None or self.team.size == 1 or own_sampler:
            return data
        check_data(data)
        return Share(data, self.team.rank, self.team.size)


def is_first() -> bool:
    """Whether this process is alone or rank 0, judged by ``torchrun``'s environment."""
    return os.environ.get("RANK", "0") == "0" or not _launched()


@contextlib.contextmanager
def joined(device: str | None, seed: int) -> Iterator[Here]:
    """Join the other ranks when started by ``torchrun``, and leave together.

    Parameters
    ----------
    device : str or None
        ``cuda`` means NCCL and one GPU for each rank of a machine; else gloo.
    seed : int
        Of the random state with which all ranks begin.
    """
    if not _launched():
        yield Here(Team(), device)
        return
    import torch.distributed as dist

    on_gpu = device is not None and device.startswith("cuda") and torch.cuda.is_available()
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        torch.manual_seed(seed)
        yield Here(Team(None, dist.get_rank(), dist.get_world_size()), device)
    finally:
        with contextlib.suppress(RuntimeError):  # a rank may be gone
            dist.barrier()  # torchrun kills the others at the first exit: rank 0 has spoken
        dist.destroy_process_group()


def _launched() -> bool:
    needed = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return needed <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


@dataclass(frozen=True, eq=False)
class Share:
    """A re-iterable of one rank's share of every batch.

    Batches with fewer than two samples a rank go to all ranks whole: their mean is the
    same, and batch normalisation can't train on one sample.
    """

    data: Iterable[Any]
    rank: int
    size: int

    def __iter__(self) -> Iterator[Any]:
        """Yield the shares."""
        for batch in self.data:
            pair = isinstance(batch, (tuple, list)) and len(batch) == 2
            count = samples(batch[0]) if pair else 0
            if count < 2 * self.size:
                yield batch
                continue
            own = slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)
            yield tuple(_cut(part, own, count) for part in batch)

    def __len__(self) -> int:
        """Count the batches, where the data can."""
        return len(self.data)  # type: ignore[arg-type]  # asking is the only way to know


def _cut(value: Any, own: slice, count: int) -> Any:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value[own] if value.ndim and len(value) == count else value
    if isinstance(value, Mapping):
        return {key: _cut(item, own, count) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_cut(item, own, count) for item in value)
    return value
