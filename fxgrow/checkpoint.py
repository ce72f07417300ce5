"""State of a run in plain types and tensors: random numbers, tracked objects, regrowing.

Everything that these functions return can be read back by ``torch.load`` with
``weights_only=True``: opening a checkpoint runs no code.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .errors import FileError, FxgrowError, InputError
from .files.atomic import atomic_write, remove_leftovers
from .files.pickles import open_pickle, torch_save
from .files.replay import mismatches, widen_again

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from .ir import Growth

__all__ = [
    "check_parts",
    "load_object",
    "plain",
    "random_state",
    "read_state",
    "regrow",
    "remove_leftovers",
    "set_random_state",
    "sorted_out",
    "undisturbed",
    "write_state",
]

# ------------------------------------------------------------------- random numbers


def random_state(generators: Mapping[str, torch.Generator]) -> dict[str, Any]:
    """Capture all random states: Python, NumPy, torch on all devices, given generators."""
    kind, keys, position, has_gauss, gauss = _numpy_state()
    version, words, extra = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": (version, torch.tensor(words, dtype=torch.int64), extra),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "generators": {name: each.get_state() for name, each in generators.items()},
    }


def _numpy_state() -> tuple[Any, ...]:
    state: Any = np.random.get_state(legacy=True)
    return tuple(state)


def set_random_state(state: Mapping[str, Any], generators: Mapping[str, torch.Generator]) -> None:
    """Undo everything that happened to the random states since :func:`random_state`."""
    version, words, extra = state["python"]
    random.setstate((version, tuple(words.tolist()), extra))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    for name, value in state["generators"].items():
        if name in generators:
            generators[name].set_state(value)


@contextlib.contextmanager
def undisturbed(generators: Mapping[str, torch.Generator], seed: int) -> Iterator[None]:
    """Run a block on seeded random numbers; all random states are as before afterwards."""
    before = random_state(generators)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(before, generators)


def generators_of(data: Any) -> dict[str, torch.Generator]:
    """Return the generators that a DataLoader draws its order from."""
    owners = {
        "data": data,
        "data.sampler": getattr(data, "sampler", None),
        "data.batch_sampler": getattr(data, "batch_sampler", None),
    }
    found = {name: getattr(owner, "generator", None) for name, owner in owners.items()}
    return {name: each for name, each in found.items() if isinstance(each, torch.Generator)}


# ------------------------------------------------------------------- plain types

_LEAVES = (int, float, str, bool, bytes, type(None), torch.Tensor)


def plain(value: Any, where: str) -> Any:
    """Turn NumPy scalars into Python's, and refuse what a checkpoint can't hold.

    Raises
    ------
    FileError
        Naming the entry.
    """
    if isinstance(value, np.generic):
        return value.item()
    kind = type(value)
    if kind in _LEAVES or isinstance(value, torch.Tensor):
        return value
    if kind in {list, tuple, set}:
        return kind(plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    if kind in {dict, OrderedDict, Counter}:
        return kind({key: plain(item, f"{where}[{key!r}]") for key, item in value.items()})
    raise FileError(
        f"{where} is of type {kind.__name__}, which a checkpoint without pickled code can't "
        "hold; keep its owner out of track= and save it yourself"
    )


# ------------------------------------------------------------------- tracked objects


def sorted_out(
    track: Mapping[str, Any], data: Any
) -> tuple[dict[str, torch.Generator], dict[str, Any]]:
    """Split what is tracked into generators (those of the data too) and stateful objects.

    Raises
    ------
    InputError
        For objects without a state.
    """
    for name, each in track.items():
        stateful = hasattr(each, "state_dict") and hasattr(each, "load_state_dict")
        if not stateful and not isinstance(each, torch.Generator):
            raise InputError(
                f"track[{name!r}] is of type {type(each).__name__}, which has no state_dict() "
                "and load_state_dict(); give it both, or leave it out"
            )
    own = {k: v for k, v in track.items() if isinstance(v, torch.Generator)}
    return {**generators_of(data), **own}, {k: v for k, v in track.items() if k not in own}


def check_parts(state: Mapping[str, Any], objects: Mapping[str, Any]) -> None:
    """Refuse states that lack a part, or track other objects.

    Raises
    ------
    InputError
        Naming the difference.
    """
    missing = {"record", "module", "objects", "random"} - set(state)
    if missing:
        raise InputError(f"this is no Grower's state: it lacks {', '.join(sorted(missing))}")
    if set(objects) != set(state["objects"]):
        raise InputError(
            f"the checkpoint holds {sorted(state['objects'])}, this Grower {sorted(objects)}; "
            "give it the same optimizers, ema and track as when it was saved"
        )


def load_object(name: str, target: Any, state: Any) -> None:
    """Give an object its state back.

    Raises
    ------
    InputError
        When the state does not fit.
    """
    try:
        target.load_state_dict(state)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"the checkpoint's {name} does not fit this run's: {error}") from error


# ------------------------------------------------------------------- regrowing


def regrow(
    module: torch.nn.Module,
    steps: Iterable[Mapping[str, Any]],
    inputs: Any,
    options: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> list[Growth]:
    """Repeat growths on the module that they started from, for their shapes only.

    Parameters
    ----------
    module : torch.nn.Module
        As it was before the first of the steps. Never changed.
    steps : iterable of dict
        :func:`fxgrow.io.growth_step` of each growth, oldest first.
    inputs : tensor, tuple or dict
        Example inputs, where the module lives.
    options : dict
        ``emit`` and ``rules`` of :func:`fxgrow.widen`.
    weights : dict of str to torch.Tensor, optional
        State dict to compare the outcome with.

    Returns
    -------
    list of Growth

    Raises
    ------
    InputError
        When the steps or the weights do not fit this module.
    """
    growths: list[Growth] = []
    try:
        for step in steps:
            growths.append(widen_again(module, inputs, step, options))
            module = growths[-1].module
    except FxgrowError as error:
        raise InputError(f"the checkpoint does not belong to this model: {error}") from error
    problems = [] if weights is None else list(mismatches(module.state_dict(), weights))
    if problems:
        raise InputError(f"the checkpoint does not belong to this model: {problems[0]}")
    return growths


# ------------------------------------------------------------------- files


def write_state(state: Mapping[str, Any], path: str | Path) -> None:
    """Write a state atomically: the file is either as it was or complete.

    Raises
    ------
    FileError
        When it can't be written, or holds what is not plain.
    """
    checked = plain(dict(state), "state")

    atomic_write(path, lambda temporary: torch_save(checked, temporary))


def read_state(path: str | Path) -> dict[str, Any]:
    """Read a state back, onto the CPU.

    Raises
    ------
    FileError
        When the file is missing, damaged, or would run code.
    """
    state = open_pickle(path)
    if not isinstance(state, dict):
        raise FileError(f"{path}: holds a {type(state).__name__}, no checkpoint of a Grower")
    return state
