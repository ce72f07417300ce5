"""Values of a fixed width that are added to units which grow: positions computed in the code.

Sines of positions, made from the sizes of the input in each forward pass, are as wide as the
stream that they are added to, but no weight makes them: they stay as wide as they are. What is
found here is where such values join; :mod:`fxgrow.placed` then puts them beside the old units
of the grown stream, and gives the new ones what their recipe asks for.

Nothing is guessed: every step that leads to such a value must be known not to read a unit. It
may read sizes, to which the rewriter gives their old values (:mod:`fxgrow.restoring`).
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import fx

from .echoes import without
from .events import Where
from .flows import Flow
from .inner import is_inner
from .patterns import is_pattern
from .planes import Labels, Plane
from .propagate import LABELS_KEY
from .restoring import is_told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .propagate import Call, Propagation

    Operands = list[tuple[Sequence[Plane], Any]]

__all__ = ["PLACED", "Placement", "place", "settle"]

PLACED = " placed "
"""Begins the names of the axes that stand for such values in flows: no tensor has such a name."""


class Placement(NamedTuple):
    """A value of fixed width joins units: ``where.site`` reads it.

    Attributes
    ----------
    labels : numpy.ndarray of int64, shape ``(width,)``
        Labels of its entries along ``dim``, which belong to no weight.
    dim : int
        Of the value itself.
    given : int
        Which of the site's input nodes makes it.
    other : int
        Which of them it is added to.
    where : Where
    """

    labels: Labels
    dim: int
    given: int
    other: int
    where: Where


def place(state: Propagation, call: Call, tensors: Sequence[Any], operands: Operands) -> Operands:
    """Give a summand of fixed width labels of its own, where it may be placed.

    Parameters
    ----------
    state : Propagation
    call : Call
        A sum of two tensors.
    tensors : sequence of torch.Tensor
    operands : list of (planes, shape)

    Returns
    -------
    list of (planes, shape)
    """
    for own in (0, 1):
        other = 1 - own
        dims = _open(state, operands[own], operands[other], call.out.ndim)
        if not dims or not state.value(tensors[other]).live or not _sums(call, tensors, own):
            continue
        inputs = _inputs(state, tensors)
        if inputs is None or not is_fixed(state, inputs[own][1]):
            continue
        planes = list(operands[own][0])
        for dim in dims:
            planes.append(_placed(state, call, tensors[own], dim, inputs[own][0], inputs[other][0]))
        operands = [*operands]
        operands[own] = (planes, operands[own][1])
    return operands


def _open(state: Propagation, own: tuple[Any, Any], other: tuple[Any, Any], ndim: int) -> list[int]:
    """Dimensions of one summand that have no labels where the other one's lie in a line."""
    (planes, shape), (others, its) = own, other
    if not others:
        return []
    shift, away = ndim - len(shape), ndim - len(its)
    covered = {d + shift for p in planes for d in p.dims}
    found = []
    for plane in without(state.book, others):
        dims = [d + away for d in plane.dims]
        if len(dims) != 1 or is_inner(state.book, plane.labels):
            continue
        dim = dims[0] - shift
        beside = [p for p in others if dims[0] - away in p.dims and len(p.dims) > 1]
        if dim >= 0 and shape[dim] > 1 and dims[0] not in covered and not beside:
            found.append(dim)
    return sorted(set(found))


def _sums(call: Call, tensors: Sequence[Any], own: int) -> bool:
    """Whether the sum is one that a graph can be given a wider summand for."""
    tensor, other = tensors[own], tensors[1 - own]
    written = call.name.endswith("_") and own == 0
    floating = tensor.is_floating_point() and other.dtype == call.out.dtype
    return floating and not written


def _inputs(state: Propagation, tensors: Sequence[Any]) -> list[tuple[int, fx.Node]] | None:
    """Find the nodes of the graph that two summands come from."""
    site: Any = state.site
    known = isinstance(site, fx.Node) and site.op in {"call_function", "call_method"}
    if not known or state.run is None or not _is_sum(site):
        return None
    values, nodes = state.run.values, site.all_input_nodes
    found = []
    for tensor in tensors:
        places = [i for i, node in enumerate(nodes) if values.get(node) is tensor]
        if len(places) != 1:
            return None
        found.append((places[0], nodes[places[0]]))
    return found


def _is_sum(site: fx.Node) -> bool:
    """Whether a node is itself the sum, and no Python code with a sum inside."""
    return site.target in _SUMS


_SUMS = {
    *(operator.add, operator.iadd, operator.sub, operator.isub),
    *(torch.add, torch.sub, "add", "add_", "sub", "sub_"),
}


