"""What the commands do, between the references and the rendering."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import fxgrow
from fxgrow import io, pages, report
from fxgrow.errors import FileError, InputError
from fxgrow.stages import grow

from .additions import parse, planned
from .data import find_data, random_data
from .discover import Source, find_model
from .options import NEED_DATA
from .references import ZOOS, is_code_reference, resolve
from .shapes import describe, find_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fxgrow import Inspection
    from fxgrow.recipes import Recipe

    from .ranks import Here
    from .zoos import Found

RANDOM_BATCH, DATA_BATCH = 8, 32
RANDOM_VOTES = (
    "These votes were cast on random inputs and targets: they know the architecture, not the task "
    "(--data makes them know it)."
)


@dataclass(frozen=True, eq=False)
class Opened:
    """A model with inputs that it takes (None only where data will tell)."""

    found: Found
    inputs: Any
    given: bool

    @property
    def shape(self) -> str:
        """The inputs' shapes, as ``--input`` takes them."""
        return describe(self.inputs)

    @property
    def summary(self) -> str:
        """One line: what was opened."""
        count = sum(parameter.numel() for parameter in self.found.model.parameters())
        how = "named" if self.given else "found"
        inputs = "to be taken from the data" if self.inputs is None else f"{how}: {self.shape}"
        return f"{type(self.found.model).__name__}, {count:,} parameters, inputs {inputs}"


@dataclass(frozen=True, eq=False)
class Task:
    """A growth about to be planned or done."""

    found: Found
    data: Any
    options: Mapping[str, Any]
    here: Here

    def plan(self, html: Path | None = None) -> dict[str, Any]:
        """Vote and plan; grow nothing. Shows the votes in ``html``."""
        device = self.here.device
        model = self.found.model if device is None else self.found.model.to(device)
        options = dict(self.options)
        options["example_inputs"] = _moved(options["example_inputs"], device)
        inspection, votes, plan = fxgrow.plan_for(
            model, self.data, **options, process_group=self.here.team
        )
        if html is not None and self.here.first:
            inspection.to_html(html, votes=votes, plan=plan)
        shown = report.growth_dict(inspection, plan, votes=votes)
        return {**shown, "seed": options["seed"], "output": None}

    def grow(
        self, growing: Mapping[str, Any], target: Path, html: Path | None = None
    ) -> dict[str, Any]:
        """Grow, and write if it is this process that writes."""
        growth = fxgrow.expand(
            self.found.model,
            self.data,
            device=self.here.device,
            **self.options,
            **growing,
            process_group=self.here.team,
        )
        if not self.here.first:
            return {**growth.report, "output": str(target)}
        if html is not None:
            growth.to_html(html)
        return written(growth, target, self.found.history)


def transfer(narrow: Opened, wide: Found, seed: int, path: Path) -> dict[str, Any]:
    """Load a narrow model into a wide one, and write that."""
    growth = fxgrow.transfer(narrow.found.model, wide.model, narrow.inputs, seed=seed)
    return {**written(growth, path, ()), "random_votes": False}


def widen(
    opened: Opened,
    additions: Sequence[str],
    chosen: Mapping[str, Any],
    *,
    seed: int,
    path: Path,
    dry_run: bool,
) -> dict[str, Any]:
    """Insert units by hand, and write the result.

    Parameters
    ----------
    opened : Opened
        The model.
    additions : sequence of str
        As the command line has them, see :func:`fxgrow_cli.additions.parse`.
    chosen : mapping
        ``include``, ``exclude`` and ``inner``.
    seed : int
        Of the new rows.
    path : Path
        The file to write.
    dry_run : bool
        Only say what it would be.
    """
    parsed = [parse(text) for text in additions]
    inspection = inspect(opened, **chosen, strict=False)
    plan = planned(inspection, parsed)
    if dry_run:
        return {**report.growth_dict(inspection, plan), "output": None, "random_votes": False}
    growth = grow(opened.found.model, inspection, plan, seed=seed, emit="graph", verify=True)
    return {**written(growth, path, opened.found.history), "random_votes": False}


def check_additions(additions: Sequence[str]) -> None:
    """Raise early where an addition can't be understood."""
    for text in additions:
        parse(text)


def apply(
    recipe: Recipe, base: Found, inputs: Any, *, weights: bool, any_weights: bool, path: Path
) -> dict[str, Any]:
    """Replay a plan on a base, or load a grown file onto it, and write the result."""
    if not weights:
        growth = fxgrow.apply(recipe, base.model, inputs, any_weights=any_weights, emit="graph")
    elif recipe.tensors:
        growth = fxgrow.load(recipe.path, base.model)
    else:
        raise InputError(f"{recipe.path}: is a plan and holds no weights to take over")
    history = (*base.history, *growth.report["steps"][:-1])
    return {**written(growth, path, history), "random_votes": False}


