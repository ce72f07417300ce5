"""The second mode's graph, as far as it does what the first one did.

Graphs of eval and train mode differ in a few nodes: dropout that is asked for, a stochastic
depth, auxiliary heads. A node of the second graph whose operation and arguments are those of a
node of the first has the same labels, so it is not computed again: what the first run wrote
down is written down for it, too. A node that only passes on the labels of its input (dropout)
stands for that input.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import fx

from .propagate import LABELS_KEY, Noted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .planes import Plane
    from .propagate import Propagation, Value

__all__ = ["Kept", "Recording", "Second"]


class Kept(NamedTuple):
    """What the run of one node left: its value, its planes, labels and events.

    ``events`` are ranges of the book's lists, see :func:`_lists`.
    """

    value: Any
    planes: Any
    written: list[tuple[torch.Tensor, Value]]
    events: tuple[range, ...]


@dataclass
class Recording:
    """A run of a graph, node by node."""

    state: Propagation
    nodes: dict[fx.Node, Kept] = field(default_factory=dict)
    _start: tuple[int, ...] = ()

    def begin(self) -> None:
        """Before a node runs."""
        self._start = tuple(map(len, _lists(self.state)))
        self.state.written = []

    def end(self, node: fx.Node, value: Any, planes: Any) -> None:
        """After it ran."""
        ends = map(len, _lists(self.state))
        events = tuple(map(range, self._start, ends))
        # Blanks are known by their nodes, and code that looks at values may do other things.
        if not self.state.resized and not self.state.computed:
            self.nodes[node] = Kept(value, planes, self.state.written or [], events)
        self.state.written = None


def _lists(state: Propagation) -> tuple[list[Any], ...]:
    """Return the lists of events that happen at a node."""
    book = state.book
    return book.mixings, book.reshapes, book.seams, book.statistics, state.placements


class Second:
    """Finds for nodes of the second graph those of the first that they equal."""

    def __init__(self, first: Recording) -> None:
        self.first = first
        self.images: dict[fx.Node, fx.Node] = {}
        self._near: dict[fx.Node, fx.Node] = {}  # other arguments, as of a dropout
        self._open: dict[Any, deque[fx.Node]] = defaultdict(deque)
        for node in first.nodes:
            self._open[(node.op, node.target, *node.all_input_nodes)].append(node)

    def of(self, node: fx.Node) -> Kept | None:
        """Return the result of the node that ``node`` equals, if there is one."""
        inputs = [self.images.get(n) for n in node.all_input_nodes]
        if None in inputs:
            return None
        alike = self._open.get((node.op, node.target, *inputs))
        image = alike.popleft() if alike else None
        if image is None:
            return None
        if not _same_arguments(node, image, self.images):
            self._near[node] = image
            return None
        self.images[node] = image
        return self._again(node, self.first.nodes[image])

    def _again(self, node: fx.Node, kept: Kept) -> Kept:
        """Write down for ``node`` what its image wrote down."""
        for tensor, value in kept.written:
            tensor.__dict__[LABELS_KEY] = value
        for events, own in zip(_lists(self.first.state), kept.events, strict=True):
            for i in own:
                event: Any = events[i]
                again = event._replace(where=event.where._replace(site=node))
                events.append(again)
        return kept

    def stands_for(self, node: fx.Node, value: Any, planes: Any) -> Any:
        """Return the value of an earlier node whose labels ``node`` has, else its own.

        Asked are the node of the first graph that differs in its arguments, and the inputs.
        """
        if not isinstance(value, torch.Tensor) or not _live(value):
            return value
        images = [self.images.get(given) for given in node.all_input_nodes]
        for image in (self._near.get(node), *images):
            if image is not None and _passed_on(value, planes, self.first.nodes[image]):
                self.images[node] = image
                return self.first.nodes[image].value
        return value


def _same_arguments(node: fx.Node, image: fx.Node, images: Mapping[fx.Node, fx.Node]) -> bool:
    args = fx.node.map_arg((node.args, node.kwargs), images.__getitem__)
    return _equal(args, (image.args, image.kwargs))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, slice):
        return isinstance(b, slice) and _equal(_ends(a), _ends(b))
    return a is b or (type(a) is type(b) and isinstance(a, _PLAIN) and bool(a == b))


def _ends(part: slice) -> tuple[Any, Any, Any]:
    return part.start, part.stop, part.step


_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device, torch.memory_format)


def _live(tensor: torch.Tensor) -> bool:
    known: Value | None = tensor.__dict__.get(LABELS_KEY)
    return known is not None and known.live


def _passed_on(value: torch.Tensor, planes: Any, kept: Kept) -> bool:
    other = kept.value
    if not isinstance(other, torch.Tensor) or not isinstance(kept.planes, Noted):
        return False
    known = other.__dict__.get(LABELS_KEY)
    return (
        known is not None
        and known.live
        and other.dtype == value.dtype
        and kept.planes.shape == planes.shape
        and _same_planes(known.planes, kept.planes.planes)
        and _same_planes(planes.planes, known.planes)
    )


def _same_planes(a: Sequence[Plane], b: Sequence[Plane]) -> bool:
    return len(a) == len(b) and all(
        (p.labels is q.labels or np.array_equal(p.labels, q.labels))
        and p.zero == q.zero
        and p.flow == q.flow
        for p, q in zip(a, b, strict=True)
    )
