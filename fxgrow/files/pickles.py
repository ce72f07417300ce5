"""Files of ``torch.save``: weights are read, code is not run.

A zip archive is checked for its sizes and its pickle is followed on symbols
(:mod:`fxgrow.files.scan`) before torch's ``weights_only`` unpickler gets it. Only
``trust=True`` opens what that one refuses.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
import zlib
from collections import OrderedDict
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from ..errors import FileError
from ..printable import printable
from .archive import Entries, check_archive, too_large
from .atomic import atomic_write
from .scan import Scan, Storage, globals_of, scan

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

__all__ = ["open_pickle", "pickle_module", "torch_save"]

_LOCAL = b"PK\x03\x04"  # begin of a zip archive, for torch.load
_TAR = (257, b"ustar")
_OLD_PICKLES = 5  # magic number, protocol, system, the object, keys of its storages
_LARGEST_PICKLE = 2**27  # bytes, without tensors
_MOST_PARTS = 10_000_000
_ITEM_SIZES = {
    **dict.fromkeys(["DoubleStorage", "LongStorage", "ComplexFloatStorage"], 8),
    **dict.fromkeys(["HalfStorage", "ShortStorage", "BFloat16Storage"], 2),
    **dict.fromkeys(["ByteStorage", "CharStorage", "BoolStorage", "UntypedStorage"], 1),
    **dict.fromkeys(["QInt8Storage", "QUInt8Storage"], 1),
    **dict.fromkeys(["QUInt4x2Storage", "QUInt2x4Storage"], 1),
    "ComplexDoubleStorage": 16,
}
_UNREADABLE = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(AssertionError, ArithmeticError, MemoryError, ImportError, zipfile.BadZipFile, zlib.error),
)


def open_pickle(path: str | Path, *, trust: bool = False) -> Any:
    """Read what ``torch.save`` wrote, onto the CPU.

    Parameters
    ----------
    path : str or Path
        A file of tensors in plain containers, in torch's zip format or the older one.
    trust : bool
        Open pickles of other objects too, which runs the code that they name.

    Returns
    -------
    object

    Raises
    ------
    FileError
        When the file is missing, damaged, a bomb, or would run code and is not trusted.
    """
    source = Path(path)
    if not source.is_file():
        msg = f"{source}: there is no such file"
        raise FileError(msg)
    try:
        runs = _look(source)
    except OSError as error:
        msg = f"{source}: could not be read ({error.strerror or error}); look at its permissions"
        raise FileError(msg) from error
    if runs is None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about file formats: our own message says more
                content = torch.load(source, map_location="cpu", weights_only=True)
            return _checked(source, content)
        except pickle.UnpicklingError:
            runs = _names(source)
        except _UNREADABLE as error:
            raise _damaged(source, error) from error
    if not trust:
        msg = (
            f"{source}: is a pickle that would run {runs}; if you trust where it comes from, "
            "add --trust-pickle, or save its state_dict and name --arch"
        )
        raise FileError(msg)
    return _trusted(source)


def pickle_module(module: torch.nn.Module, path: str | Path) -> None:
    """Write a module as a pickle, atomically; opening it again runs code.

    Parameters
    ----------
    module : torch.nn.Module
        A GraphModule's pickle needs no source of the original model.
    path : str or Path
        The file.

    Raises
    ------
    FileError
        If the file can't be written or the module can't be pickled.
    """

    def write(temporary: Path) -> None:
        try:
            torch_save(module, temporary)
        except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
            msg = f"{path}: the module can't be pickled ({error}); write .safetensors instead"
            raise FileError(msg) from error

    atomic_write(path, write)


def torch_save(content: Any, path: Path) -> None:
    """Write ``content`` by ``torch.save``.

    Raises
    ------
    OSError
        When the disk is full, which torch's writer of zip archives hides in another error.
    """
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _trusted(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        msg = f"{path}: needs code that is not here ({_first(error)}); install it or change folder"
        raise FileError(msg) from error
    except (pickle.UnpicklingError, *_UNREADABLE) as error:
        raise _damaged(path, error) from error


# ------------------------------------------------------------------- looking


def _look(path: Path) -> str | None:
    """Look at a file without running anything in it.

    Returns what it would run if that is known already; None where torch's ``weights_only``
    unpickler is to decide.
    """
    with path.open("rb") as file:
        begin = file.read(512)
    if begin[_TAR[0] :].startswith(_TAR[1]):
        msg = f"{path}: is of torch's oldest format; open and save it with an older torch"
        raise FileError(msg)
    if begin.startswith(_LOCAL):
        entries = check_archive(path)
        if any(name.endswith("/constants.pkl") for name in entries):
            msg = f"{path}: is a TorchScript archive, which can't grow; save the Python module"
            raise FileError(msg)
    try:
        harmless = _scan_all(path)
    except FileError as error:
        raise FileError(f"{path}: refused: {error}; get it again") from None
    except (pickle.UnpicklingError, *_UNREADABLE) as error:
        raise _damaged(path, error) from error
    return None if harmless else _names(path)


def _scan_all(path: Path) -> bool:
    """Scan all pickles of a file, and hold storages that they claim against the file."""
    if not _is_zip(path):
        size = path.stat().st_size
        with closing(_pickles(path)) as pickles:
            found = [scan(file, size, keys=n == _OLD_PICKLES) for n, file in enumerate(pickles, 1)]
        largest = {s.key: _bytes(s) for each in found for s in each.storages}
        _check_claims(sum(largest.values()), size, min(largest.values(), default=0))
        return all(each.harmless for each in found)
    entries = check_archive(path)
    with closing(_pickles(path)) as pickles:
        found = [scan(file, path.stat().st_size) for file in pickles]
    for storage in _storages(found):
        name = _record(entries, storage.key)
        _check_claims(_bytes(storage), entries.get(name, 0), _bytes(storage))
    return all(each.harmless for each in found)


def _storages(found: Iterable[Scan]) -> Iterator[Storage]:
    for each in found:
        yield from each.storages


def _check_claims(claimed: int, there: int, least: int) -> None:
    if claimed > there or least < 0:
        raise ValueError(f"storages claim {claimed} bytes, {there} are there")


def _bytes(storage: Storage) -> int:
    return storage.numel * _ITEM_SIZES.get(storage.kind, 4)


def _record(entries: Entries, key: str) -> str:
    """Return the name of a storage's entry, whose first folder is the archive's name."""
    return next((name for name in entries if name.partition("/")[2] == f"data/{key}"), "")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_LOCAL)) == _LOCAL


def _pickles(path: Path) -> Generator[IO[bytes], None, None]:
    """Yield files that stand at the begin of a pickle each."""
    if not _is_zip(path):
        with path.open("rb") as file:
            for _ in range(_OLD_PICKLES):
                yield file
        return
    with zipfile.ZipFile(path) as archive:
        infos = [i for i in archive.infolist() if i.filename.partition("/")[2] == "data.pkl"]
        if len(infos) != 1 or infos[0].file_size > _LARGEST_PICKLE:
            raise ValueError("no data.pkl of a fair size is in it")
        with archive.open(infos[0]) as file:
            yield file


def _names(path: Path) -> str:
    """Name what a pickle would run.

    Raises
    ------
    FileError
        If it is no pickle at all: nobody should be asked to trust it.
    """
    names: set[str] = set()
    try:
        with closing(_pickles(path)) as pickles:
            for file in pickles:
                names |= globals_of(file)
    except (pickle.UnpicklingError, *_UNREADABLE) as error:
        if not names:
            raise _damaged(path, error) from error
    if not names:
        return "code that can't be listed"
    own = sorted(name for name in names if not name.startswith("torch.")) or sorted(names)
    more = len(names) - len(own[:8])
    listing = ", ".join(name[:80] for name in own[:8])
    return printable(listing) + (f" and {more} more" if more > 0 else "")


# ------------------------------------------------------------------- content


def _checked(path: Path, content: Any) -> Any:
    """Refuse content that would hang or blow up whoever walks through it."""
    size = path.stat().st_size
    counts: dict[int, int] = {}  # parts of each container, those of its parts included
    inside: set[int] = set()
    ahead: list[tuple[Any, bool]] = [(content, False)]
    while ahead:
        value, leaving = ahead.pop()
        if leaving:
            inside.discard(id(value))
            total = sum(counts.get(id(part), 1) for part in _parts(value))
            counts[id(value)] = 1 + total
            if total > _MOST_PARTS:
                raise ValueError("it repeats itself without end")
        elif id(value) in inside:
            raise ValueError("it refers to itself")
        elif id(value) not in counts:
            _check_part(value, size)
            if parts := _parts(value):
                inside.add(id(value))
                ahead.append((value, True))
                ahead.extend((part, False) for part in parts)
    return content


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*dict.keys(value), *dict.values(value)]
    return list(value) if type(value) in {list, tuple, set} else []


def _check_part(value: Any, size: int) -> None:
    """Refuse attributes that stand in for methods, and tensors blown up by strides."""
    if isinstance(value, torch.Tensor):
        shadowed = [name for name in vars(value) if hasattr(torch.Tensor, name)]
        numel = value.numel() if not shadowed else 0
        if too_large(numel * value.element_size() if not shadowed else 0, size):
            raise ValueError(f"a tensor of {numel} elements is more than the file can hold")
    elif isinstance(value, OrderedDict):
        shadowed = [name for name in vars(value) if hasattr(OrderedDict, name)]
    else:
        return
    if shadowed:
        raise ValueError(f"an attribute {shadowed[0][:40]!r} hides a method")


def _damaged(path: Path, error: BaseException) -> FileError:
    return FileError(f"{path}: damaged, or no PyTorch file ({_first(error)}); get it again")


def _first(error: BaseException) -> str:
    """Return the first sentence of an error's text, or its type when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().partition(". ")[0][:300] if lines else type(error).__name__
