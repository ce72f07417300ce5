"""Walks through module trees, in the order of ``named_modules`` and ``named_parameters``.

Those are generators inside generators, one for each level that a module lies deep; an analysis
asks a dozen times for all modules or all tensors, which lists answer sooner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["holds_inside", "named_buffers", "named_modules", "named_parameters", "parameters"]


def named_modules(root: nn.Module, *, repeated: bool = False) -> dict[str, nn.Module]:
    """Modules by name; those that are in several places once, unless ``repeated``."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def visit(name: str, module: nn.Module) -> None:
        if not repeated:
            if id(module) in seen:
                return
            seen.add(id(module))
        found[name] = module
        prefix = f"{name}." if name else ""
        for key, child in module._modules.items():
            if child is not None:
                visit(prefix + key, child)

    visit("", root)
    return found


def named_parameters(root: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by their first names."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in named_modules(root).items():
        for key, value in module._parameters.items():
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                found[f"{name}.{key}" if name else key] = value
    return found


def named_buffers(root: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers by their first names."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, module in named_modules(root).items():
        for key, value in module._buffers.items():
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                found[f"{name}.{key}" if name else key] = value
    return found


def parameters(root: nn.Module) -> list[nn.Parameter]:
    """Parameters, each once."""
    return list(named_parameters(root).values())


def holds_inside(module: nn.Module) -> bool:
    """Whether the children of a module hold parameters."""
    children = [child for child in module._modules.values() if child is not None]
    return any(
        any(p is not None for p in child._parameters.values()) or holds_inside(child)
        for child in children
    )
