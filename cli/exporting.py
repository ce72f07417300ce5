"""What ``fxgrow export`` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxgrow.errors import FileError
from fxgrow.export import export, format_of

from .work import check_output

if TYPE_CHECKING:
    from .work import Opened

TOLERANCE = 1e-4


def kind_of(path: Path, wanted: str | None) -> str:
    """Return the format asked for, else the one that the path says."""
    return wanted or format_of(path)


def check(path: Path, kind: str, *, force: bool, source: str) -> None:
    """Raise early, before the work, where the output could not be written at its end."""
    if kind != "python":
        check_output(path, {f".{kind}"}, force=force, source=source)
        return
    if path.exists() and not force:
        msg = f"{path}: exists already; choose another with -o, or --force to replace a package"
        raise FileError(msg)
    if not path.parent.is_dir():
        msg = f"{path}: there is no folder {path.parent}; create it or choose another with -o"
        raise FileError(msg)


def write(
    opened: Opened, path: Path, kind: str, *, tolerance: float | None, force: bool
) -> dict[str, Any]:
    """Export a model and say what was written."""
    made = export(
        opened.found.model,
        opened.inputs,
        path,
        format=kind,
        tolerance=TOLERANCE if tolerance is None else tolerance,
        replace_folder=force,
    )
    return made.to_dict()
