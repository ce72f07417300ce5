"""Many ``.safetensors`` files under one index, in the format of Hugging Face.

Shards are named after the run that wrote them and the index is put in place last. So an
index always names the shards that it was made with, whenever a writer is killed.
"""

from __future__ import annotations

import json
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from ..errors import FileError, InputError
from ..printable import hidden, quoted
from .atomic import atomic_write, folder_locked, remove_leftovers
from .header import LARGEST_HEADER, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import torch

__all__ = ["INDEX", "bytes_of", "read_index", "read_limited", "write_shards"]

INDEX = ".safetensors.index.json"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def bytes_of(size: int | str) -> int:
    """Turn a size such as ``"5GB"`` (10⁹ bytes each) into bytes.

    Raises
    ------
    InputError
        When it is no positive size.

    Examples
    --------
    >>> bytes_of("5GB"), bytes_of(2048)
    (5000000000, 2048)
    """
    found = re.fullmatch(r"(\d{1,18}) ?([KMGT]?B|)", str(size).upper())
    count = int(found[1]) * _UNITS[found[2]] if found else 0
    if not found or isinstance(size, bool) or not count:
        raise InputError(f"max_shard_size is {size!r}; write a size like '5GB' or 200_000_000")
    return count


def write_shards(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str], most: int
) -> None:
    """Write tensors as shards of at most ``most`` bytes, and the index at ``path`` last.

    A tensor larger than that is a shard of its own. Shards of earlier runs are removed
    when the new index is in place.

    Raises
    ------
    FileError
        If a file can't be written; the old index and its shards are as they were then.
    """
    folder, stem = path.parent, path.name.removesuffix(INDEX)
    parts = list(_split(tensors, most))
    run = secrets.token_hex(4)
    names = [f"{stem}-{run}-{n:05}-of-{len(parts):05}.safetensors" for n in _from_1(parts)]
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {
        "metadata": {"total_size": total, **metadata},
        "weight_map": {key: name for name, part in zip(names, parts, strict=True) for key in part},
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    try:
        with folder_locked(folder):
            for name, part in zip(names, parts, strict=True):
                _write(folder / name, part)
            atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
            _remove_older(folder, stem, set(names))
            remove_leftovers(path, begin=f"{stem}-")
    except OSError as error:
        msg = f"{path}: could not be written ({error.strerror or error}); choose another place"
        raise FileError(msg) from error
    except BaseException:  # an interrupt, too: no half-written shard stays
        for name in names:
            with suppress(OSError):
                (folder / name).unlink()
        raise


def read_index(path: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """Read an index: its metadata, and the shard of each tensor.

    Raises
    ------
    FileError
        When it is missing or damaged, or names a shard that is not beside it.
    """
    try:
        content = parse_json(read_limited(path))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        metadata, names = content.get("metadata"), content.get("weight_map")
        if not isinstance(metadata, dict) or not isinstance(names, dict):
            raise ValueError("it lacks metadata or weight_map")
        places = {name: _place(path, name) for name in _texts(names.values())}
    except ValueError as error:
        msg = f"{path}: damaged, or no index of shards ({error}); get it again"
        raise FileError(msg) from error
    return metadata, {tensor: places[name] for tensor, name in names.items()}


def read_limited(path: Path) -> bytes:
    """Read a JSON file of a fair size.

    Raises
    ------
    FileError
        When it is missing or can't be read.
    ValueError
        When it is too large.
    """
    if not path.is_file():
        msg = f"{path}: there is no such file"
        raise FileError(msg)
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_HEADER + 1)
    except OSError as error:
        msg = f"{path}: could not be read ({error.strerror or error}); look at its permissions"
        raise FileError(msg) from error
    if len(text) > LARGEST_HEADER:
        raise ValueError(f"it is larger than {LARGEST_HEADER} bytes")
    return text


def _texts(values: Iterable[Any]) -> set[str]:
    found = list(values)
    if not all(isinstance(value, str) for value in found):
        raise ValueError("its weight_map holds more than texts")
    return set(found)


def _place(index: Path, name: str) -> Path:
    """Return where a shard lies; it must be a plain name of a file beside the index.

    Links may lead out of the index's folder only to where the index itself leads, as they
    do in the cache of Hugging Face.
    """
    plain = name.endswith(".safetensors") and not name.startswith(".") and len(name) < 256
    if not plain or set(name) & set("/\\:") or any(hidden(character) for character in name):
        raise ValueError(f"{quoted(name)} is no name of a shard beside it")
    place = index.parent / name
    allowed = {index.parent.resolve(), index.resolve().parent}
    if place.resolve().parent not in allowed:
        raise ValueError(f"the shard {quoted(name)} leads out of the folder")
    return place


def _split(tensors: Mapping[str, torch.Tensor], most: int) -> Iterable[dict[str, torch.Tensor]]:
    part: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if part and size + tensor.nbytes > most:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    yield part


def _from_1(parts: list[Any]) -> range:
    return range(1, len(parts) + 1)


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    atomic_write(path, lambda temporary: save_file(tensors, temporary, {"format": "pt"}))


def _remove_older(folder: Path, stem: str, keep: set[str]) -> None:
    ours = re.compile(re.escape(stem) + r"-[0-9a-f]{8}-\d{5}-of-\d{5}\.safetensors")
    for path in folder.iterdir():
        if ours.fullmatch(path.name) and path.name not in keep:
            with suppress(OSError):
                path.unlink()
