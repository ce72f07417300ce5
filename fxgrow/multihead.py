"""``nn.MultiheadAttention`` in the user's own class: what it can't hold, an equivalent can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from .compose import WideMultiheadAttention

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["free_attention"]


def free_attention(root: nn.Module, graph: fx.Graph) -> list[str]:
    """Replace attentions of torch whose widths have grown by equivalent ones; return the edits.

    Parameters
    ----------
    root : torch.nn.Module
        Widened; its modules are changed in place.
    graph : torch.fx.Graph
        Of ``root``, widened: it tells the number of heads.
    """
    edits: list[str] = []
    for name, module in root.named_modules():
        if type(module) not in {nn.MultiheadAttention, WideMultiheadAttention}:
            continue
        attention: Any = module
        heads = next(_heads(graph, name), None)
        query = attention.in_proj_weight
        query = attention.q_proj_weight if query is None else query
        outputs, inner = attention.out_proj.weight.shape
        width, separate = query.shape[1], attention.in_proj_weight is None
        rows = query.shape[0] if separate else (query.shape[0] - inner) // 2
        new = {"embed_dim": width, "num_heads": heads, "head_dim": rows // (heads or 1)}
        old = {key: getattr(attention, key) for key in new}
        if heads is None or (new == old and rows == inner == width == outputs):
            continue
        attention.scale = getattr(attention, "scale", old["head_dim"] ** -0.5)
        attention.sizes = [rows, rows, inner]
        edits += [f"{name}.{key}: {old[key]} → {new[key]}" for key in new if new[key] != old[key]]
        for key, value in new.items():
            setattr(attention, key, value)
        attention.kdim = attention.k_proj_weight.shape[1] if separate else width
        attention.vdim = attention.v_proj_weight.shape[1] if separate else width
        attention._qkv_same_embed_dim = False  # keeps torch from its fused encoder layer
        attention.__class__ = WideMultiheadAttention
    if edits:
        _without_nesting(root)
    return edits


def _without_nesting(root: nn.Module) -> None:
    """Nested tensors are for the fused encoder layer alone."""
    encoders = [m for m in root.modules() if isinstance(m, nn.TransformerEncoder)]
    for encoder in encoders:
        if any(isinstance(part, WideMultiheadAttention) for part in encoder.modules()):
            setattr(encoder, "use_nested_tensor", False)  # noqa: B010  # torch does not declare it


def _heads(graph: fx.Graph, name: str) -> Iterator[int]:
    """Heads that the projections of an attention are split into in the graph."""
    prefix = f"{name}." if name else ""
    own = {prefix + weight for weight in ("in_proj_weight", "q_proj_weight")}
    for node in graph.nodes:
        if node.target == "unflatten" and own & set(_weights(node.args[0], 4)):
            sizes: Any = node.args[2]
            if isinstance(sizes[0], int):
                yield sizes[0]


def _weights(node: Any, depth: int) -> Iterator[str]:
    """Parameters that a value is computed from in a few steps, inputs aside."""
    if node.op == "get_attr":
        yield str(node.target)
    elif depth and node.target is torch.nn.functional.linear:
        yield from _weights(node.args[1], depth - 1)
    elif depth:
        for source in node.all_input_nodes:
            yield from _weights(source, depth - 1)
