"""A picture of the network as SVG text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .layout import HALF, HEAD
from .safe import attribute, shortened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .layout import Box, Picture
    from .network import Network, Node

__all__ = ["hue", "svg"]

CHARACTER = 6.65  # width of one, at the 11 px of page.css
SIGNS = {"add": "+", "add_": "+", "iadd": "+", "mul": "×", "cat": "concat"}


def hue(position: int) -> int:
    """Return a hue (degrees) for a group; neighbours differ much (golden angle)."""
    return round(position * 137.508) % 360


def svg(
    network: Network,
    picture: Picture,
    stripes: Sequence[int | None],
    widths: Mapping[int, int],
) -> str:
    """Draw a network.

    Parameters
    ----------
    network : Network
    picture : Picture
        Its layout.
    stripes : sequence of int or None
        Group that each node writes, for its colour; None where there is none that grows.
    widths : dict of int to int
        New size of the units' axis, for nodes whose group grows.

    Returns
    -------
    str
        One ``<svg>`` element. Nodes are ``g.n`` with ``data-i``, edges ``path`` with
        ``data-e="source target"``.
    """
    lines = [
        f'<svg id="net" width="{picture.width}" height="{picture.height}" '
        f'viewBox="0 0 {picture.width} {picture.height}" role="img" '
        'aria-label="The network, from inputs to outputs">',
        '<g class="wires">',
    ]
    lines += [
        f'<path data-e="{wire.source} {wire.target}" d="{_path(wire.corners)}"/>'
        for wire in picture.wires
    ]
    lines.append("</g>")
    for i, (node, box) in enumerate(zip(network.nodes, picture.boxes, strict=True)):
        lines.append(_box(i, node, box, stripes[i], widths.get(i)))
    return "\n".join([*lines, "</svg>"])


def _path(corners: Sequence[tuple[int, int]]) -> str:
    (x, y), *rest = corners
    parts = [f"M{x} {y}"]
    for new_x, new_y in rest:
        parts.append(f"V{new_y}" if new_x == x else f"H{new_x}" if new_y == y else "")
        if not parts[-1]:
            parts[-1] = f"L{new_x} {new_y}"
        x, y = new_x, new_y
    return "".join(parts)


def _box(i: int, node: Node, box: Box, stripe: int | None, new: int | None) -> str:
    kind = "n layer" if node.tensors else "n"
    kind += " grown" if new is not None else ""
    style = "" if stripe is None else f' style="--h:{hue(stripe)}"'
    left, top = box.x, box.y - HALF
    narrow = box.width < HEAD
    size = "" if not node.tensors or not node.size else str(node.size if new is None else new)
    if new is not None and size and not narrow:
        size = f"{node.size}→{new}"
    room = int((box.width - 14) / CHARACTER) - (len(size) + 1 if size else 0)
    text = shortened(_label(node, narrow), max(room, 3))
    parts = [
        f'<g class="{kind}" data-i="{i}"{style} transform="translate({left} {top})">',
        f'<rect width="{box.width}" height="{2 * HALF}" rx="4"/>',
    ]
    if stripe is not None:
        parts.append(f'<rect class="stripe" width="4" height="{2 * HALF}" rx="2"/>')
    parts.append(f'<text x="9" y="14">{attribute(text)}</text>')
    if size:
        parts.append(f'<text class="size" x="{box.width - 6}" y="14">{size}</text>')
    return "".join([*parts, "</g>"])


def _label(node: Node, narrow: bool) -> str:
    if not node.tensors:
        return SIGNS.get(node.op, node.op)
    return node.name.rpartition(".")[2] if narrow else node.name
