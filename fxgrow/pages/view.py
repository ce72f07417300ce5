"""What a report shows, as plain data: the same for HTML, Markdown and notebooks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..inspection import Inspection
    from ..ir import Growth, Plan, Votes

__all__ = ["Row", "View", "growth_view", "inspection_view", "site"]


@dataclass(frozen=True)
class Row:
    """One group, growable or frozen; None is what is not known.

    ``width``, ``step`` and ``added`` count units; ``flops`` is on the example inputs;
    ``activity`` is a share (0 to 1).
    """

    name: str
    width: int
    step: int | None = None
    rows: int | None = None
    params: int | None = None
    flops: int | None = None
    votes: int | None = None
    activity: float | None = None
    added: int | None = None
    layers: tuple[str, ...] = ()
    reason: Mapping[str, str] | None = None


@dataclass(frozen=True, eq=False)
class View:
    """A report.

    Attributes
    ----------
    title, subtitle : str
    facts : tuple of (str, str)
        What comes first: a label and a figure.
    rows : tuple of Row
        Growable groups, then frozen ones.
    unsupported : tuple of dict
        Operations without a rule: ``op``, ``count``, ``node``, ``source``.
    notes : tuple of str
        Sentences.
    inspection : Inspection or None
        Where the picture comes from.
    """

    title: str
    subtitle: str
    facts: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    unsupported: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    inspection: Inspection | None = field(default=None, repr=False)


def inspection_view(
    inspection: Inspection,
    votes: Votes | None = None,
    activity: Mapping[str, float] | Any = None,
    plan: Plan | None = None,
) -> View:
    """Show an inspection.

    Parameters
    ----------
    inspection : Inspection
    votes : Votes, optional
        What :func:`fxgrow.vote` returned.
    activity : dict of str to float, or Activity, optional
        Group name to the share (0 to 1) of samples that its units are active on.
    plan : Plan, optional
        What shall grow.

    Returns
    -------
    View
    """
    data = report.inspection_dict(inspection)
    counts = {} if votes is None else votes.counts
    additions = {} if plan is None else plan.additions
    rows = _rows(data, counts, _shares(activity), additions, grown=plan is not None)
    facts = (
        ("parameters", f"{data['params']:,}"),
        ("FLOPs on the example inputs", short(data["flops"])),
        ("widths that can grow", f"{len(data['groups']):,}"),
        ("of the parameters in them", f"{data['coverage']:.1%}"),
        ("frozen widths", f"{len(data['frozen']):,}"),
        ("operations without a rule", f"{len(data['unsupported']):,}"),
    )
    notes = () if votes is None else (_voted(report.votes_dict(votes)),)
    return View(
        "What can grow, and what cannot",
        model_name(inspection),
        facts,
        rows,
        tuple(data["unsupported"]),
        notes,
        inspection,
    )


def growth_view(growth: Growth, activity: Mapping[str, float] | Any = None) -> View:
    """Show a growth: the model before and after.

    Parameters
    ----------
    growth : Growth
        One that was loaded from a file has no picture.
    activity : dict of str to float, or Activity, optional
        Group name to the share (0 to 1) of samples that its units are active on.

    Returns
    -------
    View
    """
    inspection, votes = growth.inspection, growth.votes
    counts = {} if votes is None else votes.counts
    given = _shares(activity)
    additions = growth.plan.additions
    if inspection is not None:
        data = report.inspection_dict(inspection)
        rows = _rows(data, counts, given, additions, grown=True)
        unsupported = tuple(data["unsupported"])
    else:
        known = {row["name"]: row for row in growth.report.get("groups", ())}
        rows = tuple(
            _kept_row(name, row, counts, given, int(additions.get(name, 0)))
            for name, row in known.items()
        )
        unsupported = ()
    subtitle = "" if inspection is None else model_name(inspection)
    return View(
        "Before and after", subtitle, _facts(growth), rows, unsupported, _notes(growth), inspection
    )


def _kept_row(
    name: str,
    row: Mapping[str, Any],
    counts: Mapping[str, int],
    activity: Mapping[str, float],
    added: int,
) -> Row:
    return Row(
        name,
        row["width"],
        params=row.get("params_per_unit"),
        votes=counts.get(name) if counts else None,
        activity=activity.get(name),
        added=added,
    )


def _rows(
    data: Mapping[str, Any],
    votes: Mapping[str, int],
    activity: Mapping[str, float],
    additions: Mapping[str, int],
    *,
    grown: bool = False,
) -> tuple[Row, ...]:
    growable = (
        Row(
            group["name"],
            group["width"],
            group["multiple_of"],
            group["rows_per_unit"],
            group["params_per_unit"],
            group["flops_per_unit"],
            int(votes.get(group["name"], 0)) if votes else None,
            activity.get(group["name"]),
            int(additions.get(group["name"], 0)) if grown else None,
            tuple(group["layers"]),
        )
        for group in data["groups"]
    )
    frozen = (
        Row(
            group["name"],
            group["width"],
            activity=activity.get(group["name"]),
            layers=tuple(group["layers"]),
            reason=group["reason"],
        )
        for group in data["frozen"]
    )
    return (*growable, *frozen)


def _facts(growth: Growth) -> tuple[tuple[str, str], ...]:
    totals = growth.report.get("totals")
    facts = []
    if totals is not None:
        factor = totals["new_params"] / max(totals["params"], 1)
        facts = [
            ("parameters before", f"{totals['params']:,}"),
            ("parameters after", f"{totals['new_params']:,}"),
            ("as many as before", f"×{factor:.2f}"),
            ("widths that grew", f"{totals['groups_grown']} of {totals['groups']}"),
        ]
    facts.append(("new units", f"{sum(growth.plan.additions.values()):,}"))
    check = growth.verification
    if check is not None:
        worst = max(check.eval_error, check.train_error)
        facts.append(
            (f"largest difference of outputs, {check.dtype}", f"{worst:.1e}" if worst else "0")
        )
    return tuple(facts)


def _notes(growth: Growth) -> tuple[str, ...]:
    plan, notes = growth.plan, []
    notes.append(f"{plan.spent:,} of {plan.budget:,.0f} {plan.unit} were spent.")
    if plan.unspent_reason:
        notes.append(f"Not all was spent: {plan.unspent_reason}.")
    if growth.votes is not None:
        notes.append(_voted(report.votes_dict(growth.votes)))
    if growth.verification is None:
        notes.append("Outputs before and after were not compared.")
    if growth.report.get("adjusting"):
        notes.append("Units were adjusted after that comparison (SWE): the function moved on.")
    return tuple(notes)


def _voted(votes: Mapping[str, Any]) -> str:
    return (
        f"Votes: {votes['distributor']}, a budget of {votes['budget']:,.0f} {votes['unit']}, "
        f"seed {votes['seed']}."
    )


def _shares(activity: Any) -> dict[str, float]:
    """Mean share of active units by group, of a mapping or of a :class:`fxgrow.Activity`."""
    groups = getattr(activity, "groups", None)
    if groups is None:
        return dict(activity or {})
    return {group.name: float(group.active.mean()) for group in groups}


def model_name(inspection: Inspection) -> str:
    """Return the name of the model's class."""
    return type(inspection.analysis.traced.root).__name__


def site(reason: Mapping[str, str]) -> str:
    """Return where a reason arose: the source line without where packages are installed.

    Examples
    --------
    >>> site({"source": "/usr/lib/site-packages/net/head.py:7", "node": "softmax"})
    'net/head.py:7'
    >>> site({"source": "", "node": "softmax"})
    'softmax'
    """
    return reason["source"].rpartition("site-packages/")[2] or reason["node"]


def short(number: float) -> str:
    """Write a count with three digits and a unit.

    Examples
    --------
    >>> short(512), short(1843200), short(2.5e12)
    ('512', '1.84 M', '2.50 T')
    """
    for size, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(number) >= size:
            scaled = number / (1e3 if name == " k" else size)
            return f"{scaled:.{max(0, 2 - len(str(int(abs(scaled)))) + 1)}f}{name}"
    return f"{number:,.0f}"
