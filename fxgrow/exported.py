"""What exports say of themselves, and how they are judged."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .errors import VerificationError
from .verify import tensors_in

if TYPE_CHECKING:
    from .trace import Inputs

__all__ = ["SCHEMA", "Check", "Exported", "first_line", "passed", "shapes_of"]

SCHEMA = "fxgrow.export/1"


@dataclass(frozen=True)
class Check:
    """One run of what was exported.

    Attributes
    ----------
    runtime : str
        What ran it.
    inputs : str
        Their shapes.
    relative : float
        Largest difference from the original's outputs, relative to the largest of them.
    """

    runtime: str
    inputs: str
    relative: float


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote.

    Attributes
    ----------
    path : str
        File or folder.
    format : {"pt2", "onnx", "python"}
    size : int
        Bytes.
    dynamic_batch : bool
        Whether other numbers of samples than that of the example inputs may be run.
    checks : tuple of Check
        All passed.
    notes : tuple of str
        What users should know.
    """

    path: str
    format: str
    size: int
    dynamic_batch: bool
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types (schema ``fxgrow.export/1``)."""
        return {"schema": SCHEMA, **asdict(self)}


def passed(check: Check, tolerance: float) -> None:
    """Refuse what computes something else.

    Raises
    ------
    VerificationError
        When outputs differ by more than ``tolerance``, relative.
    """
    if not check.relative <= tolerance:
        raise VerificationError(
            f"what {check.runtime} computes on inputs of {check.inputs} differs by "
            f"{check.relative:.1e}, relative (allowed {tolerance:.0e}); nothing was written"
        )


def shapes_of(inputs: Inputs) -> str:
    """Write the shapes of inputs."""
    return ", ".join("x".join(map(str, t.shape)) for t in tensors_in((inputs.args, inputs.kwargs)))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text (no colours), or its type when it has none."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".")[:300] if lines else type(error).__name__
