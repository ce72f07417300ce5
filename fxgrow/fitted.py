"""A model and a checkpoint that belong together: names matched, shapes compared.

The model is brought to the meta device, in the types of the checkpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .errors import InputError
from .plain import duplicate, plain
from .printable import quoted
from .walks import tensor_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .files.weights import Weights

__all__ = ["Fitted", "fit", "inputs_on_meta"]

_SHOWN = 3
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model on the meta device, and where a checkpoint has its tensors.

    Attributes
    ----------
    model : torch.nn.Module
        With the types that the checkpoint has.
    names : dict of str to str
        Name in the checkpoint → first name of the tensor in the model; shared tensors may
        lie in the checkpoint under several names.
    unread : tuple of str
        Tensors of the checkpoint that the model says it does not read.
    """

    model: torch.nn.Module
    names: Mapping[str, str]
    unread: tuple[str, ...] = ()

    def keys(self) -> dict[str, str]:
        """First name of a tensor in the model → its first name in the checkpoint."""
        return {name: key for key, name in reversed(list(self.names.items()))}


def fit(model: torch.nn.Module, weights: Weights) -> Fitted:
    """Find each tensor of a model's state dict in a checkpoint.

    Prefixes may differ (``transformer.``, ``module.``), shared tensors may be there once.

    Parameters
    ----------
    model : torch.nn.Module
        On any device; its values don't matter. Never changed.
    weights : Weights

    Raises
    ------
    InputError
        When a tensor lacks, is besides, is quantised, or has another shape.
    """
    model = plain(model)
    state = _state(model)
    first = {id(tensor): name for name, tensor in tensor_names(model).items()}
    renamed = _renaming(list(weights.entries), state)
    keys = {key: renamed(key) for key in weights.entries}
    names = {key: first[id(state[name])] for key, name in keys.items() if name in state}
    unread = tuple(key for key, name in keys.items() if name not in state)
    there = set(names.values())
    lacking = [name for name, tensor in state.items() if first[id(tensor)] not in there]
    problems = [
        *(f"it lacks {quoted(name)}" for name in lacking),
        *(f"it has {quoted(key)} besides" for key in unread if not _unread(model, key)),
        *_others(names, tensor_names(model), weights),
    ]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        said = "; ".join(problems[:_SHOWN])
        raise InputError(
            f"{weights.path}: is no checkpoint of this {type(model).__name__}: {said}{more}; "
            "build the model that was saved"
        )
    dtypes = {name: weights.entries[key].dtype for key, name in names.items()}
    return Fitted(_on_meta(model, dtypes), names, unread)


def inputs_on_meta(value: Any, before: torch.nn.Module, after: torch.nn.Module) -> Any:
    """Move example inputs to the meta device, in the types that the model has there.

    Parameters
    ----------
    value : tensor, tuple or dict
    before, after : torch.nn.Module
        The model that they were made for, and the same one on the meta device.
    """
    old, new = _float_type(before), _float_type(after)

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to("meta", new if value.dtype == old else value.dtype)
        if isinstance(value, dict):
            return {key: moved(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return tuple(moved(item) for item in value)
        return value

    return moved(value)


def _float_type(model: torch.nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(
                f"the model's state dict holds {quoted(name)}, which is no tensor; such a model "
                "grows in memory, with fxgrow.widen"
            )
    return dict(state)


def _renaming(keys: list[str], state: Mapping[str, torch.Tensor]) -> Callable[[str], str]:
    """Return what turns names of the checkpoint into the model's: most must fit then."""
    heads = {f"{name.partition('.')[0]}." for name in (*keys, *state) if "." in name}
    offers: list[Callable[[str], str]] = [
        str,
        *((lambda key, head=head: head + key) for head in sorted(heads)),
        *((lambda key, head=head: key.removeprefix(head)) for head in sorted(heads)),
    ]
    best = max(offers, key=lambda offer: len({offer(key) for key in keys} & state.keys()))
    return lambda key: best(key) if best(key) in state else key


def _unread(model: torch.nn.Module, key: str) -> bool:
    """Whether the model says itself that loading may pass a tensor over."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, key) for pattern in patterns)


def _others(
    names: Mapping[str, str], own: Mapping[str, torch.Tensor], weights: Weights
) -> Iterator[str]:
    """Say where shapes are others, or numbers are packed in a way that is not the model's."""
    for key, name in names.items():
        there, here = weights.entries[key], own[name]
        if there.shape != tuple(here.shape):
            yield f"its {quoted(key)} is {list(there.shape)}, not {list(here.shape)}"
        elif here.is_floating_point() and here.dtype != there.dtype not in _FLOATS:
            kind = str(there.dtype).removeprefix("torch.")
            yield f"its {quoted(key)} is of type {kind}: quantised weights can't grow"


def _on_meta(model: torch.nn.Module, dtypes: Mapping[str, torch.dtype]) -> torch.nn.Module:
    """Copy a model without its values."""
    memo: dict[int, Any] = {}
    for name, tensor in tensor_names(model).items():
        value = torch.empty_like(tensor, dtype=dtypes.get(name, tensor.dtype), device="meta")
        if isinstance(tensor, torch.nn.Parameter):
            trains = tensor.requires_grad and value.is_floating_point()
            value = torch.nn.Parameter(value, trains)
        memo[id(tensor)] = value
    return duplicate(model, memo)
