"""What a call of torch is given: sizes and tensors among its arguments, wherever they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .tracked import TrackedInt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .tracked import Expr

__all__ = ["flat", "in_front", "made", "pinned"]

# Names of tensors, where they are not ("input",).
_ORDER = {
    "split": ("tensor",),
    **dict.fromkeys(("tensor", "as_tensor"), ("data",)),
    **{f"conv{t}{n}d": ("input", "weight") for t in ("", "_transpose") for n in (1, 2, 3)},
}


def _ints(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _ints(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _ints(item)


def pinned(value: Any) -> list[tuple[Expr, Expr]]:
    """Tracked ints that a function without an entry is given must stay as they are."""
    return [(v.expr, int.__int__(v)) for v in _ints(value) if isinstance(v, TrackedInt)]


def flat(args: Iterable[Any]) -> list[Any]:
    """Sizes that are given one by one, or in a list."""
    given = list(args)
    return list(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else given


def made(args: Any, kwargs: Any) -> list[Any]:
    """Sizes that a function is given to make a tensor of."""
    return flat(args[:1] if _nested(args) else args) or list(kwargs.get("size", ()))


def _nested(args: Any) -> bool:
    return bool(args) and isinstance(args[0], (tuple, list))


def in_front(name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Put tensors that were given by name where handlers look for them: in front."""
    order = _ORDER.get(name, ("input",))[len(args) :]
    found = [key for key in order if key in kwargs]
    rest = {key: value for key, value in kwargs.items() if key not in found}
    return (*args, *(kwargs[key] for key in found)), rest
