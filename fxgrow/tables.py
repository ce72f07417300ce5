"""Tensors that are neither parameters nor buffers: constants of the code, fixed tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .walks import named_plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from .trace import Traced

__all__ = ["add_constants", "register_tables"]


def add_constants(root: nn.Module, traced: Traced) -> None:
    """Give a copy of the model the tensor constants that tracing found in its code."""
    for _, graph in traced.distinct:
        for node in graph.nodes:
            name = str(node.target)
            if node.op == "get_attr" and "." not in name and not hasattr(root, name):
                root.register_buffer(name, getattr(traced.root, name).clone(), persistent=False)


def register_tables(root: nn.Module, grown: Iterable[str]) -> None:
    """Make tables that grew buffers: state dicts don't know tensors that are plain attributes."""
    for name in named_plain(root).keys() & set(grown):
        path, _, key = name.rpartition(".")
        owner = root.get_submodule(path)
        owner.register_buffer(key, owner.__dict__.pop(key))
