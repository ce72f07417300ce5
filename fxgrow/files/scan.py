"""What a pickle would do, found out without running it.

torch's ``weights_only`` unpickler calls a few functions only. Some of those can still be
made to fill the memory (``bytearray(10**11)``, codecs that grow their input), and old
releases believe a pickle that claims larger storages than the file has. So the opcodes
are followed here first, on symbols in place of objects.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ..errors import FileError
from ..printable import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Scan", "Storage", "globals_of", "scan"]


class Global(NamedTuple):
    """A function or class that a pickle names."""

    name: str


class Storage(NamedTuple):
    """What a pickle claims of a storage: its key, type (``"FloatStorage"``) and elements."""

    key: str
    kind: str
    numel: int


class _Unknown:
    """Any object that the scan does not follow."""


_UNKNOWN = _Unknown()


@dataclass
class Scan:
    """Outcome of a scan.

    ``harmless`` is False where torch's ``weights_only`` unpickler would refuse the pickle.
    """

    storages: list[Storage] = field(default_factory=list)
    harmless: bool = True


@dataclass
class _Machine:
    """The pickle machine on symbols."""

    found: Scan
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_global(self, argument: str) -> None:
        self.push(Global(_modern(argument)))

    def collect(self, _: Any) -> None:
        self.push(tuple(self.pop_mark()))

    def discard_marked(self, _: Any) -> None:
        self.pop_mark()
        _ = self.stack[-1]

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        _check_call(function, arguments)
        self.push(_UNKNOWN)

    def persistent(self, _: Any) -> None:
        claim = self.stack.pop()
        if isinstance(claim, tuple) and claim and claim[0] == "storage":
            self.found.storages.append(_storage(claim))
        else:  # a class with its source, in the older format
            self.found.harmless = False
        self.push(_UNKNOWN)


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    def run(machine: _Machine, _: Any) -> None:
        items = tuple(machine.stack.pop() for _ in range(count))
        machine.push(items[::-1])

    return run


def _drop(count: int) -> Callable[[_Machine, Any], None]:
    def run(machine: _Machine, _: Any) -> None:
        for _ in range(count):
            machine.stack.pop()
        _ = machine.stack[-1]

    return run


def _unknown(machine: _Machine, _: Any) -> None:
    machine.push(_UNKNOWN)


def _nothing(machine: _Machine, _: Any) -> None:
    pass


# exactly the opcodes that torch's weights_only unpickler knows
_OPCODES: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(["BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"], _Machine.push),
    **dict.fromkeys(["EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "BINFLOAT", "NONE"], _unknown),
    **dict.fromkeys(["NEWTRUE", "NEWFALSE", "SHORT_BINSTRING"], _unknown),
    **dict.fromkeys(["REDUCE", "NEWOBJ"], _Machine.reduce),
    **dict.fromkeys(["APPENDS", "SETITEMS"], _Machine.discard_marked),
    **dict.fromkeys(["APPEND", "BUILD"], _drop(1)),
    **dict.fromkeys(["BINPUT", "LONG_BINPUT"], _Machine.put),
    **dict.fromkeys(["BINGET", "LONG_BINGET"], _Machine.get),
    "SETITEM": _drop(2),
    "EMPTY_TUPLE": _tuple(0),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": _Machine.collect,
    "MARK": _Machine.mark,
    "GLOBAL": _Machine.push_global,
    "BINPERSID": _Machine.persistent,
    "PROTO": _nothing,
    "STOP": _nothing,
}


def scan(file: IO[bytes]) -> Scan:
    """Follow one pickle, from where the file stands to its end.

    Parameters
    ----------
    file : binary file

    Returns
    -------
    Scan

    Raises
    ------
    FileError
        When the pickle calls a function that is known to be harmless with arguments that
        aren't.
    ValueError, LookupError
        When it is damaged.
    """
    machine = _Machine(Scan())
    for opcode, argument, _ in pickletools.genops(file):
        run = _OPCODES.get(opcode.name)
        if run is None:
            machine.found.harmless = False
        if machine.found.harmless and run is not None:
            run(machine, argument)
    return machine.found


def globals_of(file: IO[bytes]) -> set[str]:
    """List the functions and classes that one pickle names, as far as they can be told.

    Raises
    ------
    ValueError, LookupError
        When the pickle is damaged.
    """
    names: set[str] = set()
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in {"GLOBAL", "INST"}:
            names.add(_modern(str(argument)))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(texts[-2:]) or "code that can't be listed")
        elif isinstance(argument, str):
            texts = [*texts[-1:], argument]
    return names


def _modern(argument: str) -> str:
    """Turn ``"module name"``, maybe of Python 2, into ``"module.name"``."""
    module, _, name = argument.partition(" ")
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    else:
        module = IMPORT_MAPPING.get(module, module)
    return f"{module}.{name}"


def _check_call(function: Any, arguments: Any) -> None:
    """Refuse calls that fill the memory; ``_codecs.encode`` is there for bytes only."""
    name = function.name if isinstance(function, Global) else ""
    if name not in {"builtins.bytearray", "_codecs.encode"}:
        return
    known = isinstance(arguments, tuple)
    if name == "builtins.bytearray":
        fine = known and all(isinstance(each, _Unknown) for each in arguments)
    else:
        fine = known and len(arguments) == 2 and isinstance(arguments[0], str)
        fine = fine and arguments[1] == "latin1"
    if not fine:
        raise FileError(f"it calls {name} as no saved weights do")


def _storage(claim: tuple[Any, ...]) -> Storage:
    """Read ``("storage", type, key, location, numel, ...)``."""
    kind, key, numel = claim[1], claim[2], claim[4]
    if not isinstance(kind, Global) or not isinstance(key, str) or not isinstance(numel, int):
        raise ValueError(f"a storage is called {quoted(repr(key))}")
    return Storage(key, kind.name.rpartition(".")[2], numel)
