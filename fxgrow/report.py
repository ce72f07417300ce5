"""Inspections and growths as plain data, HTML and DOT. Nothing here prints."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from .inspection import Inspection
    from .ir import Group, Plan, Verification, Votes

INSPECTION_SCHEMA = "fxgrow.inspection/1"
GROWTH_SCHEMA = "fxgrow.growth/1"


def count_params(module: torch.nn.Module) -> int:
    """Count the parameter elements of ``module``, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------- plain data


def inspection_dict(inspection: Inspection) -> dict[str, Any]:
    """Turn an inspection into JSON types (schema ``fxgrow.inspection/1``).

    Parameters
    ----------
    inspection : Inspection
        What :func:`fxgrow.inspect` returned.

    Returns
    -------
    dict
        ``groups`` and ``frozen`` (see :func:`group_dict`), ``coverage`` (0 to 1),
        ``params`` (elements), ``flops`` (on the example inputs) and ``unsupported``.
    """
    return {
        "schema": INSPECTION_SCHEMA,
        "params": int(inspection.params),
        "flops": int(inspection.flops),
        "coverage": float(inspection.coverage),
        "groups": [group_dict(group) for group in inspection.groups],
        "frozen": [group_dict(group) for group in inspection.frozen],
        "unsupported": [
            {"op": u.op, "count": u.count, "node": u.node, "source": u.source}
            for u in inspection.unsupported
        ],
    }


def group_dict(group: Group) -> dict[str, Any]:
    """Turn one group into JSON types; slots without their positions."""
    reason = group.reason
    return {
        "name": group.name,
        "width": int(group.width),
        "multiple_of": int(group.multiple_of),
        "rows_per_unit": int(group.rows_per_unit),
        "params_per_unit": int(group.params_per_unit),
        "flops_per_unit": int(group.flops_per_unit),
        "layers": list(group.layers),
        "slots": [{"tensor": s.tensor, "dim": s.dim, "role": s.role} for s in group.slots],
        "reason": None
        if reason is None
        else {
            "code": reason.code,
            "message": reason.message,
            "node": reason.node,
            "source": reason.source,
        },
    }


def growth_dict(
    inspection: Inspection,
    plan: Plan,
    *,
    votes: Votes | None = None,
    verification: Verification | None = None,
    module: torch.nn.Module | None = None,
) -> dict[str, Any]:
    """Describe a growth, done or only planned, in JSON types (schema ``fxgrow.growth/1``).

    Parameters
    ----------
    inspection : Inspection
        Of the model before growth.
    plan : Plan
        How many units each group gains.
    votes : Votes, optional
        What the plan was made from.
    verification : Verification, optional
        Whether the function was kept.
    module : torch.nn.Module, optional
        The grown module, if there is one already: its parameters are counted. Without
        it the new number of parameters is the plan's price.

    Returns
    -------
    dict
        ``plan``; ``votes`` (or None); ``groups``: one row per growable group with
        ``name``, ``width``, ``added`` and ``new_width`` (units), ``votes`` (or None) and
        ``params_per_unit``; ``totals``: groups, units and parameters before and after;
        ``verification`` (or None).
    """
    rows = [_growth_row(group, plan, votes) for group in inspection.groups]
    return {
        "schema": GROWTH_SCHEMA,
        "plan": plan_dict(plan),
        "votes": None if votes is None else votes_dict(votes),
        "groups": rows,
        "totals": {
            "groups_grown": sum(1 for row in rows if row["added"]),
            "groups": len(rows),
            "units": sum(row["width"] for row in rows),
            "new_units": sum(row["new_width"] for row in rows),
            "params": int(inspection.params),
            "new_params": _new_params(inspection, plan, module),
        },
        "verification": None if verification is None else verification_dict(verification),
    }


def _new_params(inspection: Inspection, plan: Plan, module: torch.nn.Module | None) -> int:
    if module is not None:
        return count_params(module)
    return int(inspection.params) + inspection.costs.params(inspection.groups, plan.additions)


def _growth_row(group: Group, plan: Plan, votes: Votes | None) -> dict[str, Any]:
    added = int(plan.additions.get(group.name, 0))
    return {
        "name": group.name,
        "width": int(group.width),
        "added": added,
        "new_width": int(group.width) + added,
        "votes": None if votes is None else int(votes.counts.get(group.name, 0)),
        "params_per_unit": int(group.params_per_unit),
    }


