"""Growing a model again as a file says: a plan, or a grown model's history.

Read are growth files (:func:`fxgrow.save`), reports of growths (``fxgrow expand --json``)
and plans written by hand (``{"additions": {"conv1": 16}}``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from . import io
from .errors import FileError, InputError
from .files.shards import INDEX
from .report import GROWTH_SCHEMA

if TYPE_CHECKING:
    import torch

    from .ir import Growth

__all__ = ["Recipe", "read_recipe", "replay"]

LARGEST_JSON = 64 * 2**20
"""Bytes; a report of ten thousand groups has about three million."""


@dataclass(frozen=True)
class Recipe:
    """How a model was grown.

    Attributes
    ----------
    path : Path
        The file it was read from.
    steps : tuple of dict
        One a growth: ``plan`` (with ``additions``) and ``seed``.
    inputs : dict or None
        Shapes of the example inputs, where the file knows them.
    widths : dict of str to int
        Units of the groups before growth, as far as the file knows them.
    shapes : dict of str to tuple of int
        Shapes of all tensors after growth, of a growth file.
    """

    path: Path
    steps: tuple[Mapping[str, Any], ...]
    inputs: Mapping[str, Any] | None = None
    widths: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


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
    if source.suffix == ".safetensors":
        return _of_growth_file(source)
    if source.suffix != ".json":
        raise FileError(f"{source}: a plan is a .safetensors file of ours, or a .json file")
    if source.name.endswith(INDEX):
        return _of_description(source)
    content = _json(source)
    schema = content.get("schema", "")
    if str(schema).startswith("fxgrow.file/"):
        return _of_description(source)
    if not isinstance(schema, str) or schema not in _READERS:
        known = ", ".join(repr(name) for name in _READERS if name)
        raise FileError(
            f"{source}: is of schema {schema!r}, this fxgrow reads {known} or a plain "
            '{"additions": {group: units}}; use another version'
        )
    return _READERS[schema](source, content)


def replay(
    recipe: Recipe,
    base: torch.nn.Module,
    example_inputs: Any = None,
    *,
    weights: bool = False,
) -> tuple[Growth, tuple[Mapping[str, Any], ...]]:
    """Grow a model as a recipe says; the function of ``base`` is kept, and checked.

    Parameters
    ----------
    recipe : Recipe
        See :func:`read_recipe`.
    base : torch.nn.Module
        Never changed; of the architecture that the plan was made for.
    example_inputs : tensor, tuple or dict, optional
        By default zeros of the shapes that the file records.
    weights : bool
        Take the grown file's weights over, too: then it is :func:`fxgrow.load`.

    Returns
    -------
    growth : Growth
        The last one.
    history : tuple of dict
        Steps of the earlier ones, for :func:`fxgrow.save`.

    Raises
    ------
    FileError
        When the recipe does not fit ``base``.
    InputError
        When there are neither example inputs nor recorded ones, or no weights to take.
    FxgrowError
        When ``base`` can't be grown so (see :func:`fxgrow.widen`).
    """
    if weights:
        if not recipe.shapes:
            raise InputError(f"{recipe.path}: is a plan and holds no weights to take over")
        return io.load(recipe.path, base), recipe.steps[:-1]
    inputs = example_inputs
    if inputs is None:
        if recipe.inputs is None:
            raise InputError(f"{recipe.path}: records no inputs; pass example_inputs")
        inputs = io.example_inputs(recipe.inputs)
    module, growth = base, None
    for step in recipe.steps:
        growth = _grown(recipe, module, inputs, step, first=growth is None)
        module = growth.module
    assert growth is not None  # a recipe has a step at least
    state = growth.module.state_dict()
    for name, shape in recipe.shapes.items():
        if name not in state or tuple(state[name].shape) != shape:
            here = tuple(state[name].shape) if name in state else "missing"
            raise FileError(
                f"{recipe.path}: was not grown from such a model: {name!r} is {shape} in the "
                f"file and {here} here; pass the model that it grew from"
            )
    return growth, recipe.steps[:-1]


def _grown(
    recipe: Recipe, module: torch.nn.Module, inputs: Any, step: Mapping[str, Any], *, first: bool
) -> Growth:
    from .inspection import inspect_model
    from .stages import as_plan, grow

    if step.get("transfer"):
        raise FileError(
            f"{recipe.path}: was made by a transfer into a wider model, which no plan repeats; "
            "open it with that model as its base"
        )
    inspection = inspect_model(module, inputs)
    for group in inspection.groups if first else ():
        known = recipe.widths.get(group.name, group.width)
        if known != group.width:
            raise FileError(
                f"{recipe.path}: was made for another model: group {group.name!r} has {known} "
                f"units there and {group.width} here; pass the model that it was made for"
            )
    try:
        plan = as_plan(step["plan"]["additions"], inspection)
    except InputError as error:
        raise FileError(f"{recipe.path}: does not fit this model: {error}") from error
    return grow(module, inspection, plan, seed=step["seed"], emit="graph", verify=True)


# ------------------------------------------------------------------- reading


def _of_growth_file(path: Path) -> Recipe:
    recipe = _of_description(path)
    with safe_open(str(path), framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping
    return replace(recipe, shapes=shapes)


def _of_description(path: Path) -> Recipe:
    """Read the plan of a file of ours: of weights, of shards, or of a plan alone."""
    meta = io.read_meta(path)
    return Recipe(path, tuple(_step(path, step) for step in meta["steps"]), meta["inputs"])


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise FileError(f"{path}: is too large for a plan; name another file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise FileError(f"{path}: {why}; name the plan's file") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: is no JSON ({error}); get the file again") from error
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
    return Recipe(path, (_step(path, content),), _spec(content), widths)


def _of_plan(path: Path, content: Mapping[str, Any]) -> Recipe:
    """Read a plan written by hand."""
    return Recipe(path, (_step(path, {**content, "plan": content}),))


def _spec(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    inputs = content.get("inputs")
    return inputs if isinstance(inputs, dict) else None


def _step(path: Path, step: Mapping[str, Any]) -> Mapping[str, Any]:
    plan = step.get("plan")
    additions = plan.get("additions") if isinstance(plan, dict) else None
    if not isinstance(additions, dict) or not additions:
        raise FileError(f"{path}: has no 'additions', units by group; get the file again")
    for name, units in additions.items():
        if type(units) is not int or not 0 < units < 2**31:
            raise FileError(f"{path}: additions[{name!r}] is {units!r}, no number of units")
    seed = step.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise FileError(f"{path}: its seed is {seed!r}; it must be a whole number")
    return {**step, "plan": plan, "seed": seed}


_READERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Recipe]] = {
    GROWTH_SCHEMA: _of_report,
    "": _of_plan,
}
"""By schema; an older one stays here with a reader that brings it up to date."""
