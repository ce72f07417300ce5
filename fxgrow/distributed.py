"""Many processes, one growth: what ranks of ``torch.distributed`` do together.

Every rank calls the same function with the same arguments and its own share of the data.
Each collective is preceded by a small one that says whether all ranks are well and at the
same place; a rank that fails takes part in it once more, with its reason, so that nobody
waits for it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from .errors import InputError, RankError
from .wrapping import group_of, unwrap

if TYPE_CHECKING:
    ProcessGroup = dist.ProcessGroup

if dist.is_available():
    # Early, if possible before there is a group: defaults of its functions hold the group
    # of the moment of import for ever, and then gloo, once in a while, aborts the process
    # at its end.
    import torch.distributed.nn

T = TypeVar("T")

__all__ = ["Team", "find_team", "together"]


@dataclass(frozen=True, eq=False)
class Team:
    """The ranks of one process group, or one process alone.

    Attributes
    ----------
    group : torch.distributed.ProcessGroup or None
        ``None``: all ranks there are. (A reference to the default group, kept for longer
        than ``destroy_process_group``, lets gloo abort the process at its end.)
    rank, size : int
        Of this process in the group, and the group's. With size 1 the process is alone,
        and all methods return what they are given.
    prepared : bool
        Whether models come plain and compared, and failures are handled, further out.
    """

    group: ProcessGroup | None = None
    rank: int = 0
    size: int = 1
    prepared: bool = False

    # ---------------------------------------------------------------- meeting

    def meet(self, where: str, error: BaseException | None = None) -> None:
        """Wait for all ranks; nobody goes on unless all are well and at the same place.

        Parameters
        ----------
        where : str
            The place, for messages.
        error : BaseException, optional
            Why this rank can't go on.

        Raises
        ------
        RankError
            On all ranks, when one failed, is elsewhere, or is gone. Where all failed alike,
            each raises its own error.
        """
        if self.size == 1:
            return
        tag = zlib.crc32(where.encode())
        status = torch.tensor([int(error is not None), tag, -tag], device=self._device())
        with _contact(where):
            dist.all_reduce(status, dist.ReduceOp.MAX, group=self.group)
            failed, most, least = status.tolist()
            if not failed and most == -least:
                return
            reports = self._gather((where, None if error is None else _describe(error)))
        raise _verdict(reports, error)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Make a failure of one rank inside the block a failure of all.

        Raises
        ------
        RankError
            On all ranks, naming the one that failed and its reason.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
        except RankError:  # every rank has it already
            raise
        except Exception as error:  # whatever it is, the other ranks must not wait for this one
            self.meet("a failure", error)
            raise
        except BaseException as error:  # Ctrl-C stays what it is
            with contextlib.suppress(RankError):
                self.meet("a failure", error)
            raise
        self.meet("the end")

    # --------------------------------------------------------------- exchange

    def mean(
        self,
        tensors: Sequence[torch.Tensor | None],
        weight: float,
        where: str,
        like: Sequence[torch.Tensor] | None = None,
    ) -> list[torch.Tensor | None]:
        """Average tensors over the ranks (see :class:`fxgrow.reduce.Mean`).

        ``sum(weight * tensor) / sum(weight)``, in float32 at least; the same bits on
        every rank. One all-reduce per dtype and device.
        """
        if self.size == 1:
            return list(tensors)
        self.meet(where)
        shapes = [t for t in tensors if t is not None] if like is None else like
        result: list[torch.Tensor | None] = list(tensors)
        for chosen in _alike(shapes):
            parts = [(tensors[i], shapes[i]) for i in chosen]
            for i, value in zip(chosen, self._mean_of(parts, weight, where), strict=True):
                result[i] = value
        return result

    def _mean_of(
        self,
        parts: Sequence[tuple[torch.Tensor | None, torch.Tensor]],
        weight: float,
        where: str,
    ) -> list[torch.Tensor | None]:
        first = parts[0][1]
        options: dict[str, Any] = {
            "dtype": torch.promote_types(first.dtype, torch.float32),
            "device": self._device(first.device),
        }
        flat = [
            torch.zeros(shape.numel(), **options)
            if part is None
            else part.detach().reshape(-1).to(**options) * weight
            for part, shape in parts
        ]
        there = torch.tensor([*(float(p is not None) for p, _ in parts), weight], **options)
        buffer = torch.cat([*flat, there])
        with _contact(where):
            dist.all_reduce(buffer, group=self.group)
        sums, counts = buffer[: -len(there)] / buffer[-1], buffer[-len(there) : -1].tolist()
        pieces = torch.split(sums, [shape.numel() for _, shape in parts])
        return [
            piece.reshape(shape.shape).to(shape) if count else None
            for piece, count, (_, shape) in zip(pieces, counts, parts, strict=True)
        ]

    def share(self, value: T, where: str) -> T:
        """Return the value of rank 0."""
        if self.size == 1:
            return value
        self.meet(where)
        box = [value]
        with _contact(where):
            dist.broadcast_object_list(
                box, src=self._first(), group=self.group, device=self._device()
            )
        return box[0]

    def gather(self, value: T, where: str) -> list[T]:
        """Return the values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        self.meet(where)
        with _contact(where):
            return self._gather(value)

    def agree(self, values: Mapping[str, Any], what: str) -> None:
        """Raise :class:`~fxgrow.errors.RankError` on all ranks unless all hold the same.

        Parameters
        ----------
        values : dict of str to Any
            Tensors are compared bit by bit, other values by their ``repr``.
        what : str
            What they are, for messages.
        """
        if self.size == 1:
            return
        own = {name: _digest(value) for name, value in values.items()}
        everyone = self.gather(own, what)
        for rank, other in enumerate(everyone):
            if other == everyone[0]:
                continue
            names = [n for n in {**everyone[0], **other} if everyone[0].get(n) != other.get(n)]
            raise RankError(
                f"{what} differ between rank 0 and rank {rank}: {', '.join(names[:3])}"
                f"{' ...' if len(names) > 3 else ''}; all ranks must start from the same model "
                "with the same arguments, and compute deterministically"
            )

    # ----------------------------------------------------------------- models

    def own(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the plain model to work on, with the buffers of rank 0.

        The parameters are those of ``model`` (for FSDP2: gathered).

        Raises
        ------
        RankError
            The ranks hold different models.
        """
        plain = unwrap(model)
        if self.size == 1:
            return plain
        self.agree(dict(plain.named_parameters()), "the models' parameters")
        shapes = {name: (b.shape, b.dtype) for name, b in plain.named_buffers()}
        self.agree(shapes, "the models' buffers")
        twin = copy.deepcopy(plain, {id(p): p for p in plain.parameters()})
        self.share_buffers(twin)
        return twin

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Overwrite all buffers with those of rank 0, as DDP does."""
        buffers = list(module.buffers())
        if self.size == 1 or not buffers:
            return
        self.meet("the buffers")
        device = self._device(buffers[0].device)
        parts = [b.detach().contiguous().reshape(-1).view(torch.uint8) for b in buffers]
        flat = torch.cat([part.to(device) for part in parts])
        with _contact("the buffers"):
            dist.broadcast(flat, src=self._first(), group=self.group)
        pieces = torch.split(flat, [len(part) for part in parts])
        with torch.no_grad():
            for buffer, piece in zip(buffers, pieces, strict=True):
                # cloned: a piece may start where its dtype must not
                value = piece.clone().view(buffer.dtype).reshape(buffer.shape).to(buffer.device)
                if not torch.equal(value, buffer):  # expanded ones can't be written to
                    buffer.copy_(value)

    def settle(self, module: torch.nn.Module, **also: Any) -> None:
        """Make sure that all ranks hold the same bits.

        Buffers become those of rank 0; parameters, buffers and ``also`` are then compared
        by checksum.

        Raises
        ------
        RankError
            On all ranks, when there is a difference.
        """
        self.share_buffers(module)
        self.agree(dict(module.named_parameters()), "the grown parameters")
        self.agree(dict(module.named_buffers()), "the grown buffers")
        self.agree(also, "the outcomes")

    # ------------------------------------------------------------------ group

    def _gather(self, value: T) -> list[T]:
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value, group=self.group)
        return box

    def _first(self) -> int:
        return dist.get_global_rank(self.group, 0) if self.group is not None else 0

    def _device(self, wanted: torch.device | None = None) -> torch.device:
        """Return where a collective can work: ``wanted``, or else CPU, or else the GPU."""
        config = dist.get_backend_config(self.group)
        kinds = [entry.partition(":")[0] for entry in config.split(",")]
        if wanted is not None and wanted.type in kinds:
            return wanted
        return torch.device("cpu" if "cpu" in kinds else "cuda")


