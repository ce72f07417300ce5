"""Checkpoints of other programs: ``.safetensors`` files, read tensor by tensor.

A file's bytes are read where its header says that they lie, never mapped into memory: what
is held is what is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import FileError
from ..printable import quoted
from .header import Entry, read_header
from .shards import INDEX, read_index

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["CHUNK", "Weights", "open_weights"]

CHUNK = 2**24
"""Bytes that are copied at once."""

_NAMES = (f"model{INDEX}", "model.safetensors")


@dataclass(frozen=True)
class Weights:
    """A checkpoint: one file, or an index and its shards.

    Attributes
    ----------
    path : Path
        The file, or the index.
    entries : dict of str to Entry
        Type and shape of each tensor, in the order in which they lie in the files.
    places : dict of str to Path
        The file of each.
    spans : dict of str to (int, int)
        Where in the file its bytes begin and end.
    index : dict or None
        Metadata of the index.
    metadata : dict of Path to dict of str to str
        Of the headers.
    """

    path: Path
    entries: Mapping[str, Entry]
    places: Mapping[str, Path]
    spans: Mapping[str, tuple[int, int]]
    index: Mapping[str, Any] | None = None
    metadata: Mapping[Path, Mapping[str, str]] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """The files that hold tensors, in the order of their names."""
        return sorted(set(self.places.values()))

    def names(self, file: Path) -> list[str]:
        """Tensors of a file, in the order in which they lie there."""
        return [name for name, place in self.places.items() if place == file]

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Raises
        ------
        FileError
            When its file can't be read, or ends too early.
        """
        entry = self.entries[name]
        begin, end = self.spans[name]
        raw = torch.empty(end - begin, dtype=torch.uint8)
        view, done = raw.numpy(), 0
        for chunk in self.chunks(name):
            view[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
            done += len(chunk)
        return raw.view(entry.dtype).reshape(entry.shape)

    def chunks(self, name: str) -> Iterator[bytes]:
        """Read the bytes of one tensor, piece by piece.

        Raises
        ------
        FileError
            When its file can't be read, or ends too early.
        """
        place, (begin, end) = self.places[name], self.spans[name]
        try:
            with place.open("rb", buffering=0) as file:
                file.seek(begin)
                left = end - begin
                while left:
                    chunk = file.read(min(left, CHUNK))
                    if not chunk:
                        raise OSError("it is shorter than it was")
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            why = error.strerror or error
            msg = f"{place}: {quoted(name)} could not be read ({why}); get the file again"
            raise FileError(msg) from error


def open_weights(path: str | Path) -> Weights:
    """Open a checkpoint; no tensor is read.

    Parameters
    ----------
    path : str or Path
        A ``.safetensors`` file, an index of shards (``.safetensors.index.json``), or a
        folder that holds one or the other, as transformers and timm write them.

    Raises
    ------
    FileError
        When it is missing or damaged, a shard lacks what the index says, or there is
        nothing but pickles.
    """
    source = _in_folder(Path(path)) if Path(path).is_dir() else Path(path)
    if source.name.endswith(INDEX):
        metadata, places = read_index(source)
        return _opened(source, places, metadata)
    if source.suffix != ".safetensors":
        msg = f"{source}: is no .safetensors file, no index of such files and no folder with them"
        raise FileError(f"{msg}; pickles are not opened: convert the weights to safetensors")
    return _opened(source, dict.fromkeys(read_header(source).tensors, source), None)


def _in_folder(folder: Path) -> Path:
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob(f"*{INDEX}")) or sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    what = "more than one checkpoint" if found else "no .safetensors file"
    msg = f"{folder}: holds {what}; name the file or index (pickles are not opened)"
    raise FileError(msg)


def _opened(path: Path, places: Mapping[str, Path], index: Mapping[str, Any] | None) -> Weights:
    headers = {place: read_header(place) for place in sorted(set(places.values()))}
    for name, place in places.items():
        if name not in headers[place].tensors:
            msg = f"{place}: lacks {quoted(name)}, which {path.name} says is in it; get it again"
            raise FileError(msg)
    ordered = [
        (name, place)
        for place, header in headers.items()
        for name, _ in sorted(header.spans.items(), key=lambda item: item[1])
        if places.get(name) == place  # the index may leave tensors out
    ]
    return Weights(
        path,
        {name: headers[place].tensors[name] for name, place in ordered},
        dict(ordered),
        {name: headers[place].spans[name] for name, place in ordered},
        index,
        {place: header.metadata for place, header in headers.items()},
    )
