"""Saving, loading and applying growths: no pickle, and no code from a file.

A growth is one ``.safetensors`` file, or an index of many, that holds every tensor of the
grown module (shared ones once) and, in its metadata, what is needed to build the same
module again from the model that was grown: the plan, the seed and the shapes of the
example inputs. A ``.json`` file holds that alone. See docs/safety.md for what is trusted.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from .errors import FileError, FxgrowError, InputError
from .files.atomic import atomic_write
from .files.digest import differences, other_shapes, transient_buffers
from .files.pickles import open_pickle, pickle_module
from .files.replay import (
    example_inputs,
    growth_step,
    mismatches,
    plan_of,
    room,
    verification_of,
    votes_of,
    widen_again,
)
from .files.schema import SCHEMA, pack_meta, pack_plan
from .files.shards import INDEX, bytes_of, write_shards
from .files.stored import Stored, open_stored
from .files.tensors import Collected, collect
from .plain import plain
from .printable import quoted
from .report import verification_dict
from .trace import shadow
from .wrapping import unwrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .ir import Growth
    from .rules.own import Declaration

__all__ = [
    "SCHEMA",
    "apply",
    "atomic_write",
    "example_inputs",
    "growth_step",
    "load",
    "mismatches",
    "open_pickle",
    "pickle_module",
    "read_meta",
    "save",
    "widen_again",
]


_VERSION = version("fxgrow")  # read once: later the process may lack the right to


def save(
    growth: Growth,
    path: str | Path,
    *,
    history: Sequence[Mapping[str, Any]] = (),
    max_shard_size: int | str = "5GB",
) -> None:
    """Write the grown weights and the plan, atomically.

    Parameters
    ----------
    growth : Growth
        What :func:`fxgrow.widen` or :func:`fxgrow.expand` returned; its module may have
        been trained since.
    path : str or Path
        ``NAME.safetensors`` for one file, ``NAME.safetensors.index.json`` for shards and
        their index (the format of Hugging Face), ``NAME.json`` for the plan without
        weights. What exists is replaced only when the new one is complete.
    history : sequence of dict, optional
        ``growth.report["steps"]`` of the earlier growths, oldest first, when the model
        that was grown was itself a grown one: :func:`load` replays them all.
    max_shard_size : int or str
        Most bytes of a shard, e.g. ``"5GB"``; a larger tensor is a shard of its own.

    Raises
    ------
    FileError
        If the file can't be written, or the module holds what has no place in it: entries
        that are no dense tensors, or TorchScript.

    See Also
    --------
    load : read the file back.
    apply : repeat the growth on a model, without the file's weights.
    """
    target = Path(path)
    sharded = target.name.endswith(INDEX)
    if target.suffix == ".json" and not sharded:
        text = pack_plan(_meta(growth, history, Collected()))
        atomic_write(target, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return
    most = bytes_of(max_shard_size)
    found = collect(growth.module, target)
    metadata = pack_meta(_meta(growth, history, found))
    if sharded:
        write_shards(found.tensors, target, metadata, most)
    else:
        atomic_write(target, lambda temporary: save_file(found.tensors, temporary, metadata))


def load(
    path: str | Path, base: torch.nn.Module | None = None, *, rules: Iterable[Declaration] = ()
) -> Growth:
    """Read a growth back: widen ``base`` as the file says, then fill in the weights.

    Parameters
    ----------
    path : str or Path
        What :func:`save` wrote: a file, or an index of shards.
    base : torch.nn.Module
        The model as before growth (after :func:`fxgrow.transfer`: the target), for its
        structure; its weights don't matter.
    rules : sequence of Declaration
        Those that the model was grown with, see :func:`fxgrow.inspect`.

    Returns
    -------
    Growth
        With the module on the CPU, the saved plan, votes and verification, an index map
        from the last model before growth, and ``report["steps"]``, one entry a growth.

    Raises
    ------
    FileError
        If the file is missing, damaged or of another kind, or ``base`` does not fit it.
    InputError
        If there is no ``base``.
    """
    stored = open_stored(path)
    meta = stored.meta
    if not stored.entries:
        msg = f"{stored.path}: holds a plan and no weights; fxgrow.apply repeats it on a model"
        raise FileError(msg)
    if base is None:
        msg = f"{stored.path}: a growth is loaded onto the model it grew from; pass it as base="
        raise InputError(msg)
    base = plain(unwrap(base))
    _check_shapes(stored, base)
    growth = _loaded(stored, base, {"emit": meta["emit"], "rules": tuple(rules)})
    last = meta["steps"][-1]
    return replace(
        growth,
        plan=plan_of(last),
        votes=votes_of(last),
        verification=verification_of(meta["verification"]),
        report={
            **growth.report,
            "inputs": meta["inputs"],
            "seed": last["seed"],
            "steps": meta["steps"],
        },
        sources={},  # the last model before growth was built here: nobody trains it
        base=last["base"] or {},
    )


def apply(
    path: str | Path,
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
    path : str or Path
        What :func:`save` wrote, of any kind; its weights are not read.
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
    """
    stored = open_stored(path)
    steps = stored.meta["steps"]
    if any(step["transfer"] for step in steps):
        msg = f"{stored.path}: holds a transfer, which has no plan to repeat; use fxgrow.load"
        raise FileError(msg)
    base = plain(unwrap(base))
    _check_shapes(stored, base)
    if not any_weights and (other := differences(steps[0]["base"] or {}, base)):
        msg = (
            f"{stored.path}: was made for a model of other weights: {quoted(other[0])} and "
            f"{len(other) - 1} more differ; pass any_weights=True to apply it all the same"
        )
        raise FileError(msg)
    inputs = _inputs(stored, seed=0) if example_inputs is None else example_inputs
    options = {"emit": emit or stored.meta["emit"], "rules": tuple(rules)}
    growth = _replay(stored, base, inputs, options, verify=verify)
    many = len(steps) > 1
    report = {**growth.report, "steps": steps}
    return replace(growth, report=report, sources={} if many else growth.sources)


