"""The network as a reader sees it: layers, and the places where their outputs meet."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..groups import layer_of
from ..walks import tensor_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import fx

    from ..inspection import Inspection
    from ..ir import Group
    from ..planes import Plane

__all__ = ["Network", "Node", "network_of"]


@dataclass(frozen=True)
class Node:
    """A layer, a join, an input or an output.

    Attributes
    ----------
    name : str
        Of the layer, or of the graph's node where there is none.
    op : str
        What happens there: a module's class or a function's name.
    source : str
        ``file:line``, or empty.
    shape : tuple of int
        Of the output on the example inputs; empty where there are several outputs.
    tensors : tuple of str
        Parameters and buffers used there, by their first names.
    size : int
        Entries along the axis that units run along, 0 where there is none or several.
    groups : tuple of (int, int)
        Groups whose units run through the output (positions in growable, then frozen),
        with their entries along that axis.
    """

    name: str
    op: str
    source: str
    shape: tuple[int, ...]
    tensors: tuple[str, ...]
    size: int
    groups: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Network:
    """Nodes in execution order, and edges from earlier to later ones."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]


def network_of(inspection: Inspection) -> Network:
    """Reduce the traced graph to what has weights, joins or stops something.

    What only passes one value on (activations, reshapes) is left out, unless it is a frozen
    group's reason. Linear in the size of the graph and of its planes.

    Parameters
    ----------
    inspection : Inspection

    Returns
    -------
    Network
    """
    traced = inspection.analysis.traced
    first = {id(tensor): name for name, tensor in tensor_names(traced.root).items()}
    groups = (*inspection.groups, *inspection.frozen)
    # auxiliary heads run in one mode only: the longer graph has them
    graph = max((graph for _, graph in traced.distinct), key=lambda g: len(g.nodes))
    if any(node.op == "call_module" and node.target == "" for node in graph.nodes):
        return by_layers(inspection)  # the model is no graph
    told = {group.reason.node for group in groups if group.reason is not None} - {""}
    owners = _owners(inspection, groups)
    walk = _Walk(inspection.analysis.planes, told)
    nodes = []
    for node in graph.nodes:
        loose = walk.visit(node, _own_tensors(traced.root, node, first))
        if loose is not None:
            nodes.append(_node(traced.root, node, loose, inspection.analysis.planes, owners))
    return Network(tuple(nodes), tuple(walk.edges))


def by_layers(inspection: Inspection) -> Network:
    """Picture a model that is no graph: its layers as defined, readers under writers.

    A layer that reads or normalises a group's units hangs on the last layer before it, in
    order of definition, that writes or normalises them. Joins are not known.

    Parameters
    ----------
    inspection : Inspection

    Returns
    -------
    Network
    """
    root = inspection.analysis.traced.root
    groups = (*inspection.groups, *inspection.frozen)
    used = {slot.tensor for group in groups for slot in group.slots}
    layers: dict[str, list[str]] = defaultdict(list)
    for tensor in tensor_names(root):
        if tensor in used:
            layers[layer_of(tensor)].append(tensor)
    place = {layer: i for i, layer in enumerate(layers)}
    written: list[dict[int, int]] = [{} for _ in layers]
    edges: set[tuple[int, int]] = set()
    for position, group in enumerate(groups):
        roles: dict[str, set[int]] = defaultdict(set)
        for slot in group.slots:
            layer = place[layer_of(slot.tensor)]
            roles[slot.role].add(layer)
            if slot.role != "consumer":
                written[layer][position] = slot.positions.size
        edges |= _hung(roles["producer"] | roles["norm"], roles["norm"] | roles["consumer"])
    nodes = [
        Node(
            layer,
            _class(root, layer),
            "",
            (),
            tuple(tensors),
            max(sizes.values(), default=0),
            tuple(sizes.items()),
        )
        for (layer, tensors), sizes in zip(layers.items(), written, strict=True)
    ]
    return Network(tuple(nodes), tuple(sorted(edges)))


def _hung(writers: set[int], readers: set[int]) -> set[tuple[int, int]]:
    before = {reader: [w for w in writers if w < reader] for reader in readers}
    return {(max(found), reader) for reader, found in before.items() if found}


def _class(root: Any, layer: str) -> str:
    module = dict(root.named_modules()).get(layer)
    return "parameter" if module is None else type(module).__name__


