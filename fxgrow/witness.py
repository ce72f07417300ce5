"""What Python code does with sizes: equations that must hold after growth, too.

While a module that is no graph runs, a function mode sees the arguments of ``view``,
``split``, indexing and their like as the code gives them. Each gives an equation between
the argument's expression (:mod:`fxgrow.tracked`) and the size that labels ask for.
"""

from __future__ import annotations

import operator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from .blanks import MAKERS, label_blank, site_of
from .given import flat, in_front, made, pinned
from .held import hold, kept_numbers, take
from .labels import Where
from .locator import Locator
from .planes import Plane
from .propagate import LABELS_KEY, Noted
from .tracked import Bound, Dim, Expr, Operation, TrackedInt, expression, is_position

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from .blanks import Made, Site
    from .propagate import Propagation

__all__ = ["Equation", "Witness"]


class Equation(NamedTuple):
    """``given`` (the code's) must be ``wanted`` after growth, too."""

    given: Expr
    wanted: Expr
    where: Where


class Witness(TorchFunctionMode):
    """Writes equations down while a module's code runs."""

    def __init__(self, state: Propagation, root: nn.Module) -> None:
        super().__init__()
        self.state = state
        self.locate = Locator(root)
        self.equations: list[Equation] = []
        self.blanks: dict[Site, Made] = {}
        self.inside = 0
        self._muted = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch the code of a leaf while it runs."""
        with self:
            self.inside += 1
            try:
                yield
            finally:
                self.inside -= 1

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Write nothing down: the caller has said how sizes follow here."""
        self._muted += 1
        try:
            yield
        finally:
            self._muted -= 1

    def place(self) -> object:
        """Where the run is: inside a leaf, its module and source line."""
        return self.locate() if self.inside else self.state.site

    def tell(self, given: Expr, wanted: Expr, op: str = "") -> None:
        """Write down that two expressions are equal."""
        if not self._muted and not (isinstance(given, int) and isinstance(wanted, int)):
            self.equations.append(Equation(given, wanted, Where(op, self.place())))

    def note(self, tensor: torch.Tensor) -> Noted:
        """Shape and planes of a tensor."""
        name = self.state.names.get(id(tensor))
        if name is not None and LABELS_KEY not in tensor.__dict__:
            return _Weight(tuple(tensor.shape), (), self.state, name)
        return Noted(tuple(tensor.shape), self.state.planes(tensor))

    def dim(self, tensor: torch.Tensor, dim: int) -> Expr:
        """Size of a dimension, as an expression where it carries labels."""
        dim %= tensor.ndim
        noted = self.note(tensor)
        return Dim(noted, dim) if _labelled(noted, dim) else int(tensor.shape[dim])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in {_SHAPE, torch.Tensor.size}:
            return self._sizes(args[0], func(*args, **kwargs), args[1:], kwargs)
        known = len(self.state.book.reshapes)
        name = getattr(func, "__name__", "")
        target = args[0] if args and name in _IN_PLACE else None
        before = self.note(target) if isinstance(target, torch.Tensor) else None
        for given, wanted in kept_numbers(name, args, kwargs):
            self.tell(given, wanted, name)
        out = func(*args, **kwargs)
        out = take(name, args, out)
        if name in _OPAQUE:
            for tensor in args[:3]:
                self.state.freeze(self.state.planes(tensor), "opaque", name)
            for event in self.state.book.reshapes[known:]:
                self.state.book.freeze(event.before, "opaque", event.where)
        if name in MAKERS:
            self._blank(name, args, kwargs, out)
        handler = TABLE.get(name)
        called = in_front(name, args, kwargs)
        pairs = [] if handler is None else handler(self, *called, before or out)
        for given, wanted in pairs if handler is not None else pinned((args, kwargs)):
            self.tell(given, wanted, name)
        return out

    def _blank(self, name: str, args: Any, kwargs: Any, out: torch.Tensor) -> None:
        """Label zeros and their like along the sizes that the code holds."""
        given = made(args[name.startswith("new_") :], kwargs)
        dims = tuple(d for d, size in enumerate(given) if isinstance(size, TrackedInt) and size > 1)
        if not (out.is_floating_point() and len(given) == out.ndim):
            dims = ()
        if dims:
            label_blank(self.state, out, dims)
        self.blanks.setdefault(site_of(name, self.locate()), []).append(dims)

    def _sizes(self, tensor: torch.Tensor, out: Any, args: Any, kwargs: Any) -> Any:
        """Shape whose labelled dimensions are tracked."""
        noted = self.note(tensor)
        if not any(_labelled(noted, d) for d in range(tensor.ndim)):
            return out
        if isinstance(out, int):
            dim = int(args[0] if args else kwargs["dim"]) % tensor.ndim
            return self._size(noted, dim)
        return torch.Size([self._size(noted, d) for d in range(tensor.ndim)])

    def _size(self, noted: Noted, dim: int) -> int:
        size = int(noted.shape[dim])
        if not _labelled(noted, dim):
            return size
        return TrackedInt.of(size, Dim(noted, dim), self.tell)


