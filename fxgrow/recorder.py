"""The part of the tracer that writes nodes down: what happens once per node and call.

``torch.fx.Tracer`` looks parameters up by walking through all of them, and copies scopes, and
tries a dozen types, for every node. What is done here is the same, at a cost that does not grow
with the model. Besides, every node remembers its source line and its checkpointed region.
"""

from __future__ import annotations

import dis
import inspect
import os
import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule

from .recompute import KEY, Region, Regions, is_entry
from .taps import Wrapped, constants, flagged, tapped, wrapping
from .tracked import is_position
from .walks import named_modules, tensor_names

if TYPE_CHECKING:
    from types import CodeType, FrameType

__all__ = ["Flag", "Recorder", "gives_parameter", "is_library", "is_user_function", "unpacked"]

_PATTERNS = f"{os.sep}einops{os.sep}"
OWN = tuple(os.path.dirname(path) + os.sep for path in (torch.__file__, __file__))
_THEMSELVES: frozenset[Any] = frozenset(
    {bool, int, float, complex, str, type(None), type(...), torch.dtype, torch.device}
)


class Flag(int):
    """A ``training`` flag that remembers whether it was read."""

    read = False

    def __bool__(self) -> bool:
        self.read = True
        return int(self) != 0


class Recorder(fx.Tracer):
    """Tracer that makes nodes quickly; ``last`` is the code beyond which no model's code is."""

    last: CodeType

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.regions = Regions()
        # Places of the calls of modules that are traced.
        self._around: list[tuple[str, Region | None]] = [("", None)]
        self._named: dict[int, tuple[str, torch.Tensor]] = {}  # held, so that ids stay theirs
        self.numbers: dict[fx.Node, int] = {}  # in order of the graph
        self.whole: tuple[Any, ...] = ()  # functions whose nodes stand for themselves
        self.homes: list[Any] = []  # modules in which they may have other names

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace a shadow, as ``torch.fx`` does it."""
        _LazyGraphModule.force_recompile(root)
        self.root = root
        forward: Any = type(root).forward
        if not isinstance(forward, FunctionType):
            raise TypeError(f"forward is no function but a {type(forward).__name__}")
        named = named_modules(root, repeated=True)
        self.submodule_paths = {module: name for name, module in reversed(named.items())}
        self.graph = fx.Graph(tracer_cls=type(self))
        code = forward.__code__
        self.graph._co_fields = {
            "co_name": code.co_name,
            "co_filename": code.co_filename,
            "co_firstlineno": code.co_firstlineno,
        }
        self.tensor_attrs = constants(named)
        cache: dict[str, Any] = {}

        def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self.call_module(module, module._call_impl, args, kwargs)

        def read(name: str, value: Any) -> Any:
            return self.getattr(name, value, cache)

        with flagged():
            run, args = self.create_args_for_root(forward, True, concrete_args)
            with tapped(root, called, read), wrapping() as patcher:
                self.wrapped = Wrapped(patcher, self.whole, self.homes, self.concrete)
                self.wrapped.look(forward.__globals__)
                hints = inspect.get_annotations(inspect.unwrap(run))
                result = (self.create_arg(run(*args)),)
                self.create_node("output", "output", result, {}, type_expr=hints.get("return"))
        self.submodule_paths = None
        return self.graph

    def concrete(self, node: fx.Node) -> Any:
        """Return a value of the type that ``node`` has on the example inputs."""
        raise NotImplementedError  # the tracer's: what only writes down has no values

    # -- nodes -------------------------------------------------------------------

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        """Remember the user's source line, and whether it is checkpointed."""
        # Arguments come second: what create_node looks for among them is never there.
        node = self.graph.create_node(kind, target, (), {}, name, type_expr)
        self.numbers[node] = len(self.numbers)
        if args:
            _set_args(node, args)
        if kwargs:
            _set_kwargs(node, kwargs)
        meta = node.meta
        if self.module_stack:
            meta["nn_module_stack"] = self.module_stack.copy()
        meta["source"], region = self._place()
        if region is not None and kind != "placeholder" and kind != "output":
            meta[KEY] = region
        return node

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any
    ) -> Any:
        """Write a node down; what it makes is a traced value."""
        if rest or more:
            return super().create_proxy(kind, target, args, kwargs, *rest, **more)
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs))
        return self.proxy(node)

    def create_arg(self, a: Any) -> Any:
        """Arguments of nodes; a training flag becomes a plain bool."""
        kind = type(a)
        if kind in _THEMSELVES:
            return a
        if kind is tuple:
            return tuple([self.create_arg(item) for item in a])
        if kind is Flag:
            return bool(a)
        if isinstance(a, fx.Proxy):
            return a.node
        if kind is dict and not a:
            return {}
        if kind is slice:
            return slice(*(self.create_arg(self._bound(b)) for b in (a.start, a.stop, a.step)))
        if kind is nn.Parameter or kind is torch.Tensor:
            name = self._name_of(a)
            if name is not None:
                return self.create_node("get_attr", name, (), {})
        return super().create_arg(a)

    def _bound(self, value: Any) -> Any:
        """Bound of a slice; one that a tensor of the code holds is a number like any other."""
        if type(value) is not torch.Tensor or not is_position(value):
            return value
        return int(value) if self._name_of(value) is None else value

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Attribute access of modules: parameters become graph nodes while tracing."""
        kind = type(attr_val)
        if issubclass(kind, nn.Module):
            return attr_val
        buffer = self.proxy_buffer_attributes and isinstance(attr_val, torch.Tensor)
        if kind is nn.Parameter or buffer:
            name = self._name_of(attr_val)
            if name is not None:
                if name not in parameter_proxy_cache:
                    parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
                return parameter_proxy_cache[name]
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def _name_of(self, tensor: torch.Tensor) -> str | None:
        """First name of one of the root's parameters, buffers or tables."""
        if not self._named:
            self._named = {id(t): (name, t) for name, t in tensor_names(self.root).items()}
        return self._named.get(id(tensor), (None, None))[0]

    # -- calls of modules ----------------------------------------------------------

    def record(self, m: nn.Module, name: str, args: Any, kwargs: Any) -> Any:
        """Write the call of a module down as a node."""
        self._enter(m, name)
        result = self.create_proxy("call_module", name, args, kwargs)
        self.module_stack.popitem()
        return result

    def open(self, m: nn.Module, name: str, forward: Any, args: Any, kwargs: Any) -> Any:
        """Trace into a module."""
        self._around.append(self._place())
        self._enter(m, name)
        try:
            result = forward(*args, **kwargs)
        finally:
            self._around.pop()
        self.module_stack.popitem()
        return result

    def _enter(self, m: nn.Module, name: str) -> None:
        calls = self.num_calls.get(name, 0)
        self.num_calls[name] = calls + 1
        self.module_stack[f"{name}@{calls}" if calls else name] = (name, type(m))

    # -- places --------------------------------------------------------------------

    def _place(self) -> tuple[str, Region | None]:
        """Innermost ``file:line`` of the model's code (or ""), and the outermost checkpoint."""
        frame: FrameType | None = sys._getframe(2)
        source, entry = "", None
        # Beyond the tracer lies the caller's code, which is not the model's.
        while frame is not None and frame.f_code is not self.last:
            code = frame.f_code
            known = _KINDS.get(id(code))
            if known is None:
                known = _KINDS[id(code)] = _kind(code), code
            if known[0] == "model":
                source = source or f"{code.co_filename}:{frame.f_lineno}"
            elif known[0] == "entry":
                entry = frame
            elif code is _OPEN:  # from where it was called is known
                break
            frame = frame.f_back
        outside, around = self._around[-1]
        if around is None and entry is not None:
            around = self.regions.of(entry)
        return source or outside, around


