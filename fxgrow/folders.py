"""Folders that transformers writes: ``config.json``, weights, and what lies beside them.

No code comes from a folder: its ``config.json`` is data, and names a class that the
installed transformers has itself.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .errors import FileError, InputError, UnsupportedError
from .files.header import parse_json
from .files.shards import INDEX, read_limited
from .printable import quoted

if TYPE_CHECKING:
    from .configure import Configured
    from .files.weights import Weights

__all__ = ["CONFIG", "beside", "config_text", "default_inputs", "model_of"]

CONFIG = "config.json"
_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".pkl"}
)


def model_of(folder: str | Path) -> torch.nn.Module:
    """Build the model of a folder on the meta device, in eval mode.

    Raises
    ------
    FileError
        When there is no ``config.json`` that can be read.
    InputError
        When it names no model of transformers, or can't build it.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        msg = f"{path}: there is no such file; pass model=, built under torch.device('meta')"
        raise FileError(msg)
    content = _read(path)
    kind = _kind(path, content)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        config = kind.config_class.from_dict(content)
        if getattr(config, "use_cache", None):
            config.use_cache = False  # of no use to one pass; the file keeps it
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model: torch.nn.Module = kind(config)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = f"{path}: {kind.__name__} can't be built from it ({why}); pass model="
        raise InputError(msg) from error
    return model.eval()


def default_inputs(model: torch.nn.Module) -> Any:
    """Return example inputs of a model that reads tokens: eight of them.

    Raises
    ------
    InputError
        For other models.
    """
    if getattr(model, "main_input_name", "") != "input_ids":
        msg = "example_inputs are needed: pass a tensor of the model's input shape, or a dict"
        raise InputError(msg)
    return {"input_ids": torch.zeros(1, 8, dtype=torch.long, device="meta")}


def beside(folder: Path, weights: Weights) -> tuple[list[Path], list[str]]:
    """Sort what lies in a folder beside its weights: files to copy, names to leave out.

    Left out are folders, other forms of the weights (they stay narrow), hidden files, and
    links that lead elsewhere.
    """
    allowed = {folder.resolve(), weights.path.resolve().parent}
    copied, left = [], []
    for path in sorted(folder.iterdir()):
        name = path.name
        if path in weights.places.values() or path == weights.path or name == CONFIG:
            continue
        stale = path.suffix.lower() in _WEIGHTS or name.endswith((INDEX, ".index.json"))
        elsewhere = path.resolve().parent not in allowed
        if not path.is_file() or stale or name.startswith(".") or elsewhere:
            left.append(name)
        else:
            copied.append(path)
    return copied, left


def config_text(folder: Path, model: torch.nn.Module, configured: Configured | None) -> str | None:
    """Return the folder's ``config.json`` as it must be for the grown model.

    Parameters
    ----------
    folder : Path
    model : torch.nn.Module
        After growth.
    configured : Configured or None
        What became of its configuration.

    Returns
    -------
    str or None
        None where there is none, or it is not what the model was built from.

    Raises
    ------
    UnsupportedError
        When no configuration describes the grown model.
    """
    path = folder / CONFIG
    if configured is None or not path.is_file():
        return None
    if configured.obstacle:
        why = configured.obstacle.partition("; from_pretrained")[0]
        raise UnsupportedError(
            f"{path}: {why}; grow all layers alike (and the stream by multiples that its heads "
            "allow), or leave the folder's config.json out by naming its index as the source"
        )
    content = _read(path)
    for name in configured.changes:
        parts = name.partition("[")[0].split(".")
        inner, value = content, model.config
        for part in parts[:-1]:
            inner = inner.setdefault(part, {})
            value = getattr(value, part)
        value = getattr(value, parts[-1])
        inner[parts[-1]] = list(value) if isinstance(value, tuple) else value
    _check(path, model, content)
    return json.dumps(content, indent=2) + "\n"


def _check(path: Path, model: torch.nn.Module, content: dict[str, Any]) -> None:
    """Build the model once more, of the text that will be written."""
    kind: Any = type(model)
    config: Any = model.config
    read = type(config).from_dict(json.loads(json.dumps(content)))
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        built = kind(read).state_dict()
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name, shape in wanted.items():
        if name not in built or tuple(built[name].shape) != shape:
            raise UnsupportedError(
                f"{path}: with the changes that growth asks for it does not build the grown "
                f"{kind.__name__} ({quoted(name)}); name the index as the source"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_limited(path))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        msg = f"{path}: damaged, or no configuration ({error}); get it again"
        raise FileError(msg) from error
    return content


def _kind(path: Path, content: dict[str, Any]) -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        msg = "transformers is not installed; `pip install 'fxgrow[transformers]'` brings it"
        raise InputError(msg) from None
    named = content.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        said = quoted(str(name)) if name else "no class"
        msg = (
            f"{path}: names {said}, which transformers does not have; code that comes with a "
            "model is never run: build it yourself, under torch.device('meta'), as model="
        )
        raise InputError(msg)
    return kind
