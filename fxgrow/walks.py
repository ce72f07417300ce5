"""Walks through module trees, in the order of ``named_modules`` and ``named_parameters``.

Those are generators inside generators, one for each level that a module lies deep; an analysis
asks a dozen times for all modules or all tensors, which lists answer sooner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.parametrize import ParametrizationList

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

__all__ = [
    "holds_inside",
    "is_parametrised_by_user",
    "modules",
    "named_buffers",
    "named_modules",
    "named_parameters",
    "named_plain",
    "parameters",
    "tensors_of",
]


def modules(root: nn.Module) -> list[nn.Module]:
    """List a module and all inside it, each once."""
    found: list[nn.Module] = []
    seen: set[int] = set()
    stack = [root]
    while stack:
        module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found.append(module)
        if module._modules:
            stack += [m for m in reversed(module._modules.values()) if m is not None]
    return found


def named_modules(root: nn.Module, *, repeated: bool = False) -> dict[str, nn.Module]:
    """Return modules by name; those that are in several places once, unless ``repeated``."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    stack = [("", root)]
    while stack:
        name, module = stack.pop()
        if not repeated:
            if id(module) in seen:
                continue
            seen.add(id(module))
        found[name] = module
        if module._modules:
            prefix = f"{name}." if name else ""
            inner = reversed(module._modules.items())
            stack += [(prefix + key, m) for key, m in inner if m is not None]
    return found


def named_parameters(root: nn.Module) -> dict[str, nn.Parameter]:
    """Return parameters by their first names."""
    return _named(root, "_parameters")


def named_buffers(root: nn.Module) -> dict[str, torch.Tensor]:
    """Return buffers by their first names."""
    return _named(root, "_buffers")


def named_plain(root: nn.Module) -> dict[str, torch.Tensor]:
    """Return the floats that modules hold as plain attributes (fixed tables) by first names.

    What hooks compute before each forward pass is no table, nor is what fx found in the code.
    """
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, module in named_modules(root).items():
        if module._forward_pre_hooks:
            continue
        for key, value in module.__dict__.items():
            if isinstance(value, torch.Tensor) and id(value) not in seen and _is_table(key, value):
                seen.add(id(value))
                found[f"{name}.{key}" if name else key] = value
    return found


def _is_table(key: str, value: torch.Tensor) -> bool:
    computed = value.grad_fn is not None or key.startswith("_tensor_constant")
    return value.is_floating_point() and not computed


def _named(root: nn.Module, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for name, module in named_modules(root).items():
        for key, value in module.__dict__[kind].items():
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                found[f"{name}.{key}" if name else key] = value
    return found


def parameters(root: nn.Module) -> list[nn.Parameter]:
    """List the parameters, each once."""
    found = {id(p): p for m in modules(root) for p in m._parameters.values() if p is not None}
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
        if isinstance(arg, torch.Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found.extend(a for a in arg if isinstance(a, torch.Tensor))
    return found
