"""Size arithmetic that nothing reads any more."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx

__all__ = ["drop_unused"]


def drop_unused(graph: fx.Graph) -> None:
    """Erase size arithmetic that opened or changed code left behind (operations stay).

    Parameters
    ----------
    graph : torch.fx.Graph
        Changed in place.
    """
    for node in reversed(list(graph.nodes)):
        plain = node.op == "get_attr" or (
            node.op == "call_function"
            and getattr(node.target, "__module__", "") in {"_operator", "builtins", "math"}
        )
        asked = {"size", "dim", "numel", "is_floating_point"}
        sizes = node.op == "call_method" and node.target in asked
        written = {operator.setitem, operator.iadd, operator.imul}
        inplace = node.op == "call_function" and node.target in written
        if not node.users and (plain or sizes) and not inplace:
            graph.erase_node(node)
