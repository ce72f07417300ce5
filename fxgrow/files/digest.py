"""Checksums of tensors, and of the model that a plan was made for."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from ..printable import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "differences",
    "digest",
    "fingerprint",
    "is_plain",
    "other_shapes",
    "raw_bytes",
    "transient_buffers",
]

_SHORT = 16  # hexadecimal digits of a sum in a fingerprint


def raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a dense tensor's bytes, in order: uint8, shape ``(bytes,)``, on the CPU."""
    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return dense.reshape(-1).view(torch.uint8)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is dense and holds its data itself, all of it."""
    if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta or tensor.is_quantized:
        return False
    return tensor.layout is torch.strided and type(tensor.detach()) is torch.Tensor


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a dense tensor's bytes, in hexadecimal digits."""
    return hashlib.sha256(raw_bytes(tensor).numpy().data).hexdigest()


def fingerprint(model: torch.nn.Module) -> dict[str, str]:
    """Describe every parameter and buffer of a model: type, shape and a short checksum.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    dict of str to str
        E.g. ``{"fc.weight": "float32[10, 4] 0123456789abcdef"}``; without a checksum for
        tensors that hold no plain data (sparse, quantised, on the meta device).
    """
    return {name: _line(tensor) for name, tensor in _named(model)}


def other_shapes(base: Mapping[str, str], model: torch.nn.Module) -> list[str]:
    """Say where types and shapes of a model differ from a fingerprint, in its order."""
    return list(_differences(base, {name: _kind(tensor) for name, tensor in _named(model)}))


def differences(base: Mapping[str, str], model: torch.nn.Module) -> list[str]:
    """Name the tensors of a model whose values differ from a fingerprint."""
    here = fingerprint(model)
    return [name for name, line in base.items() if here.get(name) != line]


def _differences(there: Mapping[str, str], here: Mapping[str, str]) -> Iterator[str]:
    for name, line in there.items():
        wanted = _without_sum(line)
        if name not in here:
            yield f"it has no {quoted(name)}"
        elif here[name] != wanted:
            yield f"its {quoted(name)} is {here[name]}, not {wanted}"
    yield from (f"it has {quoted(name)} besides" for name in here if name not in there)


def _named(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters and persistent buffers; the others are derived from those."""
    yield from model.named_parameters(remove_duplicate=False)
    transient = {name for name, _ in transient_buffers(model)}
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name not in transient:
            yield name, buffer


def transient_buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the buffers that are no part of the state dict."""
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for name in sorted(owner._non_persistent_buffers_set):
            value = owner._buffers.get(name)
            if value is not None:
                yield f"{prefix}.{name}" if prefix else name, value


def _kind(tensor: torch.Tensor) -> str:
    if torch.nn.parameter.is_lazy(tensor):
        return "not initialised[]"
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _line(tensor: torch.Tensor) -> str:
    return f"{_kind(tensor)} {digest(tensor)[:_SHORT]}" if is_plain(tensor) else _kind(tensor)


def _without_sum(line: str) -> str:
    return line[: line.find("]") + 1]
