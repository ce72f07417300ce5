"""Python packages on disk: written, imported and compared before they are put in place."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compare import compare
from .errors import FileError, UnsupportedError
from .exported import Check, Exported, first_line, passed, shapes_of
from .package import WEIGHTS, sources, write_sources
from .templates import class_name
from .tracer import FAILURES

if TYPE_CHECKING:
    from torch import nn

    from .trace import Inputs

__all__ = ["export_package"]


def export_package(
    model: nn.Module, inputs: Inputs, target: Path, tolerance: float, replace_it: bool
) -> Exported:
    """Write a package, import it, compare it in both modes, and put it in place.

    Raises
    ------
    FileError, UnsupportedError, VerificationError
        See :func:`fxgrow.export.export`.
    """
    if not target.name.isidentifier():
        raise FileError(f"{target}: a package's name is letters, digits and _; choose another")
    if target.exists() and not (replace_it and _ours(target)):
        raise FileError(
            f"{target}: exists already{'' if _ours(target) else ' and is no package of ours'}; "
            "choose another place"
        )
    made = sources(model, inputs, class_name(target.name))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        write_sources(made, temporary)
        again = _imported(temporary)
        outcome = compare(model, again, [_plain(inputs)], tolerance=tolerance)
        worst = max(outcome.eval.relative, outcome.train.relative)
        check = Check("Python, eval and train mode", shapes_of(inputs), worst)
        passed(check, tolerance)
        size = sum(file.stat().st_size for file in temporary.iterdir() if file.is_file())
        _swap(temporary, target)
    except OSError as error:
        raise FileError(f"{target}: could not be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    notes = (f"The package needs {', '.join(made.needs)} installed.",) if made.needs else ()
    return Exported(str(target), "python", size, True, (check,), notes)


def _ours(folder: Path) -> bool:
    """Whether a folder holds a package and nothing else, so that it may be replaced."""
    files = {"__init__.py", "model.py", WEIGHTS}
    return folder.is_dir() and files <= {f.name for f in folder.iterdir()} <= {
        *files,
        "__pycache__",
    }


def _swap(new: Path, target: Path) -> None:
    shutil.rmtree(new / "__pycache__", ignore_errors=True)
    if not target.exists():
        new.rename(target)
        return
    old = new.with_suffix(".old")
    target.rename(old)
    new.rename(target)
    shutil.rmtree(old)


def _imported(folder: Path) -> nn.Module:
    """Import a package from where it lies, under a name of its own, and load its network."""
    name = f"_fxgrow_{secrets.token_hex(4)}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None  # the file is there
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        loaded: nn.Module = module.load()
    except (*FAILURES, SyntaxError, ImportError, NameError) as error:
        raise UnsupportedError(
            f"the package that was written can't be imported: {first_line(error)}; export as .pt2"
        ) from error
    finally:
        for key in [key for key in sys.modules if key.partition(".")[0] == name]:
            del sys.modules[key]
    return loaded


def _plain(inputs: Inputs) -> Any:
    return dict(inputs.kwargs) if inputs.kwargs else inputs.args