def unpacked(code: bytes, at: int) -> int | None:
    """Into how many variables an instruction unpacks what it is given; None for any other."""
    if code[at] != _UNPACK:
        return None
    more = code[at - 1] << 8 if at >= 2 and code[at - 2] == dis.EXTENDED_ARG else 0
    return more | code[at + 1]


def gives_parameter(args: Any) -> bool:
    """Whether a parameter is among the arguments of a call."""
    found = []

    def look(value: Any) -> Any:
        known = isinstance(value, fx.Proxy) and value.node.op == "get_attr"
        found.append(known or isinstance(value, nn.Parameter))
        return value

    fx.node.map_aggregate(args, look)
    return any(found)


# Past what a node does whenever an attribute is set: this changes no table of the graph's.
_set_args: Any = fx.Node.args.fset  # type: ignore[attr-defined]  # a property
_set_kwargs: Any = fx.Node.kwargs.fset  # type: ignore[attr-defined]  # a property
_UNPACK = dis.opmap["UNPACK_SEQUENCE"]
_OPEN = Recorder.open.__code__
# By id, since the hash of code goes through all its names; it is held, so that the id stays its.
_KINDS: dict[int, tuple[str, CodeType]] = {}


def _kind(code: CodeType) -> str:
    """Say what a frame of ``code`` is: the model's, one of ``checkpoint``, or any other."""
    if is_entry(code):
        return "entry"
    name = code.co_filename
    return "" if is_library(name) else "model"


def is_library(filename: str) -> bool:
    """Whether code is torch's, fxgrow's or einops', or of no file: a report names its caller."""
    return filename.startswith((*OWN, "<")) or _PATTERNS in filename


_KNOWN_PACKAGES = {"torch", "_operator", "fxgrow", "math", "builtins"}


def is_user_function(target: Any) -> bool:
    """Whether a graph's function is Python code from outside torch."""
    module = getattr(target, "__module__", "") or ""
    return hasattr(target, "__code__") and module.partition(".")[0] not in _KNOWN_PACKAGES
