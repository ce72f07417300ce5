"""Makers of hostile files. Opening any of them must run nothing and end in one error.

``PICKLES``, ``ARCHIVES``, ``HEADERS``, ``PLANS``, ``INDICES``: name → function of a folder
(and of a good file, where one is needed) that returns the path of the file.
"""

import collections
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib

import torch

MARKER = "ran"
COMMAND = f"touch {MARKER}"


# ------------------------------------------------------------------- pickles


class System:
    def __reduce__(self):
        return os.system, (COMMAND,)


class Evaluated:
    def __reduce__(self):
        return eval, (f"open({MARKER!r}, 'w').close()",)


class Chained:
    """getattr(__import__('os'), 'system')(...) in three reductions."""

    def __reduce__(self):
        return _Attribute(), (COMMAND,)


class _Attribute:
    def __reduce__(self):
        return getattr, (_Import(), "system")

    def __call__(self):  # so that pickle takes it for a function
        raise AssertionError


class _Import:
    def __reduce__(self):
        return __import__, ("os",)


class Built:
    """Runs when its state is set."""

    def __reduce__(self):
        return collections.UserDict, (), {"data": System()}


class Appended:
    def __reduce__(self):
        return list, (), None, iter([System()])


class Wrapped:
    """A pickle inside of a pickle."""

    def __reduce__(self):
        return pickle.loads, (pickle.dumps(System()),)


class Rebuilt:
    """An allowed function of torch that calls what it is given."""

    def __reduce__(self):
        return torch._tensor._rebuild_from_type_v2, (os.system, torch.Tensor, (COMMAND,), {})


PAYLOADS = {each.__name__: each for each in (
    System, Evaluated, Chained, Built, Appended, Wrapped, Rebuilt,
)}  # fmt: skip
RAW = {
    "global": b"cposix\nsystem\n(X\x09\x00\x00\x00touch rantR.",
    "inst": b"(S'touch ran'\niposix\nsystem\n.",
    "obj": b"(cposix\nsystem\nS'touch ran'\no.",
    "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x09touch ran\x85R.",
    "newobj": b"\x80\x02cposix\nsystem\nX\x09\x00\x00\x00touch ran\x85\x81.",
    "extension": b"\x80\x02\x82\x01X\x09\x00\x00\x00touch ran\x85R.",
    "bytearray": b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\xe8\x76\x48\x17\x85R.",
    "memory by new": b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\xe8\x76\x48\x17\x85\x81.",
    "codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
    "codecs chained": b"\x80\x02"
    + b"c_codecs\nencode\n" * 40
    + b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R"
    + b"X\x03\x00\x00\x00hex\x86R" * 40
    + b".",
    "itself": b"\x80\x02]q\x00h\x00a.",
    "laughs": b"\x80\x02]q\x00"
    + b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 80))
    + b".",
    "called laughs": b"\x80\x02]q\x00"
    + b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 80))
    + b")R.",
    "hashed laughs": b"\x80\x02}K\x01\x85q\x00"
    + b"".join(b"h%ch%c\x86q%c" % (i - 1, i - 1, i) for i in range(1, 80))
    + b"K\x01s.",
    "deep key": b"\x80\x02}K\x01" + b"\x85" * 30_000 + b"K\x01s.",
    "set of laughs": b"\x80\x02c__builtin__\nset\n]K\x01\x85q\x00"
    + b"".join(b"h%ch%c\x86q%c" % (i - 1, i - 1, i) for i in range(1, 80))
    + b"a\x85R.",
    "lists in each other, filled from above": b"\x80\x02c__builtin__\nset\n"
    + b"".join(b"]q%c" % i for i in range(80))
    + b"".join(b"h%ch%cah%ca0" % (i, i - 1, i - 1) for i in range(79, 0, -1))
    + b"hO\x85R.",
    "bytearray of a tensor": b"\x80\x02c__builtin__\nbytearray\nctorch\nTensor\n)R\x85R.",
    "a copy for a device": b"\x80\x02ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n)R.",
    "a large tensor": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
    b"(NK\x00\x8a\x05\x00\xe8vH\x17\x85K\x00\x85\x89NtR.",
    "set to be large": b"\x80\x02ctorch\nTensor\n)R(NK\x00\x8a\x05\x00\xe8vH\x17\x85K\x00\x85tb.",
    "hidden method": b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.",
    "endless text": b"\x80\x02X\xff\xff\xff\xffa.",
    "endless number": b"\x80\x02\x8b\xff\xff\xff\x7fa.",
    "deep": b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",
    "no stop": b"\x80\x02]" * 50,
    "no memo": b"\x80\x02h\x07.",
    "nothing marked": b"\x80\x02t.",
    "empty stack": b"\x80\x02.",
    "not even": b"\x80\x02R.",
    "escapes": b"cos\x1b[2J\xe2\x80\xae\nsystem\n(t.",
}