def plan_dict(plan: Plan) -> dict[str, Any]:
    """Turn a plan into JSON types."""
    return {
        "additions": {name: int(units) for name, units in plan.additions.items()},
        "budget": float(plan.budget),
        "unit": plan.unit,
        "spent": int(plan.spent),
        "unspent_reason": plan.unspent_reason,
    }


def votes_dict(votes: Votes) -> dict[str, Any]:
    """Turn votes into JSON types: counts and noise, without the values per candidate."""
    return {
        "distributor": votes.distributor,
        "budget": float(votes.budget),
        "unit": votes.unit,
        "seed": int(votes.seed),
        "counts": {name: int(count) for name, count in votes.counts.items()},
        "noise": {name: float(value) for name, value in votes.noise.items()},
    }


def verification_dict(verification: Verification) -> dict[str, Any]:
    """Turn a verification into JSON types."""
    return {
        "passed": bool(verification.passed),
        "eval_error": float(verification.eval_error),
        "train_error": float(verification.train_error),
        "partition": bool(verification.partition),
        "tolerance": float(verification.tolerance),
        "dtype": verification.dtype,
    }


# ---------------------------------------------------------------------- HTML

_STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #57606a; --head: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --line: #30363d; --soft: #8b949e; --head: #161b22; }
  body { background: #0d1117; color: #e6edf3; }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; }
th { background: var(--head); position: sticky; top: 0; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
small, summary { color: var(--soft); }
code { font: 13px/1.4 ui-monospace, monospace; }
""".strip()


def inspection_html(inspection: Inspection) -> str:
    """Write an inspection as one self-contained HTML page, light or dark as the reader's.

    Parameters
    ----------
    inspection : Inspection
        What :func:`fxgrow.inspect` returned.

    Returns
    -------
    str
        The page; it loads nothing from elsewhere.
    """
    data = inspection_dict(inspection)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><title>fxgrow inspection</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body>",
        "<h1>What can grow</h1>",
        f"<p>{len(data['groups'])} growable groups hold {data['coverage']:.1%} of "
        f"{data['params']:,} parameters; {data['flops']:,} flops on the example inputs.</p>",
        _html_table(
            ("group", "width", "step", "params per unit", "flops per unit", "layers"),
            map(_html_group, data["groups"]),
        ),
    ]
    if data["frozen"]:
        head = ("frozen", "width", "why", "where")
        rows = map(_html_frozen, data["frozen"])
        parts += ["<h1>What cannot, and why</h1>", _html_table(head, rows)]
    if data["unsupported"]:
        cells = ([u["op"], u["count"], u["node"], u["source"]] for u in data["unsupported"])
        head = ("operation", "calls", "first at", "source")
        parts += ["<h1>Operations without a rule</h1>", _html_table(head, cells)]
    return "\n".join([*parts, "</body></html>", ""])


def _html_group(group: Mapping[str, Any]) -> list[Any]:
    return [
        group["name"],
        group["width"],
        group["multiple_of"],
        group["params_per_unit"],
        group["flops_per_unit"],
        ", ".join(group["layers"]),
    ]


def _html_frozen(group: Mapping[str, Any]) -> list[Any]:
    reason = group["reason"] or {"message": "", "node": "", "source": ""}
    where = " ".join(part for part in (reason["node"], reason["source"]) if part)
    return [group["name"], group["width"], reason["message"], where]


def _html_table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = ["<table>", "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    lines += ["<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])


def _html_cell(value: Any) -> str:
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    return f"<td><code>{escape(str(value))}</code></td>"


# ----------------------------------------------------------------------- DOT


def inspection_dot(inspection: Inspection) -> str:
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
        lines += _dot_cluster(index, group)
    for left, right, data in inspection.graph.edges(data=True):
        cause = data.get("node", "")
        lines.append(f"  {_dot_id(left)} -- {_dot_id(right)} [label={_quote(str(cause))}];")
    return "\n".join([*lines, "}", ""])


def _dot_cluster(index: int, group: Group) -> list[str]:
    label = f"{group.name}: {group.width}"
    if group.reason is not None:
        label += f" (frozen: {group.reason.message})"
    style = "solid" if group.reason is None else "dashed"
    # an axis can hold several groups (concatenation): the first cluster shows it
    nodes = sorted({_dot_id((slot.tensor, slot.dim)) for slot in group.slots})
    return [
        f"  subgraph cluster_{index} {{ label={_quote(label)}; style={style};",
        *(f"    {node};" for node in nodes),
        "  }",
    ]


def _dot_id(node: Any) -> str:
    if isinstance(node, tuple):
        return _quote(":".join(map(str, node)))
    return _quote(str(node))


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'
