"""The methods by which inspections, votes and growths are shown and written."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .view import View

__all__ = ["FORMATS", "Shown", "write"]


class Shown(ABC):
    """What has a report: pages, Markdown, JSON, and a table in notebooks."""

    @abstractmethod
    def _view(self, **given: Any) -> View:
        """Return what is shown."""

    @abstractmethod
    def _data(self) -> Mapping[str, Any]:
        """Return what is written as JSON."""

    def to_html(self, path: str | Path, **given: Any) -> None:
        """Write one self-contained page: a table of groups and a picture of the network.

        Parameters
        ----------
        path : str or Path
        **given
            ``activity``: dict of group name to the share (0 to 1) of samples that its units
            are active on, or what ``fxgrow.activity`` returned. Of an inspection:
            ``votes``, what :func:`fxgrow.vote` returned, and ``plan``, what shall grow.

        Raises
        ------
        FileError
            When the file can't be written; an older one is then as it was.
        """
        from .html import page

        _write(path, page(self._view(**given)))

    def to_markdown(self, **given: Any) -> str:
        """Return the report as Markdown tables.

        Parameters
        ----------
        **given
            As in :meth:`to_html`.

        Returns
        -------
        str
        """
        from .text import markdown

        return markdown(self._view(**given))

    def to_json(self, path: str | Path) -> None:
        """Write the report's data (schemas ``fxgrow.inspection/1``, ``fxgrow.growth/1``).

        Raises
        ------
        FileError
            When the file can't be written; an older one is then as it was.
        """
        _write(path, json.dumps(self._data(), indent=2))

    def _repr_html_(self) -> str:
        from .notebook import snippet

        return snippet(self._view())


def _write(path: str | Path, text: str) -> None:
    from ..io import atomic_write

    atomic_write(path, lambda file: file.write_text(text, encoding="utf-8"))


def _html(shown: Shown, given: Mapping[str, Any]) -> str:
    from .html import page

    return page(shown._view(**given))


def _markdown(shown: Shown, given: Mapping[str, Any]) -> str:
    return shown.to_markdown(**given)


def _json(shown: Shown, given: Mapping[str, Any]) -> str:
    return json.dumps(shown._data(), indent=2)


def _graphml(shown: Shown, given: Mapping[str, Any]) -> str:
    from .text import graphml

    return graphml(_inspection(shown))


def _dot(shown: Shown, given: Mapping[str, Any]) -> str:
    from .text import dot

    return dot(_inspection(shown))


def _inspection(shown: Shown) -> Any:
    found = shown._view().inspection
    if found is None:
        raise InputError(
            "a growth that was loaded or transferred holds no graph; write .html, .md or .json"
        )
    return found


FORMATS: Mapping[str, Callable[[Shown, Mapping[str, Any]], str]] = {
    ".html": _html,
    ".md": _markdown,
    ".json": _json,
    ".graphml": _graphml,
    ".dot": _dot,
}


def write(shown: Shown, path: str | Path, **given: Any) -> None:
    """Write the report of an inspection or a growth, in the format that the suffix names.

    Parameters
    ----------
    shown : Inspection or Growth
    path : str or Path
        ``.html``, ``.md``, ``.json``, ``.graphml`` or ``.dot``.
    **given
        As in :meth:`Shown.to_html`; for pages and Markdown.

    Raises
    ------
    FileError
        For other suffixes, or when the file can't be written; an older one is then as it
        was.
    InputError
        When a growth holds no graph (see :class:`fxgrow.Growth`) and one is asked for.
    """
    make = FORMATS.get(Path(path).suffix)
    if make is None:
        raise FileError(f"{path}: a report ends in {', '.join(FORMATS)}; rename it")
    _write(path, make(shown, given))
