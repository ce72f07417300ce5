"""Whether two models are of one architecture: the same tensors, nowhere narrower."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import UnsupportedError
from .walks import tensor_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch
    from torch import nn

__all__ = ["check_alike", "lasting_tensors", "listed"]

_SHOWN = 3


def listed(items: Iterable[str], shown: int = _SHOWN) -> str:
    """Write the first items and how many more there are.

    Examples
    --------
    >>> listed("abcde")
    'a, b, c and 2 more'
    """
    names = list(items)
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def lasting_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by their first name: what a checkpoint holds."""
    kept = model.state_dict(keep_vars=True).keys() | dict(model.named_parameters()).keys()
    return {name: tensor for name, tensor in tensor_names(model).items() if name in kept}


def check_alike(source: nn.Module, target: nn.Module) -> None:
    """Hold the tensors of two models side by side; their classes may differ.

    Parameters
    ----------
    source, target : torch.nn.Module

    Raises
    ------
    UnsupportedError
        Where names, numbers of dimensions, dtypes or devices differ, the target is narrower, or
        holds values that are not finite.
    """
    old, new = lasting_tensors(source), lasting_tensors(target)
    _check_names(old.keys(), new.keys(), source, target)
    pairs = [(name, tensor, new[name]) for name, tensor in old.items()]
    kinds = [f"{name} ({_kind(a)} and {_kind(b)})" for name, a, b in pairs if _kind(a) != _kind(b)]
    if kinds:
        raise UnsupportedError(
            f"dtype or device of source and target differ: {listed(kinds)}; convert one of both "
            "first, e.g. target.to(device, dtype)"
        )
    ranks = [f"{n} ({a.ndim} and {b.ndim})" for n, a, b in pairs if a.ndim != b.ndim]
    if ranks:
        raise UnsupportedError(
            f"tensors have other numbers of dimensions in the target: {listed(ranks)}; build it "
            "of the same kinds of layers"
        )
    narrow = [
        f"{name} (dim {dim}: {size} in the source, {b.shape[dim]} in the target)"
        for name, a, b in pairs
        for dim, size in enumerate(a.shape)
        if b.shape[dim] < size
    ]
    if narrow:
        raise UnsupportedError(
            f"the target is narrower than the source: {listed(narrow)}; a transfer only widens: "
            "build the target at least that wide"
        )
    broken = [n for n, _, b in pairs if b.is_floating_point() and not b.isfinite().all()]
    if broken:
        raise UnsupportedError(
            f"the target holds values that are not finite: {listed(broken)}; new units would keep "
            "them: initialise it first"
        )


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def _check_names(
    old: Iterable[str], new: Iterable[str], source: nn.Module, target: nn.Module
) -> None:
    theirs, mine = set(old), set(new)
    lacking = [name for name in old if name not in mine]
    extra = [name for name in new if name not in theirs]
    if not lacking and not extra:
        return
    parts = [f"the target lacks {listed(lacking)}"] if lacking else []
    parts += [f"the source lacks {listed(extra)}"] if extra else []
    raise UnsupportedError(
        f"source and target are not of one architecture: {'; '.join(parts)}; "
        + _advice(lacking, extra, source, target)
    )


def _advice(
    lacking: Sequence[str], extra: Sequence[str], source: nn.Module, target: nn.Module
) -> str:
    wrapped = _wrapper(lacking, extra) or _wrapper(extra, lacking)
    if wrapped:
        return f"one of both is wrapped: pass its .{wrapped.removesuffix('.')}"
    tied = {name for name, _ in source.named_parameters(remove_duplicate=False)}
    tied &= {name for name, _ in target.named_parameters(remove_duplicate=False)}
    if tied.issuperset([*lacking, *extra]):
        return "these are shared in one of both and not in the other: tie or untie them alike"
    return "give both the same depth, the same names and the same kinds of layers"


def _wrapper(long: Sequence[str], short: Sequence[str]) -> str:
    """Prefix that all names of one model have, and those of the other lack."""
    if not long or not short:
        return ""
    prefix = long[0].partition(".")[0] + "."
    bare = {name.removeprefix(prefix) for name in long}
    return prefix if all(n.startswith(prefix) for n in long) and bare == set(short) else ""
