"""A network as a small Python package: readable source and a file of weights.

The source needs torch and safetensors, and whatever libraries the network's own operations
come from; not fxgrow, unless an operation is one of ours.
"""

from __future__ import annotations

import builtins
import importlib
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import fx, nn

from .errors import UnsupportedError
from .likeness import alike, plain_attributes
from .module import copy_graph
from .templates import DISPATCH, HELPERS, INIT, MODEL
from .trace import trace
from .tracer import guard

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Sources", "sources", "write_sources"]

WEIGHTS = "weights.safetensors"
_LITERALS = (bool, int, float, str, bytes, type(None))


class Sources(NamedTuple):
    """A package before it is written.

    Attributes
    ----------
    files : dict of str to str
        Source by file name.
    tensors : dict of str to torch.Tensor
        Parameters, buffers and constants; tied ones once.
    needs : tuple of str
        Packages that the source imports, beside torch and safetensors.
    """

    files: Mapping[str, str]
    tensors: Mapping[str, torch.Tensor]
    needs: tuple[str, ...]


def sources(module: nn.Module, example_inputs: Any, name: str = "Net") -> Sources:
    """Write a network's graph as source.

    Parameters
    ----------
    module : torch.nn.Module
        Never changed; a grown one, or one that can be traced.
    example_inputs : tensor, tuple or dict
        For tracing.
    name : str
        Of the class.

    Returns
    -------
    Sources

    Raises
    ------
    TraceError
        When no graph of the model can be had.
    UnsupportedError
        When a layer or function can't be written as source.
    """
    traced = trace(module, example_inputs)
    root, graphs = traced.root, traced.graphs
    writer = _Writer(root, {graph for _, graph in traced.distinct})
    construction = list(writer.construction())
    forwards = _forwards(graphs, writer)
    text = MODEL.format(
        name=name,
        title=f"{type(module).__name__}, written by fxgrow {version('fxgrow')}.",
        imports="\n".join(sorted(writer.imports)),
        construction=textwrap.indent("\n".join(construction), " " * 8),
        forwards=textwrap.indent(forwards, " " * 4),
        frozen=repr(tuple(n for n, p in root.named_parameters() if not p.requires_grad)),
        helpers="".join(HELPERS[key] for key in sorted(writer.helpers)),
    )
    init = INIT.format(name=name)
    imported = {line.split()[1].partition(".")[0] for line in writer.imports}
    needs = sorted(imported - {"torch"} - sys.stdlib_module_names)
    return Sources({"__init__.py": init, "model.py": text}, writer.tensors(), tuple(needs))


def write_sources(made: Sources, folder: Path) -> None:
    """Write a package into a folder that exists.

    Raises
    ------
    OSError
        When a file can't be written.
    """
    from safetensors.torch import save_file

    for name, text in made.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    copies = {k: t.detach().cpu().clone().contiguous() for k, t in made.tensors.items()}
    save_file(copies, folder / WEIGHTS)
    (folder / WEIGHTS).chmod((folder / "model.py").stat().st_mode)  # it makes its files private


# -------------------------------------------------------------------- forward


def _forwards(graphs: Mapping[str, fx.Graph], writer: _Writer) -> str:
    if graphs["eval"] is graphs["train"]:
        return _forward(graphs["eval"], "forward", writer)
    both = (_forward(graphs[mode], f"forward_{mode}", writer) for mode in ("eval", "train"))
    return "\n\n".join([DISPATCH.strip(), *both])


def _forward(graph: fx.Graph, name: str, writer: _Writer) -> str:
    own = copy_graph(graph)  # fx writes the names of untyped annotations wrongly
    for node in own.nodes:
        node.type = None
    code = own.python_code("self")
    _, start, body = code.src.partition("def forward(")  # what comes before wraps functions
    text = (start + body).strip().replace(start, f"def {name}(", 1)
    text = re.sub(r";\s+(?:\w+ = )+None(?=\s*(?:$|#))", "", text, flags=re.MULTILINE)
    used = set(re.findall(r"[A-Za-z_]\w*", text))
    for alias, value in code.globals.items():
        if value is guard:  # ours: so that the package does not need us
            writer.helpers.add("guard")
            # It returns nothing; a local name that is its own would hide it.
            text = re.sub(rf"(?:\w+ = )?\b{alias}\(", "guard(", text)
        elif alias in used and getattr(builtins, alias, None) is not value:
            writer.imports.add(_import_of(alias, value))
    return text


