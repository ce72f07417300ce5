"""A module's tensors, made ready for ``.safetensors``: shared ones once, odd types as bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..errors import FileError
from ..printable import quoted
from .digest import digest, is_plain, raw_bytes, transient_buffers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .header import Entry

__all__ = ["Collected", "collect", "logical", "restored"]

# what every release of safetensors that we allow can hold
_NATIVE = frozenset(
    getattr(torch, name)
    for name in (
        *("bool", "uint8", "int8", "int16", "int32", "int64"),
        *("float16", "bfloat16", "float32", "float64"),
    )
)


@dataclass(frozen=True)
class Collected:
    """Tensors to write, and how the module's names refer to them.

    Attributes
    ----------
    tensors : dict of str to torch.Tensor
        Contiguous, on the CPU, no two in one storage.
    aliases : dict of str to str
        Names of shared tensors → the name that is written.
    transient : list of str
        Buffers that are no part of the state dict.
    as_bytes : dict of str to dict
        Type and shape of tensors that are written as bytes.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    transient: list[str] = field(default_factory=list)
    as_bytes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def digests(self) -> dict[str, str]:
        """SHA-256 of each tensor that is written."""
        return {name: digest(tensor) for name, tensor in self.tensors.items()}


def collect(module: torch.nn.Module, path: Path) -> Collected:
    """Gather all tensors of a module: its state dict, and buffers that are not in it.

    Raises
    ------
    FileError
        For a TorchScript module, entries that are no tensors, and tensors without plain
        data (sparse, quantised, sharded, on the meta device).
    """
    if any(isinstance(each, torch.jit.ScriptModule) for each in module.modules()):
        msg = f"{path}: the module is TorchScript, which can't be saved; save the Python module"
        raise FileError(msg)
    found = Collected()
    first: dict[tuple[Any, ...], str] = {}
    state = module.state_dict()
    for name, value in state.items():
        _add(found, first, name, value, path)
    for name, value in transient_buffers(module):
        if name not in state:
            _add(found, first, name, value, path)
            found.transient.append(name)
    return found


def logical(entry: Entry, name: str, as_bytes: Mapping[str, Mapping[str, Any]]) -> Entry:
    """Return type and shape that a tensor has in the module, of those that it has in a file.

    Raises
    ------
    ValueError
        When both don't fit each other.
    """
    if name not in as_bytes:
        return entry
    dtype = getattr(torch, as_bytes[name]["dtype"], None)
    shape = tuple(as_bytes[name]["shape"])
    if not isinstance(dtype, torch.dtype) or dtype in _NATIVE:
        raise ValueError(f"{quoted(name)} is of an unknown type")
    real = type(entry)(dtype, shape)
    if entry.dtype is not torch.uint8 or entry.shape != (real.numel * dtype.itemsize,):
        raise ValueError(f"{quoted(name)} has {entry.numel} bytes, which are no {list(shape)}")
    return real


def restored(tensor: torch.Tensor, entry: Entry) -> torch.Tensor:
    """Give a tensor read from a file the type and shape that it has in the module."""
    wide = entry.dtype.itemsize
    if tensor.dtype is entry.dtype and tensor.data_ptr() % wide == 0:
        return tensor
    # a copy, for bytes lie anywhere in a file and wider types must not
    whole = tensor.reshape(-1).view(torch.uint8).clone()
    return whole.view(entry.dtype).reshape(entry.shape)


def _add(
    found: Collected, first: dict[tuple[Any, ...], str], name: str, value: Any, path: Path
) -> None:
    _check(name, value, path)
    key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
    if value.numel() and key in first:
        found.aliases[name] = first[key]
        return
    first[key] = name
    if value.dtype in _NATIVE:
        found.tensors[name] = _alone(value.detach())
        return
    kind = str(value.dtype).removeprefix("torch.")
    found.as_bytes[name] = {"shape": list(value.shape), "dtype": kind}
    found.tensors[name] = _alone(raw_bytes(value))


def _check(name: str, value: Any, path: Path) -> None:
    if not isinstance(value, torch.Tensor):
        msg = f"{path}: the state dict's {name!r} is no tensor and has no place in the file"
        raise FileError(msg)
    if not is_plain(value):
        msg = (
            f"{path}: {name!r} is a {type(value).__name__} without plain data (sparse, quantised, "
            "sharded or on the meta device) and has no place in the file; make it dense first"
        )
        raise FileError(msg)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as the only one of its storage, contiguous, on the CPU."""
    here = tensor.resolve_neg().cpu()
    whole = here.untyped_storage().nbytes() == here.numel() * here.element_size()
    if whole and here.is_contiguous() and here.device == tensor.device:
        return here
    return here.clone(memory_format=torch.contiguous_format)
