"""What a growth file says of itself: its fields, checked strictly, and older schemas.

A file of an older schema is turned into the next one, and so on (``MIGRATIONS``), before
it is checked. New fields need a new number here and one function more.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

from ..errors import FileError
from ..printable import hidden, quoted
from .header import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = [
    "KEY",
    "SCHEMA",
    "SUM_KEY",
    "check_meta",
    "pack_meta",
    "pack_plan",
    "parse_meta",
    "parse_plan",
]

SCHEMA = "fxgrow.file/2"
KEY, SUM_KEY = "fxgrow", "fxgrow.sha256"  # entries of a file's metadata
_PLAN_SUM = "sha256"
_FAMILY = "fxgrow.file/"

MOST_UNITS = 2**31
"""Largest width or addition that is read."""

_LONGEST_TEXT = 4096
_LARGEST = 2**63 - 1
_MOST_STEPS = 10_000
_DEEPEST = 32


def pack_meta(meta: Mapping[str, Any]) -> dict[str, str]:
    """Turn a description into a file's metadata: its JSON text and the text's SHA-256.

    Raises
    ------
    FileError
        If it holds what JSON can't.
    """
    try:
        text = json.dumps(meta, sort_keys=True, default=_plain, allow_nan=False)
    except (ValueError, TypeError) as error:
        msg = f"the growth's report can't be written as JSON ({error})"
        raise FileError(msg) from error
    return {"format": "pt", KEY: text, SUM_KEY: _sum(text)}


def parse_meta(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Read, migrate and check a description.

    Parameters
    ----------
    path : Path
        For messages.
    metadata : dict
        What :func:`pack_meta` returned.

    Returns
    -------
    dict
        Of the schema ``SCHEMA``.

    Raises
    ------
    FileError
        If there is none, it is damaged, or of a schema that is not known.
    """
    text = metadata.get(KEY)
    if not isinstance(text, str):
        msg = f"{path}: holds tensors, but was not written by fxgrow"
        raise FileError(msg)
    try:
        if metadata.get(SUM_KEY, _sum(text)) != _sum(text):
            raise ValueError("its checksum is another")
        meta = parse_json(text)
        if not isinstance(meta, dict) or not isinstance(meta.get("schema"), str):
            raise ValueError("it has no schema")
    except ValueError as error:
        msg = f"{path}: its description is damaged ({error}); get the file again"
        raise FileError(msg) from error
    return check_meta(path, _migrated(path, meta))


def pack_plan(meta: Mapping[str, Any]) -> str:
    """Turn a description into the text of a plan file: JSON that a person can read.

    Raises
    ------
    FileError
        If it holds what JSON can't.
    """
    plain = json.loads(pack_meta(meta)[KEY])
    return json.dumps({**plain, _PLAN_SUM: _sum(_canonical(plain))}, indent=1) + "\n"


def parse_plan(path: Path, text: bytes) -> dict[str, Any]:
    """Read, migrate and check what :func:`pack_plan` wrote.

    Raises
    ------
    FileError
        If it is damaged, was changed, or is of a schema that is not known.
    """
    try:
        meta = parse_json(text)
        if not isinstance(meta, dict) or not isinstance(meta.get("schema"), str):
            raise ValueError("it has no schema")
        if meta.pop(_PLAN_SUM, None) not in {None, _sum(_canonical(meta))}:
            raise ValueError(f"it was changed; if that was you, take {_PLAN_SUM!r} out")
    except (ValueError, TypeError) as error:
        msg = f"{path}: damaged, or no plan of fxgrow ({error}); get it again"
        raise FileError(msg) from error
    return check_meta(path, _migrated(path, meta))


