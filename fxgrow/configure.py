"""Configurations that models are built from, brought in line with what growth made of them.

Where a model holds a ``config`` that its class can be built from, attributes of it are
searched, by trying, whose change builds the grown model: the same shapes of all tensors and
the same sizes in all modules. Nothing is known of any architecture.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["Configured", "follow_config"]

_MOST_TRIES = 200
_MOST_PAIRS = 40
_ADVICE = (
    "; from_pretrained can't load what save_pretrained writes: keep it with fxgrow.save, or grow "
    "all layers alike"
)
_SHOWN = 3

Facts = dict[str, Any]


@dataclass(frozen=True)
class Configured:
    """What became of a configuration.

    Attributes
    ----------
    changes : dict of str to (old, new)
        By the attribute's dotted name.
    obstacle : str
        Why the configuration does not describe the grown model, or ``""``.
    undo : callable
        Takes the changes back.
    """

    changes: Mapping[str, tuple[Any, Any]]
    obstacle: str = ""
    undo: Callable[[], None] = lambda: None

    def refused(self) -> Configured:
        """Take the changes back: with them the model computes another function."""
        self.undo()
        named = ", ".join(f"{name} = {new}" for name, (_, new) in self.changes.items())
        return Configured({}, f"with {named} the model computes another function{_ADVICE}")

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON types."""
        return {
            "changes": {name: list(pair) for name, pair in self.changes.items()},
            "obstacle": self.obstacle,
        }


class _Entry(NamedTuple):
    """A number of a configuration: ``place`` tells where in a list."""

    path: tuple[str, ...]
    place: int | None
    value: Any

    def __str__(self) -> str:
        name = ".".join(self.path)
        return name if self.place is None else f"{name}[{self.place}]"


def follow_config(old: nn.Module, new: nn.Module) -> Configured | None:
    """Change the configuration of a grown model, in place, so that it builds that model.

    Parameters
    ----------
    old : torch.nn.Module
        Before growth; not changed.
    new : torch.nn.Module
        After growth, of the same class.

    Returns
    -------
    Configured or None
        None for models that are not built from a configuration.
    """
    config = getattr(old, "config", None)
    if not _is_object(config) or type(old) is not type(new):
        return None
    before, wanted = _facts(old), _facts(new)
    search = _Search(type(old), config, before, wanted)
    chosen, missing = search.run()
    built = search.build(chosen)
    if built is None:
        return None
    refusal = "" if missing else search.refusal(chosen)
    if refusal:
        return Configured(
            {}, f"{type(config).__name__} refuses what it would have to be: {refusal}{_ADVICE}"
        )
    if missing:
        words = _words(type(config).__name__, wanted, built, missing, search.refusals)
        return Configured({}, words)
    return Configured(
        {str(e): (e.value, v) for e, v in chosen.items()}, "", _adopt(new, chosen, built)
    )


def _adopt(model: nn.Module, chosen: Mapping[_Entry, Any], built: Facts) -> Callable[[], None]:
    """Change the configuration, and the sizes that no code has asked for; return the undo."""
    undo: list[Callable[[], None]] = []
    config: Any = model.config
    for entry, value in chosen.items():
        undo.append(partial(_set, config, entry, entry.value))
        _set(config, entry, value)
    for name, module in model.named_modules():
        for key, value in list(module.__dict__.items()):
            fact = built.get(f"{name}.{key}" if name else key)
            if type(value) is int and type(fact) is int and fact != value:
                undo.append(partial(setattr, module, key, value))
                setattr(module, key, fact)

    def back() -> None:
        for step in undo:
            step()

    return back


def _words(
    name: str, wanted: Facts, built: Facts, missing: set[str], refusals: Sequence[str]
) -> str:
    first = sorted(missing, key=lambda key: (type(wanted.get(key)) is not tuple, key))[:_SHOWN]
    parts = [f"{key} is {wanted.get(key)}, not {built.get(key)}" for key in first]
    more = len(missing) - len(first)
    rest = f" and {more} more" if more else ""
    why = f" (it refuses: {refusals[0]})" if refusals else ""
    return f"no values of {name} build the grown model: {'; '.join(parts)}{rest}{why}{_ADVICE}"


