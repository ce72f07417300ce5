"""One self-contained page: table, picture, and what lights what. It loads nothing."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import TYPE_CHECKING, Any

from .drawing import hue, svg
from .layout import lay_out
from .network import network_of, roles_of, users_of
from .safe import attribute, clean, for_script
from .view import short, site

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..inspection import Inspection
    from .network import Network
    from .view import Row, View

__all__ = ["page"]

LONGEST = 20_000  # nodes that a browser still draws at once
PRINTED = 2600  # pixels of height up to which the picture fits on one sheet of paper
SHOWN_LAYERS = 4
WHOLE = 20  # characters of a name that is kept on one line


def page(view: View) -> str:
    """Write a report as one HTML page, light or dark as the reader's, fit for paper.

    Parameters
    ----------
    view : View

    Returns
    -------
    str
        Names are escaped, and a content security policy lets no script run but the page's
        own, and nothing be loaded.
    """
    style, script = _part("page.css"), _part("page.js")
    inspection = view.inspection
    network = None if inspection is None else network_of(inspection)
    drawn = network is not None and len(network.nodes) <= LONGEST
    data: dict[str, Any] = {"groups": [_sorted_by(row) for row in view.rows]}
    picture = ""
    if drawn and inspection is not None and network is not None:
        picture = _picture(view, inspection, network, data)
    elif network is not None:
        picture = f"<p>The network has {len(network.nodes):,} nodes: too many for a picture.</p>"
    head = (
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{attribute(f'{view.title}: {view.subtitle}' if view.subtitle else view.title)}"
        "</title>",
        f"<style>{style}</style></head><body>",
    )
    body = (
        f"<h1>{attribute(view.title)} <small>{attribute(view.subtitle)}</small></h1>",
        _facts(view.facts),
        *(f"<p>{attribute(note)}</p>" for note in view.notes),
        f"<main{'' if drawn else ' class=plain'}><section>",
        _table(view.rows),
        _unsupported(view.unsupported),
        "</section>",
        picture,
        "</main>",
        f'<script type="application/json" id="data">{for_script(data)}</script>',
        f"<script>{script}</script>",
        "</body></html>",
    )
    return "\n".join([*head, *body, ""])


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    cells = (
        f"<div><dd>{attribute(figure)}</dd><dt>{attribute(label)}</dt></div>"
        for label, figure in facts
    )
    return f'<dl class="facts">{"".join(cells)}</dl>'


# --------------------------------------------------------------------- table

# key in the page's data, heading, is it a number, cell
_COLUMNS: tuple[tuple[str, str, bool], ...] = (
    ("name", "group", False),
    ("width", "width", True),
    ("after", "new width", True),
    ("step", "step", True),
    ("rows", "rows per unit", True),
    ("params", "params per unit", True),
    ("flops", "FLOPs per unit", True),
    ("votes", "votes", True),
    ("activity", "active", True),
    ("more", "layers, or why frozen", False),
)


def _sorted_by(row: Row) -> dict[str, Any]:
    """Return what the page sorts, filters and tells by."""
    frozen, grown = row.reason is not None, bool(row.added)
    state = ["frozen" if frozen else "growable", *(["grown"] if grown else [])]
    units = f"{row.width:,} units"
    if row.added:
        units = f"{row.width:,} → {row.width + row.added:,} units"
    price = "" if row.params is None else f", {row.params:,} parameters each"
    why = ""
    if row.reason is not None:
        why = f"Frozen: {row.reason['message']}; {site(row.reason)}".rstrip("; ")
    return {
        "name": clean(row.name),
        "width": row.width,
        "after": None if row.added is None else row.width + row.added,
        "step": row.step,
        "rows": row.rows,
        "params": row.params,
        "flops": row.flops,
        "votes": row.votes,
        "activity": row.activity,
        "more": clean(why or ", ".join(row.layers)),
        "state": state,
        "about": units + price,
        "why": clean(why),
        "nodes": {},
    }


def _table(rows: Sequence[Row]) -> str:
    keys = [c for c in _COLUMNS if c[0] in {"name", "width", "more"} or _known(rows, c[0])]
    head = "".join(
        f'<th scope="col" data-key="{key}"{" class=num" if number else ""}>'
        f'<button type="button">{text.replace(" per ", "<br>per ")}</button></th>'
        for key, text, number in keys
    )
    widest = max((row.width + (row.added or 0) for row in rows), default=1)
    lines = [
        '<div class="bar">',
        '<input id="seek" type="search" placeholder="Filter by group, layer, reason …" '
        'aria-label="Filter groups">',
        '<select id="status" aria-label="Which groups">',
        '<option value="all">all groups</option><option value="growable">growable</option>',
        *(['<option value="grown">grown</option>'] if any(row.added for row in rows) else []),
        '<option value="frozen">frozen</option></select>',
        '<small id="count" aria-live="polite"></small></div>',
        f'<div class="scroll"><table id="groups"><thead><tr>{head}</tr></thead><tbody>',
    ]
    for position, row in enumerate(rows):
        cells = "".join(_CELLS[key](row, position, widest) for key, _, _ in keys)
        lines.append(f'<tr data-g="{position}" tabindex="0">{cells}</tr>')
    return "\n".join([*lines, "</tbody></table></div>"])


def _known(rows: Sequence[Row], key: str) -> bool:
    plain = (None, 1) if key == "rows" else (None,)  # heads have several rows, channels one
    return any(getattr(row, "added" if key == "after" else key) not in plain for row in rows)


def _name_cell(row: Row, position: int, widest: int) -> str:
    dot = '<span class="dot none"></span>'
    if row.reason is None:
        dot = f'<span class="dot" style="--h:{hue(position)}"></span>'
    whole = len(row.name) <= WHOLE
    name = attribute(row.name) if whole else _breakable(row.name)
    return f'<td class="name{" whole" if whole else ""}">{dot}<code>{name}</code></td>'


def _breakable(name: str) -> str:
    """Let a dotted name break after its dots."""
    return attribute(name).replace(".", ".<wbr>")


def _after_cell(row: Row, position: int, widest: int) -> str:
    if row.added is None:
        return _number(None)
    if not row.added:
        return '<td class="num soft">·</td>'
    old, new = (100 * n / widest for n in (row.width, row.added))
    meter = f'<span class="meter"><i style="width:{old:.1f}%"></i><i style="width:{new:.1f}%">'
    return (
        f'<td class="num">{row.width + row.added:,} <span class="gain">+{row.added:,}</span>'
        f"{meter}</i></span></td>"
    )


def _more_cell(row: Row, position: int, widest: int) -> str:
    if row.reason is not None:
        place = f'<br><code class="soft">{attribute(site(row.reason))}</code>'
        return f'<td class="more frozen">{attribute(row.reason["message"])}{place}</td>'
    names = ", ".join(row.layers[:SHOWN_LAYERS])
    rest = len(row.layers) - SHOWN_LAYERS
    more = f" <small>and {rest:,} more</small>" if rest > 0 else ""
    full = attribute(", ".join(row.layers[:40]))
    return f'<td class="more" title="{full}"><div><code>{_breakable(names)}</code>{more}</div></td>'


def _number(value: int | None) -> str:
    return '<td class="num"></td>' if value is None else f'<td class="num">{value:,}</td>'


def _flops_cell(row: Row, position: int, widest: int) -> str:
    if row.flops is None:
        return _number(None)
    return f'<td class="num" title="{row.flops:,}">{short(row.flops)}</td>'


def _activity_cell(row: Row, position: int, widest: int) -> str:
    text = "" if row.activity is None else f"{row.activity:.0%}"
    return f'<td class="num">{text}</td>'


_CELLS = {
    "name": _name_cell,
    "width": lambda row, position, widest: _number(row.width),
    "after": _after_cell,
    "step": lambda row, position, widest: _number(row.step),
    "rows": lambda row, position, widest: _number(row.rows),
    "params": lambda row, position, widest: _number(row.params),
    "flops": _flops_cell,
    "votes": lambda row, position, widest: _number(row.votes),
    "activity": _activity_cell,
    "more": _more_cell,
}


def _unsupported(operations: Sequence[Mapping[str, Any]]) -> str:
    if not operations:
        return ""
    rows = "".join(
        f'<tr class="plain"><td><code>{attribute(op["op"])}</code></td>'
        f'<td class="num">{op["count"]:,}</td><td><code>{attribute(site(op))}</code></td></tr>'
        for op in operations
    )
    return (
        "<h2>Operations without a rule</h2><p>What they touch is frozen.</p>"
        '<div class="scroll"><table><thead><tr><th>operation</th><th class="num">calls</th>'
        f"<th>first at</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


# ------------------------------------------------------------------- picture

_LEGEND = (
    ("producer", "writes"),
    ("norm", "normalises"),
    ("per_unit", "holds per unit"),
    ("consumer", "reads"),
    ("carries", "passes on"),
)


def _picture(view: View, inspection: Inspection, network: Network, data: dict[str, Any]) -> str:
    users = users_of(network)
    groups = (*inspection.groups, *inspection.frozen)
    for group, entry in zip(groups, data["groups"], strict=True):
        entry["nodes"] = roles_of(group, users)
    for position, node in enumerate(network.nodes):
        for group_position, _ in node.groups:
            if not node.tensors:
                nodes = data["groups"][group_position]["nodes"]
                nodes.setdefault("carries", []).append(position)
    data["nodes"] = [clean(node.name) for node in network.nodes]
    data["writes"] = [_main(node.groups) for node in network.nodes]
    beside = {i for group in data["groups"] for i in group["nodes"].get("norm", ())}
    growable = len(inspection.groups)
    stripes = [w if 0 <= w < growable else None for w in data["writes"]]
    picture = lay_out(network, beside)
    drawing = svg(network, picture, stripes, _new_sizes(view.rows, network))
    legend = "".join(f'<span class="{role}">{text}</span>' for role, text in _LEGEND)
    return (
        f"<aside{' class=long' if picture.height > PRINTED else ''}>"
        '<div id="about"><p class="soft">Point at a row or at a layer: its group lights up, with '
        "all that writes, normalises and reads it. Click to keep it, Esc to let go.</p></div>"
        f'<div class="legend">{legend}</div><div class="stage">'
        f'<div class="sheet" tabindex="0" aria-label="Picture of the network">{drawing}</div>'
        '<button class="strip" type="button" aria-label="Go to a part of the network">'
        "<b></b></button></div></aside>"
    )


def _main(groups: Sequence[tuple[int, int]]) -> int:
    """Return the group with most entries, -1 where there is none."""
    return max(groups, key=lambda pair: pair[1], default=(-1, 0))[0]


def _new_sizes(rows: Sequence[Row], network: Network) -> dict[int, int]:
    """Sizes after growth, of the nodes whose size changes."""
    sizes = {}
    for position, node in enumerate(network.nodes):
        gain = sum((rows[g].added or 0) * count // rows[g].width for g, count in node.groups)
        if gain and node.tensors and node.size:
            sizes[position] = node.size + gain
    return sizes
