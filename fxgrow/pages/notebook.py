"""What notebooks show for inspections, votes and growths: short tables, no scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .safe import attribute
from .view import short, site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..ir import Votes
    from .view import Row, View

__all__ = ["snippet", "votes_snippet"]

MOST = 40  # rows; notebooks keep every output in their file
_CELL = "text-align:left;padding:.15em .7em"
_RIGHT = "text-align:right;padding:.15em .7em;font-variant-numeric:tabular-nums"


def snippet(view: View) -> str:
    """Write a report as a piece of HTML.

    Parameters
    ----------
    view : View

    Returns
    -------
    str
        Facts, and a table of at most 40 groups; it takes the notebook's own colours.
    """
    facts = " · ".join(f"<b>{attribute(f)}</b> {attribute(label)}" for label, f in view.facts)
    title = attribute(f"{view.title}: {view.subtitle}" if view.subtitle else view.title)
    parts = [f"<div><p><b>{title}</b></p><p>{facts}</p>", _table(view.rows[:MOST])]
    if len(view.rows) > MOST:
        parts.append(f"<p>… and {len(view.rows) - MOST:,} more groups; to_html(path) has all.</p>")
    return "".join([*parts, "</div>"])


def votes_snippet(votes: Votes) -> str:
    """Write votes as a piece of HTML: counts, noise and a bar for each group."""
    most = max(votes.counts.values(), default=0) or 1
    ranked = sorted(votes.counts.items(), key=lambda item: -item[1])
    rows = []
    for name, count in ranked[:MOST]:
        noise = f" ± {votes.noise[name]:.1f}" if name in votes.noise else ""
        bar = (
            f'<div style="width:{120 * count / most:.0f}px;height:.7em;'
            'background:currentColor;opacity:.45"></div>'
        )
        rows.append((f"<code>{attribute(name)}</code>", f"{count:,}{noise}", bar))
    cells = "".join(
        f'<tr><td style="{_CELL}">{name}</td><td style="{_RIGHT}">{count}</td>'
        f'<td style="{_CELL}">{bar}</td></tr>'
        for name, count, bar in rows
    )
    more = len(ranked) - MOST
    rest = f"<p>… and {more:,} more groups</p>" if more > 0 else ""
    return (
        f"<div><p><b>Votes</b> ({attribute(votes.distributor)}, budget {votes.budget:,.0f} "
        f"{attribute(votes.unit)})</p><table>{cells}</table>{rest}</div>"
    )


def _table(rows: Sequence[Row]) -> str:
    grown = any(row.added is not None for row in rows)
    voted = any(row.votes is not None for row in rows)
    head = ["group", "width", *(["new width"] if grown else []), "params per unit"]
    head += [*(["votes"] if voted else []), "layers, or why frozen"]
    lines = ["".join(f'<th style="{_CELL}">{name}</th>' for name in head)]
    for row in rows:
        numbers = [f"{row.width:,}"]
        if grown:
            numbers.append(f"<b>{row.width + row.added:,}</b>" if row.added else "·")
        numbers.append("" if row.params is None else short(row.params))
        if voted:
            numbers.append("" if row.votes is None else f"{row.votes:,}")
        cells = [f'<td style="{_CELL}"><code>{attribute(row.name)}</code></td>']
        cells += [f'<td style="{_RIGHT}">{number}</td>' for number in numbers]
        cells.append(f'<td style="{_CELL}">{_more(row)}</td>')
        lines.append("".join(cells))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _more(row: Row) -> str:
    if row.reason is not None:
        place = attribute(site(row.reason))
        return f"{attribute(row.reason['message'])} <code>{place}</code>"
    names = ", ".join(row.layers[:3]) + (" …" if len(row.layers) > 3 else "")
    return f"<code>{attribute(names)}</code>"
