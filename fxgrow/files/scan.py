"""What a pickle would do, found out without running it.

torch's ``weights_only`` unpickler calls a few functions only. Some of those can still be
made to fill the memory or the stack (``bytearray(10**11)``, codecs that grow their input,
keys of a million nested tuples, lists that hold each other and are printed), and old
releases believe a pickle that claims larger storages than the file has. So the opcodes
are followed here first, on symbols in place of objects.
"""

from __future__ import annotations

import math
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ..errors import FileError
from .archive import too_large

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Scan", "Storage", "globals_of", "scan"]

_DEEPEST = 100  # levels of what is called with, or hashed
_MOST_IN_CALL, _MOST_IN_CALLS = 300_000, 10**7  # parts of it, repetitions counted
_NEVER = frozenset(  # for devices whose tensors hold no storage, and they copy
    {
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        "torch._utils._rebuild_device_tensor_from_numpy",
    }
)


class Global(NamedTuple):
    """A function or class that a pickle names."""

    name: str


class Storage(NamedTuple):
    """What a pickle claims of a storage: its key, type (``"FloatStorage"``) and elements."""

    key: str
    kind: str
    numel: int


class _Object(list[Any]):
    """What a call returned, or a container: holds what it was made of."""

    made_by = ""


_UNKNOWN = object()


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
    size: int
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    spent: int = 0

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

    def container(self, _: Any) -> None:
        self.push(_Object())

    def collect(self, _: Any) -> None:
        self.push(tuple(self.pop_mark()))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def add(self, items: list[Any]) -> None:
        owner = self.stack[-1]
        if isinstance(owner, _Object):
            owner.extend(items)

    def append(self, _: Any) -> None:
        self.add([self.stack.pop()])

    def append_marked(self, _: Any) -> None:
        self.add(self.pop_mark())

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.spend(key)  # it will be hashed
        self.add([key, value])

    def set_marked(self, _: Any) -> None:
        items = self.pop_mark()
        self.spend(tuple(items[::2]))
        self.add(items)

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        self.spend(state)
        self.check_shape(state)
        self.add([state])

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global):
            raise ValueError("it calls what is no function")
        self.spend(arguments)
        self.check_call(function.name, arguments)
        made = _Object([arguments])
        made.made_by = function.name
        self.push(made)

    def persistent(self, _: Any) -> None:
        claim = self.stack.pop()
        self.spend(claim)
        if isinstance(claim, tuple) and claim and claim[0] == "storage":
            self.found.storages.append(_storage(claim))
        else:  # a class with its source, in the older format
            self.found.harmless = False
        self.push(_Object())

    def stop(self, _: Any) -> None:
        _ = self.stack[-1]

    def spend(self, value: Any) -> None:
        """Refuse what is too deep or repeats itself too often to be hashed or printed."""
        ahead, count = [(value, 0)], 0
        while ahead:
            each, depth = ahead.pop()
            count += 1
            if depth > _DEEPEST or count > _MOST_IN_CALL:
                raise ValueError("it nests or repeats itself without end")
            if isinstance(each, (_Object, tuple)):
                ahead.extend((part, depth + 1) for part in each)
        self.spent += count
        if self.spent > _MOST_IN_CALLS:
            raise ValueError("it repeats itself without end")

    def check_call(self, name: str, arguments: Any) -> None:
        """Refuse calls that fill the memory; ``_codecs.encode`` is there for bytes only."""
        known = isinstance(arguments, tuple)
        fine = name not in _NEVER
        if name == "builtins.bytearray":
            makers = [getattr(each, "made_by", "") for each in arguments if known]
            fine = known and all(maker == "_codecs.encode" for maker in makers)
        elif name == "_codecs.encode":
            fine = known and len(arguments) == 2 and isinstance(arguments[0], str)
            fine = fine and arguments[1] == "latin1"
        elif name == "torch._tensor._rebuild_from_type_v2" and known and len(arguments) > 2:
            inner = arguments[0]
            self.check_call(inner.name if isinstance(inner, Global) else "", arguments[2])
        if not fine:
            raise FileError(f"it calls {name} as no saved weights do")
        self.check_shape(arguments)

    def check_shape(self, arguments: Any) -> None:
        """Refuse ``(storage, offset, shape, ...)`` of many more elements than the file."""
        shape = arguments[2] if isinstance(arguments, tuple) and len(arguments) > 2 else ()
        sizes = shape if isinstance(shape, tuple) and not isinstance(shape, Global) else ()
        whole = all(isinstance(each, int) for each in sizes)
        if whole and too_large(abs(math.prod(sizes)), self.size):
            raise ValueError("a tensor is larger than the file")


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    def run(machine: _Machine, _: Any) -> None:
        items = tuple(machine.stack.pop() for _ in range(count))
        machine.push(items[::-1])

    return run


def _unknown(machine: _Machine, _: Any) -> None:
    machine.push(_UNKNOWN)


def _nothing(machine: _Machine, _: Any) -> None:
    pass


# exactly the opcodes that torch's weights_only unpickler knows
_OPCODES: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(["BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"], _Machine.push),
    **dict.fromkeys(["EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"], _Machine.container),
    **dict.fromkeys(["NEWTRUE", "NEWFALSE", "NONE", "BINFLOAT", "SHORT_BINSTRING"], _unknown),
    **dict.fromkeys(["REDUCE", "NEWOBJ"], _Machine.call),
    **dict.fromkeys(["BINPUT", "LONG_BINPUT"], _Machine.put),
    **dict.fromkeys(["BINGET", "LONG_BINGET"], _Machine.get),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_marked,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_marked,
    "BUILD": _Machine.build,
    "EMPTY_TUPLE": _tuple(0),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": _Machine.collect,
    "MARK": _Machine.mark,
    "GLOBAL": _Machine.push_global,
    "BINPERSID": _Machine.persistent,
    "PROTO": _nothing,
    "STOP": _Machine.stop,
}


def scan(file: IO[bytes], size: int, *, keys: bool = False) -> Scan:
    """Follow one pickle, from where the file stands to its end.

    Parameters
    ----------
    file : binary file
    size : int
        Bytes of the whole file, which bound what tensors may claim.
    keys : bool
        Its content will be used as keys of a dictionary.

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
    machine = _Machine(Scan(), size)
    for opcode, argument, _ in pickletools.genops(file):
        run = _OPCODES.get(opcode.name)
        if run is None:
            machine.found.harmless = False
        if machine.found.harmless and run is not None:
            run(machine, argument)
    if keys and machine.found.harmless:
        machine.spend(machine.stack[-1])
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


def _storage(claim: tuple[Any, ...]) -> Storage:
    """Read ``("storage", type, key, location, numel, ...)``."""
    kind, key, numel = claim[1], claim[2], claim[4]
    if not isinstance(kind, Global) or not isinstance(key, str) or not isinstance(numel, int):
        raise ValueError("a storage has no name, type or size")
    return Storage(key, kind.name.rpartition(".")[2], numel)