_SPECIAL = {
    "inf": "from math import inf",
    "nan": "from math import nan",
    "NoneType": "from types import NoneType",
    "torch": "import torch",
    "device": "from torch import device",
    "fx_pytree": "import torch.fx._pytree as fx_pytree",
    "pytree": "import torch.utils._pytree as pytree",
}


def _import_of(alias: str, value: Any) -> str:
    if alias in _SPECIAL:
        return _SPECIAL[alias]
    if isinstance(value, type(builtins)):
        return f"import {value.__name__} as {alias}"
    place, name = _address(value, alias)
    outer, _, last = name.rpartition(".")
    if outer:
        raise UnsupportedError(
            f"{place}.{name} lies inside {outer} and can't be imported by the package; export as "
            ".pt2 or .onnx instead"
        )
    return (
        f"from {place} import {last} as {alias}" if last != alias else f"from {place} import {last}"
    )


def _address(value: Any, what: str) -> tuple[str, str]:
    """Return module and qualified name under which an object is found again."""
    place = str(getattr(value, "__module__", None) or "builtins")
    name = str(getattr(value, "__qualname__", None) or getattr(value, "__name__", ""))
    found: Any = None
    try:
        found = importlib.import_module(place)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        found = None
    if found is not value:
        raise UnsupportedError(
            f"{what} ({place}.{name}) can't be imported by the package; export as .pt2 or .onnx "
            "instead"
        )
    return place, name


# --------------------------------------------------------------- construction


