"""Growing a model again as a file says: a plan, or a grown model's history.

Read are growth files (:func:`fxgrow.save`), reports of growths (``fxgrow expand --json``)
and plans written by hand (``{"additions": {"conv1": 16}}``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any

from .errors import FileError, InputError
from .files.digest import differences
from .files.header import parse_json
from .files.replay import check_base, foreign, mismatches, recorded_inputs, replayed
from .files.schema import check_inputs
from .files.shards import INDEX, read_limited
from .files.stored import open_stored
from .plain import plain
from .printable import quoted
from .report import GROWTH_SCHEMA
from .wrapping import unwrap

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from .files.header import Entry
    from .ir import Growth
    from .rules.own import Declaration

__all__ = ["Recipe", "apply", "read_recipe"]

_OURS = "fxgrow.file/"


@dataclass(frozen=True)
class Recipe:
    """How a model was grown.

    Attributes
    ----------
    path : Path
        The file it was read from.
    steps : tuple of dict
        One a growth: ``plan`` (with ``additions``), ``seed`` and ``base`` (type, shape and
        sum of each tensor of the model that grew), where the file knows it.
    inputs : dict or None
        Shapes of the example inputs, where the file knows them.
    emit : {"graph", "module"}
        What the growth was written as.
    widths : dict of str to int
        Units of the groups before growth, as far as the file knows them.
    numel : int, optional
        Elements of all tensors after growth, of a growth file.
    tensors : dict of str to Entry
        Type and shape of each entry of the state dict after growth, of a growth file.
    """

    path: Path
    steps: tuple[Mapping[str, Any], ...]
    inputs: Mapping[str, Any] | None = None
    emit: str = "graph"
    widths: Mapping[str, int] = field(default_factory=dict)
    numel: int | None = None
    tensors: Mapping[str, Entry] = field(default_factory=dict)


def read_recipe(path: str | Path) -> Recipe:
    """Read how a model was grown.

    Parameters
    ----------
    path : str or Path
        What :func:`fxgrow.save` wrote, or a ``.json`` file of a report or of additions.

    Returns
    -------
    Recipe

    Raises
    ------
    FileError
        When the file is missing, damaged, of an unknown kind or version, or says of a
        growth what can't be (names that are no text, units that are no whole numbers).
    """
    source = Path(path)
    if source.suffix != ".json" or source.name.endswith(INDEX):
        return _of_growth_file(source)
    content = _json(source)
    schema = content.get("schema", "")
    if isinstance(schema, str) and schema.startswith(_OURS):
        return _of_growth_file(source)
    if not isinstance(schema, str) or schema not in _READERS:
        known = ", ".join(repr(name) for name in _READERS if name)
        raise FileError(
            f"{source}: is of schema {brief(schema)}, this fxgrow reads '{_OURS}…', {known} or a "
            'plain {"additions": {group: units}}; use another version'
        )
    return _READERS[schema](source, content)


def apply(
    path: str | Path | Recipe,
    base: torch.nn.Module,
    example_inputs: Any = None,
    *,
    any_weights: bool = False,
    emit: str | None = None,
    verify: bool = True,
    rules: Iterable[Declaration] = (),
) -> Growth:
    """Repeat the growth that a file describes on a model, keeping what the model computes.

    The new units are the ones of the first time, for the seed is in the file; training
    after growth, and its adjusting phase, are not repeated.

    Parameters
    ----------
    path : str, Path or Recipe
        What :func:`save` wrote, of any kind (its weights are not read), what ``fxgrow
        expand --json`` printed, or a plan by hand: ``{"additions": {"conv1": 16}}``.
    base : torch.nn.Module
        The model as before growth. Never changed.
    example_inputs : tensor, tuple or dict, optional
        Random ones of the recorded shapes by default.
    any_weights : bool
        Take a base of other weights than the plan was made for; shapes must be the same.
    emit : {"graph", "module"}, optional
        As in the file by default.
    verify : bool
        Compare outputs before and after.
    rules : sequence of Declaration
        For custom operations and opaque modules, see :func:`fxgrow.inspect`.

    Returns
    -------
    Growth
        Of the last step, where the file holds several growths on top of each other.

    Raises
    ------
    FileError
        If the file is missing or damaged, holds a transfer, or was made for another base
        (saying what differs).
    InputError
        If there are neither example inputs nor recorded ones.
    """
    recipe = path if isinstance(path, Recipe) else read_recipe(path)
    if any(step["transfer"] for step in recipe.steps):
        msg = f"{recipe.path}: holds a transfer, which has no plan to repeat; use fxgrow.load"
        raise FileError(msg)
    base = plain(unwrap(base))
    check_base(recipe.path, recipe.steps, base)
    if not any_weights:
        _check_weights(recipe, base)
    options = {"emit": emit or recipe.emit, "rules": tuple(rules)}
    growth, steps = replayed(
        recipe.path,
        recipe.steps,
        base,
        _inputs(recipe) if example_inputs is None else example_inputs,
        options,
        most=recipe.numel,
        widths=recipe.widths,
        verify=verify,
    )
    _check_result(recipe, growth)
    return replace(
        growth,
        report={**growth.report, "steps": steps},
        sources={} if len(steps) > 1 else growth.sources,  # nobody trains what was in between
    )


def _check_weights(recipe: Recipe, base: torch.nn.Module) -> None:
    if other := differences(recipe.steps[0]["base"] or {}, base):
        raise FileError(
            f"{recipe.path}: was made for a model of other weights: {quoted(other[0])} and "
            f"{len(other) - 1} more differ; pass any_weights=True (--any-weights) to apply it "
            "all the same"
        )


def _check_result(recipe: Recipe, growth: Growth) -> None:
    """Refuse what became another shape than the file has: its base was another one."""
    if recipe.tensors:
        problems = list(mismatches(growth.module.state_dict(), recipe.tensors))
        if problems:
            raise foreign(recipe.path, problems)


def _inputs(recipe: Recipe) -> Any:
    if recipe.inputs is None:
        raise InputError(f"{recipe.path}: records no inputs; pass example_inputs (--input)")
    return recorded_inputs(recipe.path, recipe.inputs, seed=0)


# ------------------------------------------------------------------- reading


def _of_growth_file(path: Path) -> Recipe:
    """Read the plan of a file of ours: of weights, of shards, or of a plan alone."""
    try:
        stored = open_stored(path)
    except FileError as error:
        if path.suffix in {".safetensors", ".json"}:
            raise
        raise FileError(
            f"{error}; a plan is a .json file, or lies in a .safetensors one"
        ) from error
    meta = stored.meta
    tensors = stored.state() if stored.entries else {}
    return Recipe(
        path,
        tuple(meta["steps"]),
        meta["inputs"],
        meta["emit"],
        numel=stored.numel if stored.entries else None,
        tensors=tensors,
    )


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = parse_json(read_limited(path))
    except ValueError as error:
        raise FileError(f"{path}: is no JSON of a plan ({error}); get the file again") from error
    if not isinstance(content, dict):
        raise FileError(f"{path}: holds no plan but a {type(content).__name__}; name another file")
    return content


def _of_report(path: Path, content: Mapping[str, Any]) -> Recipe:
    """Read what ``fxgrow expand --json`` or ``widen --json`` wrote."""
    rows = content.get("groups")
    widths: dict[str, int] = {}
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and type(row.get("width")) is int:
            widths[str(row.get("name"))] = row["width"]
    return Recipe(path, (_step(path, content),), _spec(path, content), widths=widths)


def _of_plan(path: Path, content: Mapping[str, Any]) -> Recipe:
    """Read a plan written by hand."""
    return Recipe(path, (_step(path, {**content, "plan": content}),))


def _spec(path: Path, content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    inputs = content.get("inputs")
    return check_inputs(path, inputs) if isinstance(inputs, dict) else None


def _step(path: Path, step: Mapping[str, Any]) -> Mapping[str, Any]:
    plan = step.get("plan")
    additions = plan.get("additions") if isinstance(plan, dict) else None
    if not isinstance(additions, dict) or not additions:
        raise FileError(f"{path}: has no 'additions', units by group; get the file again")
    for name, units in additions.items():
        if type(units) is not int or not 0 < units < 2**31:
            where = f"{path}: additions[{quoted(name)}]"
            raise FileError(f"{where} is {brief(units)}, no number of units")
    seed = step.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise FileError(f"{path}: its seed is {brief(seed)}; it must be a whole number")
    transfer = bool(step.get("transfer"))
    return {"plan": plan, "votes": None, "seed": seed, "transfer": transfer, "base": None}


_READERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Recipe]] = {
    GROWTH_SCHEMA: _of_report,
    "": _of_plan,
}
"""By schema; an older one stays here with a reader that brings it up to date."""
