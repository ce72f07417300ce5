"""``fxgrow widen`` on checkpoints: folders in, folders out, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import fxgrow
from fxgrow import report
from fxgrow.errors import InputError
from fxgrow.files.shards import INDEX, bytes_of
from fxgrow.folders import model_of
from fxgrow.large import check_target, open_checkpoint, stream

from .additions import parse, planned
from .discover import WEIGHTS, Source
from .references import ZOOS
from .shapes import describe, find_inputs
from .zoos import Found, build

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_LOCAL = "local-dir:"


def checkpoint(model: str, output: Path | None) -> Path | None:
    """Return where the checkpoint lies, if MODEL is one to be written as a folder again.

    A folder is one; what else holds weights is one if ``-o`` names a folder.
    """
    path = Path(model.removeprefix(_LOCAL))
    if not model.startswith(ZOOS) and path.is_dir():
        return path
    folder = output is not None and output.suffix not in WEIGHTS
    weights = path.suffix == ".safetensors" or path.name.endswith(INDEX)
    return path if folder and (weights or model.startswith(_LOCAL)) else None


def widen(
    path: Path,
    source: Source,
    shapes: Sequence[str],
    additions: Sequence[str],
    chosen: Mapping[str, Any],
    writing: Mapping[str, Any],
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Widen a checkpoint, and say what was written.

    Parameters
    ----------
    path : Path
        A folder, an index or a file.
    source : Source
        ``arch`` builds the model, where no ``config.json`` does.
    shapes : sequence of str
        ``--input``.
    additions : sequence of str
        As the command line has them, see :func:`fxgrow_cli.additions.parse`.
    chosen : mapping
        ``include``, ``exclude`` and ``inner``.
    writing : mapping
        ``target``, ``dry_run``, and arguments of :func:`fxgrow.widen_checkpoint`.
    note : callable
        Told what was opened.
    """
    options = dict(writing)
    target, dry_run = options.pop("target"), options.pop("dry_run")
    parsed = [parse(text) for text in additions]
    if options["shard_size"] is not None:
        bytes_of(options["shard_size"])
    if not dry_run:
        check_target(path, target, force=options["force"])
    found = _built(path, source)
    inputs = find_inputs(found, shapes, source.seed)
    opened = open_checkpoint(path, found.model, inputs)
    model = opened.fitted.model
    count = sum(parameter.numel() for parameter in model.parameters())
    note(f"{path}: {type(model).__name__}, {count:,} parameters, inputs {describe(inputs)}")
    inspection = fxgrow.inspect(model, opened.inputs, **chosen)
    plan = planned(inspection, parsed)
    if dry_run:
        return {**report.growth_dict(inspection, plan), "output": None, "random_votes": False}
    wide = stream(opened, inspection, plan, target, seed=source.seed, **options)
    return {
        **wide.report,
        "output": str(target),
        "random_votes": False,
        "files": list(wide.files),
        "left_out": list(wide.left_out),
        "bytes": wide.nbytes,
    }


def target_for(path: Path, output: Path | None) -> Path:
    """Return ``-o``, or ``<name>-grown`` in the current folder."""
    if output is not None and output.suffix in WEIGHTS:
        msg = f"{output}: {path} is written as a folder of files; name a folder with -o"
        raise InputError(msg)
    return output or Path(f"{path.resolve().name}-grown")


def _built(path: Path, source: Source) -> Found:
    """Build the model without memory."""
    if source.arch is None and path.is_dir():
        if source.kwargs:
            msg = "--model-kwargs go to --arch; a folder's config.json says what its model is"
            raise InputError(msg)
        return Found(model_of(path), path.name)
    if source.arch is None:
        msg = f"{path}: holds weights; name what builds the model: --arch torchvision:resnet18"
        raise InputError(f"{msg} or --arch file.py:factory")
    if source.arch.startswith(_LOCAL):
        return Found(model_of(source.arch.removeprefix(_LOCAL)), path.stem)
    if "@" in source.arch:
        msg = f"--arch {source.arch}: the weights are those of {path}; leave out what follows @"
        raise InputError(msg)
    with torch.device("meta"):
        return build(source.arch, source.seed, source.kwargs)