def check_meta(path: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Check every field of a description of the newest schema.

    Raises
    ------
    FileError
        Naming the field that lacks or is off, and what it must be.
    """
    lacking = sorted(set(_FIELDS) - set(meta))
    if missing := lacking or ([] if meta["steps"] else ["steps"]):
        msg = f"{path}: its description lacks {', '.join(missing)}; get the file again"
        raise FileError(msg)
    try:
        _record(_FIELDS)("", meta)
    except ValueError as error:
        msg = f"{path}: its description is damaged ({error}); get the file again"
        raise FileError(msg) from error
    return meta


def check_inputs(path: Path, inputs: Any) -> Any:
    """Check what a file says of example inputs.

    Raises
    ------
    FileError
        Naming the field that is off, and what it must be.
    """
    try:
        _INPUTS("inputs", inputs)
    except ValueError as error:
        msg = f"{path}: its example inputs are damaged ({error}); get the file again"
        raise FileError(msg) from error
    return inputs


# ------------------------------------------------------------------- migrations


def _from_1(meta: dict[str, Any]) -> dict[str, Any]:
    """No checksums, no tensors beside the state dict, nothing known of the base."""
    meta = {**meta, "digests": {}, "transient": [], "bytes": {}}
    if isinstance(meta.get("steps"), list):
        meta["steps"] = [
            {"transfer": False, **step, "base": None} if isinstance(step, dict) else step
            for step in meta["steps"]
        ]
    return meta


MIGRATIONS: Mapping[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "fxgrow.file/1": ("fxgrow.file/2", _from_1),
}
"""Schema → the next one, and what turns a description of the one into the other."""


def _migrated(path: Path, meta: dict[str, Any]) -> dict[str, Any]:
    while meta["schema"] in MIGRATIONS:
        newer, change = MIGRATIONS[meta["schema"]]
        meta = {**change(meta), "schema": newer}
    if meta["schema"] != SCHEMA:
        hint = "update fxgrow" if meta["schema"].startswith(_FAMILY) else "get the file again"
        msg = (
            f"{path}: is of schema {quoted(meta['schema'])}, this fxgrow reads {SCHEMA!r} and "
            f"older; {hint}, or use another version"
        )
        raise FileError(msg)
    return meta


# ------------------------------------------------------------------- checks
# A check takes (where, value) and raises ValueError; they are put together in tables.


def _fail(where: str, value: Any, wanted: str) -> None:
    shown = quoted(value) if isinstance(value, str) else quoted(repr(value), 40).strip("'\"")
    raise ValueError(f"{where} is {shown}; it must be {wanted}")


def _whole(low: int, high: int) -> Any:
    def check(where: str, value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            _fail(where, value, f"a whole number from {low} to {high}")

    return check


def _number(where: str, value: Any) -> None:
    fine = type(value) in {int, float} and abs(value) < 1e300 and math.isfinite(value)
    if not fine:
        _fail(where, value, "a finite number")


def _flag(where: str, value: Any) -> None:
    if not isinstance(value, bool):
        _fail(where, value, "true or false")


def _text(longest: int = _LONGEST_TEXT) -> Any:
    def check(where: str, value: Any) -> None:
        if not isinstance(value, str) or len(value) > longest:
            _fail(where, value, f"a text of at most {longest} characters")
        if any(hidden(character) for character in value):
            _fail(where, value, "a text without control or invisible characters")

    return check


def _one_of(*offers: str) -> Any:
    def check(where: str, value: Any) -> None:
        if not isinstance(value, str) or value not in offers:
            _fail(where, value, " or ".join(map(repr, offers)))

    return check


def _maybe(inner: Any) -> Any:
    def check(where: str, value: Any) -> None:
        if value is not None:
            inner(where, value)

    return check


def _list(inner: Any, most: int = 2**20) -> Any:
    def check(where: str, value: Any) -> None:
        if not isinstance(value, list) or len(value) > most:
            _fail(where, value, f"a list of at most {most}")
        for index, item in enumerate(value):
            inner(f"{where}[{index}]", item)

    return check


def _table(inner: Any) -> Any:
    def check(where: str, value: Any) -> None:
        if not isinstance(value, dict):
            _fail(where, value, "an object")
        for name, item in value.items():
            _text(1024)(f"a name in {where}", name)
            inner(f"{where}[{quoted(name)}]", item)

    return check


def _record(fields: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Any:
    def check(where: str, value: Any) -> None:
        if not isinstance(value, dict):
            _fail(where, value, "an object")
        if lacking := sorted(set(fields) - set(value)):
            raise ValueError(f"{where or 'it'} lacks {', '.join(lacking)}")
        known = {**fields, **(optional or {})}
        for name, item in value.items():
            if name not in known:
                raise ValueError(f"{where or 'it'} has {quoted(name)}, which nobody knows")
            known[name](f"{where}.{name}".lstrip("."), item)

    return check


def _any_plain(where: str, value: Any) -> None:
    if isinstance(value, (dict, list)):
        _fail(where, value, "a number, a text, true, false or null")


def _input(where: str, value: Any) -> None:
    if where.count(".") > _DEEPEST:
        raise ValueError(f"inputs are nested more than {_DEEPEST} levels deep")
    kinds = (set(value) if isinstance(value, dict) else set()) & set(_INPUT_KINDS)
    _record(_INPUT_KINDS[min(kinds, default="value")])(where, value)


_INPUT_KINDS: Mapping[str, Mapping[str, Any]] = {
    "shape": {"shape": _list(_whole(0, 2**40), 64), "dtype": _text(40)},
    "value": {"value": _any_plain},
    "list": {"list": _list(_input, 1000)},
    "tuple": {"tuple": _list(_input, 1000)},
    "dict": {"dict": _table(_input)},
}
_INPUTS = _record({"args": _list(_input, 1000), "kwargs": _table(_input)})
_UNIT = _one_of("neurons", "params", "flops")
_NAME = _text(1024)
_SHA = _text(64)
_PLAN = {
    "additions": _table(_whole(0, MOST_UNITS)),
    "budget": _number,
    "unit": _UNIT,
    "spent": _whole(0, _LARGEST),
    "unspent_reason": _text(),
}
_VOTES = {
    "distributor": _text(80),
    "budget": _number,
    "unit": _UNIT,
    "seed": _whole(-(2**64), 2**64),
    "counts": _table(_whole(0, _LARGEST)),
    "noise": _table(_number),
}
_STEP = {
    "plan": _record(_PLAN),
    "votes": _maybe(_record(_VOTES)),
    "seed": _whole(-(2**64), 2**64),
    "transfer": _flag,
    "base": _maybe(_table(_text(1024))),
}
_STEP_MORE = {"inputs": _INPUTS, "inner": _list(_NAME, 10_000)}
_VERIFICATION = {
    "passed": _flag,
    "eval_error": _number,
    "train_error": _number,
    "partition": _flag,
    "tolerance": _number,
    "dtype": _text(80),
}
_STORED_AS_BYTES = {"shape": _list(_whole(0, 2**48), 64), "dtype": _text(40)}
_FIELDS: Mapping[str, Any] = {
    "schema": _one_of(SCHEMA),
    "fxgrow": _text(80),
    "torch": _text(80),
    "emit": _one_of("graph", "module"),
    "steps": _list(_record(_STEP, _STEP_MORE), _MOST_STEPS),
    "inputs": _INPUTS,
    "aliases": _table(_NAME),
    "transient": _list(_NAME),
    "bytes": _table(_record(_STORED_AS_BYTES)),
    "digests": _table(_SHA),
    "verification": _maybe(_record(_VERIFICATION)),
}


def _canonical(meta: Any) -> str:
    return json.dumps(meta, sort_keys=True)


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> Any:
    """Turn numpy and torch scalars, and sizes, into JSON types."""
    if hasattr(value, "item"):
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