def zipped(pickled, records=(), method=zipfile.ZIP_STORED, name="archive"):
    """The zip format of torch.save around a pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(f"{name}/data.pkl", pickled)
        archive.writestr(f"{name}/byteorder", "little")
        for key, value in records:
            archive.writestr(f"{name}/data/{key}", value)
        archive.writestr(f"{name}/version", "3\n")
    return out.getvalue()


def legacy(pickled, keys=None):
    """The older format: pickles in a row."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [0x1950A86A20F9469CFC6C, 1001, system]
    tail = pickle.dumps([], 2) if keys is None else keys
    return b"".join(pickle.dumps(each, 2) for each in head) + pickled + tail


def tarred(pickled):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("storages", "tensors", "pickle", "../../escaped"):
            info = tarfile.TarInfo(name)
            info.size = len(pickled)
            archive.addfile(info, io.BytesIO(pickled))
    return out.getvalue()


FORMATS = {
    "zip": zipped,
    "deflated zip": lambda pickled: zipped(pickled, method=zipfile.ZIP_DEFLATED),
    "old": legacy,
    "keys of the old": lambda pickled: legacy(pickle.dumps({}, 2), pickled),
    "tar": tarred,
    "plain pickle": lambda pickled: pickled,
}


def pickles():
    """Every payload in every format, alone and deep inside of a state dict."""
    state = collections.OrderedDict(a=torch.ones(2))
    made = {}
    for name, kind in PAYLOADS.items():
        made[name] = pickle.dumps(kind(), 2)
        nested = {"state_dict": {"a": 1, "b": [({"c": kind()},)]}, "arch": "torchvision:resnet18"}
        made[f"{name} nested"] = pickle.dumps(nested, 4)
    made |= RAW
    cases = {
        f"{name}, {form}": wrap(content)
        for name, content in made.items()
        for form, wrap in FORMATS.items()
    }
    for new in (True, False):
        out = io.BytesIO()
        torch.save({**state, "x": System()}, out, _use_new_zipfile_serialization=new)
        cases[f"torch.save, {'new' if new else 'old'}"] = out.getvalue()
    return cases


# ------------------------------------------------------------------- archives


def saved(**tensors):
    out = io.BytesIO()
    torch.save(tensors, out)
    return out.getvalue()


def _claim(numel):
    """A storage of 16 bytes that claims ``numel`` floats."""
    with zipfile.ZipFile(io.BytesIO(saved(a=torch.arange(4.0)))) as archive:
        pickled = archive.read("archive/data.pkl")
    number = b"\x8a\x08" + struct.pack("<q", numel)
    place = pickled.index(b"K\x04t")
    pickled = pickled[:place] + number + pickled[place + 2 :]
    place = pickled.index(b"K\x04\x85")
    return zipped(pickled[:place] + number + pickled[place + 2 :], [("0", bytes(16))])


def _expanded():
    return saved(a=torch.ones(1).expand(10**12))


def _deflated_entries(body, size, names):
    """A zip archive of which only the first name has a body; all claim to expand to ``size``."""
    begin = struct.pack(
        "<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(body), size, len(names[0]), 0
    )
    central = b""
    for name in names:
        central += struct.pack("<4s6H3L", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, len(body), size)
        central += struct.pack("<5H2L", len(name), 0, 0, 0, 0, 0, 0) + name
    start = len(begin) + len(names[0]) + len(body)
    count = len(names)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(central), start, 0)
    return begin + names[0] + body + central + end