class _Refusal:
    """Takes any exception and keeps its words: libraries refuse values in ways of theirs."""

    message = ""

    def __enter__(self) -> _Refusal:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is not None:
            self.message = " ".join(str(error).split()) or type(error).__name__
        return isinstance(error, Exception)


class _Search:
    """Greedy search: the change after which most facts are right, until all are."""

    def __init__(self, kind: type[nn.Module], config: Any, before: Facts, wanted: Facts) -> None:
        self.kind, self.config, self.wanted = kind, config, wanted
        self.steps = _steps(before, wanted)
        self.tries = 0
        self.refusals: list[str] = []
        self.banned: set[_Entry] = set()
        self.base = self.build({}) or {}
        # What the configuration says nothing of (sizes of caches) is not asked of it, nor are
        # whole numbers that growth left alone: no code has asked for them.
        self.asked = {
            key
            for key, value in before.items()
            if key in self.base
            and _same(self.base[key], value)
            and (type(value) is not int or not _same(wanted.get(key), value))
        }
        self.reach: dict[_Entry, set[str]] = {}  # facts that an entry has been seen to change

    def build(self, changes: Mapping[_Entry, Any]) -> Facts | None:
        """Facts of the model that a changed configuration builds, without memory."""
        self.tries += 1
        with _Refusal() as refusal:
            config = copy.deepcopy(self.config)
            for entry, value in changes.items():
                _set(config, entry, value)
            with torch.device("meta"), torch.random.fork_rng(devices=[]):
                return _facts(self.kind(config))
        self.refusals.append(refusal.message)
        return None

    def refusal(self, changes: Mapping[_Entry, Any]) -> str:
        """Why the configuration itself takes no such values, if it checks them."""
        with _Refusal() as refusal:
            config = copy.deepcopy(self.config)
            for entry, value in changes.items():
                _set(config, entry, value)
            validate = getattr(config, "validate", None)
            if callable(validate):
                validate()
        return refusal.message

    def missing(self, changes: Mapping[_Entry, Any]) -> set[str] | None:
        """Facts that are not as wanted; None where nothing can be built."""
        if self.tries > _MOST_TRIES:
            return None
        built = self.build(changes)
        if built is None:
            return None
        if len(changes) == 1:
            (entry,) = changes
            other = {k for k in self.asked if not _same(built.get(k), self.base[k])}
            self.reach[entry] = self.reach.get(entry, set()) | other
        return {k for k in self.asked if not _same(built.get(k), self.wanted.get(k))}

    def run(self) -> tuple[dict[_Entry, Any], set[str]]:
        """Return changes, and what is wrong even with them."""
        first = {k for k in self.asked if not _same(self.base[k], self.wanted.get(k))}
        pins = self._pins() if first else {}
        chosen, left = self._descend(pins, first)
        for entry in chosen.keys() - pins.keys() if left else ():  # one may have been a wrong turn
            self.banned = {entry}
            other, missing = self._descend(pins, first)
            if not missing:
                chosen, left = other, missing
                break
        for pin in pins if not left else ():
            fewer = {e: v for e, v in chosen.items() if e != pin}
            if self.missing(fewer) == set():
                chosen = fewer
        return chosen, left

    def _pins(self) -> dict[_Entry, Any]:
        """Values left open that modules hold under the same name: written out, they stay."""
        held: dict[str, set[Any]] = {}
        for key, value in self.base.items():
            if type(value) is int:
                held.setdefault(key.rpartition(".")[2], set()).add(value)
        open_entries = [e for e in _entries(self.config, ()) if e.value is None]
        found = {e: held[e.path[-1]] for e in open_entries if e.path[-1] in held}
        pins = {e: values.pop() for e, values in found.items() if len(values) == 1}
        return {e: v for e, v in pins.items() if self.build({e: v}) == self.base}

    def _descend(
        self, chosen: dict[_Entry, Any], left: set[str]
    ) -> tuple[dict[_Entry, Any], set[str]]:
        while left:
            better = self._best(chosen, left)
            if better is None:
                break
            chosen, left = better
        return chosen, left

    def _best(
        self, chosen: dict[_Entry, Any], left: set[str]
    ) -> tuple[dict[_Entry, Any], set[str]] | None:
        """Best single change, or where there is none the first pair that is better."""
        direct: list[tuple[_Entry, Any]] = []
        for derived in (False, True):
            options = [
                (entry, value)
                for entry, value in self._options(derived)
                if chosen.get(entry, entry.value) != value
                and entry not in self.banned
                and (entry not in self.reach or self.reach[entry] & left)
            ]
            found = []
            for entry, value in options:
                changes = {**chosen, entry: value}
                missing = self.missing(changes)
                if missing is not None and len(missing) < len(left):
                    if missing < left:  # nothing that was right is wrong now
                        return changes, missing
                    found.append((changes, missing))
            if found:
                return min(found, key=lambda pair: len(pair[1]))
            direct = direct or options
        pairs = ((a, b) for a, b in combinations(direct, 2) if a[0] != b[0])
        for a, b in islice(pairs, _MOST_PAIRS):
            both = {**chosen, a[0]: a[1], b[0]: b[1]}
            missing = self.missing(both)
            if missing is not None and len(missing) < len(left):
                return both, missing
        return None

    def _options(self, derived: bool) -> Iterator[tuple[_Entry, Any]]:
        """Every number that could have followed a change of a size, and what it would be."""
        values = _derived if derived else _equal
        for entry in _entries(self.config, ()):
            yield from ((entry, value) for value in sorted(values(entry.value, self.steps)))