def written(
    growth: fxgrow.Growth, path: Path, history: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Write a growth as the file's suffix asks, and return its report."""
    if path.suffix == ".safetensors":
        io.save(growth, path, history=history)
    else:
        io.pickle_module(growth.module, path)
    return {**growth.report, "output": str(path)}


def open_model(source: Source, shapes: Sequence[str], *, needed: bool = True) -> Opened:
    """Load a model and find inputs for it.

    ``needed=False``: without inputs there is no error, for the data will show them.
    """
    found = find_model(source)
    try:
        inputs = find_inputs(found, shapes, source.seed)
    except InputError:
        if needed or shapes:
            raise
        inputs = None
    return Opened(found, inputs, bool(shapes))


def inspect(
    opened: Opened,
    include: Sequence[str],
    exclude: Sequence[str],
    inner: Sequence[str] = (),
    *,
    strict: bool,
) -> Inspection:
    """Inspect an opened model."""
    return fxgrow.inspect(
        opened.found.model,
        opened.inputs,
        include=include,
        exclude=exclude,
        inner=inner,
        strict=strict,
    )


def prepare(
    opened: Opened,
    data: str | None,
    batch_size: int | None,
    options: Mapping[str, Any],
    here: Here,
) -> Task:
    """Load the data, or make random ones where only votes need any."""
    found, inputs, seed = opened.found, opened.inputs, options["seed"]
    batches: Any = None
    if data is not None:
        size = batch_size or DATA_BATCH
        batches = find_data(data, found.model, inputs=inputs, batch_size=size, seed=seed)
    elif options["distributor"] in NEED_DATA:
        size = batch_size or RANDOM_BATCH
        batches = random_data(found.model, inputs, batch_size=size, seed=seed)
    # the data's own first batch is the better example, unless inputs were named
    example = inputs if data is None or opened.given else None
    return Task(found, here.share_of(batches), {**options, "example_inputs": example}, here)


def find_loss(reference: str | None) -> Any:
    """Turn ``--loss`` into a name or a function."""
    if reference is None or not is_code_reference(reference):
        return reference
    function = resolve(reference)
    # a class such as torch.nn:L1Loss is meant as its instance
    return function() if isinstance(function, type) else function


def check_device(device: str | None) -> None:
    """Raise unless ``device`` names a device that is there."""
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        lines = str(error).strip().splitlines() or ["not available"]
        msg = f"--device {device}: {lines[0]}; name one that is here, e.g. cpu"
        raise InputError(msg) from error


def output_for(model: str, output: Path | None) -> Path:
    """Return ``-o``, or ``<stem>-grown.safetensors`` in the current folder."""
    if output is not None:
        return output
    path = Path(model)
    if Source(model).is_file:
        stem = path.stem
    elif model.startswith(ZOOS):
        stem = Path(model.partition(":")[2].partition("@")[0]).name
    else:
        stem = model.rpartition(":")[2].rpartition(".")[2]
    return Path(f"{stem}-grown.safetensors")


def check_output(path: Path, suffixes: set[str], *, force: bool, source: str | None = None) -> None:
    """Raise early, before the work, where the output could not be written at its end.

    Raises
    ------
    FileError
        Unknown suffix, no such folder, not writable, or a file in the way.
    """
    if path.suffix not in suffixes:
        msg = f"{path}: an output ends in {' or '.join(sorted(suffixes))}; rename it with -o"
        raise FileError(msg)
    folder = path.parent
    if not folder.is_dir():
        msg = f"{path}: there is no folder {folder}; create it or choose another with -o"
        raise FileError(msg)
    if path.is_dir() or not os.access(folder, os.W_OK):
        msg = f"{path}: can't be written; choose another place with -o"
        raise FileError(msg)
    if force or not os.path.lexists(path):  # a link to nothing is in the way too
        return
    if source is not None and Path(source).exists() and path.samefile(source):
        msg = f"{path}: is the input itself; choose another with -o, or --force to replace it"
        raise FileError(msg)
    msg = f"{path}: exists already; choose another with -o, or --force to replace it"
    raise FileError(msg)


def check_reports(output: Path | None, html: Path | None, *, force: bool) -> list[Path]:
    """Return the reports that are asked for; raise early where one could not be written."""
    kinds = ((output, set(pages.FORMATS)), (html, {".html"}))
    wanted = {path: suffixes for path, suffixes in kinds if path is not None}
    for path, suffixes in wanted.items():
        check_output(path, suffixes, force=force)
    return list(wanted)


def remarks(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the closing lines of an expansion."""
    if result["random_votes"]:
        yield RANDOM_VOTES
    if result.get("adjusting"):
        yield "Then adjusted (SWE): the function has moved on from the one checked at insertion."
    if result.get("weights") is False:
        yield "The plan was replayed on the base's own weights (--weights takes the file's)."
    if result.get("obstacle"):
        yield f"It grew as its own class: {result['obstacle']}."
    if result["output"] is None:
        yield "Dry run: nothing was grown, nothing was written."
    else:
        yield f"Written to {result['output']}."
    if "files" in result:
        yield "Units, shapes and old entries were checked; outputs were not compared."
    if result.get("left_out"):
        yield f"Not taken over from the old folder: {', '.join(result['left_out'])}."


def _moved(inputs: Any, device: str | None) -> Any:
    if device is None or inputs is None:
        return inputs
    if isinstance(inputs, dict):
        return {name: _moved(value, device) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(_moved(value, device) for value in inputs)
    return inputs.to(device) if isinstance(inputs, torch.Tensor) else inputs
