"""Zip archives, looked at before anything in them is expanded."""

from __future__ import annotations

import struct
import zipfile
from typing import TYPE_CHECKING

from ..errors import FileError
from ..printable import quoted

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FREE", "RATIO", "Entries", "check_archive", "too_large"]

FREE = 2**28
"""Bytes that any file may expand to."""

RATIO = 50
"""How many times its own size a file may expand to, beyond that."""

_END = struct.Struct("<4s4H2LH")  # end of central directory

Entries = dict[str, int]  # sizes when expanded, in bytes, by name


def too_large(claimed: int, file_size: int) -> bool:
    """Whether a file of ``file_size`` bytes may not claim ``claimed`` bytes of memory."""
    return claimed > max(FREE, RATIO * file_size)


def check_archive(path: Path) -> Entries:
    """Read what a zip archive says of its entries, and refuse bombs; nothing is expanded.

    Parameters
    ----------
    path : Path
        The archive.

    Returns
    -------
    dict of str to int
        Size of each entry when expanded, bytes.

    Raises
    ------
    FileError
        When the archive is damaged, ambiguous (two readers could see two archives), or
        claims more than ``FREE`` bytes and ``RATIO`` times its own size.
    """
    size = path.stat().st_size
    _check_end(path, size)
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as error:
        msg = f"{path}: damaged, or no zip archive ({error}); get it again"
        raise FileError(msg) from error
    entries: Entries = {}
    for info in infos:
        if info.filename in entries:
            msg = f"{path}: damaged: holds two entries {quoted(info.filename)}; get it again"
            raise FileError(msg)
        entries[info.filename] = info.file_size
    stored = sum(info.compress_size for info in infos)
    if stored > size:  # entries that share their bytes
        msg = f"{path}: damaged: its entries claim {stored} bytes of a file of {size}; get it again"
        raise FileError(msg)
    if too_large(claimed := sum(entries.values()), size):
        msg = (
            f"{path}: would expand from {size} to {claimed} bytes, as zip bombs do; if you "
            "trust it, unpack it and save its content again without compression"
        )
        raise FileError(msg)
    return entries


def _check_end(path: Path, size: int) -> None:
    """Refuse archives with something after their directory: readers may differ on those."""
    with path.open("rb") as file:
        file.seek(max(size - _END.size, 0))
        end = file.read(_END.size)
    fine = len(end) == _END.size
    if fine:
        magic, disk, first_disk, here, count, *_, comment = _END.unpack(end)
        fine = magic == b"PK\x05\x06" and not disk and not first_disk and not comment
        fine = fine and here == count
    if not fine:
        msg = f"{path}: damaged: it does not end as a zip archive does; get it again"
        raise FileError(msg)
