"""What a checkpoint becomes: files laid out, and the bytes of wider tensors, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .errors import InputError, UnsupportedError, VerificationError
from .files.digest import raw_bytes
from .files.header import Entry
from .files.schema import KEY, SUM_KEY, pack_meta, parse_meta
from .files.shards import INDEX, bytes_of
from .files.shelf import Shelf, aligned, bytes_in, repacked
from .files.tensors import Collected
from .files.weights import CHUNK
from .io import describe
from .printable import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .data import Progress
    from .files.weights import Weights
    from .fitted import Fitted
    from .ir import Growth
    from .layout import Layout
    from .pieces import Pieces

__all__ = ["Job", "check_shapes", "entries_of", "shelf_of"]

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


class Job:
    """Bytes of the tensors to write, as they are asked for."""

    def __init__(
        self, weights: Weights, fitted: Fitted, layout: Layout, pieces: Pieces, verify: bool
    ) -> None:
        self.weights, self.names, self.keys = weights, fitted.names, fitted.keys()
        self.layout, self.pieces, self.verify = layout, pieces, verify
        self.done = 0

    def told(self, key: str, progress: Progress | None) -> Iterator[Any]:
        """Yield a tensor's bytes, and tell of progress behind them."""
        yield from self.chunks(key)
        self.done += 1
        if progress is not None:
            progress("writing tensors", self.done, len(self.names))

    def chunks(self, key: str) -> Iterator[Any]:
        """Yield a tensor's bytes: as they are, or those of the wider tensor."""
        name = self.names[key]
        if self.keys[name] != key:
            self._check_same(self.keys[name], key)
        if name not in self.pieces.shapes:
            yield from self.weights.chunks(key)
            return
        yield bytes_in(self._wider(key, name))

    def _wider(self, key: str, name: str) -> torch.Tensor:
        old = self.weights.read(key)

        def read(other: str) -> torch.Tensor:
            return old if other == name else self.weights.read(self.keys[other])

        new = self.pieces.make(name, read)
        if self.verify and name not in self.pieces.changed:
            axes = self.layout.index_map.axes[name]
            _check_kept(key, old, new, {dim: axis.old for dim, axis in axes.items()})
        return new

    def _check_same(self, first: str, key: str) -> None:
        pairs = zip(self.weights.chunks(first), self.weights.chunks(key), strict=True)
        if any(a != b for a, b in pairs):
            raise InputError(
                f"{self.weights.path}: {quoted(first)} and {quoted(key)} are one tensor in the "
                "model, and two different ones in the checkpoint; build the model that was saved"
            )


def _check_kept(key: str, old: torch.Tensor, new: torch.Tensor, places: Mapping[int, Any]) -> None:
    """Compare old entries, bit by bit, a block of rows at a time."""
    rows = max(1, CHUNK // max(old[:1].nbytes, 1))
    index = {dim: torch.from_numpy(place) for dim, place in places.items()}
    first = index.pop(0, torch.arange(len(old)))
    for start in range(0, len(old), rows):
        block = new.index_select(0, first[start : start + rows])
        for dim, place in index.items():
            block = block.index_select(dim, place)
        if not torch.equal(raw_bytes(block), raw_bytes(old[start : start + rows])):
            raise VerificationError(f"old entries of {quoted(key)} are not what was read")


def entries_of(weights: Weights, fitted: Fitted, layout: Layout) -> dict[str, Entry]:
    """Type and shape of the tensors that grow.

    Raises
    ------
    UnsupportedError
        For tensors that are not in the checkpoint, and types that can't be filled.
    """
    keys, found = fitted.keys(), {}
    for name in layout.index_map.axes:
        if name not in keys:
            raise UnsupportedError(
                f"{quoted(name)} grows, a buffer or a table, and a checkpoint does not hold it; "
                "exclude its group"
            )
        entry = found[name] = weights.entries[keys[name]]
        if entry.dtype not in _FLOATS:
            kind = str(entry.dtype).removeprefix("torch.")
            raise UnsupportedError(
                f"{quoted(keys[name])} is of type {kind}, which can't grow; take weights that "
                "are not quantised"
            )
    return found


def check_shapes(fitted: Fitted, module: torch.nn.Module, pieces: Pieces) -> None:
    """Hold what will be written against the widened model's own state dict.

    Raises
    ------
    VerificationError
        When a shape is another.
    """
    old = fitted.model.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in fitted.model.named_parameters()}
    first |= {id(tensor): name for name, tensor in fitted.model.named_buffers()}
    for name, value in module.state_dict().items():
        own = first[id(old[name])]
        shape = pieces.shapes.get(own, tuple(old[name].shape))
        if tuple(value.shape) != shape:
            raise VerificationError(
                f"{quoted(name)} is {list(value.shape)} in the widened model and would be "
                f"{list(shape)} in the checkpoint; nothing was written"
            )


def shelf_of(
    weights: Weights,
    fitted: Fitted,
    pieces: Pieces,
    growth: Growth,
    shard_size: int | str | None,
) -> Shelf:
    """Lay out the files: as they were, or anew (see :func:`fxgrow.widen_checkpoint`).

    ``growth``: what the weights will be of, without its values.
    """
    names = fitted.names
    entries = {
        key: Entry(weights.entries[key].dtype, pieces.shapes.get(name, weights.entries[key].shape))
        for key, name in names.items()
    }
    sharded = weights.path.name.endswith(INDEX)
    if shard_size is None:
        files = {
            place.name: aligned([key for key in weights.names(place) if key in names], entries)
            for place in weights.files
        }
        index = weights.path.name if sharded else ""
    else:
        stem = weights.path.name.removesuffix(INDEX if sharded else ".safetensors")
        files, index = repacked(entries, bytes_of(shard_size), stem)
    own = _metadata(weights, fitted, growth)
    plain = {"format": "pt"}
    metadata = {file: plain if index else {**plain, **own} for file in files}
    kept = {k: v for k, v in (weights.index or {}).items() if k not in {KEY, SUM_KEY}}
    return Shelf(files, entries, metadata, index, {**kept, **own})


def _metadata(weights: Weights, fitted: Fitted, growth: Growth) -> dict[str, str]:
    """Describe the growth as its file does, so that :func:`fxgrow.load` reads it back.

    Nothing where names differ from the model's.
    """
    state = growth.module.state_dict()
    names = fitted.names
    keys = fitted.keys()
    if not names.keys() <= state.keys() or any(key != name for name, key in keys.items()):
        return {}
    before = weights.index or next(iter(weights.metadata.values()))
    history = parse_meta(weights.path, before)["steps"] if KEY in before else ()
    first = {id(tensor): name for name, tensor in growth.module.named_parameters()}
    first |= {id(tensor): name for name, tensor in growth.module.named_buffers()}
    variables = growth.module.state_dict(keep_vars=True)
    aliases = {n: first[id(t)] for n, t in variables.items() if n not in names}
    return pack_meta(describe(growth, history, Collected(aliases=aliases)))
