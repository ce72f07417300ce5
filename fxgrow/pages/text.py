"""Reports as Markdown, GraphML and DOT."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import networkx as nx

from .safe import clean, code
from .view import short, site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ..inspection import Inspection
    from ..ir import Group
    from .view import Row, View

__all__ = ["dot", "graphml", "markdown"]

SHOWN_LAYERS = 4


def markdown(view: View) -> str:
    """Write a report as Markdown (tables as on GitHub)."""
    subtitle = f": {code(view.subtitle)}" if view.subtitle else ""
    parts = [f"# {view.title}{subtitle}"]
    parts.append("\n".join(f"- {label}: **{figure}**" for label, figure in view.facts))
    parts += view.notes
    growable = [row for row in view.rows if row.reason is None]
    if growable:
        parts += ["## Widths that can grow", _growable(growable)]
    frozen = [row for row in view.rows if row.reason is not None]
    if frozen:
        cells = [
            [code(r.name), f"{r.width:,}", _plain(r.reason["message"]), code(site(r.reason))]
            for r in frozen
            if r.reason is not None
        ]
        parts += ["## Frozen", _table(("group", ">width", "why", "where"), cells)]
    if view.unsupported:
        cells = [[code(u["op"]), f"{u['count']:,}", code(site(u))] for u in view.unsupported]
        head = ("operation", ">calls", "first at")
        parts += ["## Operations without a rule", _table(head, cells)]
    return "\n\n".join(parts) + "\n"


_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("added", ">new width", lambda row: f"{row.width + row.added:,}" if row.added else "·"),
    ("step", ">step", lambda row: f"{row.step:,}"),
    ("rows", ">rows per unit", lambda row: f"{row.rows:,}"),
    ("params", ">params per unit", lambda row: f"{row.params:,}"),
    ("flops", ">FLOPs per unit", lambda row: short(row.flops)),
    ("votes", ">votes", lambda row: f"{row.votes:,}"),
    ("activity", ">active", lambda row: f"{row.activity:.0%}"),
)


def _growable(rows: Sequence[Row]) -> str:
    shown = [c for c in _COLUMNS if any(getattr(row, c[0]) is not None for row in rows)]
    head = ["group", ">width", *(title for _, title, _ in shown), "layers"]
    cells = [
        [
            code(row.name),
            f"{row.width:,}",
            *("" if getattr(row, key) is None else write(row) for key, _, write in shown),
            _layers(row.layers),
        ]
        for row in rows
    ]
    return _table(head, cells)


def _layers(layers: Sequence[str]) -> str:
    rest = len(layers) - SHOWN_LAYERS
    names = ", ".join(map(code, layers[:SHOWN_LAYERS]))
    return names + (f" and {rest:,} more" if rest > 0 else "")


def _plain(text: str) -> str:
    """Text of a table cell that is no markup, whatever it holds."""
    flat = " ".join(clean(text).split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|" else c for c in flat)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table; a heading that starts with ``>`` stands over numbers."""
    rules = ["--:" if name.startswith(">") else "---" for name in head]
    lines = [[name.removeprefix(">") for name in head], rules, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# -------------------------------------------------------------------- graphs


def graphml(inspection: Inspection) -> str:
    """Write the graph of axes and couplings as GraphML, for Gephi, yEd and Cytoscape.

    Nodes are tensors' axes (``tensor:dim``) and layers; ``groups`` names the groups that an
    axis holds, ``frozen`` why one of them can't grow. Edges carry ``kind``, ``op``, ``node``
    and ``source`` of what coupled their ends.

    Parameters
    ----------
    inspection : Inspection

    Returns
    -------
    str
    """
    reasons = {g.name: g.reason.message for g in inspection.frozen if g.reason is not None}
    plain: nx.Graph[str] = nx.Graph()
    names = {node: f"{i}" for i, node in enumerate(inspection.graph.nodes)}
    for node, data in inspection.graph.nodes(data=True):
        groups = data.get("groups", ())
        frozen = "; ".join(dict.fromkeys(reasons[name] for name in groups if name in reasons))
        attributes = {"label": _node_name(node), "kind": data.get("kind", "")}
        attributes |= {"groups": ", ".join(groups), "frozen": frozen}
        plain.add_node(names[node], **_cleaned(attributes))
    for left, right, data in inspection.graph.edges(data=True):
        plain.add_edge(names[left], names[right], **_cleaned(data))
    buffer = io.BytesIO()
    write: Any = nx.write_graphml_xml  # needs no lxml, and is not annotated
    write(plain, buffer, encoding="utf-8", prettyprint=False)
    return buffer.getvalue().decode("utf-8")


def _cleaned(attributes: Mapping[str, Any]) -> dict[str, str]:
    return {key: clean(str(value)) for key, value in attributes.items()}


def _node_name(node: Any) -> str:
    return ":".join(map(str, node)) if isinstance(node, tuple) else str(node)


def dot(inspection: Inspection) -> str:
    """Write the graph of axes and couplings in Graphviz' language.

    Each group is a cluster (a frozen one dashed, with its reason); an edge carries the
    graph node that coupled its two ends.

    Parameters
    ----------
    inspection : Inspection
        What :func:`fxgrow.inspect` returned.

    Returns
    -------
    str
        Input for ``dot -Tsvg``.
    """
    lines = ["graph fxgrow {", "  rankdir=LR; node [shape=box, fontsize=10];"]
    for index, group in enumerate((*inspection.groups, *inspection.frozen)):
        lines += _cluster(index, group)
    for left, right, data in inspection.graph.edges(data=True):
        ends = f"{_quote(_node_name(left))} -- {_quote(_node_name(right))}"
        lines.append(f"  {ends} [label={_quote(str(data.get('node', '')))}];")
    return "\n".join([*lines, "}", ""])


def _cluster(index: int, group: Group) -> list[str]:
    label = f"{group.name}: {group.width}"
    if group.reason is not None:
        label += f" (frozen: {group.reason.message})"
    style = "solid" if group.reason is None else "dashed"
    # an axis can hold several groups (concatenation): the first cluster shows it
    nodes = sorted({_quote(_node_name((slot.tensor, slot.dim))) for slot in group.slots})
    return [
        f"  subgraph cluster_{index} {{ label={_quote(label)}; style={style};",
        *(f"    {node};" for node in nodes),
        "  }",
    ]


def _quote(text: str) -> str:
    flat = " ".join(clean(text).split()).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{flat}"'
