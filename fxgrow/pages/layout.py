"""Where everything in the picture goes: rows from input to output, columns for branches.

A chain of layers stays in its column. An edge that jumps over rows runs through its own
column where that is free, else in a lane on the right, nested like brackets. Pure, and
linear in the network but for the lanes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .network import Network

__all__ = ["Box", "Picture", "Wire", "lay_out"]

ROW, COLUMN, MARGIN = 26, 284, 14  # pixels
HEAD, TAIL, SMALL = 176, 84, 92  # widths of a layer's box, of a norm's beside it, of a join's
LANE = 7
HALF = 10  # of a box's height
PORT = 22  # from a box's left edge to where wires enter and leave


@dataclass(frozen=True)
class Box:
    """Left edge, centre line and width of one node, in pixels."""

    x: int
    y: int
    width: int


@dataclass(frozen=True)
class Wire:
    """An edge: the nodes at its ends, and the corners it runs through, in pixels."""

    source: int
    target: int
    corners: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Picture:
    """Boxes of all nodes, wires of all edges, and the size, in pixels."""

    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]
    width: int
    height: int


@dataclass
class _Plan:
    rows: list[int]
    columns: list[int]
    taken: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    reach: list[int] = field(default_factory=list)  # right edge of every row


def lay_out(network: Network, beside: Collection[int] = ()) -> Picture:
    """Place a network's nodes and edges.

    Parameters
    ----------
    network : Network
    beside : collection of int
        Nodes (norms) that stand on the right of the one node they read, if they can.

    Returns
    -------
    Picture
    """
    count = len(network.nodes)
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for source, target in network.edges:
        above[target].append(source)
        below[source].append(target)
    host = _hosts(above, below, beside)
    edges = [(host[a], host[b]) for a, b in network.edges if host[a] != host[b]]
    plan = _placed(count, host, edges)
    full = [bool(node.tensors) for node in network.nodes]
    boxes = [
        Box(
            MARGIN + plan.columns[host[i]] * COLUMN + (HEAD if host[i] != i else 0),
            MARGIN + plan.rows[host[i]] * ROW + ROW // 2,
            TAIL if host[i] != i else HEAD if full[i] else SMALL,
        )
        for i in range(count)
    ]
    plan.reach = [0] * (max(plan.rows, default=0) + 1)
    for i, box in enumerate(boxes):
        row = plan.rows[host[i]]
        plan.reach[row] = max(plan.reach[row], box.x + box.width)
    wires = _wired(edges, plan, _ends(host), boxes)
    right = max([*plan.reach, *(x for wire in wires for x, _ in wire.corners), 0])
    height = 2 * MARGIN + ROW * len(plan.reach)
    return Picture(tuple(boxes), tuple(wires), right + MARGIN, height)


def _hosts(
    above: Sequence[Sequence[int]], below: Sequence[Sequence[int]], beside: Collection[int]
) -> list[int]:
    """Who shares whose row: a norm that alone reads one layer stands beside it."""
    host = list(range(len(above)))
    for node in sorted(beside):
        if len(above[node]) == 1:
            (layer,) = above[node]
            if len(below[layer]) == 1 and layer not in beside:
                host[node] = layer
    return host


def _ends(host: Sequence[int]) -> dict[int, int]:
    """Find the box at which the wires of a row start: the last one in it."""
    ends: dict[int, int] = {}
    for node, layer in enumerate(host):
        ends[layer] = node
    return ends


def _placed(count: int, host: Sequence[int], edges: Sequence[tuple[int, int]]) -> _Plan:
    """Rows by the longest path from the inputs, columns by who goes on."""
    above: dict[int, list[int]] = defaultdict(list)
    below: dict[int, list[int]] = defaultdict(list)
    for a, b in edges:
        above[b].append(a)
        below[a].append(b)
    cells = [i for i in range(count) if host[i] == i]
    rows, heights = [0] * count, [0] * count
    for cell in cells:
        rows[cell] = max((rows[a] + 1 for a in above[cell]), default=0)
    for cell in reversed(cells):
        heights[cell] = max((heights[b] + 1 for b in below[cell]), default=0)
    plan = _Plan(rows, [0] * count)
    used: dict[int, set[int]] = defaultdict(set)
    # the branch with the longest way to go keeps the column
    for cell in sorted(cells, key=lambda c: (rows[c], -heights[c], c)):
        parents = above[cell]
        wish = plan.columns[max(parents, key=lambda a: (rows[a], -a))] if parents else 0
        column = _nearest(wish, used[rows[cell]])
        used[rows[cell]].add(column)
        plan.columns[cell] = column
        plan.taken[column].append(rows[cell])
    return plan


def _nearest(wish: int, used: set[int]) -> int:
    for distance in range(len(used) + wish + 1):
        for column in (wish + distance, wish - distance):
            if column >= 0 and column not in used:
                return column
    raise AssertionError("there is always a free column")


def _free(plan: _Plan, column: int, top: int, bottom: int) -> bool:
    """Whether nothing stands in ``column`` strictly between two rows."""
    rows = plan.taken[column]
    at = bisect_left(rows, top + 1)
    return at == len(rows) or rows[at] >= bottom


def _wired(
    edges: Sequence[tuple[int, int]], plan: _Plan, ends: dict[int, int], boxes: Sequence[Box]
) -> list[Wire]:
    wires: list[Wire] = []
    far: dict[int, list[int]] = defaultdict(list)
    for a, b in edges:
        top, bottom = plan.rows[a], plan.rows[b]
        columns = (plan.columns[a], plan.columns[b])
        if bottom == top + 1:
            wires.append(Wire(ends[a], b, _down(boxes[a], boxes[b], boxes[b].x)))
            continue
        free = next((c for c in columns if _free(plan, c, top, bottom)), None)
        if free is None:
            far[a].append(b)
        else:
            corners = _down(boxes[a], boxes[b], MARGIN + free * COLUMN)
            wires.append(Wire(ends[a], b, corners))
    lanes: list[list[tuple[int, int]]] = []
    # short ones first: they get the inner lanes
    for a in sorted(far, key=lambda a: (max(plan.rows[b] for b in far[a]) - plan.rows[a], a)):
        top, bottom = plan.rows[a], max(plan.rows[b] for b in far[a])
        x = _lane(lanes, top, bottom, max(plan.reach[top : bottom + 1]) + LANE)
        wires += [Wire(ends[a], b, _around(boxes[ends[a]], boxes[b], x)) for b in far[a]]
    return wires


def _down(a: Box, b: Box, x: int) -> tuple[tuple[int, int], ...]:
    """From below ``a`` to above ``b``, on the way in the column that starts at ``x``."""
    start, end, x = a.x + PORT, b.x + PORT, x + PORT
    gap = ROW // 2
    corners = [(start, a.y + HALF), (start, a.y + gap), (x, a.y + gap)]
    corners += [(x, b.y - gap), (end, b.y - gap), (end, b.y - HALF)]
    return tuple(dict.fromkeys(corners))


def _around(a: Box, b: Box, x: int) -> tuple[tuple[int, int], ...]:
    """From the right of ``a`` to the right of ``b``, in the lane at ``x``."""
    nudge = 4  # arrivals above the centre line, departures below it
    down, up = a.y + nudge, b.y - nudge
    return (a.x + a.width, down), (x, down), (x, up), (b.x + b.width, up)


def _lane(lanes: list[list[tuple[int, int]]], top: int, bottom: int, least: int) -> int:
    """Take the first lane right of ``least`` that is free between two rows."""
    number = -(-least // LANE)
    while True:
        while len(lanes) <= number:
            lanes.append([])
        spans = lanes[number]
        at = bisect_left(spans, (top, bottom))
        before = at == 0 or spans[at - 1][1] <= top
        after = at == len(spans) or spans[at][0] >= bottom
        if before and after:
            spans.insert(at, (top, bottom))
            return number * LANE
        number += 1
