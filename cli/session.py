"""Around every command: one screen, and errors as one sentence with an exit code."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .render import Screen

DONE, ERROR, USAGE, DIFFERS, UNEXPECTED, INTERRUPTED = 0, 1, 2, 3, 4, 130


@contextlib.contextmanager
def session(as_json: bool, quiet: bool, verbose: bool) -> Iterator[Screen]:
    """Give a command its screen; turn errors into one sentence, never a traceback.

    Parameters
    ----------
    as_json : bool
        Stdout holds one JSON object and nothing else, also after an error.
    quiet, verbose : bool
        Nothing but errors; or also what is done, warnings, and where errors arise.

    Raises
    ------
    typer.BadParameter
        With both of them.
    typer.Exit
        After an error.
    """
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose exclude each other")
    from fxgrow.errors import FxgrowError

    from .render import Screen

    screen = Screen(as_json, verbose - quiet)
    try:
        with warnings.catch_warnings():
            if not verbose:  # announcements of third parties, of no use to our reader
                warnings.simplefilter("ignore", FutureWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
            if quiet:
                warnings.simplefilter("ignore")
            yield screen
    except (typer.Exit, typer.BadParameter, typer.Abort, BrokenPipeError):
        raise
    except FxgrowError as error:
        _fail(screen, str(error), ERROR, error)
    except MemoryError as error:
        msg = "out of memory; try a smaller --batch-size, --input or --budget"
        _fail(screen, msg, ERROR, error)
    except KeyboardInterrupt as error:
        _fail(screen, "interrupted; nothing was written", INTERRUPTED, error)
    except Exception as error:  # noqa: BLE001  the user's own code may raise anything
        first = (str(error).strip().splitlines() or [""])[0]
        name = type(error).__name__
        where = "--verbose shows where (in the model's code, or a bug of ours)"
        msg = f"unexpected {name}: {first}; {where}"
        _fail(screen, msg, UNEXPECTED, error)


def _fail(screen: Screen, message: str, code: int, cause: BaseException) -> Any:
    from . import ranks

    if ranks.is_first():
        if screen.level > 0:
            screen.note("".join(traceback.format_exception(cause)).rstrip())
        screen.error(message, type(cause).__name__, code)
    raise typer.Exit(code) from cause