class _Writer:
    """Writes the lines that build a module tree, and notes what they need."""

    def __init__(self, root: nn.Module, graphs: set[fx.Graph]) -> None:
        self.root = root
        self.imports: set[str] = {"import torch", "from torch import nn"}
        self.helpers: set[str] = set()
        nodes = [node for graph in graphs for node in graph.nodes]
        self.called = {str(node.target) for node in nodes if node.op == "call_module"}
        self.constants = self._constants(
            {str(node.target) for node in nodes if node.op == "get_attr"}
        )
        self.first: dict[int, str] = {}

    def _constants(self, targets: set[str]) -> dict[str, Any]:
        """Objects that graphs read and that are neither parameters nor buffers."""
        known = {name for name, _ in self.root.named_parameters(remove_duplicate=False)}
        known |= {name for name, _ in self.root.named_buffers(remove_duplicate=False)}
        found = {}
        for target in sorted(targets - known):
            value: Any = self.root
            for part in target.split("."):
                value = getattr(value, part)
            if not isinstance(value, nn.Module):
                found[target] = value
        return found

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything that the file of weights must hold."""
        named: dict[str, torch.Tensor] = dict(self.root.named_parameters())
        named.update(self.root.named_buffers())
        named.update({k: v for k, v in self.constants.items() if isinstance(v, torch.Tensor)})
        return named

    def construction(self) -> Iterator[str]:
        """Yield the lines of ``__init__``."""
        yield from self._inside(self.root, "")
        for target, value in self.constants.items():
            self.helpers.add("add")
            if isinstance(value, torch.Tensor):
                yield f"add(self, {target!r}, {_blank(value)}, persistent=False)"
            else:
                yield f"add(self, {target!r}, {self.literal(value, target)})"

    def _inside(self, module: nn.Module, prefix: str) -> Iterator[str]:
        self.helpers.add("add")
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                yield f"add(self, {prefix + name!r}, None)"
                continue
            yield self._tensor(module, prefix + name, tensor)
        for name, child in module._modules.items():
            if child is None:
                continue
            path = prefix + name
            if id(child) in self.first:
                yield f"add(self, {path!r}, self.get_submodule({self.first[id(child)]!r}))"
                continue
            self.first[id(child)] = path
            if path in self.called:
                self._note(child, path)
                yield f"add(self, {path!r}, {self.layer(child, path)})"
                yield from self._ties(child, path)
            else:
                yield from self._inside(child, f"{path}.")

    def _note(self, child: nn.Module, path: str) -> None:
        for name, inner in child.named_modules():
            self.first.setdefault(id(inner), f"{path}.{name}" if name else path)

    def _tensor(self, module: nn.Module, path: str, tensor: torch.Tensor) -> str:
        if id(tensor) in self.first:
            return f"add(self, {path!r}, get(self, {self._tied(tensor)!r}))"
        self.first[id(tensor)] = path
        if isinstance(tensor, nn.Parameter):
            return f"add(self, {path!r}, nn.Parameter({_blank(tensor)}, {tensor.requires_grad}))"
        lasting = path.rpartition(".")[2] not in module._non_persistent_buffers_set
        return f"add(self, {path!r}, {_blank(tensor)}{'' if lasting else ', persistent=False'})"

    def _ties(self, child: nn.Module, path: str) -> Iterator[str]:
        """Tie parameters of a layer that stand elsewhere, too."""
        for name, tensor in child.named_parameters(remove_duplicate=False):
            full = f"{path}.{name}"
            if id(tensor) in self.first and self.first[id(tensor)] != full:
                yield f"add(self, {full!r}, get(self, {self._tied(tensor)!r}))"
            self.first.setdefault(id(tensor), full)

    def _tied(self, tensor: torch.Tensor) -> str:
        self.helpers.add("get")
        return self.first[id(tensor)]

    # -- one layer ---------------------------------------------------------------

    def layer(self, module: nn.Module, path: str) -> str:
        """Write one layer: by its constructor where that gives the same layer again."""
        kind = type(module)
        if getattr(nn, kind.__name__, None) is kind:
            text = f"nn.{module!r}"
            again = _evaluated(text)
            if again is not None:
                cast = _cast(module)
                again = again.to(cast) if cast is not None else again
                if alike(again, module):
                    return text if cast is None else f"{text}.to({cast})"
        return self._restored(module, path)

    def _restored(self, module: nn.Module, path: str) -> str:
        """Write a layer attribute by attribute."""
        self.helpers.add("restored")
        place, name = _address(type(module), path)
        if "." in name:
            raise UnsupportedError(f"the class of {path!r} ({name}) can't be imported; use .pt2")
        alias = f"{place}_{name}".replace(".", "_")
        self.imports.add(f"from {place} import {name} as {alias}")
        plain = plain_attributes(module)
        attributes = ", ".join(
            f"{key!r}: {self.literal(value, f'{path}.{key}')}" for key, value in plain.items()
        )
        parts = [f"{alias}", f"{{{attributes}}}"]
        named = [*module._parameters.items(), *module._buffers.items()]
        lines = []
        for key, tensor in named:
            blank = "None" if tensor is None else _blank(tensor)
            if isinstance(tensor, nn.Parameter):
                blank = f"nn.Parameter({blank}, {tensor.requires_grad})"
            elif tensor is None and key in module._parameters:
                blank = "nn.Parameter"  # registered, but empty
            lines.append(f"{key!r}: {blank}")
        for key, child in module._modules.items():
            if child is not None:
                lines.append(f"{key!r}: {self.layer(child, f'{path}.{key}')}")
        return f"restored({', '.join(parts)}, {{{', '.join(lines)}}})"

    def literal(self, value: Any, what: str) -> str:
        """Write a plain value, or a function or class by name."""
        kind: Any = type(value)
        if kind in _LITERALS:
            return f'float("{value}")' if kind is float and value - value != 0 else repr(value)
        if kind in (list, tuple, set):
            inner = ", ".join(self.literal(item, what) for item in value)
            ends = {list: "[]", tuple: "()", set: "{}"}[kind]
            comma = "," if kind is tuple and len(value) == 1 else ""
            return f"{ends[0]}{inner}{comma}{ends[1]}" if value or kind is not set else "set()"
        if kind is dict:
            pairs = (f"{self.literal(k, what)}: {self.literal(v, what)}" for k, v in value.items())
            return f"{{{', '.join(pairs)}}}"
        if kind in (torch.dtype, torch.Size):
            return str(value) if kind is torch.dtype else f"torch.Size({list(value)})"
        if kind is torch.device:
            return f"torch.{value!r}"
        place, name = _address(value, what)
        alias = f"{place}_{name}".replace(".", "_")
        self.imports.add(_import_of(alias, value))
        return alias


def _evaluated(text: str) -> nn.Module | None:
    """Build a layer as its repr says; None where that is no constructor call."""
    try:
        with torch.random.fork_rng(devices=[]):
            made = eval(
                text, {"nn": nn, "torch": torch, "inf": float("inf")}
            )  # a torch layer's repr
    except (SyntaxError, NameError, TypeError, ValueError, AttributeError, RuntimeError):
        return None
    return made if isinstance(made, nn.Module) else None


def _cast(module: nn.Module) -> torch.dtype | None:
    floats = {t.dtype for t in module.parameters() if t.is_floating_point()}
    other = floats - {torch.float32}
    return other.pop() if len(floats) == 1 and other else None


def _blank(tensor: torch.Tensor) -> str:
    dtype = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    return f"torch.zeros({tuple(tensor.shape)}{dtype})"