def _equal(value: Any, steps: Iterable[tuple[Any, Any]]) -> set[Any]:
    """Find what a number became that equals the old size."""
    return {new for old, new in steps if old == value and type(old) is type(value)}


def _derived(value: Any, steps: Iterable[tuple[Any, Any]]) -> set[Any]:
    """Scale a number with a size that it is a part or multiple of; fill in what is left open."""
    found: set[Any] = set()
    for old, new in steps:
        if type(old) is not int:
            continue
        if value is None:
            found.add(new)
        elif type(value) is int and value * new % old == 0:
            found.add(value * new // old)
        elif type(value) is float and value:
            found.add(value * new / old)
    return found


def _steps(before: Facts, after: Facts) -> list[tuple[Any, Any]]:
    """Sizes that changed, as (old, new)."""
    found: dict[tuple[Any, Any], None] = {}
    for key, old in before.items():
        new = after.get(key)
        pairs = (
            zip(old, new, strict=False)
            if isinstance(old, tuple) and isinstance(new, tuple)
            else [(old, new)]
        )
        for a, b in pairs:
            if a != b and a and type(a) is type(b) and type(a) in {int, float}:
                found[a, b] = None
    return list(found)


def _facts(model: nn.Module) -> Facts:
    """Shapes of all tensors, and numbers that modules hold."""
    facts: Facts = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    for name, module in model.named_modules():
        for key, value in module.__dict__.items():
            if type(value) in {int, float} or (
                isinstance(value, (tuple, list)) and all(type(v) in {int, float} for v in value)
            ):
                fact = tuple(value) if isinstance(value, (tuple, list)) else value
                facts[f"{name}.{key}" if name else key] = fact
    return facts


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-12 * max(abs(a), abs(b))
    return bool(a == b)


def _is_object(value: Any) -> bool:
    package = type(value).__module__.partition(".")[0]
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, (type, nn.Module))
        and (package not in {"builtins", "torch", "collections", "numpy"})
    )


def _entries(config: Any, path: tuple[str, ...]) -> Iterator[_Entry]:
    """Numbers of a configuration, those of configurations in it too."""
    for key, value in list(config.__dict__.items()):
        if key.startswith("_"):
            continue
        if value is None or type(value) in {int, float}:
            yield _Entry((*path, key), None, value)
        elif type(value) in {tuple, list}:
            numbers = [i for i, v in enumerate(value) if type(v) in {int, float}]
            yield from (_Entry((*path, key), i, value[i]) for i in numbers)
        elif _is_object(value) and not callable(value) and len(path) < _SHOWN:
            yield from _entries(value, (*path, key))


def _set(config: Any, entry: _Entry, value: Any) -> None:
    owner = config
    for part in entry.path[:-1]:
        owner = getattr(owner, part)
    name = entry.path[-1]
    if entry.place is not None:
        whole = list(getattr(owner, name))
        whole[entry.place] = value
        value = type(getattr(owner, name))(whole)
    setattr(owner, name, value)
