"""Checkpoints that fit no memory, widened tensor by tensor: shards in, shards out.

The model is on the meta device, where it is analysed, widened and checked without its
values. Then each tensor is read, made wider as in memory, and written.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import report as reports
from .configure import Configured, follow_config
from .errors import FileError, InputError
from .files.atomic import atomic_folder
from .files.weights import Weights, open_weights
from .filling import Job, check_shapes, entries_of, shelf_of
from .fitted import Fitted, fit, inputs_on_meta
from .folders import CONFIG, beside, config_text, default_inputs, model_of
from .inspection import Inspection, inspect_model
from .ir import Growth, Plan, Rewritten
from .layout import lay_out
from .pieces import Pieces
from .placed import held
from .rewrite import factors_of, rewrite
from .stages import as_plan, input_spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from .data import Progress
    from .rules.own import Declaration

__all__ = [
    "Opened",
    "WideCheckpoint",
    "check_target",
    "open_checkpoint",
    "stream",
    "widen_checkpoint",
]


@dataclass(frozen=True)
class WideCheckpoint:
    """A checkpoint that :func:`fxgrow.widen_checkpoint` wrote.

    Attributes
    ----------
    path : Path
        The folder.
    plan : Plan
    files : tuple of str
        All files in the folder.
    left_out : tuple of str
        What lay beside the old weights and was not copied.
    tensors, grown : int
        Tensors that were written, and those of them that grew.
    nbytes : int
        Bytes of all tensors.
    report : dict
        As ``Growth.report``: ``edits`` and ``config`` say how the model that is built for
        the wider weights differs from the old one.
    """

    path: Path
    plan: Plan
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    tensors: int
    grown: int
    nbytes: int
    report: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Opened:
    """A checkpoint with its model, on the meta device, and inputs for it.

    Attributes
    ----------
    weights : Weights
    fitted : Fitted
    inputs : tensor, tuple or dict
    folder : Path or None
        Whose other files belong to the checkpoint.
    """

    weights: Weights
    fitted: Fitted
    inputs: Any
    folder: Path | None


def widen_checkpoint(
    source: str | Path,
    target: str | Path,
    additions: Mapping[str, int] | Plan | str | int,
    *,
    model: torch.nn.Module | None = None,
    example_inputs: Any = None,
    seed: int = 0,
    shard_size: int | str | None = None,
    force: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
    rules: Iterable[Declaration] = (),
) -> WideCheckpoint:
    """Widen a checkpoint that fits no memory: shards in, shards out, one tensor at a time.

    New entries are those that :func:`fxgrow.widen` makes of the same seed. Nothing is
    written unless the widened model, without its values, holds the units that it should.

    Parameters
    ----------
    source : str or Path
        A folder that ``save_pretrained`` of transformers wrote, an index of shards
        (``.safetensors.index.json``), or a ``.safetensors`` file. Never changed.
    target : str or Path
        The folder to make. It gets the weights, spread over files as they were, the
        folder's ``config.json`` brought in line, and its other files.
    additions : dict of str to int, Plan, str or int
        See :func:`fxgrow.widen`.
    model : torch.nn.Module, optional
        What the weights are of, best built under ``torch.device("meta")``. By default what
        the folder's ``config.json`` says; no code is run that comes with a folder.
    example_inputs : tensor, tuple or dict, optional
        On any device. By default eight tokens, for models that read tokens.
    seed : int
        Of the new rows.
    shard_size : int or str, optional
        Most bytes of a file, e.g. ``"5GB"``. By default tensors stay in the file of the
        name that they were in.
    force : bool
        Let the new folder replace one that holds a checkpoint.
    verify : bool
        Compare the old entries of each tensor that grew with what was read.
    progress : callable, optional
        Told ``(stage, done, total)``.
    rules : sequence of Declaration
        For custom operations and opaque modules, see :func:`fxgrow.inspect`.

    Returns
    -------
    WideCheckpoint

    Raises
    ------
    FileError
        If the checkpoint is missing or damaged, or the folder can't be written.
    InputError
        If weights and model don't belong together; unknown groups, impossible additions.
    UnsupportedError
        If a size can't be made to fit, or no ``config.json`` describes the grown model.
    VerificationError
        If the widened model is not the one meant. Nothing is written then, as after every
        error.

    See Also
    --------
    fxgrow.widen : in memory, with the outputs of both models compared.
    """
    check_target(source, target, force=force)
    opened = open_checkpoint(source, model, example_inputs)
    inspection = held(inspect_model(opened.fitted.model, opened.inputs, rules=rules))
    plan = as_plan(additions, inspection)
    return stream(
        opened,
        inspection,
        plan,
        Path(target),
        seed=seed,
        shard_size=shard_size,
        force=force,
        verify=verify,
        progress=progress,
    )


def open_checkpoint(
    source: str | Path, model: torch.nn.Module | None = None, example_inputs: Any = None
) -> Opened:
    """Open a checkpoint, and fit its model to it (see :func:`widen_checkpoint`).

    Raises
    ------
    FileError, InputError
        See there.
    """
    weights = open_weights(source)
    folder = Path(source) if Path(source).is_dir() else None
    if model is None:
        if folder is None:
            msg = f"{source}: which model is it? Pass model=, or name a folder with a {CONFIG}"
            raise InputError(msg)
        model = model_of(folder)
    fitted = fit(model, weights)
    inputs = default_inputs(model) if example_inputs is None else example_inputs
    return Opened(weights, fitted, inputs_on_meta(inputs, model, fitted.model), folder)


def check_target(source: str | Path, target: str | Path, *, force: bool) -> None:
    """Raise early where the output could not be put in place at the end.

    Raises
    ------
    FileError
        When it is there already, or the input lies in it.
    """
    path, old = Path(target), Path(source).resolve()
    if not path.parent.is_dir():
        msg = f"{path}: there is no folder {path.parent}; create it or choose another place"
        raise FileError(msg)
    if path.resolve() in {old, *old.parents} or old in path.resolve().parents:
        msg = f"{path}: is the input itself, or lies in it; choose another place for the output"
        raise FileError(msg)
    if not path.exists() and not path.is_symlink():
        return
    ours = path.is_dir() and not path.is_symlink() and any(path.glob("*.safetensors"))
    if not (force and ours):
        what = "exists already" if ours or not force else "is no folder with a checkpoint"
        raise FileError(f"{path}: {what}; choose another place for the output")


def stream(
    opened: Opened,
    inspection: Inspection,
    plan: Plan,
    target: Path,
    *,
    seed: int = 0,
    shard_size: int | str | None = None,
    force: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
) -> WideCheckpoint:
    """Widen an opened checkpoint as planned, and write it.

    Parameters
    ----------
    opened : Opened
    inspection : Inspection
        Of its model.
    plan : Plan
    target : Path
        See :func:`widen_checkpoint`, as for all others.
    """
    weights, fitted, folder = opened.weights, opened.fitted, opened.folder
    state = inspection.analysis.state
    layout = lay_out(state.book, state.axes, inspection.groups, plan.additions)
    factors = factors_of(inspection.analysis)
    rewritten = rewrite(fitted.model, inspection, plan.additions, seed=seed, emit="module")
    configured = follow_config(fitted.model, rewritten.module)
    pieces = Pieces(layout, entries_of(weights, fitted, layout), seed, factors)
    check_shapes(fitted, rewritten.module, pieces)
    text = config_text(folder, rewritten.module, configured) if folder else None
    copied, left = beside(folder, weights) if folder else ([], [])
    if folder and text is None and (folder / CONFIG).exists():
        left.append(CONFIG)
    report = _report(inspection, plan, rewritten, configured, seed)
    growth = Growth(
        rewritten.module, plan, None, rewritten.index_map, None, report, rewritten.groups
    )
    shelf = shelf_of(weights, fitted, pieces, growth, shard_size)
    _check_room(target, shelf.nbytes)
    job = Job(weights, fitted, layout, pieces, verify)

    def write(place: Path) -> None:
        shelf.write(place, lambda key: job.told(key, progress))
        if text is not None:
            (place / CONFIG).write_text(text, encoding="utf-8")
        for file in copied:
            shutil.copyfile(file, place / file.name)

    atomic_folder(target, write, replace=force)
    files = tuple(sorted(file.name for file in target.iterdir()))
    grown = sum(name in pieces.shapes for name in fitted.names.values())
    left = [*left, *fitted.unread]
    return WideCheckpoint(
        target, plan, files, tuple(left), len(shelf.entries), grown, shelf.nbytes, report
    )


def _report(
    inspection: Inspection,
    plan: Plan,
    rewritten: Rewritten,
    configured: Configured | None,
    seed: int,
) -> dict[str, Any]:
    return {
        **reports.growth_dict(inspection, plan, module=rewritten.module),
        "seed": seed,
        "emit": "module",
        "edits": list(rewritten.edits),
        "config": None if configured is None else configured.to_dict(),
        "inputs": input_spec(inspection.analysis.traced.inputs),
    }


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise FileError(
            f"{target}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; make "
            "room, or choose another place"
        )
