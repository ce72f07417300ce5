"""Saving and loading growths: no pickle, and no code from a file.

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

from .errors import FileError, InputError
from .files.atomic import atomic_write
from .files.digest import transient_buffers
from .files.pickles import open_pickle, pickle_module
from .files.replay import (
    check_base,
    example_inputs,
    foreign,
    growth_step,
    mismatches,
    plan_of,
    recorded_inputs,
    replayed,
    verification_of,
    votes_of,
    widen_again,
)
from .files.schema import SCHEMA, pack_meta, pack_plan
from .files.shards import INDEX, bytes_of, write_shards
from .files.stored import Stored, open_stored
from .files.tensors import Collected, collect
from .plain import plain
from .report import verification_dict
from .trace import shadow
from .wrapping import unwrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .ir import Growth
    from .rules.own import Declaration

__all__ = [
    "SCHEMA",
    "atomic_write",
    "describe",
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
    fxgrow.apply : repeat the growth on a model, without the file's weights.
    """
    target = Path(path)
    sharded = target.name.endswith(INDEX)
    if target.suffix == ".json" and not sharded:
        text = pack_plan(describe(growth, history, Collected()))
        atomic_write(target, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return
    most = bytes_of(max_shard_size)
    found = collect(growth.module, target)
    metadata = pack_meta(describe(growth, history, found))
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
    check_base(stored.path, meta["steps"], base)
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


def describe(
    growth: Growth, history: Sequence[Mapping[str, Any]], found: Collected
) -> dict[str, Any]:
    """Describe a growth as its file does, see :func:`read_meta`."""
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


def _loaded(stored: Stored, base: torch.nn.Module, options: Any) -> Growth:
    """Replay the shapes, see that the file fits, and only then read its tensors."""
    resting = {name for name, p in base.named_parameters() if not p.requires_grad}
    if resting:  # the file may hold growth from before they were put to rest
        own = ((id(p), p.detach(), p.is_floating_point()) for p in base.parameters())
        base = shadow(base, {key: torch.nn.Parameter(data, trains) for key, data, trains in own})
    meta = stored.meta
    inputs = recorded_inputs(stored.path, meta["inputs"])
    growth, _ = replayed(stored.path, meta["steps"], base, inputs, options, most=stored.numel)
    module = growth.module
    if problems := list(mismatches(module.state_dict(), stored.state())):
        raise foreign(stored.path, problems)
    tensors = stored.tensors()
    transient = {name: tensors.pop(name) for name in meta["transient"]}
    state = module.state_dict()  # knows the versions of the classes, which may ask for theirs
    state.update(tensors)
    module.load_state_dict(state, strict=True)
    for name, buffer in transient_buffers(module):
        value = transient.get(name)
        if value is not None and value.shape == buffer.shape and value.dtype == buffer.dtype:
            buffer.copy_(value)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in resting)
    return growth
