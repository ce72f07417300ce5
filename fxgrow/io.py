"""Saving and loading growths: one ``.safetensors`` file, no pickle.

The file holds every tensor of the grown module's state dict (shared ones once) and, in
its metadata, what is needed to build the same module again from the model that was
grown: the plan, the seed and the shapes of the example inputs.
"""

from __future__ import annotations

import json
import os
import pickle
import secrets
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import FileError, FxgrowError, InputError
from .ir import Growth, Plan, Verification, Votes
from .plain import plain
from .report import plan_dict, verification_dict, votes_dict
from .trace import shadow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from .rules.own import Declaration

SCHEMA = "fxgrow.file/1"
_KEY = "fxgrow"  # the one metadata entry, a JSON text


def save(growth: Growth, path: str | Path, *, history: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write the grown weights and the plan to one ``.safetensors`` file, atomically.

    Parameters
    ----------
    growth : Growth
        What :func:`fxgrow.widen` or :func:`fxgrow.expand` returned; its module may have
        been trained since.
    path : str or Path
        The file; one that exists is replaced only when the new one is complete.
    history : sequence of dict, optional
        ``growth.report["steps"]`` of the earlier growths, oldest first, when the model
        that was grown was itself a grown one: :func:`load` replays them all.

    Raises
    ------
    FileError
        If the file can't be written, or the state dict holds what is no tensor.

    See Also
    --------
    load : read the file back.
    """
    target = Path(path)
    tensors, aliases = _unique_tensors(growth.module.state_dict(), target)
    meta = {
        "schema": SCHEMA,
        "fxgrow": version("fxgrow"),
        "torch": str(torch.__version__),
        "emit": "graph" if isinstance(growth.module, torch.fx.GraphModule) else "module",
        "steps": [*history, growth_step(growth)],
        "inputs": growth.report.get("inputs", {"args": [], "kwargs": {}}),
        "aliases": aliases,
        "verification": None
        if growth.verification is None
        else verification_dict(growth.verification),
    }
    text = json.dumps(meta, sort_keys=True, default=_plain)
    atomic_write(target, lambda temporary: save_file(tensors, temporary, {_KEY: text}))


def growth_step(growth: Growth) -> dict[str, Any]:
    """Describe one growth so that :func:`load` can replay it: plan, votes, seed, kind."""
    votes = growth.votes
    return {
        "plan": plan_dict(growth.plan),
        "votes": None if votes is None else votes_dict(votes),
        "seed": int(growth.report.get("seed", 0)),
        "transfer": bool(growth.report.get("transfer")),
    }


def load(
    path: str | Path, base: torch.nn.Module | None = None, *, rules: Iterable[Declaration] = ()
) -> Growth:
    """Read a growth back: widen ``base`` as the file says, then fill in the weights.

    Parameters
    ----------
    path : str or Path
        What :func:`save` wrote.
    base : torch.nn.Module
        The model as before growth (after :func:`fxgrow.transfer`: the target), for its structure.
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
    source = Path(path)
    meta, tensors = _read(source)
    if base is None:
        msg = f"{source}: a growth is loaded onto the model it grew from; pass it as base="
        raise InputError(msg)
    growth = _replay(source, meta, base, {"emit": meta["emit"], "rules": tuple(rules)})
    _fill(source, growth.module, tensors, meta["aliases"])
    last = meta["steps"][-1]
    return replace(
        growth,
        plan=Plan(**last["plan"]),
        votes=_votes(last["votes"]),
        verification=_verification(meta["verification"]),
        report={
            **growth.report,
            "inputs": meta["inputs"],
            "seed": last["seed"],
            "steps": meta["steps"],
        },
        sources={},  # the last model before growth was built here: nobody trains it
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
        ``schema``, ``fxgrow`` and ``torch`` (versions), ``emit``, ``steps``, ``inputs``,
        ``aliases``, ``verification``.

    Raises
    ------
    FileError
        If the file is missing, damaged or of another kind.
    """
    source = Path(path)
    with _opened(source) as file:
        return _checked_meta(source, file.metadata())


def example_inputs(spec: Mapping[str, Any]) -> tuple[Any, ...] | dict[str, Any]:
    """Build zero inputs of the shapes that a growth file records.

    Parameters
    ----------
    spec : dict
        ``{"args": [{"shape": [...], "dtype": "float32"}, ...], "kwargs": {name: ...}}``.

    Returns
    -------
    tuple or dict of torch.Tensor
        Keyword arguments if the spec names any, else positional ones.
    """
    named = {name: _zeros(entry) for name, entry in spec.get("kwargs", {}).items()}
    return named or tuple(_zeros(entry) for entry in spec.get("args", []))


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place.

    Whatever happens, ``path`` is either as it was or complete.

    Parameters
    ----------
    path : str or Path
        The file to make.
    write : callable
        Gets the path of the temporary file, still empty.

    Raises
    ------
    FileError
        If the file can't be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the caller's umask has it
        write(temporary)
        temporary.chmod(mode)  # safetensors makes its files private
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        msg = f"{target}: could not be written ({why}); choose another place for the output"
        raise FileError(msg) from error
    finally:
        with suppress(OSError):  # gone already when all went well
            temporary.unlink()


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
        with temporary.open("wb") as file:
            torch.save(module, file)

    try:
        atomic_write(path, write)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        msg = f"{path}: the module can't be pickled ({error}); write .safetensors instead"
        raise FileError(msg) from error


# ------------------------------------------------------------------- writing


def _unique_tensors(
    state: Mapping[str, Any], path: Path
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Split a state dict into tensors to write and aliases of those."""
    first: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            msg = f"{path}: the state dict's {name!r} is no tensor and has no place in the file"
            raise FileError(msg)
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        # a copy, so that partly overlapping views may be written too
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, aliases


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value: Any) -> Any:
    """Turn numpy and torch scalars, and sizes, into JSON types."""
    if hasattr(value, "item"):
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


# ------------------------------------------------------------------- reading


def _opened(path: Path) -> Any:
    if not path.is_file():
        msg = f"{path}: there is no such file"
        raise FileError(msg)
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        msg = f"{path}: damaged, or no .safetensors file ({error}); get it again"
        raise FileError(msg) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with _opened(path) as file:
        meta = _checked_meta(path, file.metadata())
        return meta, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping


def _checked_meta(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(_KEY)
    if text is None:
        msg = f"{path}: holds tensors, but was not written by fxgrow"
        raise FileError(msg)
    try:
        meta = json.loads(text)
        schema = meta["schema"]
    except (ValueError, TypeError, KeyError) as error:
        msg = f"{path}: its description is damaged ({error}); get the file again"
        raise FileError(msg) from error
    if schema != SCHEMA:
        msg = f"{path}: is of schema {schema!r}, this fxgrow reads {SCHEMA!r}; use another version"
        raise FileError(msg)
    lacking = {"steps", "inputs", "aliases", "emit", "verification"} - set(meta)
    if missing := sorted(lacking) or ([] if meta["steps"] else ["steps"]):
        msg = f"{path}: its description lacks {', '.join(missing)}; get the file again"
        raise FileError(msg)
    return dict(meta)


def _replay(path: Path, meta: Mapping[str, Any], base: torch.nn.Module, options: Any) -> Growth:
    inputs = example_inputs(meta["inputs"])
    first, *later = meta["steps"]
    base = plain(base)
    resting = {name for name, p in base.named_parameters() if not p.requires_grad}
    if resting:  # the file may hold growth from before they were put to rest
        own = ((id(p), p.detach(), p.is_floating_point()) for p in base.parameters())
        base = shadow(base, {key: torch.nn.Parameter(data, trains) for key, data, trains in own})
    try:
        growth = widen_again(base, inputs, first, options)
        for step in later:
            growth = widen_again(growth.module, inputs, step, options)
    except FxgrowError as error:
        msg = f"{path}: does not belong to this base model: {error}"
        raise FileError(msg) from error
    for name, parameter in growth.module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in resting)
    return growth


def widen_again(
    module: torch.nn.Module, inputs: Any, step: Mapping[str, Any], options: Mapping[str, Any]
) -> Growth:
    """Repeat a growth described by :func:`growth_step`: its shapes, not its training."""
    from .api import transferred_again, widen  # here, because the API offers save and load itself

    if step.get("transfer"):  # its base is the wide model
        return transferred_again(module, inputs, step, options["emit"])
    additions, seed = step["plan"]["additions"], step["seed"]
    return widen(module, inputs, additions, seed=seed, verify=False, **options)


def _fill(
    path: Path,
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    aliases: Mapping[str, str],
) -> None:
    state = {**tensors, **{name: tensors[first] for name, first in aliases.items()}}
    problems = list(mismatches(module.state_dict(), state))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        msg = f"{path}: does not belong to this base model: {problems[0]}{more}"
        raise FileError(msg)
    module.load_state_dict(state, strict=True)


def mismatches(
    wanted: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    """Say where a state dict does not fit the one that is wanted."""
    for name, tensor in wanted.items():
        if name not in state:
            yield f"the file lacks {name!r}"
        elif state[name].shape != tensor.shape:
            here, there = tuple(tensor.shape), tuple(state[name].shape)
            yield f"{name!r} is {there} in the file and {here} in the widened base"
    yield from (f"the base has no {name!r}" for name in state if name not in wanted)


def _zeros(entry: Mapping[str, Any]) -> Any:
    if "value" in entry:
        return entry["value"]  # a number or a flag
    return torch.zeros(tuple(entry["shape"]), dtype=getattr(torch, entry["dtype"]))


def _votes(data: Mapping[str, Any] | None) -> Votes | None:
    return None if data is None else Votes(values={}, **data)


def _verification(data: Mapping[str, Any] | None) -> Verification | None:
    if data is None:
        return None
    return Verification(**{name: value for name, value in data.items() if name != "passed"})
