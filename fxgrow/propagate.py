"""Label propagation through ATen: a dispatch mode that labels what it sees.

Every ATen call is labelled by one rule of the table in :mod:`fxgrow.rules`. Heavy
operations (convolutions, matrix products) are not computed: labels depend on shapes,
not on values, so an uninitialised result of the right shape serves, unless Python code that is
not traced may look at values.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .dispatch import EagerMode
from .echoes import without
from .flows import weight_flow
from .gates import let_out
from .inner import mark, structural
from .labels import LabelBook, Where
from .planes import Axis, Labels, Plane
from .walks import tensors_of
from .weights import is_shifted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from .blanks import Made, Site
    from .inner import Joined
    from .kept import Keeper
    from .placing import Placement
    from .witness import Equation, Witness

Planes = tuple[Plane, ...]
LABELS_KEY = "_fxgrow_value"


class Value(NamedTuple):
    """What is known of one tensor.

    ``weight``: computed from parameters alone; ``live``: depends on the model's inputs.
    """

    planes: Planes = ()
    weight: bool = False
    live: bool = False


_CONSTANT = Value()


@dataclass(frozen=True, eq=False)
class Noted:
    """Shape and planes of a node's output."""

    shape: tuple[int, ...]
    planes: tuple[Any, ...]


class Call(NamedTuple):
    """One call as a rule sees it: of ATen, a custom operation, a module or a function."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any
    owner: torch.nn.Module | None = None  # of a module's own rule

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """Return an argument by position or by name."""
        if index < len(self.args):
            return self.args[index]
        return self.kwargs.get(name, default)


class ProductFlops(NamedTuple):
    """FLOPs of one product of two activations, and the planes that scale it."""

    flops: int
    planes: tuple[Labels, ...]


@dataclass
class Propagation:
    """Everything that label propagation learns; rules write into it."""

    names: Mapping[int, str]
    outer: Mapping[Axis, Labels] = field(default_factory=dict)  # see fxgrow.inner
    joined: list[Joined] = field(default_factory=list)
    joint: list[tuple[int, int]] = field(default_factory=list)  # see fxgrow.jointly: label, rows
    book: LabelBook = field(default_factory=LabelBook)
    axes: dict[Axis, Labels] = field(default_factory=dict)
    roles: dict[Axis, set[str]] = field(default_factory=dict)
    tensor_flops: Counter[str] = field(default_factory=Counter)
    product_flops: list[ProductFlops] = field(default_factory=list)
    unknown: dict[str, list[object]] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)
    site: object = None
    computed: bool = False  # whether all values are computed, for code that looks at them
    paused: bool = False  # whether what runs is left to a rule of the caller
    resized: bool = False  # whether sizes of blanks made here follow the width
    aligned: list[tuple[Labels, int]] = field(default_factory=list)  # rows, entries of a block
    blanks: dict[Site, Made] = field(default_factory=dict)
    hollow: set[int] = field(default_factory=set)  # labels of blanks
    placements: list[Placement] = field(default_factory=list)
    run: Any = None  # what runs the graph
    equations: list[Equation] = field(default_factory=list)
    witness: Witness | None = None
    keeper: Keeper | None = None  # of the parameters of what runs
    _own: dict[Axis, Plane] = field(default_factory=dict)  # of axes, as parameters have them
    _starts: list[int] = field(default_factory=list)
    written: list[tuple[torch.Tensor, Value]] | None = None  # labels that are kept, if any

    def where(self, op: str) -> Where:
        """Return the current place in the graph (or inside a leaf), for ``op``."""
        return Where(op, self.site if self.witness is None else self.witness.place())

    # -- values ----------------------------------------------------------------

    def value(self, tensor: torch.Tensor) -> Value:
        """Return what is known of ``tensor``; parameters get a plane per axis."""
        known: Value | None = tensor.__dict__.get(LABELS_KEY)
        if known is not None:
            return known
        name = self.names.get(id(tensor))
        if name is None:
            return _CONSTANT
        return Value(self.axis_planes(name, tensor, range(tensor.ndim)), weight=True)

    def planes(self, tensor: torch.Tensor | None) -> Planes:
        """Planes of ``tensor`` (none for ``None``)."""
        return () if tensor is None else self.value(tensor).planes

    def weight_planes(self, tensor: torch.Tensor, dims: Sequence[int]) -> Planes:
        """Like :meth:`planes`, but a parameter is only labelled along ``dims``."""
        name = self.names.get(id(tensor))
        if name is None or LABELS_KEY in tensor.__dict__:
            return self.planes(tensor)
        return self.axis_planes(name, tensor, dims)

    def axis_planes(self, name: str, tensor: torch.Tensor, dims: Iterable[int]) -> Planes:
        """Planes of the parameter ``name``, one for each of ``dims`` larger than 1."""
        self.reached.add(name)
        if not tensor.is_floating_point():
            return ()
        planes, sizes = [], tensor.shape
        for dim in dims:
            if sizes[dim] > 1:
                plane = self._own.get((name, dim))
                planes.append(plane or self._axis(name, dim, tensor))
        return tuple(planes)

    def _axis(self, name: str, dim: int, tensor: torch.Tensor) -> Plane:
        """Give an axis its labels, and their plane."""
        axis, size, shape = (name, dim), tensor.shape[dim], [1] * tensor.ndim
        shape[dim] = size
        self._starts.append(self.book.size)  # ascending: labels are in order
        own = self.axes[axis] = self.book.fresh(size)
        if self.outer:
            mark(self.book, own, self.outer.get(axis))
        parameter = type(tensor) is torch.nn.Parameter or isinstance(tensor, torch.nn.Parameter)
        self.book.weights.rank[axis] = parameter * (1 + tensor.requires_grad)
        plane = self._own[axis] = Plane(own.reshape(shape), (axis,), weight_flow(axis))
        return plane

    def is_weight(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is a parameter or computed from parameters alone."""
        return id(tensor) in self.names or self.value(tensor).weight

    def assign(self, out: Any, planes: Any, *, weight: bool, live: bool) -> None:
        """Attach planes to one output tensor, or to each of several."""
        if isinstance(out, torch.Tensor):
            planes = structural(self.book, planes) if self.outer else planes
            self._write(out, Value(tuple(planes), weight, live))
            return
        several = out if isinstance(out, (tuple, list)) else ()  # else a number
        for tensor, own in zip(several, planes, strict=False):
            if isinstance(tensor, torch.Tensor):
                own = structural(self.book, own) if self.outer else own
                self._write(tensor, Value(tuple(own), weight, live))

    def align(self, out: torch.Tensor, other: torch.Tensor) -> None:
        """Say that ``out`` has been expanded to the size of ``other``, and is as long as that."""
        known = self.value(out)
        free = {d for d, step in enumerate(out.stride()) if not step}
        planes = [Plane(p.labels) for p in self.planes(other) if p.dims and free.issuperset(p.dims)]
        self._write(out, known._replace(planes=(*known.planes, *planes)))

    def _write(self, tensor: torch.Tensor, value: Value) -> None:
        tensor.__dict__[LABELS_KEY] = value
        if self.written is not None:
            self.written.append((tensor, value))

    # -- what rules say --------------------------------------------------------

    def role(self, planes: Iterable[Plane], role: str) -> None:
        """Say what the parameter axes behind ``planes`` do."""
        for plane in without(self.book, planes) if self.book.echoes else planes:
            for axis in self.book.weights.writer(plane.zero) or self._origin(plane.labels):
                self.roles.setdefault(axis, set()).add(role)

    def writes(self, rows: Iterable[Plane], weight: Iterable[Plane]) -> None:
        """Say that ``rows`` of a weight, which has these planes, make the units of an output.

        Where the weight is standardised its rows are known, and factors behind that are gains.
        """
        if not self.book.weights.centred or not any(
            is_shifted(axis) for plane in weight for axis in plane.zero
        ):
            self.role(rows, "producer")
            return
        for axis in (a for plane in rows for a in plane.zero):
            if "producer" not in self.roles.setdefault(axis, set()):
                self.roles[axis].add("norm")

    def entries(self, tensors: Iterable[Any], role: str) -> tuple[Axis, ...]:
        """Axes of weights that are used just as they are, and from now on have ``role``."""
        found = []
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and self.is_weight(tensor):
                for flow in (p.flow for p in self.planes(tensor)):
                    found += [t[0] for t in (flow.terms or () if flow else ()) if len(t) == 1]
        for axis in found:
            self.roles.setdefault(axis, set()).add(role)
        return tuple(found)

    def _origin(self, labels: Labels) -> list[Axis]:
        """Find the axis that a computed weight's rows descend from."""
        place = bisect_right(self._starts, int(labels.reshape(-1)[0])) - 1
        return [next(islice(self._own, place, None))]

    def freeze(self, planes: Iterable[Plane], code: str, op: str) -> None:
        """Freeze all labels of ``planes``."""
        for plane in planes:
            self.book.freeze(plane.labels, code, self.where(op))

    def count_flops(
        self, flops: int, weight: Sequence[Plane] | None, planes: Sequence[Plane]
    ) -> None:
        """Book the FLOPs of a contraction with a weight, or of two activations."""
        owner = next((axis[0] for p in weight or () for axis in p.zero), None)
        if owner is not None:
            self.tensor_flops[owner] += flops
        else:
            self.product_flops.append(ProductFlops(flops, tuple(p.labels for p in planes)))


