"""Options from a file: ``--config run.toml``, or ``[tool.fxgrow]`` in ``pyproject.toml``.

Keys are the long names of options (``round-to`` or ``round_to``) or of arguments
(``model``). At the top they hold for every command that has such an option, in a table
with a command's name for that command. The command line wins over both.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .suggest import hint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PYPROJECT = "pyproject.toml"
_NEVER = {
    "trust_pickle": "trust in a pickle is given on the command line only: --trust-pickle",
    "config": "a config file names no other",
}
_CODE = frozenset({"model", "source", "target", "plan", "other", "arch", "other_arch",
                   "target_arch", "data", "loss"})  # fmt: skip


def use_settings(context: typer.Context, path: Path | None) -> Path | None:
    """Make a config file's values the defaults of the command about to be parsed.

    Raises
    ------
    typer.BadParameter
        When the file is missing, damaged, or has keys or values that no option takes.
    """
    if context.resilient_parsing:  # the shell asks for completions
        return path
    place = path or Path(PYPROJECT)
    table = _read(place, required=path is not None)
    if table:
        own = {_key(p): p for p in context.command.params if _key(p)}
        known = {*own, *_all_keys(context)}
        commands = getattr(getattr(context.parent, "command", None), "commands", {})
        values = _chosen(place, table, known, set(commands), str(context.info_name), set(own))
        _check(place, values, own, explicit=path is not None)
        context.default_map = {own[key].name: _value(own[key], v) for key, v in values.items()}
    return path


def _read(path: Path, *, required: bool) -> Mapping[str, Any]:
    """Return the options of a file; of ``pyproject.toml`` those under ``[tool.fxgrow]``."""
    if not required and not path.is_file():
        return {}
    # tomli is what became tomllib in Python 3.11
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is no text"
        raise typer.BadParameter(f"{path}: {why}; name a TOML file") from None
    if not required and "fxgrow" not in text:  # its mistakes, if any, are another tool's
        return {}
    try:
        content: Any = toml.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{path}: is no TOML: {error}") from None
    if path.name == PYPROJECT:
        tool = content.get("tool", {})
        content = tool.get("fxgrow", {}) if isinstance(tool, dict) else {}
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{path}: tool.fxgrow must be a table of options")
    return content


def _key(parameter: Any) -> str:
    """Return the long name of an option, or the name of an argument, as keys write it."""
    longs = [text for text in parameter.opts if text.startswith("--")]
    name = longs[0][2:] if longs else str(parameter.name or "")
    return "" if name == "help" else name.replace("-", "_")


def _all_keys(context: typer.Context) -> Iterator[str]:
    parent = getattr(context.parent, "command", None)
    for command in getattr(parent, "commands", {}).values():
        yield from (_key(parameter) for parameter in command.params)


def _chosen(
    path: Path,
    table: Mapping[str, Any],
    known: set[str],
    commands: set[str],
    command: str,
    own: set[str],
) -> dict[str, Any]:
    """Pick what concerns this command: shared keys first, then its own table."""
    shared, mine = {}, {}
    for raw, value in table.items():
        if isinstance(value, dict) and raw in commands:
            if raw == command:
                mine = {_known(path, f"{raw}.", key, own): item for key, item in value.items()}
            continue
        offers = known | (commands if isinstance(value, dict) else set())
        key = _known(path, "", raw, offers)
        if key in own:
            shared[key] = value
    return {**shared, **mine}


def _known(path: Path, prefix: str, raw: str, offers: set[str]) -> str:
    key = raw.replace("-", "_")
    if key in _NEVER:
        raise typer.BadParameter(f"{path}: {prefix}{raw}: {_NEVER[key]}")
    if key not in offers:
        names = sorted(name.replace("_", "-") for name in offers - {"", *_NEVER})
        raise typer.BadParameter(f"{path}: there is no option {prefix}{raw}; {hint(raw, names)}")
    return key


def _check(
    path: Path, values: Mapping[str, Any], own: Mapping[str, Any], *, explicit: bool
) -> None:
    for key, value in values.items():
        wanted = _kind(own[key])
        if not _fits(value, wanted):
            shown = "true or false" if wanted == "flag" else f"a {wanted}"
            raise typer.BadParameter(f"{path}: {key} is {value!r}; it takes {shown}")
        texts = value if isinstance(value, list) else [value]
        if not explicit and key in _CODE and any(_runs_code(str(text)) for text in texts):
            # a folder from elsewhere must not make us run its code
            raise typer.BadParameter(
                f"{path}: {key} = {value!r} would run code; name it on the command line, or the "
                f"file: --config {path}"
            )


def _runs_code(reference: str) -> bool:
    from .references import ZOOS, is_code_reference

    return is_code_reference(reference) and not reference.startswith((*ZOOS, "sklearn:"))


def _kind(parameter: Any) -> str:
    if getattr(parameter, "is_flag", False):
        return "flag"
    several = getattr(parameter, "multiple", False) or getattr(parameter, "nargs", 1) != 1
    return "text, number, or list of them" if several else "text or number"


def _fits(value: Any, wanted: str) -> bool:
    if wanted == "flag":
        return isinstance(value, bool)
    values = value if isinstance(value, list) and "list" in wanted else [value]
    return all(isinstance(v, (str, int, float)) and not isinstance(v, bool) for v in values)


def _value(parameter: Any, value: Any) -> Any:
    """Write a value as the command line would."""
    if isinstance(value, bool):
        return value
    if "list" in _kind(parameter):
        return [str(item) for item in (value if isinstance(value, list) else [value])]
    return str(value)
