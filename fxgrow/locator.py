"""Where Python code is while it runs: the module, and the line of the user's source."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torch import fx

from .epsilon import MODULE
from .recorder import is_library

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Locator"]


class Locator:
    """Names the module and source line that run, by nodes of a graph that is no model's."""

    def __init__(self, root: nn.Module) -> None:
        self.modules = dict(root.named_modules())
        self.names = {id(module): name for name, module in self.modules.items()}
        self.graph = fx.Graph()
        self.sites: dict[tuple[str, str], fx.Node] = {}

    def __call__(self) -> fx.Node:
        """Site of the innermost frame of the model's code."""
        frame: Any = sys._getframe(2)
        line, name = "", None
        while frame is not None and (name is None or not line):
            code = frame.f_code
            if not line and not is_library(code.co_filename):
                line = f"{code.co_filename}:{frame.f_lineno}"
            if name is None and code.co_argcount and code.co_varnames[0] == "self":
                name = self.names.get(id(frame.f_locals.get("self")))
            frame = frame.f_back
        key = (name or "", line)
        if key not in self.sites:
            node = self.graph.create_node("call_module", key[0], name=_safe(key[0]))
            node.name = key[0] or "forward"
            node.meta["source"] = line
            node.meta[MODULE] = self.modules[key[0]]
            self.sites[key] = node
        return self.sites[key]


def _safe(name: str) -> str:
    return name.replace(".", "_") or "forward"
