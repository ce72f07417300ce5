"""What makes up for new widths where norms, means and variances count: eps, factors, constants.

A norm's eps shrinks as its count grows, a mean or variance is multiplied by what its divisor
grew by. Weights that are standardised (each row less its mean, over its deviation) come out
larger by the root of that: a number that they are multiplied with makes up for it where there
is one, as in ``gain * scale``, else a factor in the graph.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import fx

from .centring import UNCHANGED
from .counts import MADE_UP
from .epsilon import MODULE, OWN_EPSILON, scale_epsilon

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from torch import nn

    from .events import Statistic
    from .ir import Group, IndexMap

__all__ = [
    "Change",
    "MadeUp",
    "changes",
    "factor_of",
    "find_numbers",
    "insert_factor",
    "scale_numbers",
    "scale_standard",
]


@dataclass(frozen=True, eq=False)
class Change:
    """How a node has to change.

    Attributes
    ----------
    kind : str
        See :class:`fxgrow.ir.Norm`; of standardised weights that of the statistic.
    ratio : float
        Old over new count.
    standard : Statistic, optional
        Of standardised weights.
    """

    kind: str
    ratio: float
    standard: Statistic | None = None


def changes(
    groups: Collection[Group],
    additions: Mapping[str, int],
    standards: Iterable[Statistic],
    index_map: IndexMap,
) -> dict[fx.Node, Change]:
    """Collect the nodes that count what grows.

    Parameters
    ----------
    groups : collection of Group
    additions : dict of str to int
    standards : iterable of Statistic
        Of weights whose rows are centred.
    index_map : IndexMap
    """
    found: dict[fx.Node, Change] = {}
    for group in groups:
        ratio = group.width / (group.width + additions.get(group.name, 0))
        for norm in group.norms if ratio < 1 else ():
            known = found.get(norm.node)  # a mean over two axes that grow
            found[norm.node] = Change(norm.kind, ratio * (known.ratio if known else 1.0))
    for event in standards:
        ratio = math.prod(_ratio(index_map, *axis) for axis in event.axes)
        if ratio < 1 and event.kind not in UNCHANGED:
            node: Any = event.where.site
            found[node] = Change(event.kind, ratio, event)
    return found


def _ratio(index_map: IndexMap, name: str, dim: int) -> float:
    axis = index_map.axes.get(name, {}).get(dim)
    return 1.0 if axis is None else len(axis.old) / axis.size


def factor_of(change: Change, node: fx.Node, given: Any, result: Any) -> float:
    """Return what the result of a node, of what it is given, is multiplied with (1: nothing)."""
    event = change.standard
    if event is None:
        made = MADE_UP.get(change.kind)
        if made is None:
            return 1.0
        return made(node, given.numel() // result.numel(), change.ratio)
    if change.kind == "standard":
        return 1.0
    grown = (event.entries / change.ratio - event.correction) / (event.entries - event.correction)
    return math.sqrt(grown) if change.kind.startswith("std") else grown


def insert_factor(node: fx.Node, factor: float) -> fx.Node:
    """Multiply the result of a node, wherever it is used."""
    with node.graph.inserting_after(node):
        scaled = node.graph.call_function(operator.mul, (node, factor))
    node.replace_all_uses_with(scaled, lambda user: user is not scaled)
    return scaled


class MadeUp(NamedTuple):
    """What became of a standardised weight.

    ``factor`` is what the result is still to be multiplied with; ``own`` says that the model's
    own code does the same, for its attributes have followed.
    """

    edits: list[str]
    factor: float
    own: bool


def scale_standard(node: fx.Node, change: Change, root: nn.Module, done: set[str]) -> MadeUp:
    """Make up for a batch norm over the rows of a weight, in place.

    Parameters
    ----------
    node : torch.fx.Node
        Patched: its eps, and the constant that its weight is multiplied with.
    change : Change
    root : torch.nn.Module
        Attributes of the weight's module that hold these numbers follow.
    done : set of str
        Names of modules that have followed already.
    """
    assert change.standard is not None
    owner = change.standard.axes[0][0].rpartition(".")[0]
    follows = owner in done
    edits = scale_epsilon(node, root, change.ratio, done, owner)
    place, factor = _constant(node), math.sqrt(change.ratio)
    if place is None:
        return MadeUp(edits, factor, own=False)
    product, index = place
    value: Any = product.args[index]
    product.update_arg(index, value * factor)
    edits.append(f"{product.name}: factor {value:g} → {value * factor:g}")
    own = root.get_submodule(owner).__dict__
    names = [name for name, held in own.items() if type(held) is float and held == value]
    if owner in done and not follows and len(names) == 1:
        follows = True
        own[names[0]] = value * factor
        edits.append(f"{owner}.{names[0]}: {value:g} → {value * factor:g}")
    return MadeUp(edits, 1.0, follows)


def find_numbers(site: object, args: Sequence[Any]) -> bool:
    """Find the eps and the factor of a standardised weight among the attributes of its module.

    Parameters
    ----------
    site : object
        Where the batch norm is computed: a place in Python code that is no graph.
    args : sequence
        Of the batch norm: input, weight and bias first, eps last.

    Returns
    -------
    bool
        Whether there are both; the site then knows their names.
    """
    if not isinstance(site, fx.Node) or MODULE not in site.meta:
        return False
    module = site.meta[MODULE]
    if not isinstance(args[1], torch.Tensor):
        return False
    floats = {k: v for k, v in module.__dict__.items() if type(v) is float and v}
    epsilons = [name for name, value in floats.items() if value == args[-1]]
    gains = [p for p in module._parameters.values() if p is not None and p.numel() == len(args[1])]
    factors = [
        name
        for name, value in floats.items()
        if name not in epsilons and any(torch.equal((p * value).view(-1), args[1]) for p in gains)
    ]
    if len(epsilons) != 1 or len(factors) != 1:
        return False
    site.meta[OWN_EPSILON], site.meta[_OWN_FACTOR] = epsilons[0], factors[0]
    return True


def scale_numbers(node: fx.Node, change: Change, root: nn.Module, done: set[str]) -> list[str]:
    """Make up for what happens in code that is no graph, in attributes; return the edits."""
    name = str(node.target)
    known = name in done
    edits = scale_epsilon(node, root, change.ratio, done)
    if change.kind != "standard" or known:
        return edits
    own, factor = root.get_submodule(name).__dict__, node.meta[_OWN_FACTOR]
    value: float = own[factor]
    own[factor] = value * math.sqrt(change.ratio)
    return [*edits, f"{name}.{factor}: {value:g} → {own[factor]:g}"]


_OWN_FACTOR = "fxgrow_factor"
_SHAPED = {"view", "reshape", "flatten", "squeeze", torch.reshape, torch.flatten, torch.squeeze}
_PRODUCTS = {operator.mul, torch.mul, "mul"}


def _constant(node: fx.Node) -> tuple[fx.Node, int] | None:
    """Find the number that the weight of a norm, and nothing else, is multiplied with."""
    current: Any = node.args[3] if len(node.args) > 3 else node.kwargs.get("weight")
    while isinstance(current, fx.Node) and len(current.users) == 1:
        if current.target in _PRODUCTS:
            places = [i for i, arg in enumerate(current.args) if isinstance(arg, float)]
            return (current, places[0]) if len(places) == 1 else None
        if current.target not in _SHAPED:
            return None
        current = current.args[0]
    return None