def read_meta(path: str | Path) -> dict[str, Any]:
    """Read what a growth file says of itself, without its tensors.

    Parameters
    ----------
    path : str or Path
        What :func:`save` wrote.

    Returns
    -------
    dict
        ``schema``; ``fxgrow`` and ``torch`` (versions); ``emit``; ``steps``, one a growth,
        with ``plan``, ``votes``, ``seed``, ``transfer`` and ``base`` (type, shape and sum
        of each tensor of the model that grew, or None); ``inputs`` (shapes and types);
        ``aliases`` (shared tensors); ``transient`` (buffers outside the state dict);
        ``bytes`` (tensors of types that safetensors lacks); ``digests`` (SHA-256 of each
        tensor); ``verification``.

    Raises
    ------
    FileError
        If the file is missing, damaged or of another kind.
    """
    return dict(open_stored(path).meta)


# ------------------------------------------------------------------- steps


def _meta(growth: Growth, history: Sequence[Mapping[str, Any]], found: Collected) -> dict[str, Any]:
    check = growth.verification
    return {
        "schema": SCHEMA,
        "fxgrow": _VERSION,
        "torch": str(torch.__version__),
        "emit": "graph" if isinstance(growth.module, torch.fx.GraphModule) else "module",
        "steps": [*history, growth_step(growth)],
        "inputs": growth.report.get("inputs", {"args": [], "kwargs": {}}),
        "aliases": found.aliases,
        "transient": found.transient,
        "bytes": found.as_bytes,
        "digests": found.digests(),
        "verification": None if check is None else verification_dict(check),
    }


def _check_shapes(stored: Stored, base: torch.nn.Module) -> None:
    """Refuse a base whose tensors are not those of the model that grew."""
    known = stored.meta["steps"][0]["base"]
    if known and (problems := other_shapes(known, base)):
        raise _foreign(stored, problems)


def _foreign(stored: Stored, problems: Sequence[str]) -> FileError:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return FileError(f"{stored.path}: does not belong to this base model: {problems[0]}{more}")


def _inputs(stored: Stored, seed: int | None = None) -> Any:
    try:
        return example_inputs(stored.meta["inputs"], seed=seed)
    except InputError as error:
        raise FileError(f"{stored.path}: {error}") from error


def _replay(
    stored: Stored, base: torch.nn.Module, inputs: Any, options: Any, *, verify: bool
) -> Growth:
    most = min(stored.numel, room()) if stored.entries else room()
    first, *later = stored.meta["steps"]
    try:
        growth = widen_again(base, inputs, first, options, most=most, verify=verify)
        for step in later:
            growth = widen_again(growth.module, inputs, step, options, most=most, verify=verify)
    except FxgrowError as error:
        raise _foreign(stored, [str(error)]) from error
    return growth


def _loaded(stored: Stored, base: torch.nn.Module, options: Any) -> Growth:
    """Replay the shapes, see that the file fits, and only then read its tensors."""
    resting = {name for name, p in base.named_parameters() if not p.requires_grad}
    if resting:  # the file may hold growth from before they were put to rest
        own = ((id(p), p.detach(), p.is_floating_point()) for p in base.parameters())
        base = shadow(base, {key: torch.nn.Parameter(data, trains) for key, data, trains in own})
    growth = _replay(stored, base, _inputs(stored), options, verify=False)
    module = growth.module
    if problems := list(mismatches(module.state_dict(), stored.state())):
        raise _foreign(stored, problems)
    tensors = stored.tensors()
    transient = {name: tensors.pop(name) for name in stored.meta["transient"]}
    module.load_state_dict(tensors, strict=True)
    for name, buffer in transient_buffers(module):
        value = transient.get(name)
        if value is not None and value.shape == buffer.shape and value.dtype == buffer.dtype:
            buffer.copy_(value)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in resting)
    return growth
