"""A folder of ``.safetensors`` files, written tensor by tensor.

Types and shapes are known beforehand, so that a file's header can be written first and its
tensors one after the other: nothing is held but the tensor at hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .digest import raw_bytes
from .header import DTYPES, Entry
from .shards import INDEX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    Chunks = Callable[[str], Iterable[bytes]]

__all__ = ["Shelf", "aligned", "bytes_in", "repacked", "size_of"]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNED = 8  # where the first tensor begins


@dataclass(frozen=True)
class Shelf:
    """What is to be written.

    Attributes
    ----------
    files : dict of str to list of str
        Names of files → names of the tensors in each, in order.
    entries : dict of str to Entry
        Type and shape of each tensor.
    metadata : dict of str to dict of str to str
        Of each file's header.
    index : str
        Name of the index; ``""`` for a single file.
    described : dict
        Metadata of the index.
    """

    files: Mapping[str, Sequence[str]]
    entries: Mapping[str, Entry]
    metadata: Mapping[str, Mapping[str, str]]
    index: str
    described: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(size_of(entry) for entry in self.entries.values())

    def write(self, folder: Path, chunks: Chunks) -> None:
        """Write all files; ``chunks`` gives the bytes of a tensor by name, in any pieces.

        Raises
        ------
        OSError
            When a file can't be written.
        """
        for name, tensors in self.files.items():
            with (folder / name).open("xb") as file:
                file.write(self._header(name, tensors))
                for tensor in tensors:
                    for chunk in chunks(tensor):
                        file.write(chunk)
        if self.index:
            places = {tensor: name for name, own in self.files.items() for tensor in own}
            total = {"total_size": self.nbytes}
            content = {"metadata": {**self.described, **total}, "weight_map": places}
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            (folder / self.index).write_text(text, encoding="utf-8")

    def _header(self, name: str, tensors: Sequence[str]) -> bytes:
        content: dict[str, Any] = {"__metadata__": dict(self.metadata[name])}
        end = 0
        for tensor in tensors:
            entry, begin = self.entries[tensor], end
            end += size_of(entry)
            content[tensor] = {
                "dtype": _NAMES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(content, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % _ALIGNED)
        return len(text).to_bytes(8, "little") + text


def size_of(entry: Entry) -> int:
    """Bytes of a tensor."""
    return entry.numel * entry.dtype.itemsize


def bytes_in(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor; not a copy where it lies in order on the CPU."""
    return raw_bytes(tensor).numpy().data


def repacked(
    entries: Mapping[str, Entry], most: int, stem: str
) -> tuple[dict[str, list[str]], str]:
    """Spread tensors over files of at most ``most`` bytes, in order; a larger one lies alone.

    Returns
    -------
    files : dict of str to list of str
        See :class:`Shelf`.
    index : str
        Name of the index, ``""`` for a single file.
    """
    parts: list[list[str]] = [[]]
    size = 0
    for name, entry in entries.items():
        if parts[-1] and size + size_of(entry) > most:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += size_of(entry)
    if len(parts) == 1:
        return {f"{stem}.safetensors": aligned(parts[0], entries)}, ""
    names = [f"{stem}-{n:05}-of-{len(parts):05}.safetensors" for n in range(1, len(parts) + 1)]
    files = {n: aligned(part, entries) for n, part in zip(names, parts, strict=True)}
    return files, f"{stem}{INDEX}"


def aligned(names: Sequence[str], entries: Mapping[str, Entry]) -> list[str]:
    """Order tensors so that each begins at a multiple of its type's size."""
    return sorted(names, key=lambda name: -entries[name].dtype.itemsize)
