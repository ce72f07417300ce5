"""Writing files so that a reader finds the old one or the new one, never half of one.

A writer fills a file in a folder of its own beside the target, named after it, and
renames it into place. It holds a lock on that folder, which ends with the process; so
the next writer of the same target can tell what a killed one left behind, and removes it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..errors import FileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

__all__ = ["atomic_folder", "atomic_write", "folder_locked", "remove_leftovers", "sync"]

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: without locks nothing is ever taken for a leftover
    fcntl = None

_SUFFIX = ".tmp"


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place.

    Whatever happens, ``path`` is either as it was or complete. A symbolic link at ``path``
    is replaced; what it points to is left alone. What killed writers of ``path`` left
    behind is removed.

    Parameters
    ----------
    path : str or Path
        The file to make.
    write : callable
        Gets the path of the temporary file, still empty.

    Raises
    ------
    FileError
        If the file can't be written.
    """
    target = Path(path)
    if not target.name or "\0" in str(target):
        raise FileError(f"{str(target)!r} is no name of a file; choose another for the output")
    try:
        with _workplace(target) as folder:
            temporary = folder / "new"
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)  # as the caller's umask has it
            write(temporary)
            temporary.chmod(mode)  # safetensors makes its files private
            sync(temporary)
            temporary.replace(target)
        sync(target.parent)
        remove_leftovers(target)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        msg = f"{target}: could not be written ({why}); choose another place for the output"
        raise FileError(msg) from error


def atomic_folder(
    path: str | Path, write: Callable[[Path], object], *, replace: bool = False
) -> None:
    """Let ``write`` fill a temporary folder beside ``path``, then put it in place.

    Parameters
    ----------
    path : str or Path
        The folder to make.
    write : callable
        Gets the path of the temporary folder, still empty.
    replace : bool
        Let it take the place of a folder that is there. A folder can't be replaced in one
        step: killed in between, the old one lies beside as ``.NAME.<digits>.old``.

    Raises
    ------
    FileError
        If it can't be written, or exists already.
    """
    target = Path(path)
    try:
        with _workplace(target) as folder:
            new = folder / "new"
            new.mkdir()
            write(new)
            for file in new.iterdir():
                sync(file)
            sync(new)
            _put(new, target, replace=replace)
        sync(target.parent)
        remove_leftovers(target)
    except OSError as error:
        why = error.strerror or error
        msg = f"{target}: could not be written ({why}); choose another place for the output"
        raise FileError(msg) from error


def _put(new: Path, target: Path, *, replace: bool) -> None:
    if not os.path.lexists(target):
        new.rename(target)
        return
    if not replace or target.is_symlink():
        raise FileError(f"{target}: exists already; choose another place for the output")
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:  # an interrupt, too: the old folder is put back
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(path: str | Path, *, begin: str = "") -> None:
    """Remove what writers of ``path`` that were killed have left beside it.

    ``begin``: instead, of all files in its folder whose names begin so.
    """
    target = Path(path)
    begin = f".{begin or target.name + '.'}"
    with suppress(OSError):  # no such folder, or one that is closed to us
        for entry in os.scandir(target.parent):
            if entry.name.startswith(begin) and entry.name.endswith(_SUFFIX):
                _remove_dead(Path(entry.path))


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Let one process at a time into a block, for all that lock the same folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Make a locked folder beside ``target``, and remove it in the end."""
    while True:
        folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_SUFFIX}")
        folder.mkdir(mode=0o700)
        handle = _locked(folder)
        if handle is not None:
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _locked(folder: Path) -> int | None:
    """Lock a folder just made; None if another one took it for a leftover before that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if fcntl is None:
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there: Any = folder.stat()
    except (BlockingIOError, FileNotFoundError):
        os.close(handle)
        return None
    except OSError:  # a file system without locks: leftovers can't be told apart on it
        return handle
    if there.st_ino != os.fstat(handle).st_ino:
        os.close(handle)
        return None
    return handle


def _remove_dead(leftover: Path) -> None:
    """Remove a leftover unless its writer lives."""
    if leftover.is_symlink() or fcntl is None:
        return
    try:
        handle = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # gone already, or not ours
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            shutil.rmtree(leftover, ignore_errors=True)
        else:  # as versions before 0.2 named their temporary files
            leftover.unlink()
    except OSError:  # its writer lives, or another one was faster
        pass
    finally:
        os.close(handle)