@dataclass(frozen=True, eq=False)
class _Weight(Noted):
    """A parameter, whose axes are labelled where an operation needs them: asking must not."""

    state: Propagation
    name: str

    def __getattribute__(self, key: str) -> Any:
        if key == "planes":
            return self.labelled
        return super().__getattribute__(key)

    @cached_property
    def labelled(self) -> tuple[Plane, ...]:
        """Planes of the axes that have labels by the end of the run."""
        planes = []
        for dim, size in enumerate(self.shape):
            labels = self.state.axes.get((self.name, dim))
            if labels is not None:
                shape = [size if d == dim else 1 for d in range(len(self.shape))]
                planes.append(Plane(labels.reshape(shape)))
        return tuple(planes)


def _labelled(noted: Noted, dim: int) -> bool:
    if isinstance(noted, _Weight):
        return noted.shape[dim] > 1
    return any(plane.labels.shape[dim] > 1 for plane in noted.planes)


Pairs = list[tuple[Expr, Expr]]
_SHAPE: Any = torch.Tensor.shape.__get__  # type: ignore[attr-defined]  # a descriptor, at run time
_IN_PLACE = {"__setitem__"}
# Functions of torch with sizes inside, which are not seen one by one.
_OPAQUE = {"multi_head_attention_forward"}


def _shaped(witness: Witness, given: list[Any], out: Any, first: int = 0) -> Pairs:
    if not isinstance(out, torch.Tensor) or first + len(given) > out.ndim:
        return []
    return [
        (expression(g), witness.dim(out, first + d))
        for d, g in enumerate(given)
        if isinstance(g, int) and int.__int__(g) != -1
    ]


