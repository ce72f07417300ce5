"""Where norms keep their eps and shape: arguments in the graph, or attributes of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "EPSILONS",
    "MODULE",
    "OWN_EPSILON",
    "can_be_scaled",
    "follow_shape",
    "holds_epsilon",
    "scale_epsilon",
    "scale_smallest",
]

OWN_EPSILON = "fxgrow_eps"
"""Key of a node's ``meta``: the attribute that a module of the user's keeps its eps in."""

MODULE = "fxgrow_module"
"""Key of the ``meta`` of a place in Python code: the module whose code it is."""

# Function → position and default of its argument ``eps``. None stands for rounding errors of
# the dtype, and stays.
EPSILONS: dict[Any, tuple[int, float | None]] = {
    F.layer_norm: (4, 1e-5),
    torch.layer_norm: (4, 1e-5),
    F.rms_norm: (3, None),
    torch.rms_norm: (3, None),
}
_PLACES = {**EPSILONS, F.batch_norm: (7, 1e-5), F.normalize: (3, 1e-12)}

# Kind of a statistic of weights → functions and methods whose result, or eps, can be scaled.
_SCALABLE: dict[str, frozenset[Any]] = {
    "standard": frozenset({F.batch_norm, F.layer_norm, torch.layer_norm}),
    "square": frozenset({"mean", torch.mean}),
    "var": frozenset({"var", torch.var}),
    "std": frozenset({"std", torch.std}),
    "var_mean": frozenset({torch.var_mean}),
    "std_mean": frozenset({torch.std_mean}),
}


def can_be_scaled(node: object, kind: str) -> bool:
    """Whether a statistic of weights can be made up for at a node of a graph."""
    if not isinstance(node, fx.Node) or node.target not in _SCALABLE[kind]:
        return False
    return kind != "standard" or not isinstance(_given(node), fx.Node)


def holds_epsilon(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node is a norm whose eps the graph, or a module of torch, shows."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return "eps" in module.__dict__ and type(module).__module__.startswith("torch.nn")
    return node.target in EPSILONS and not isinstance(_given(node), fx.Node)


def scale_epsilon(
    node: fx.Node, root: nn.Module, ratio: float, done: set[str], owner: str | None = None
) -> list[str]:
    """Multiply the eps of a norm, in place; return the edits.

    The module that a functional norm takes its weight from (or ``owner``) gets it too, where it
    has one: its own code reads it there. ``done`` holds the names of modules, each of them
    scaled once.
    """
    edits = []
    if node.op != "call_module":
        old = _given(node)
        if old is not None:
            _set(node, old * ratio)
            edits.append(f"{node.name}: eps {old:g} → {old * ratio:g}")
    owner = _owner(node) if owner is None else owner
    module = root.get_submodule(owner)
    name = node.meta.get(OWN_EPSILON, "eps")
    eps = module.__dict__.get(name)
    if owner in done or not isinstance(eps, float):
        return edits
    done.add(owner)
    module.__dict__[name] = eps * ratio
    return [*edits, f"{owner}.{name}: {eps:g} → {eps * ratio:g}"]


def scale_smallest(node: fx.Node, factor: float) -> list[str]:
    """Multiply the smallest norm that a node divides by, in place; return the edits."""
    old = _given(node)
    if not isinstance(old, float):
        return []
    _set(node, old * factor)
    return [f"{node.name}: eps {old:g} → {old * factor:g}"]


def follow_shape(node: fx.Node, root: nn.Module) -> list[str]:
    """Bring the owner of a functional norm's weight in line with the norm; return the edits.

    The owner's own code reads the shape there, when it is not run as a graph.
    """
    owner = _owner(node)
    own = root.get_submodule(owner).__dict__
    old, new = own.get("normalized_shape"), node.args[1] if len(node.args) > 1 else None
    if not (owner and isinstance(old, tuple) and isinstance(new, tuple)) or old == new:
        return []
    own["normalized_shape"] = type(old)(new)
    return [f"{owner}.normalized_shape: {tuple(old)} → {new}"]


def _owner(node: fx.Node) -> str:
    """Name of the module that a norm, or the weight of a functional one, belongs to."""
    if node.op == "call_module":
        return str(node.target)
    weight = node.args[2] if len(node.args) > 2 else node.kwargs.get("weight")
    return str(weight.target).rpartition(".")[0] if isinstance(weight, fx.Node) else ""


def _given(node: fx.Node) -> Any:
    position, default = _PLACES[node.target]
    given = node.args[position] if len(node.args) > position else node.kwargs.get("eps")
    return default if given is None else given


def _set(node: fx.Node, value: float) -> None:
    position, _ = _PLACES[node.target]
    if len(node.args) > position:
        node.update_arg(position, value)
    else:
        node.update_kwarg("eps", value)