class _Op(NamedTuple):
    """What is to be done about an overload, which is held so that its id stays its."""

    func: Any
    packet: Any
    name: str
    rule: Callable[..., Any] | None
    shortcut: Callable[..., Any] | None
    mutable: bool


class LabelMode(EagerMode):
    """Labels every ATen call by the rule table; skips heavy computations."""

    def __init__(self, propagation: Propagation, rules: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        from . import rules as table

        self.state = propagation
        self.lookup = rules.lookup if rules.own else table.lookup
        self.rules = table
        self._ops: dict[int, _Op] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.label(func, args, kwargs or {})

    def told(self, func: Any, args: Any) -> Any:
        """Label a call that the dispatcher does not have to find."""
        with torch._C._DisableTorchDispatch():
            return self.label(func, args, {})

    def label(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Compute one ATen call, as far as needed, and label what comes out."""
        state = self.state
        op = self._ops.get(id(func)) or self._op(func)
        if op.mutable and state.keeper is not None:
            known = getattr(args[0], LABELS_KEY, None) if args else None
            if kwargs or known is None or not known.live:
                state.keeper.before_write(args, kwargs)
        if state.paused or (state.resized and op.packet in self.rules.BLANKS):
            out = func(*args, **kwargs)
            return out if state.paused else self.rules.blank(state, out)
        rule = op.rule
        shortcut = None if state.computed else op.shortcut
        inputs = tensors_of(args)
        if kwargs:
            inputs += tensors_of(kwargs.values())
        given, labelled, weight, live = self._known(inputs)
        # Only what depends on the inputs may be skipped: constants (index tables,
        # masks) must be real.
        out = shortcut(args, kwargs) if shortcut is not None and live else NotImplemented
        if out is NotImplemented:
            if rule is None and labelled:
                with self:
                    out = func.decompose(*args, **kwargs)
                if out is not NotImplemented:
                    return out
            out = func(*args, **kwargs)
        weight = not live and (given or weight)
        live = live and op.packet not in self.rules.TOLD
        if not labelled and not (op.packet in self.rules.ECHOING and _may_meet(out)):
            if live:
                state.assign(out, _nothing(out), weight=False, live=True)
            return out
        call = Call(op.name, args, kwargs, out)
        self._apply(op, rule or self.rules.unknown, call, inputs, weight=weight, live=live)
        return out

    def _apply(
        self, op: _Op, rule: Any, call: Call, inputs: list[Any], *, weight: bool, live: bool
    ) -> None:
        state = self.state
        given = list(_noted(inputs)) if state.book.gates else []  # an in-place call changes them
        if op.mutable and inputs[0].__dict__.get(LABELS_KEY) is not None:
            self._guard_view(inputs[0], rule, call, weight=weight, live=live)
        else:
            state.assign(call.out, rule(state, call), weight=weight, live=live)
        if given:
            let_out(state.book, given, _noted(tensors_of((call.out,))))

    def _op(self, func: Any) -> _Op:
        packet = func.overloadpacket
        name = packet._qualified_op_name.removeprefix("aten::")
        shortcut = self.rules.SHORTCUTS.get(packet)
        op = _Op(func, packet, name, self.lookup(func), shortcut, func._schema.is_mutable)
        self._ops[id(func)] = op
        return op

    def _known(self, inputs: Iterable[torch.Tensor]) -> tuple[bool, bool, bool, bool]:
        """Whether there is a parameter, labels, a computed weight and data among the inputs."""
        given = labelled = weight = live = False
        names = self.state.names
        for tensor in inputs:
            value = tensor.__dict__.get(LABELS_KEY)
            if value is None:
                given = given or id(tensor) in names
                continue
            planes, own, data = value
            labelled = labelled or bool(planes)
            weight, live = weight or own, live or data
        return given, given or labelled, weight, live

    def _guard_view(
        self, target: torch.Tensor, rule: Any, call: Call, *, weight: bool, live: bool
    ) -> None:
        """Label an in-place call; what its base could not know of is frozen.

        What meets labels of the base along all of its dimensions is united with them in the end.
        """
        known = self.state.value(target).planes
        planes = tuple(rule(self.state, call))
        if target._is_view():
            along = {d for p in known for d in p.dims}
            lost = [p for p in planes if not along.issuperset(p.dims)]
            self.state.freeze(lost, "in_place_view", call.name)
        self.state.assign(target, planes, weight=weight, live=live)


def _noted(tensors: Iterable[torch.Tensor]) -> Iterator[Planes]:
    for tensor in tensors:
        value = tensor.__dict__.get(LABELS_KEY)
        if value is not None:
            yield value.planes


def _may_meet(out: Any) -> bool:
    """Whether a tensor may be added to, or select, what has units."""
    return isinstance(out, torch.Tensor) and not out.is_complex()


def _nothing(out: Any) -> Any:
    """Return no planes for each output."""
    return [()] * len(out) if isinstance(out, (list, tuple)) else ()