def _view(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    rest = args[1:] or tuple(kwargs[k] for k in ("shape", "size") if k in kwargs)
    if rest and isinstance(rest[0], torch.dtype):
        return []
    return _shaped(witness, flat(rest), out)


def _create(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    return _shaped(witness, made(args, kwargs), out)


def _create_like(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    return _create(witness, args[1:], kwargs, out)


def _tensor(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    return pinned(kwargs) if hold(args[0], out) else pinned((args, kwargs))


def _unflatten(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    dim = int(args[1] if len(args) > 1 else kwargs["dim"])
    given = list(args[2] if len(args) > 2 else kwargs["sizes"])
    first = dim if dim >= 0 else out.ndim - len(given) + 1 + dim
    return _shaped(witness, given, out, first)


def _split(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    given = args[1] if len(args) > 1 else next(iter(kwargs.values()))
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    if isinstance(given, int):
        sizes = [given] * (len(out) - 1) + [given] * (out[-1].shape[dim] == int(given))
    else:
        sizes = list(given)
    return [(expression(g), witness.dim(piece, dim)) for g, piece in zip(sizes, out, strict=False)]


def _chunk(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    even = [piece for piece in out if piece.shape[dim] == out[0].shape[dim]]
    return [(witness.dim(piece, dim), witness.dim(out[0], dim)) for piece in even[1:]]


def _place(witness: Witness, noted: Noted, dim: int, given: Any) -> Pairs:
    """Place a position or bound of dimension ``dim``; negative ones count from its end."""
    size = int(noted.shape[dim])
    value = int(given)
    if not -size <= value <= size:
        return []
    expr, labelled = expression(given), _labelled(noted, dim)
    if value < 0:
        expr = Operation(operator.add, Dim(noted, dim) if labelled else size, expr)
    index = value % size if value < 0 else value
    return [(expr, Bound(noted, dim, index) if labelled else index)]


def _index(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    source = out if isinstance(out, Noted) else witness.note(args[0])
    items = args[1] if isinstance(args[1], tuple) else (args[1],)
    used = sum(i is not None and i is not Ellipsis for i in items)
    dim, pairs = 0, []
    for item in items:
        if item is Ellipsis:
            dim += len(source.shape) - used
            continue
        if item is None:
            continue
        if isinstance(item, bool) or (isinstance(item, torch.Tensor) and item.dtype == torch.bool):
            return pinned(args[1])  # takes several dimensions, or none
        bounds = (item.start, item.stop) if isinstance(item, slice) else (item,)
        for bound in bounds:
            if is_position(bound):
                pairs += _place(witness, source, dim, bound)
        dim += 1
    return pairs


def _narrow(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    if len(args) < 4:
        return pinned((args, kwargs))
    source = witness.note(args[0])
    dim = int(args[1]) % len(source.shape)
    length = (expression(args[3]), witness.dim(out, dim))
    return [*_place(witness, source, dim, args[2]), length]


def _select(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    if len(args) < 3:
        return pinned((args, kwargs))
    source = witness.note(args[0])
    return _place(witness, source, int(args[1]) % len(source.shape), args[2])


def _conv(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
    x, weight = args[:2]
    if int.__int__(groups) == 1 or x.ndim != weight.ndim:
        return []
    product = Operation(operator.mul, expression(groups), witness.dim(weight, 1))
    return [(product, witness.dim(x, 1))]


def _conv_transpose(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    return _whole_groups(witness, args[0], args[6] if len(args) > 6 else kwargs.get("groups", 1))


def _group_norm(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    return _whole_groups(witness, args[0], args[1] if len(args) > 1 else kwargs["num_groups"])


def _whole_groups(witness: Witness, x: torch.Tensor, groups: int) -> Pairs:
    """Say that groups are added, and each keeps its channels."""
    if int.__int__(groups) == 1:
        return []
    per = int(x.shape[1]) // int.__int__(groups)
    return [(Operation(operator.mul, expression(groups), per), witness.dim(x, 1))]


def _layer_norm(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    given = list(args[1] if len(args) > 1 else kwargs["normalized_shape"])
    return _shaped(witness, given, out, out.ndim - len(given))


def _repeat(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    """Say how long the results are: repeats of what grows repeat new units, too."""
    given, pairs = flat(args[1:]), pinned(kwargs)
    for dim, times in enumerate(given, start=out.ndim - len(given)):
        pairs += _repeated(witness, args[0], dim - out.ndim, times, out)
    return pairs


def _interleave(witness: Witness, args: Any, kwargs: Any, out: Any) -> Pairs:
    times = args[1] if len(args) > 1 else kwargs.get("repeats")
    dim = args[2] if len(args) > 2 else kwargs.get("dim")
    if not isinstance(times, int) or dim is None:
        return pinned((args, kwargs))
    dim -= out.ndim * (dim >= 0)
    size = kwargs.get("output_size")
    told = [] if size is None else [(expression(size), witness.dim(out, dim))]
    return _repeated(witness, args[0], dim, times, out) + told


def _repeated(witness: Witness, x: torch.Tensor, dim: int, times: int, out: Any) -> Pairs:
    size = expression(times)
    own = witness.dim(x, dim) if dim >= -x.ndim else 1  # dimensions count from the last one
    if own != 1:
        size = Operation(operator.mul, size, own)
    return [(size, witness.dim(out, dim))]


def _names(handler: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), handler)


TABLE: dict[str, Any] = {
    **_names(_view, "view reshape expand broadcast_to"),
    **_names(_create, "zeros ones empty rand randn full"),
    **_names(_create_like, "new_zeros new_ones new_empty new_full"),
    **_names(_tensor, "tensor as_tensor"),
    **_names(_unflatten, "unflatten"),
    **_names(_split, "split split_with_sizes"),
    **_names(_chunk, "chunk"),
    **_names(_index, "__getitem__ __setitem__"),
    **_names(_narrow, "narrow"),
    **_names(_select, "select"),
    **_names(_conv, "conv1d conv2d conv3d"),
    **_names(_conv_transpose, "conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_names(_group_norm, "group_norm"),
    **_names(_layer_norm, "layer_norm rms_norm"),
    **_names(_repeat, "repeat tile"),
    **_names(_interleave, "repeat_interleave"),
}
