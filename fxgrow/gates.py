"""Tied weights in groups that grow by copies: what they read is shared out, not they.

A weight that reads copies of all units splits its columns among them. One that also writes
these units (token embeddings, tied to the head) can't: what it writes would be no copies. Where
all it reads comes straight from norms, as at the end of BERT and BART, their weights and biases
take the shares, and its columns are copies. No one else may see what these norms put out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .flows import Flow
from .ir import Filling

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .analyse import Analysis
    from .ir import Slot
    from .labels import LabelBook
    from .planes import Axis, Plane

    Planes = Sequence[Plane]

__all__ = ["COPY", "SHARE", "gate", "gated", "let_out"]
COPY, SHARE = Filling("copy"), Filling("share")


def gate(book: LabelBook, flow: Flow | None, axes: Iterable[Axis]) -> Flow | None:
    """Add the weights of a norm to the flow of its result."""
    gates = frozenset(axes)
    book.gates |= gates
    return (flow or Flow())._replace(gates=gates) if gates else flow


def let_out(book: LabelBook, given: Iterable[Planes], made: Iterable[Planes]) -> None:
    """Write down norms whose results are used in ways that shares would change.

    Parameters
    ----------
    book : LabelBook
        Knows what weights have just read.
    given, made : iterable of tuple of Plane
        Planes of the inputs and outputs of an operation.
    """
    found = _gates(given)
    if found:
        book.open |= found - _gates(made) - book.passed
        book.passed.clear()


def _gates(given: Iterable[Planes]) -> set[Axis]:
    flows = [plane.flow for planes in given for plane in planes]
    return {axis for flow in flows if flow is not None and flow.gates for axis in flow.gates}


def gated(analysis: Analysis, slots: Sequence[Slot]) -> tuple[Slot, ...] | None:
    """Let norms take the shares of a group whose weights are both written and read.

    Parameters
    ----------
    analysis : Analysis
        Settled.
    slots : sequence of Slot
        Of the group, which grows by copies.

    Returns
    -------
    tuple of Slot or None
        With fillings; None where something else sees what the norms put out.
    """
    book, roles = analysis.state.book, analysis.state.roles
    own = {(slot.tensor, slot.dim) for slot in slots}
    readers = own & book.closers.keys()
    gates: set[Axis] = set()
    for axis in readers:
        if "producer" in roles.get(axis, ()):
            flows = book.reads.get(axis) or [None]
            if any(flow is None or not flow.gates for flow in flows):
                return None
            gates.update(*(flow.gates for flow in flows if flow is not None))
    if not gates <= own - readers or gates & book.open:
        return None
    copies = set()
    for axis in readers:
        shared = [bool(flow and flow.gates & gates) for flow in book.reads.get(axis, [None])]
        if any(shared) and not all(shared):
            return None
        if all(shared):
            copies.add(axis)
    fillings = {**dict.fromkeys(copies, COPY), **dict.fromkeys(gates, SHARE)}
    return tuple(
        replace(slot, filling=fillings.get((slot.tensor, slot.dim), slot.filling)) for slot in slots
    )
