"""``package.module:name`` and ``file.py:name`` → objects."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxgrow.errors import FileError, InputError

from .suggest import near

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


ZOOS = ("torchvision:", "timm:", "hf-hub:", "local-dir:")


def is_code_reference(reference: str) -> bool:
    """Whether ``reference`` looks like ``package.module:name`` or ``file.py:name``."""
    place, colon, name = reference.rpartition(":")
    return bool(colon and place and name.replace(".", "").isidentifier())


def resolve(reference: str) -> Any:
    """Import what ``package.module:name`` or ``file.py:name`` names.

    Modules are also looked for in the current folder.

    Raises
    ------
    FileError
        If the file of ``file.py:name`` is missing.
    InputError
        If the module can't be imported or has no such name.
    """
    place, _, name = reference.rpartition(":")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_name(place)
    value: Any = module
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            offers = sorted(key for key in vars(module) if not key.startswith("_"))
            meant = "".join(f"did you mean {name}? " for name in near(part, offers, most=1))
            listing = ", ".join(offers[:12]) or "nothing"
            msg = f"{reference}: {place} has no {part!r}; {meant}it offers {listing}"
            raise InputError(msg) from None
    return value


def keywords(pairs: Sequence[str], flag: str = "--model-kwargs") -> dict[str, Any]:
    """Turn ``key=value`` texts into keyword arguments.

    Values are Python literals (``8``, ``0.5``, ``True``, ``None``, ``[1, 2]``) or else texts.

    Raises
    ------
    InputError
        If one has no ``=``, no valid name, or stands twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            msg = f"{flag} {pair}: not understood; write KEY=VALUE, e.g. num_classes=10"
            raise InputError(msg)
        if key in found:
            msg = f"{flag} {pair}: {key} is given twice; leave one out"
            raise InputError(msg)
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found[key] = value
    return found


def call(factory: Any, reference: str, kwargs: Mapping[str, Any] | None = None) -> Any:
    """Call what a reference named, with keyword arguments if there are any.

    Raises
    ------
    InputError
        If it is not callable, or the call fails as wrong calls do.
    """
    if not callable(factory):
        msg = f"{reference}: is a {type(factory).__name__}, not a function or class to call"
        raise InputError(msg)
    kwargs = kwargs or {}
    try:
        return factory(**kwargs)
    except CALL_ERRORS as error:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        how = f"with {given}" if given else "without arguments"
        more = "" if given else " (--model-kwargs KEY=VALUE gives it some)"
        msg = f"{reference}: calling it {how} failed: {first_line(error)}{more}"
        raise InputError(msg) from error


CALL_ERRORS = (
    *(TypeError, ValueError, RuntimeError, OSError, LookupError),
    *(AssertionError, AttributeError, ImportError, ArithmeticError),
)


def first_line(error: BaseException) -> str:
    """Return the first sentence of an error's text, or its type when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().partition(". ")[0] if lines else type(error).__name__


def _from_file(path: Path) -> Any:
    if not path.is_file():
        msg = f"{path}: there is no such file"
        raise FileError(msg)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        msg = f"{path}: is no Python file"
        raise FileError(msg)
    known = sys.modules.get(path.stem)
    if known is not None and _same_file(known, path):
        return known
    module = importlib.util.module_from_spec(spec)
    if known is None:  # so that a pickle finds its classes; never hide another module
        sys.modules[path.stem] = module
    with _neighbours(path.parent), _import_errors(str(path)):
        spec.loader.exec_module(module)
    return module


def _from_name(name: str) -> Any:
    with _neighbours(Path.cwd()), _import_errors(name):
        return importlib.import_module(name)


def _same_file(module: Any, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == path.resolve()


@contextlib.contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """Let modules in ``folder`` be imported; also later, by functions of the module."""
    entry = str(folder.resolve())
    if entry not in sys.path:
        sys.path.append(entry)
    yield


_CHANGE = "; install it or change folder"


@contextlib.contextmanager
def _import_errors(name: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        zoos = near(name, [zoo.rstrip(":") for zoo in ZOOS], most=1) if error.name == name else []
        meant = "".join(f"; did you mean {zoo}:?" for zoo in zoos)
        msg = f"{name}: the module {error.name!r} can't be found{meant or _CHANGE}"
        raise InputError(msg) from error
    except (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError) as error:
        msg = f"{name}: importing it failed: {first_line(error)}"
        raise InputError(msg) from error
