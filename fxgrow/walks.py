"""Walks through module trees, in the order of ``named_modules`` and ``named_parameters``.

Those are generators inside generators, one for each level that a module lies deep; an analysis
asks a dozen times for all modules or all tensors, which lists answer sooner.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.parametrize import ParametrizationList

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

CONSTANT = "_tensor_constant"
"""Begins the names that fx gives to tensors of the code."""

__all__ = [
    "CONSTANT",
    "DULL",
    "holds_inside",
    "is_parametrised_by_user",
    "modules",
    "named_buffers",
    "named_modules",
    "named_parameters",
    "named_plain",
    "parameters",
    "tensor_names",
    "tensors_of",
]


def modules(root: nn.Module) -> list[nn.Module]:
    """List a module and all inside it, each once."""
    found = [root]
    _collect(root, found, {id(root)})
    return found


def _collect(module: nn.Module, found: list[nn.Module], seen: set[int]) -> None:
    for inner in module._modules.values():
        if inner is not None and id(inner) not in seen:
            seen.add(id(inner))
            found.append(inner)
            if inner._modules:
                _collect(inner, found, seen)


def named_modules(root: nn.Module, *, repeated: bool = False) -> dict[str, nn.Module]:
    """Return modules by name; those that are in several places once, unless ``repeated``."""
    found = {"": root}
    _name(root, "", found, None if repeated else {id(root)})
    return found


def _name(
    module: nn.Module, prefix: str, found: dict[str, nn.Module], seen: set[int] | None
) -> None:
    for key, inner in module._modules.items():
        if inner is None or (seen is not None and id(inner) in seen):
            continue
        if seen is not None:
            seen.add(id(inner))
        name = prefix + key
        found[name] = inner
        if inner._modules:
            _name(inner, name + ".", found, seen)


def named_parameters(root: nn.Module) -> dict[str, nn.Parameter]:
    """Return parameters by their first names."""
    return _tensors(named_modules(root), "_parameters")


def named_buffers(root: nn.Module) -> dict[str, torch.Tensor]:
    """Return buffers by their first names."""
    return _tensors(named_modules(root), "_buffers")


def named_plain(root: nn.Module) -> dict[str, torch.Tensor]:
    """Return the floats that modules hold as plain attributes (fixed tables) by first names.

    What hooks compute before each forward pass is no table, nor is what fx found in the code.
    """
    return _plain(named_modules(root))


def tensor_names(root: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, buffers and tables that are plain attributes, by their first name."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    named = named_modules(root)
    for own in (_tensors(named, "_parameters"), _tensors(named, "_buffers"), _plain(named)):
        for name, tensor in own.items():
            if id(tensor) not in seen and not name.startswith(CONSTANT):  # those have no units
                seen.add(id(tensor))
                found[name] = tensor
    return found


# Types of most entries of a module's dictionary.
DULL: frozenset[type] = frozenset(
    {bool, int, float, str, tuple, list, dict, set, OrderedDict, type(None)}
)


def _plain(named: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, module in named.items():
        if module._forward_pre_hooks:
            continue
        for key, value in module.__dict__.items():
            if type(value) in DULL or not isinstance(value, torch.Tensor):
                continue
            if id(value) not in seen and _is_table(key, value):
                seen.add(id(value))
                found[f"{name}.{key}" if name else key] = value
    return found


def _is_table(key: str, value: torch.Tensor) -> bool:
    computed = value.grad_fn is not None or key.startswith(CONSTANT)
    return value.is_floating_point() and not computed


def _tensors(named: dict[str, nn.Module], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for name, module in named.items():
        own = module.__dict__[kind]
        for key, value in own.items() if own else ():
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                found[f"{name}.{key}" if name else key] = value
    return found


def parameters(root: nn.Module) -> list[nn.Parameter]:
    """List the parameters, each once."""
    own = [m._parameters for m in modules(root)]
    found = {id(p): p for tensors in own if tensors for p in tensors.values() if p is not None}
    return list(found.values())


def holds_inside(module: nn.Module) -> bool:
    """Whether the children of a module hold parameters."""
    if not module._modules:
        return False
    children = [child for child in module._modules.values() if child is not None]
    return any(
        any(p is not None for p in child._parameters.values()) or holds_inside(child)
        for child in children
    )


def is_parametrised_by_user(module: nn.Module) -> bool:
    """Whether a module computes a parameter of another one by code of the user's."""
    return isinstance(module, ParametrizationList) and any(
        not type(part).__module__.startswith("torch.") for part in module.children()
    )


def tensors_of(args: Iterable[Any]) -> list[torch.Tensor]:
    """Tensors among ``args``, one level of lists deep (as ATen schemas have them)."""
    found = []
    for arg in args:
        kind = type(arg)
        if kind in _NUMBERS:
            continue
        if isinstance(arg, torch.Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found += [a for a in arg if type(a) not in _NUMBERS and isinstance(a, torch.Tensor)]
    return found


_NUMBERS: frozenset[type] = frozenset({int, float, bool, type(None)})