def _bomb():
    """A small file that says that it expands to four gigabytes."""
    return _deflated_entries(zlib.compress(bytes(2**24), 9)[2:-4], 2**32 - 2, [b"a/data.pkl"])


def _overlapping():
    """Entries that share one body: small, and large when they are expanded."""
    names = [b"a/data.pkl", *(b"a/data/%06d" % index for index in range(5000))]
    return _deflated_entries(zlib.compress(bytes(10**6), 9)[2:-4], 10**6, names)


def _entries(*names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, pickle.dumps({"a": 1}, 2))
    return out.getvalue()


def _torchscript():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        archive.writestr("a/constants.pkl", pickle.dumps((), 2))
        archive.writestr("a/code/__torch__.py", f"import os; os.system({COMMAND!r})")
    return out.getvalue()


def archives():
    good = saved(a=torch.arange(500.0), b=torch.ones(3))
    two = good[:-22] + b"PK\5\6" + bytes(18)
    return {
        "bomb": _bomb(),
        "overlapping": _overlapping(),
        "claims much": _claim(10**12),
        "claims a little": _claim(5),
        "claims less than nothing": _claim(-4),
        "expanded": _expanded(),
        "torchscript": _torchscript(),
        "two pickles": _entries("a/data.pkl", "b/data.pkl"),
        "no pickle": _entries("a/data.pk", "a/version"),
        "paths": _entries("../../data.pkl", "/etc/data.pkl"),
        "comment": good[:-2] + b"\x05\x00hello",
        "something behind": good + b"x",
        "something before": b"x" * 30 + good,
        "two ends": two + good[-22:],
        "no entries": b"PK\5\6" + bytes(18),
        "only begin": b"PK\3\4",
        **{f"cut at {part}/20": good[: len(good) * part // 20] for part in range(20)},
        **{f"without begin {part}/5": good[len(good) * part // 5 :] for part in range(1, 5)},
        "noise": bytes(range(256)) * 50,
        "nothing": b"",
    }


# ------------------------------------------------------------------- safetensors


def packed(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape=(2,), offsets=(0, 8), dtype="F32", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def headers():
    eight = bytes(8)
    one = entry()
    deep = b'{"a":' * 100_000
    return {
        "empty": b"",
        "seven bytes": bytes(7),
        "length beyond": struct.pack("<Q", 2**63) + b"{}",
        "length of everything": struct.pack("<Q", 10**9) + b"{}",
        "negative length": b"\xff" * 8 + b"{}",
        "no header": packed(b""),
        "no json": packed(b"{nonsense"),
        "no object": packed([]),
        "number": packed(b"1" * 10_000),
        "not utf-8": packed(b'{"\xff\xfe": 1}'),
        "deep": packed(deep),
        "deep lists": packed(b"[" * 100_000),
        "nul": packed({"a\0b": one}, eight),
        "escape": packed({"a\x1b[2J": one}, eight),
        "bidi": packed({"a\u202eb": one}, eight),
        "lone surrogate": packed(b'{"\\ud800": {}}'),
        "long name": packed({"a" * 10**6: one}, eight),
        "twice": packed(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            eight,
        ),
        "metadata twice": packed(b'{"__metadata__":{},"__metadata__":{}}'),
        "metadata no object": packed({"__metadata__": [1], "a": one}, eight),
        "metadata no text": packed({"__metadata__": {"a": 1}, "b": one}, eight),
        "overlapping": packed({"a": one, "b": entry(offsets=(4, 12))}, bytes(12)),
        "one in another": packed({"a": one, "b": one}, eight),
        "gap": packed({"a": one, "b": entry(offsets=(12, 20))}, bytes(20)),
        "gap at begin": packed({"a": entry(offsets=(4, 12))}, bytes(12)),
        "rest": packed({"a": one}, bytes(12)),
        "too short": packed({"a": one}, bytes(7)),
        "negative offset": packed({"a": entry(offsets=(-8, 0))}, eight),
        "backwards": packed({"a": entry(offsets=(8, 0))}, eight),
        "huge offset": packed({"a": entry(offsets=(0, 2**62))}, eight),
        "huger offset": packed({"a": entry(offsets=(0, 10**30))}, eight),
        "float offset": packed({"a": entry(offsets=(0.0, 8.0))}, eight),
        "flag for offset": packed({"a": entry(offsets=(False, 8))}, eight),
        "three offsets": packed({"a": entry(offsets=(0, 4, 8))}, eight),
        "no offsets": packed({"a": {"dtype": "F32", "shape": [2]}}, eight),
        "unknown field": packed({"a": entry(code="import os")}, eight),
        "unknown type": packed({"a": entry(dtype="F31")}, eight),
        "type no text": packed({"a": entry(dtype=["F32"])}, eight),
        "other type": packed({"a": entry(dtype="F64")}, eight),
        "other shape": packed({"a": entry(shape=(3,))}, eight),
        "negative shape": packed({"a": entry(shape=(-2,))}, eight),
        "two negatives": packed({"a": entry(shape=(-1, -2))}, eight),
        "huge shape": packed({"a": entry(shape=(2**40, 2**40))}, eight),
        "wrapping shape": packed({"a": entry(shape=(2**63, 2, 2))}, eight),
        "zero and huge": packed({"a": entry(shape=(0, 2**62), offsets=(0, 0))}),
        "many dims": packed({"a": entry(shape=(1,) * 10_000 + (2,))}, eight),
        "flag for shape": packed({"a": entry(shape=(True, 2))}, eight),
        "shape no list": packed({"a": {**one, "shape": 2}}, eight),
        "entry no object": packed({"a": 3}, eight),
        "infinity": packed(b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,8]}}', eight),
        "not ours": packed({"a": one}, eight),
    }


# ------------------------------------------------------------------- plans


def _at(place, value):
    """A change of a description at a path of keys; ``...`` as the value takes the key out."""

    def change(meta):
        inner = meta
        for key in place[:-1]:
            inner = inner[key]
        if value is ...:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        return meta

    return change


ADD = ("steps", 0, "plan", "additions")
SHAPE = ("inputs", "args", 0, "shape")
CHANGES = {
    "unknown group": _at((*ADD, "nowhere"), 1),
    "path": _at((*ADD, "../../etc/passwd"), 1),
    "dunder": _at((*ADD, "__class__.__init__"), 1),
    "long name": _at((*ADD, "x" * 100_000), 1),
    "bidi": _at((*ADD, "c\u202eonv"), 1),
    "homoglyph": _at((*ADD, "\u0441onv"), 1),
    "nul": _at((*ADD, "conv\0"), 1),
    "escape": _at((*ADD, "\x1b]0;title\x07"), 1),
    "zero width": _at((*ADD, "con\u200bv"), 1),
    "surrogate": _at((*ADD, "\ud800"), 1),
    "huge": _at((*ADD, "conv"), 10**40),
    "large": _at((*ADD, "conv"), 2**31),
    "too large for its tensors": _at((*ADD, "conv"), 10**6),
    "too small for its tensors": _at((*ADD, "conv"), 1),
    "negative": _at((*ADD, "conv"), -3),
    "flag": _at((*ADD, "conv"), True),
    "float": _at((*ADD, "conv"), 3.0),
    "text": _at((*ADD, "conv"), "3"),
    "list": _at((*ADD, "conv"), [3]),
    "nothing": _at(ADD, {}),
    "additions a list": _at(ADD, ["conv"]),
    "not a number": _at(("steps", 0, "plan", "budget"), float("nan")),
    "infinite": _at(("steps", 0, "plan", "budget"), float("inf")),
    "code": _at(("steps", 0, "plan", "unit"), "__import__('os').system('touch ran')"),
    "unit no text": _at(("steps", 0, "plan", "unit"), {}),
    "plan too full": _at(("steps", 0, "plan", "more"), 1),
    "no plan": _at(("steps", 0, "plan"), ...),
    "no steps": _at(("steps",), []),
    "steps an object": _at(("steps",), {}),
    "step a text": _at(("steps", 0), "conv"),
    "many steps": lambda meta: {**meta, "steps": meta["steps"] * 20_000},
    "transfer a text": _at(("steps", 0, "transfer"), "yes"),
    "a transfer, suddenly": _at(("steps", 0, "transfer"), True),
    "seed a flag": _at(("steps", 0, "seed"), True),
    "seed huge": _at(("steps", 0, "seed"), 10**50),
    "base another": _at(("steps", 0, "base"), {"conv.weight": "float32[1]"}),
    "base no sums": _at(("steps", 0, "base"), {"conv.weight": 3}),
    "emit code": _at(("emit",), "os.system"),
    "emit a flag": _at(("emit",), True),
    "inputs huge": _at(SHAPE, [10**6, 10**6]),
    "inputs huger": _at(SHAPE, [10**30]),
    "inputs negative": _at(SHAPE, [-1, 8]),
    "inputs of flags": _at(SHAPE, [True, 1, 8, 8]),
    "inputs of many dims": _at(SHAPE, [1] * 1000),
    "inputs of another shape": _at(SHAPE, [1, 3, 5, 5]),
    "type no type": _at(("inputs", "args", 0, "dtype"), "load"),
    "type a module": _at(("inputs", "args", 0, "dtype"), "nn"),
    "type deep": _at(("inputs", "args", 0, "dtype"), "os.system"),
    "input of two kinds": _at(("inputs", "args", 0, "value"), 3),
    "inputs deep": lambda meta: _at(("inputs", "args", 0), _deep(100))(meta),
    "keyword": _at(("inputs", "kwargs", "self"), {"value": 1}),
    "alias of itself": _at(("aliases", "x"), "x"),
    "aliases in a circle": lambda meta: {**meta, "aliases": {"x": "y", "y": "x"}},
    "alias of nothing": _at(("aliases", "x"), "nowhere"),
    "alias of a tensor that is there": _at(("aliases", "fc.bias"), "norm.bias"),
    "alias of another shape": _at(("aliases", "norm.more"), "fc.weight"),
    "transient nothing": _at(("transient",), ["nowhere"]),
    "transient no list": _at(("transient",), "norm.bias"),
    "transient weights": _at(("transient",), ["fc.weight"]),
    "bytes of nothing": _at(("bytes", "nowhere"), {"shape": [1], "dtype": "complex128"}),
    "bytes of floats": _at(("bytes", "fc.bias"), {"shape": [5], "dtype": "complex128"}),
    "bytes of no type": _at(("bytes", "fc.bias"), {"shape": [10], "dtype": "nn"}),
    "sums of others": _at(("digests", "fc.bias"), "0" * 64),
    "sum too many": _at(("digests", "nowhere"), "0" * 64),
    "sum too few": _at(("digests", "fc.bias"), ...),
    "verification code": _at(("verification", "dtype"), 7),
    "verification too full": _at(("verification", "__class__"), 7),
    "schema of tomorrow": _at(("schema",), "fxgrow.file/3"),
    "schema of others": _at(("schema",), "\x1b[31mother/1"),
    "schema no text": _at(("schema",), 2),
    "no schema": _at(("schema",), ...),
    "unknown field": _at(("exec",), "import os"),
}


def _deep(levels):
    value = {"value": 1}
    for _ in range(levels):
        value = {"list": [value]}
    return value


RAW_PLANS = {
    "deep": '{"schema":' * 100_000,
    "deep lists": "[" * 100_000,
    "twice": '{"schema": "fxgrow.file/2", "schema": "fxgrow.file/1"}',
    "NaN": '{"schema": NaN}',
    "many digits": '{"schema": ' + "9" * 100_000 + "}",
    "many digits after the point": '{"schema": 0.' + "9" * 100_000 + "}",
    "large exponent": '{"schema": 1e999999999}',
    "a list": "[]",
    "a number": "3",
    "nothing": "",
    "null": "null",
    "old and empty": '{"schema": "fxgrow.file/1"}',
    "old and odd": '{"schema": "fxgrow.file/1", "steps": 3, "inputs": 1, "aliases": 1, "emit": 1, '
    '"verification": 1}',
    "old, odd steps": '{"schema": "fxgrow.file/1", "steps": [3], "inputs": {}, "aliases": {}, '
    '"emit": "graph", "verification": null}',
}
