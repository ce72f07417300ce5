"""Widths that modules tell and no code asks for: ``num_features``, ``out_channels``, ``embed_dim``.

What a model's code computes with is followed exactly (:mod:`fxgrow.witness`). Other numbers only
tell their reader something; what they tell is known by their names, and what became of it is seen
in the shapes of tensors before and after growth. Where these don't agree on one value, a number
is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from .verify import outputs, tensors_in, twin
from .whole import hooked

if TYPE_CHECKING:
    from torch import nn

    from .trace import Inputs

__all__ = ["Told", "follow_told"]

Sizes = list[tuple[int, int]]
"""Sizes of dimensions, before and after growth."""


@dataclass(frozen=True)
class Told:
    """Attributes that were changed, in words, and how to take that back."""

    edits: tuple[str, ...] = ()
    undo: Callable[[], None] = lambda: None


class _Call(NamedTuple):
    """Shapes of what a module was first called with, and returned."""

    layer: bool
    inputs: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]


class _Evidence(NamedTuple):
    """What is seen of one module: its inputs, its outputs, and what the layers in it read."""

    inputs: Sizes
    outputs: Sizes
    layers: Sequence[Sizes]  # last ones first


class _Number(NamedTuple):
    """A width that a module tells; ``source`` names another module, whose width it is."""

    label: str
    value: int
    put: Callable[[int], None]
    judge: Callable[[int, _Evidence], set[int]]
    source: str | None = None


def _last(value: int, seen: _Evidence) -> set[int]:
    """Find what became of the input of the last layer that reads so many."""
    return next((found for layer in seen.layers if (found := _became(value, layer))), set())


def _stream(value: int, seen: _Evidence) -> set[int]:
    return _became(value, seen.outputs) or _became(value, seen.inputs) or _last(value, seen)


def _inner(value: int, seen: _Evidence) -> set[int]:
    return {new for layer in seen.layers for new in _became(value, layer)}


def _heads(per: int, value: int, seen: _Evidence) -> set[int]:
    """Find the number of heads of ``per`` rows: what the last layer, a projection, reads."""
    return {size // per for size in _last(value * per, seen) if size % per == 0}


def _output(value: int, seen: _Evidence) -> set[int]:
    return _became(value, seen.outputs)


def _input(value: int, seen: _Evidence) -> set[int]:
    return _became(value, seen.inputs)


def _became(value: int, sizes: Sizes) -> set[int]:
    """Find what dimensions of this size became; ones that stay may be pixels or tokens."""
    found = {new for old, new in sizes if old == value}
    return found - {value} or found


# Names (an ``s`` at the end, of lists, is taken off) → where their width is seen.
_NAMES: Mapping[str, Callable[[int, _Evidence], set[int]]] = {
    **dict.fromkeys(
        ("out_channels", "out_chs", "out_features", "out_dim", "output_dim", "num_chs", "out_size"),
        _output,
    ),
    **dict.fromkeys(("in_channels", "in_chs", "in_features", "in_dim", "input_dim", "nx"), _input),
    **dict.fromkeys(
        (
            *("num_features", "num_channels", "channels", "channel", "width", "inplanes", "planes"),
            *("embed_dim", "embedding_dim", "embedding_size", "hidden_size", "hidden_dim", "dim"),
            *("d_model", "n_embd", "feature_dim", "head_hidden_size", "last_channel"),
        ),
        _stream,
    ),
    **dict.fromkeys(
        ("mlp_dim", "ffn_dim", "intermediate_size", "hidden_features", "hidden_channels"), _inner
    ),
    **dict.fromkeys(("all_head_size", "inner_dim", "attn_dim"), _last),
}
_HEADS = frozenset({"num_attention_heads", "num_heads", "n_heads", "n_head", "heads"})
_HEAD_SIZES = ("head_dim", "attention_head_size", "head_size", "dim_head", "dim_per_head")


def follow_told(old: nn.Module, new: nn.Module, inputs: Inputs) -> Told:
    """Bring widths that modules tell in line with the tensors that there are, in place.

    Parameters
    ----------
    old : torch.nn.Module
        Before growth; not changed.
    new : torch.nn.Module
        After growth, of the same class.
    inputs : Inputs
        Example inputs.

    Returns
    -------
    Told

    Raises
    ------
    VerificationError
        When ``new`` does not run.
    """
    before = dict(old.named_modules())
    told = {
        name: list(_numbers(before[name], module))
        for name, module in new.named_modules()
        if name in before and not type(module).__module__.startswith("torch.nn")
    }
    if not any(told.values()):
        return Told()
    calls = _calls(old, new, inputs)
    edits: list[str] = []
    undo: list[Callable[[], None]] = []
    for name, number in ((name, number) for name, own in told.items() for number in own):
        place = name if number.source is None else number.source
        found = number.judge(number.value, _evidence(place, calls))
        if len(found) == 1 and found != {number.value}:
            (size,) = found
            number.put(size)
            undo.append(partial(number.put, number.value))
            label = f"{name}.{number.label}" if name else number.label
            edits.append(f"{label}: {number.value} → {size} (told by its name)")
    return Told(tuple(edits), partial(_each, undo))


def _each(steps: Sequence[Callable[[], None]]) -> None:
    for step in steps:
        step()


def _numbers(before: nn.Module, after: nn.Module) -> Iterator[_Number]:
    """Widths that a module tells, and that growth has left as they were."""
    table = after.__dict__
    for key, old in before.__dict__.items():
        judge = _judge(key, table)
        new: Any = table.get(key)
        if judge is not None and type(old) is int and old == new:
            yield _Number(key, old, partial(table.__setitem__, key), judge)
        elif type(old) in {list, tuple} and type(new) is type(old):
            for place, (value, now) in enumerate(zip(old, new, strict=False)):
                if judge is not None and type(value) is int and value == now:
                    put = partial(_put_one, table, key, place)
                    yield _Number(f"{key}[{place}]", value, put, judge)
                elif isinstance(now, dict):
                    yield from _entries(f"{key}[{place}]", now)


def _judge(key: str, table: dict[str, Any]) -> Callable[[int, _Evidence], set[int]] | None:
    """Find how an attribute of this name is seen, beside the others of its module."""
    if key in _HEADS:
        per = next((v for k in _HEAD_SIZES if type(v := table.get(k)) is int and v), 0)
        return partial(_heads, per) if per else None
    return _NAMES.get(key) or _NAMES.get(key.removesuffix("s"))


def _entries(label: str, entry: dict[Any, Any]) -> Iterator[_Number]:
    """Widths of another module, in a dict that names it (as in timm's ``feature_info``)."""
    source = entry.get("module")
    for name, value in entry.items() if isinstance(source, str) else ():
        if type(value) is int and name in _NAMES:
            put = partial(entry.__setitem__, name)
            yield _Number(f"{label}[{name!r}]", value, put, _around, source)


def _put_one(table: dict[str, Any], key: str, place: int, value: int) -> None:
    whole = list(table[key])
    whole[place] = value
    table[key] = type(table[key])(whole)


Calls = tuple[dict[str, _Call], dict[str, _Call]]


def _calls(old: nn.Module, new: nn.Module, inputs: Inputs) -> Calls:
    """Record calls of all modules, before and after growth, in the order of their ends."""
    seen: tuple[dict[str, _Call], ...] = ({}, {})
    narrow, wide = twin(old, wide=False), twin(new, wide=False)
    with (
        hooked(narrow, lambda part: True, partial(_note, seen[0])),
        hooked(wide, lambda part: True, partial(_note, seen[1])),
    ):
        outputs(narrow, wide, inputs, training=False, wide=False)
    return seen[0], seen[1]


def _note(found: dict[str, _Call], name: str, part: nn.Module, inputs: Any, output: Any) -> None:
    if name not in found:
        own = any(p is not None for p in part._parameters.values())
        layer = own and next(part.children(), None) is None
        found[name] = _Call(layer, _shapes(inputs), _shapes(output))


def _shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in tensors_in(value) if t.is_floating_point()]


def _evidence(name: str, calls: Calls) -> _Evidence:
    before, after = calls
    layers = [
        _sizes(call.inputs, after[other].inputs)
        for other, call in before.items()
        if call.layer and other in after and (not name or other.startswith(f"{name}."))
    ]
    if not name or name not in before or name not in after:  # the outermost: the user's sizes
        return _Evidence([], [], layers[::-1])
    own, grown = before[name], after[name]
    return _Evidence(
        _sizes(own.inputs, grown.inputs), _sizes(own.outputs, grown.outputs), layers[::-1]
    )


def _sizes(before: list[tuple[int, ...]], after: list[tuple[int, ...]]) -> Sizes:
    return [
        pair
        for old, new in zip(before, after, strict=False)
        if len(old) == len(new)
        for pair in zip(old, new, strict=True)
    ]


def _around(value: int, seen: _Evidence) -> set[int]:
    return _became(value, seen.outputs) or _became(value, seen.inputs)