def find_team(model: torch.nn.Module, process_group: ProcessGroup | Team | None = None) -> Team:
    """Return the ranks that grow ``model`` together.

    Parameters
    ----------
    model : torch.nn.Module
        Wrapped in DDP or FSDP2 it names its own group.
    process_group : torch.distributed.ProcessGroup or Team, optional
        For plain models, and to override. Without either, the process is alone.

    Raises
    ------
    InputError
        This process is no member, or the model is wrapped in what can't be unwrapped.
    """
    if isinstance(process_group, Team):
        return process_group
    group = group_of(model) if process_group is None else process_group
    if group is None:
        return Team()
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise InputError("this rank is no member of process_group; call only on its members")
    return Team(None if group is dist.group.WORLD else group, rank, size)


@contextlib.contextmanager
def together(
    model: torch.nn.Module, process_group: ProcessGroup | Team | None
) -> Iterator[tuple[Team, torch.nn.Module]]:
    """Yield the team and the plain model; a failure of one rank is one of all.

    The team yielded is ``prepared``, so that functions may call each other.
    """
    team = find_team(model, process_group)
    if team.prepared:
        yield team, model
        return
    with team.together():
        yield replace(team, prepared=True), team.own(model)


# -------------------------------------------------------------------- reasons


@contextlib.contextmanager
def _contact(where: str) -> Iterator[None]:
    """Name a broken connection, which is how a killed rank shows."""
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            f"the other ranks can't be reached at {where} ({_first_line(error)}); "
            "one of them was killed or timed out: look at its own output"
        ) from error


def _verdict(reports: Sequence[tuple[str, str | None]], own: BaseException | None) -> BaseException:
    failed = {rank: text for rank, (_, text) in enumerate(reports) if text is not None}
    if own is not None and len(failed) == len(reports) and len(set(failed.values())) == 1:
        return own
    if failed:
        text = "; ".join(f"rank {rank} failed with {reason}" for rank, reason in failed.items())
        error = RankError(text)
    else:
        places = "; ".join(f"rank {rank} is at {place}" for rank, (place, _) in enumerate(reports))
        error = RankError(
            f"the ranks went separate ways: {places}. Give every rank equally many batches "
            "(e.g. DistributedSampler with drop_last) and the same arguments"
        )
    error.__cause__ = own
    return error


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _alike(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """Group the indices of tensors with equal dtype and device."""
    found: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for number, tensor in enumerate(tensors):
        found.setdefault((tensor.dtype, tensor.device), []).append(number)
    return list(found.values())


def _digest(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest()
    plain = value.detach().cpu().contiguous()
    digest = hashlib.blake2b(f"{plain.dtype}{tuple(plain.shape)}".encode(), digest_size=16)
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