def _placed(
    state: Propagation, call: Call, tensor: torch.Tensor, dim: int, given: int, other: int
) -> Plane:
    labels = state.book.fresh(tensor.shape[dim])
    where = state.where(call.name)
    state.placements.append(Placement(labels, dim, given, other, where))
    shape = [1] * tensor.ndim
    shape[dim] = -1
    # A mean that is rounded to half precision is none.
    fine = tensor.element_size() >= 4
    terms = frozenset({((f"{PLACED}{labels[0]}", dim),)}) if fine else None
    return Plane(labels.reshape(shape), (), Flow(terms, still=not fine))


# -- what is known not to read a unit ----------------------------------------------------


def is_fixed(state: Propagation, node: fx.Node) -> bool:
    """Whether the values of a node are the same at any width, given the sizes that they had.

    Parameters
    ----------
    state : Propagation
        While the graph runs, up to a node that reads this one.
    node : torch.fx.Node
    """
    seen: set[fx.Node] = set()
    queue = [node]
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        if not _known(state, current):
            return False
        if _asks(current):
            continue
        queue += [n for n in current.all_input_nodes if not _only_told(state, current, n)]
        queue += [n for n in current.users if n in state.run.values and _writes(n, current)]
    return True


def _known(state: Propagation, node: fx.Node) -> bool:
    """Whether a step reads nothing but constants and sizes."""
    value = state.run.values.get(node)
    if isinstance(value, torch.Tensor) and not _is_constant(state, value):
        return False
    if node.op == "call_module":
        module = state.run.modules[str(node.target)]
        return type(module).__module__.startswith("torch.nn.") and not list(module.parameters())
    if node.op == "call_function":
        target: Any = node.target
        home = (getattr(target, "__module__", None) or "").partition(".")[0]
        return home in _HOMES or is_pattern(target)
    if node.op == "placeholder":  # masks and indices make positions, numbers are the user's data
        return not (isinstance(value, torch.Tensor) and value.is_floating_point())
    return node.op in {"get_attr", "call_method"}


_HOMES = {"torch", "_operator", "builtins", "math", "fxgrow", ""}


def _is_constant(state: Propagation, tensor: torch.Tensor) -> bool:
    known = tensor.__dict__.get(LABELS_KEY)
    if known is None:
        return id(tensor) not in state.names or not _has_units(tensor)
    return not without(state.book, known.planes)


def _has_units(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 1


def _asks(node: fx.Node) -> bool:
    """Whether a node only asks a tensor for its sizes, or what it is made of."""
    if node.op == "call_method":
        return node.target in {"size", "dim", "is_floating_point", "get_device"}
    if node.op != "call_function" or node.target is not getattr:
        return False
    return node.args[1] in {"shape", "device", "dtype", "ndim", "is_cuda", "layout"}


def _only_told(state: Propagation, node: fx.Node, given: fx.Node) -> bool:
    """Whether a tensor only tells a method its type and device: ``pe.type_as(x)``."""
    if is_told(node):
        return given is node.args[0]
    if node.op != "call_method" or node.target not in {"to", "type_as"}:
        return False
    return given is not node.args[0] and isinstance(state.run.values.get(given), torch.Tensor)


def _writes(node: fx.Node, target: fx.Node) -> bool:
    """Whether a node may write into a tensor that it is given."""
    if not node.args or node.args[0] is not target:
        return False
    if node.op == "call_method":
        return str(node.target).endswith("_") or node.target in _VIEWS
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and (
        node.target in {operator.setitem, operator.getitem}
        or name.endswith("_")
        or (name.startswith("i") and getattr(operator, name, None) is node.target)
    )


_VIEWS = {"view", "narrow", "select", "unsqueeze", "squeeze", "transpose", "permute", "t", "chunk"}


# -- judging ------------------------------------------------------------------------------


def settle(state: Propagation) -> None:
    """Freeze what has been placed beside units of several rows (heads), or several times.

    A head that has no place in a table of slopes would be another kind of head: what is the same
    for all rows of a unit is no position of a stream.
    """
    book = state.book
    for event in state.placements:
        roots = book.find(event.labels)
        if len(np.unique(roots)) < len(roots) or _most_rows(state, roots) > 1:
            book.freeze(event.labels, "unlabelled", event.where)


def _most_rows(state: Propagation, roots: Labels) -> int:
    """Count the rows of a weight that one of these units has at the most."""
    most = 0
    for axis, labels in state.axes.items():
        if "producer" not in state.roles.get(axis, ()):
            continue
        own = state.book.find(labels)
        hit = own[np.isin(own, roots)]
        if len(hit):
            most = max(most, int(np.unique(hit, return_counts=True)[1].max()))
    return most
