"""The header of a ``.safetensors`` file, read strictly before the library gets the file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from ..errors import FileError
from ..printable import hidden, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["DTYPES", "Entry", "Header", "parse_json", "read_header"]

LARGEST_HEADER = 32 * 2**20
"""Bytes; a thousand tensors need about a hundred thousand."""

_LENGTH = 8  # bytes of the little-endian number that the file begins with
_METADATA = "__metadata__"
_LONGEST_NAME = 1024
_MOST_DIMS = 64
_LARGEST_DIM = 2**48

DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, attribute)
    for name, attribute in {
        **{"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32"},
        **{"I64": "int64", "U16": "uint16", "U32": "uint32", "U64": "uint64", "F16": "float16"},
        **{"BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64"},
        **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"},
        **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
    }.items()
    if hasattr(torch, attribute)  # the last ones came after torch 2.6
}


@dataclass(frozen=True)
class Entry:
    """Type and shape of a tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says of its tensors.

    Attributes
    ----------
    tensors : dict of str to Entry
    metadata : dict of str to str
    spans : dict of str to (int, int)
        First byte of each tensor in the file, and the one after its last.
    """

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON, strictly: no key twice, no NaN or infinity, no endless numbers or depth.

    Raises
    ------
    ValueError
        Saying what is wrong.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_no_twice,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_header(path: Path) -> Header:
    """Read and check the header of a ``.safetensors`` file.

    Offsets must cover the file without gap or overlap, in order; sizes must be those that
    types and shapes say.

    Raises
    ------
    FileError
        When the file is missing, or anything in the header is off.
    """
    if not path.is_file():
        msg = f"{path}: there is no such file"
        raise FileError(msg)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            if size < _LENGTH or length > min(size - _LENGTH, LARGEST_HEADER):
                raise ValueError(f"its header would be {length} bytes of a file of {size}")
            text = file.read(length)
        return _checked(parse_json(text), _LENGTH + length, size)
    except (OSError, ValueError, MemoryError) as error:
        msg = f"{path}: damaged, or no .safetensors file ({error}); get it again"
        raise FileError(msg) from error


def _checked(content: Any, start: int, size: int) -> Header:
    if not isinstance(content, dict):
        raise ValueError("its header is no object")
    metadata = content.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{_METADATA} holds more than texts")
    tensors, spans = {}, {}
    for name, value in content.items():
        if len(name) > _LONGEST_NAME or any(hidden(character) for character in name):
            raise ValueError(f"{quoted(name)} is no name for a tensor")
        tensors[name], spans[name] = _entry(name, value)
    end = 0
    for begin, stop in sorted(spans.values()):
        if begin != end:
            raise ValueError(f"tensors overlap, or leave a gap, at byte {begin}")
        end = stop
    if end != size - start:
        raise ValueError(f"tensors of {end} bytes are announced, {size - start} are there")
    places = {name: (start + begin, start + stop) for name, (begin, stop) in spans.items()}
    return Header(tensors, metadata, places)


def _entry(name: str, value: Any) -> tuple[Entry, tuple[int, int]]:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{quoted(name)} lacks dtype, shape or data_offsets, or has more")
    kind = value["dtype"]
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise ValueError(f"{quoted(name)} is of an unknown type {quoted(str(kind))}")
    shape = _wholes(name, value["shape"], _MOST_DIMS)
    begin, end = _wholes(name, value["data_offsets"], 2, exactly=True)
    entry = Entry(dtype, shape)
    if end - begin != entry.numel * dtype.itemsize:
        raise ValueError(f"{quoted(name)} of shape {list(shape)} has {end - begin} bytes")
    return entry, (begin, end)


def _wholes(name: str, value: Any, most: int, *, exactly: bool = False) -> tuple[int, ...]:
    fine = isinstance(value, list) and len(value) <= most
    fine = fine and (not exactly or len(value) == most)
    if not fine or not all(type(each) is int and 0 <= each <= _LARGEST_DIM for each in value):
        raise ValueError(f"{quoted(name)} has a shape or offsets that can't be")
    return tuple(value)


def _no_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {quoted(key)} is there twice")
        found[key] = value
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number
