"""Gradient checkpointing: regions of a graph that are computed again in the backward pass.

Tracing runs through ``torch.utils.checkpoint.checkpoint`` and marks the nodes recorded
inside. The graph stays flat, so that analysis and rewriting need not know; only the code
generated from it calls each region through the checkpoint again.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch.utils.checkpoint as checkpointing
from torch import fx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import CodeType, FrameType

__all__ = ["KEY", "Region", "Regions", "checkpointed_forward", "is_entry"]

KEY = "fxgrow_region"
"""Where a node's ``meta`` holds its region."""

_ENTRIES = {"checkpoint", "_checkpoint_impl"}


@dataclass(frozen=True, eq=False)
class Region:
    """One call of ``checkpoint``; regions are told apart by identity.

    Attributes
    ----------
    options : dict of str to Any
        Keyword arguments of ``checkpoint``. The reentrant variant is replaced by the
        other one, whose gradients are the same.
    """

    options: Mapping[str, Any]


class Regions:
    """Regions met while tracing, by the frame of their call."""

    def __init__(self) -> None:
        # Frames are held, so that none of them takes the identity of another.
        self._known: dict[int, tuple[FrameType, Region]] = {}

    def of(self, frame: FrameType) -> Region:
        """Region of the call of ``checkpoint`` that runs in ``frame``."""
        if id(frame) not in self._known:
            self._known[id(frame)] = (frame, Region(_options(frame.f_locals)))
        return self._known[id(frame)][1]


def is_entry(code: CodeType) -> bool:
    """Whether ``code`` is that of ``checkpoint``."""
    return code.co_name in _ENTRIES and code.co_filename == checkpointing.__file__


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    preserve = given.get("preserve", given.get("preserve_rng_state", True))
    options = {"preserve_rng_state": preserve}
    if given.get("context_fn") is not checkpointing.noop_context_fn:
        options["context_fn"] = given["context_fn"]
    return options


def checkpointed_forward(graph: fx.Graph, prefix: str, owner: type) -> Any:
    """Generate a forward that checkpoints the regions of ``graph``.

    Parameters
    ----------
    graph : torch.fx.Graph
        A region reaches from the first to the last of the nodes that are marked with it.
    prefix : str
        Of the methods' names.
    owner : type
        Class of the module that will run the function; it gets a method for each region.

    Returns
    -------
    function or None
        ``forward(self, ...)`` like that of the graph; None where no node is marked.
    """
    spans = _spans(graph)
    if not spans:
        return None
    new = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for number, (region, nodes) in enumerate(groupby(list(graph.nodes), key=spans.get)):
        if region is not None:
            name = f"_{prefix}_region_{number}"
            setattr(owner, name, _fold(new, values, list(nodes), name, region.options))
            continue
        for node in nodes:
            values[node] = new.node_copy(node, values.__getitem__)
    return _function(new)


def _spans(graph: fx.Graph) -> dict[fx.Node, Region]:
    """Region of every node in one; what was inserted later between marked nodes counts too."""
    owner: dict[fx.Node, Region] = {}
    between: list[fx.Node] = []
    current = None
    for node in graph.nodes:
        region = node.meta.get(KEY)
        between.append(node)
        if region is None:
            continue
        members = between if region is current else [node]
        owner.update(dict.fromkeys(members, region))
        current, between = region, []
    return owner


def _fold(
    new: fx.Graph,
    values: dict[fx.Node, fx.Node],
    nodes: list[fx.Node],
    name: str,
    options: Mapping[str, Any],
) -> Callable[..., Any]:
    """Put one call in the place of ``nodes``; return the method to be called."""
    inside = set(nodes)
    read = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside)
    outs = [node for node in nodes if any(user not in inside for user in node.users)]
    body = fx.Graph()
    own = {node: body.placeholder(f"given_{i}") for i, node in enumerate(read)}
    for node in nodes:
        own[node] = body.node_copy(node, own.__getitem__)
    body.output(tuple(own[node] for node in outs))
    run = _function(body)

    def recompute(self: Any, *given: Any) -> Any:
        call = functools.partial(run, self)
        return checkpointing.checkpoint(call, *given, use_reentrant=False, **options)

    result = new.call_module(name, tuple(values[node] for node in read))
    for i, node in enumerate(outs):
        values[node] = new.call_function(operator.getitem, (result, i))
    return recompute


def _function(graph: fx.Graph) -> Any:
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<fxgrow checkpointed graph>", "exec"), namespace)
    return namespace["forward"]