class _Walk:
    """Goes through a graph once; knows what every node's value descends from."""

    def __init__(self, planes: Mapping[fx.Node, Any], told: set[str]) -> None:
        self.planes, self.told = planes, told
        self.edges: list[tuple[int, int]] = []
        self.count = 0
        self.above: dict[fx.Node, tuple[int, ...]] = {}  # kept nodes that a value comes from
        self.loose: dict[fx.Node, tuple[str, ...]] = {}  # tensors that have met no value yet

    def visit(self, node: fx.Node, own: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return the tensors used at ``node`` if it is kept, else None."""
        inputs = node.all_input_nodes
        above = tuple(dict.fromkeys(k for n in inputs for k in self.above.get(n, ())))
        loose = (*own, *(t for n in inputs for t in self.loose.get(n, ())))
        if node.op == "get_attr" or (loose and not above and node.op != "call_module"):
            self.loose[node] = loose  # a weight, or something computed from weights alone
            return None
        if not (loose or self._shown(node, above)):
            if _holds_tensor(self.planes.get(node)):  # sizes lead nowhere
                self.above[node] = above
            return None
        self.edges += [(k, self.count) for k in above]
        self.above[node] = (self.count,)
        self.count += 1
        return tuple(dict.fromkeys(loose))

    def _shown(self, node: fx.Node, above: tuple[int, ...]) -> bool:
        ends = node.op in {"placeholder", "output"}
        joins = len(above) > 1
        return ends or ((joins or node.name in self.told) and _holds_tensor(self.planes.get(node)))


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        return any(_holds_tensor(item) for item in value)
    return hasattr(value, "planes")


def _own_tensors(root: Any, node: fx.Node, first: Mapping[int, str]) -> tuple[str, ...]:
    if node.op == "get_attr":
        value: Any = root
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return (first[id(value)],) if id(value) in first else ()
    if node.op != "call_module":
        return ()
    module = root.get_submodule(str(node.target))
    tensors = (*module.parameters(), *module.buffers())
    return tuple(first[id(t)] for t in tensors if id(t) in first)


def _node(
    root: Any,
    node: fx.Node,
    tensors: tuple[str, ...],
    planes: Mapping[fx.Node, Any],
    owners: np.ndarray,
) -> Node:
    value: Any = planes.get(node)
    shape = value.shape if hasattr(value, "planes") else ()
    found: Counter[int] = Counter()
    size = 0
    for plane in _planes(value):
        if len(plane.dims) == 1 and shape:
            size = size or shape[plane.dims[0]]
        found |= Counter(owners[plane.labels].reshape(-1).tolist())
    found.pop(-1, None)
    if node.op == "call_module":
        name, op = str(node.target), type(root.get_submodule(str(node.target))).__name__
    else:
        target: Any = node.target
        op = node.op if node.op in {"placeholder", "output"} else getattr(target, "__name__", "")
        op = {"placeholder": "input"}.get(op, op) or str(target)
        name = layer_of(tensors[0]) if tensors else node.name
    source = node.meta.get("source", "")
    return Node(name, op, source, shape, tensors, size, tuple(sorted(found.items())))


def _planes(value: Any) -> Iterable[Plane]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for item in value:
            yield from _planes(item)
    else:
        yield from getattr(value, "planes", ())


def _owners(inspection: Inspection, groups: tuple[Group, ...]) -> np.ndarray:
    """Position of every label's group in ``groups``, -1 where it has none."""
    state = inspection.analysis.state
    of_root = np.full(state.book.size, -1, dtype=np.int64)
    for position, group in enumerate(groups):
        for slot in group.slots[:1]:  # a unit's slices share their root
            labels = state.axes[slot.tensor, slot.dim][slot.positions[:, 0]]
            of_root[state.book.find(labels)] = position
    return of_root[state.book.find(np.arange(state.book.size, dtype=np.int64))]


def roles_of(group: Group, users: Mapping[str, Iterable[int]]) -> dict[str, list[int]]:
    """Find the nodes that use a group's tensors, by role.

    Parameters
    ----------
    group : Group
    users : dict of str to iterable of int
        Tensor name to positions of nodes, from :func:`users_of`.

    Returns
    -------
    dict of str to list of int
        ``producer``, ``norm``, ``per_unit`` and ``consumer``, ascending.
    """
    found: dict[str, set[int]] = defaultdict(set)
    for slot in group.slots:
        found[slot.role].update(users.get(slot.tensor, ()))
    return {role: sorted(nodes) for role, nodes in found.items()}


def users_of(network: Network) -> dict[str, list[int]]:
    """Tensor name to positions of the nodes that use it."""
    users: dict[str, list[int]] = defaultdict(list)
    for position, node in enumerate(network.nodes):
        for tensor in node.tensors:
            users[tensor].append(position)
    return users
