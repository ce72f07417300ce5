"""A growth file opened: its description checked, its tensors read one by one when asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..errors import FileError
from ..printable import quoted
from .digest import digest
from .header import Entry, Header, read_header
from .schema import parse_meta, parse_plan
from .shards import INDEX, read_index, read_limited
from .tensors import logical, restored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

__all__ = ["Stored", "open_stored"]

_ATTEMPTS = 20  # to find a file that is not replaced at this moment


@dataclass(frozen=True)
class Stored:
    """What a file holds.

    Attributes
    ----------
    path : Path
    meta : dict
        See :func:`fxgrow.io.read_meta`.
    entries : dict of str to Entry
        Type and shape, in the module, of each tensor that is written.
    places : dict of str to Path
        The file of each tensor.
    files : dict of Path to file
        The files, opened: they stay what they were when others replace or remove them.
    """

    path: Path
    meta: Mapping[str, Any]
    entries: Mapping[str, Entry] = field(default_factory=dict)
    places: Mapping[str, Path] = field(default_factory=dict)
    files: Mapping[Path, Any] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        """Elements of all tensors together."""
        return sum(entry.numel for entry in self.entries.values())

    def state(self) -> dict[str, Entry]:
        """Type and shape of each entry of the state dict, shared ones under all names."""
        transient = set(self.meta["transient"])
        own = {name: e for name, e in self.entries.items() if name not in transient}
        aliases = {n: f for n, f in self.meta["aliases"].items() if n not in transient}
        return {**own, **{name: self.entries[first] for name, first in aliases.items()}}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Read all tensors, checked against their sums, shared ones under all names.

        Raises
        ------
        FileError
            When one is not what was written.
        """
        found = dict(self._read())
        for name, first in self.meta["aliases"].items():
            found[name] = found[first]
        return found

    def _read(self) -> Iterator[tuple[str, torch.Tensor]]:
        sums = self.meta["digests"]
        for name, place in self.places.items():
            try:
                tensor = self.files[place].get_tensor(name)
                if name in sums and sums[name] != digest(tensor):
                    raise ValueError(f"the checksum of {quoted(name)} is another")
                yield name, restored(tensor, self.entries[name])
            except (OSError, SafetensorError, ValueError, RuntimeError) as error:
                msg = f"{place}: damaged ({error}); get it again"
                raise FileError(msg) from error


def open_stored(path: str | Path) -> Stored:
    """Open a growth: one file, an index of shards, or a plan without tensors (``.json``).

    Raises
    ------
    FileError
        When it is missing, damaged, or of another kind. No tensor is read for that.
    """
    source = Path(path)
    if source.suffix in {".pt", ".pth", ".bin", ".ckpt"}:
        msg = f"{source}: is no growth file but a pickle, whose opening runs code; torch.load is "
        raise FileError(msg + "for those that you trust")
    if source.name.endswith(INDEX):
        return _sharded(source)
    if source.suffix == ".json":
        return Stored(source, _plan(source))
    header, file = _opened(source)
    meta = parse_meta(source, header.metadata)
    places = dict.fromkeys(header.tensors, source)
    return _checked(Stored(source, meta, header.tensors, places, {source: file}))


def _plan(path: Path) -> dict[str, Any]:
    try:
        text = read_limited(path)
    except ValueError as error:
        msg = f"{path}: damaged, or no plan ({error}); get it again"
        raise FileError(msg) from error
    return parse_plan(path, text)


def _opened(path: Path) -> tuple[Header, Any]:
    """Read a header, and open the file that it is of."""
    for _ in range(_ATTEMPTS):
        header, before = read_header(path), _identity(path)
        try:
            file: Any = safe_open(str(path), framework="pt", device="cpu")
        except (OSError, RuntimeError, SafetensorError) as error:
            if _identity(path) != before:  # it opens twice: once the old one, once the new one
                continue
            msg = f"{path}: damaged, or no .safetensors file ({error}); get it again"
            raise FileError(msg) from error
        if read_header(path) == header and _identity(path) == before:
            return header, file
    raise FileError(f"{path}: changes all the time; wait for who writes it")


def _identity(path: Path) -> tuple[int, ...]:
    try:
        state = path.stat()
    except OSError as error:
        raise FileError(f"{path}: could not be read ({error.strerror or error})") from error
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _sharded(path: Path) -> Stored:
    """Open an index and its shards, again if another one took its place meanwhile."""
    for _ in range(_ATTEMPTS):
        metadata, places = read_index(path)
        try:
            return _with_shards(path, metadata, places)
        except FileError:
            if read_index(path)[1] == places:
                raise
    raise FileError(f"{path}: changes all the time; wait for who writes it")


def _with_shards(path: Path, metadata: dict[str, Any], places: dict[str, Path]) -> Stored:
    meta = parse_meta(path, metadata)
    opened = {place: _opened(place) for place in sorted(set(places.values()))}
    entries = {}
    for name, place in places.items():
        if name not in opened[place][0].tensors:
            msg = f"{place}: lacks {quoted(name)}, which {path.name} says is in it; get it again"
            raise FileError(msg)
        entries[name] = opened[place][0].tensors[name]
    files = {place: file for place, (_, file) in opened.items()}
    return _checked(Stored(path, meta, entries, places, files))


def _checked(stored: Stored) -> Stored:
    """Check that the description speaks of the tensors that are there, and of all of them."""
    meta, there = stored.meta, set(stored.entries)
    aliases = meta["aliases"]
    named = {
        "aliases": set(aliases.values()) - there,
        "aliases twice": set(aliases) & there,
        "transient": set(meta["transient"]) - there - set(aliases),
        "bytes": set(meta["bytes"]) - there,
        "digests": (set(meta["digests"]) ^ there) if meta["digests"] else set(),
    }
    for where, off in named.items():
        if off:
            msg = f"{stored.path}: its description is damaged ({where}: {quoted(min(off))}); "
            raise FileError(msg + "get the file again")
    try:
        entries = {n: logical(entry, n, meta["bytes"]) for n, entry in stored.entries.items()}
    except ValueError as error:
        msg = f"{stored.path}: its description is damaged ({error}); get the file again"
        raise FileError(msg) from error
    return replace(stored, entries=entries)
