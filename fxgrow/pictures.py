"""Pictures with matplotlib (the ``plot`` extra), drawn without a display."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError

if TYPE_CHECKING:
    from .activity import Activity, GroupActivity

__all__ = ["activity_figure"]

OLD, NEW = "#4c78a8", "#e45756"
SHOWN = 24
"""Most groups in one picture: those with the largest share of nearly inactive units."""


def activity_figure(seen: Activity) -> Any:
    """Draw a small panel per group: the share of samples each unit is active on, sorted.

    Parameters
    ----------
    seen : Activity
        What :func:`fxgrow.activity` returned.

    Returns
    -------
    matplotlib.figure.Figure
        Old units blue, new ones red; the dotted line is at 1 % of the samples.

    Raises
    ------
    InputError
        Without matplotlib, or where no group was observed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise InputError("plots need matplotlib; pip install 'fxgrow[plot]'") from None
    if not seen.groups:
        raise InputError("no group was observed, so there is nothing to draw")
    groups = _worst(seen.groups)
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(3 * columns, 2.2 * rows + 0.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, sharey=True, squeeze=False)).reshape(-1)
    for axis, group in zip(axes, groups, strict=False):
        _panel(axis, group)
    for axis in axes[len(groups) :]:
        axis.set_visible(False)
    more = len(seen.groups) - len(groups)
    rest = f"; {more} groups with fewer inactive units are not shown" if more else ""
    figure.suptitle(f"Units active on how many of {seen.samples:,} samples{rest}", fontsize=10)
    figure.supylabel("share of samples", fontsize=9)
    return figure


def _worst(groups: tuple[GroupActivity, ...]) -> list[GroupActivity]:
    """Pick the groups that are shown, in the network's order."""
    if len(groups) <= SHOWN:
        return list(groups)
    shares = np.array([group.nearly_inactive.mean() for group in groups])
    kept = np.sort(np.argsort(-shares, kind="stable")[:SHOWN])
    return [groups[index] for index in kept]


def _panel(axis: Any, group: GroupActivity) -> None:
    order = np.argsort(-group.active, kind="stable")
    colours = np.where(group.new[order], NEW, OLD)
    heights = group.active[order]
    axis.bar(np.arange(group.width), heights, width=1.0, color=list(colours))
    axis.axhline(0.01, color="black", linewidth=0.8, linestyle=":")
    axis.set_ylim(0, 1.02)
    axis.tick_params(labelsize=7)
    dead = int(group.inactive.sum())
    axis.set_title(f"{group.name}\n{group.width} units, {dead} inactive", fontsize=8)
