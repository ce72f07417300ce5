"""``layer1.0.conv1=+16`` and ``+12.5%`` → a plan."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from fxgrow import Plan
from fxgrow.errors import InputError
from fxgrow.stages import as_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxgrow import Inspection

_AMOUNT = re.compile(r"\+(\d[\d_]*|\d*\.?\d+%|\d+\.%)")
_WILD = re.compile(r"[*?\[]")
FORMS = "write GROUP=+16, GROUP=+12.5%, or +12.5% for every group"


@dataclass(frozen=True)
class Addition:
    """What one group, or every group that matches, is to gain.

    Attributes
    ----------
    pattern : str
        A group's name or a shell pattern.
    amount : int or str
        Units, or a share such as ``"12.5%"``.
    """

    pattern: str
    amount: int | str


def parse(text: str) -> Addition:
    """Read one addition.

    Raises
    ------
    InputError
        When it is not understood.

    Examples
    --------
    >>> parse("layer1.0.conv1=+16")
    Addition(pattern='layer1.0.conv1', amount=16)
    >>> parse("+12.5%")
    Addition(pattern='*', amount='12.5%')
    """
    name, _, amount = text.strip().rpartition("=")
    if not name and "=" not in text and not amount.startswith("+"):
        msg = f"{text}: how many units? {FORMS}"
        raise InputError(msg)
    if not _AMOUNT.fullmatch(amount) or (not name and "=" in text):
        bare = re.fullmatch(r"\d+(\.\d+)?%?", amount)
        meant = f"to add {amount} write {name}=+{amount}" if bare and name else FORMS
        msg = f"{text}: not understood; {meant}"
        raise InputError(msg)
    number = amount[1:]
    if float(number.rstrip("%")) == 0:
        msg = f"{text}: adds nothing; {FORMS}"
        raise InputError(msg)
    return Addition(name.strip() or "*", number if number.endswith("%") else int(number))


def planned(inspection: Inspection, additions: Sequence[Addition]) -> Plan:
    """Turn additions into a plan; where two name the same group, the later one holds.

    Raises
    ------
    InputError
        When one names no group, or a number of units that a group can't gain.
    """
    chosen: dict[str, int] = {}
    for addition in additions:
        chosen.update(_units(inspection, addition))
    return as_plan(chosen, inspection)


def _units(inspection: Inspection, addition: Addition) -> dict[str, int]:
    names = {group.name for group in inspection.groups}
    exact = addition.pattern in names or not _WILD.search(addition.pattern)
    if exact and isinstance(addition.amount, int):
        as_plan({addition.pattern: addition.amount}, inspection)  # refuses with the reason
        return {addition.pattern: addition.amount}
    if exact:
        matching = [inspection.group(addition.pattern)]
    else:
        matching = [g for g in inspection.groups if fnmatchcase(g.name, addition.pattern)]
    if not matching and addition.pattern != "*":
        msg = f"{addition.pattern}: matches no growable group; fxgrow inspect lists their names"
        raise InputError(msg)
    part = replace(inspection, groups=tuple(matching))
    return dict(as_plan(addition.amount, part).additions)
