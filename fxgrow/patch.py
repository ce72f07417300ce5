"""Constants: sizes baked into graphs, corrected for the new widths.

The new size of a dimension is its old size plus the clones of the labels along it.
A table says which arguments of which operation are sizes of which dimensions.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from .patterns import is_pattern, patch_pattern
from .propagate import Noted
from .tracer import guard
from .widths import Sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, eq=False)
class Site:
    """One node of the new graph with what is known of it before and after growth."""

    node: fx.Node
    sizes: Sizes
    planes: Mapping[fx.Node, Any]  # of the new graph's nodes, before growth
    values: Mapping[fx.Node, Any]  # after growth, of the nodes before this one

    def before(self) -> Any:
        """Shapes and planes of the output before growth."""
        return self.planes.get(self.node)

    def first(self) -> Any:
        """Shapes and planes of the first argument before growth."""
        head = self.node.args[0] if self.node.args else None
        return self.planes.get(head) if isinstance(head, fx.Node) else None

    def operand(self) -> Any:
        """Value of the first argument after growth."""
        head: Any = self.node.args[0]
        return self.values[head]

    def size(self, given: Any, old: int, new: int) -> Any:
        """Size argument ``given`` corrected from ``old`` to ``new``."""
        if isinstance(given, fx.Node):
            actual = self.values[given]
            if actual == new or not isinstance(actual, int):
                return given
            # A ratio holds for any batch size that the expression may contain.
            with self.node.graph.inserting_before(self.node):
                scaled = self.node.graph.call_function(operator.mul, (given, new))
                result = self.node.graph.call_function(operator.floordiv, (scaled, actual))
            return result
        if given == -1 or given == new:
            return given
        return new if given == old else given


def _reshape(site: Site, first: int) -> None:
    """Sizes of ``view``, ``reshape``, ``expand``: one for each output dimension."""
    noted, args = site.before(), site.node.args
    if not isinstance(noted, Noted):
        return
    packed = len(args) == first + 1 and isinstance(args[first], (tuple, list))
    given: Any = args[first] if packed else args[first:]
    wanted = site.sizes.shape(noted)
    if len(given) == 1 and isinstance(given[0], fx.Node) and not packed:
        whole = _unpacked(site, given[0], wanted)
        site.node.args = args if whole is None else (*args[:first], whole)
    if len(given) != len(noted.shape):
        return
    fixed = [site.size(g, o, n) for g, o, n in zip(given, noted.shape, wanted, strict=True)]
    site.node.args = (*args[:first], tuple(fixed)) if packed else (*args[:first], *fixed)


def _unpacked(site: Site, node: fx.Node, wanted: tuple[int, ...]) -> tuple[fx.Node, ...] | None:
    """Sizes of a shape that the code has put together: ``x.size()[:-2] + (width,)``."""
    actual = site.values[node]
    if not isinstance(actual, tuple) or len(actual) != len(wanted):
        return None
    if all(a in (-1, w) for a, w in zip(actual, wanted, strict=True)):
        return None
    graph, found = site.node.graph, []
    with graph.inserting_before(site.node):
        for dim, (a, w) in enumerate(zip(actual, wanted, strict=True)):
            one = graph.call_function(operator.getitem, (node, dim))
            if a not in (-1, w):  # a ratio holds for any batch size that it may contain
                scaled = graph.call_function(operator.mul, (one, w))
                one = graph.call_function(operator.floordiv, (scaled, a))
            found.append(one)
    return tuple(found)


def _view(site: Site) -> None:
    _reshape(site, 1)


def _repeat(site: Site) -> None:
    """How often ``repeat`` and ``tile`` repeat dimensions, given for the last ones at least."""
    noted, source, args = site.before(), site.first(), site.node.args
    if not isinstance(noted, Noted) or not isinstance(source, Noted) or len(args) < 2:
        return
    packed = len(args) == 2 and isinstance(args[1], (tuple, list))
    given: Any = args[1] if packed else args[1:]
    first = len(noted.shape) - len(given)
    if first < 0:
        return
    fixed = tuple(_times(site, times, dim) for dim, times in enumerate(given, start=first))
    site.node.args = (args[0], fixed) if packed else (args[0], *fixed)


def _times(site: Site, times: Any, dim: int) -> Any:
    """How often a dimension is repeated: what repeats new units, too, does so as often."""
    noted, source = site.before(), site.first()
    new, own = site.sizes.shape(noted)[dim], 1
    dim -= len(noted.shape) - len(source.shape)
    old = noted.shape[dim - len(source.shape)]
    if dim >= 0:
        own = site.operand().shape[dim]
        old //= max(source.shape[dim], 1)
    return times if not own or new % own else site.size(times, old, new // own)


def _interleave(site: Site) -> None:
    """``repeat_interleave`` of one dimension."""
    noted, source = site.before(), site.first()
    times, update = _argument(site.node, 1, "repeats")
    dim, _ = _argument(site.node, 2, "dim")
    if isinstance(noted, Noted) and isinstance(source, Noted) and isinstance(dim, int):
        dim %= len(source.shape)
        update(_times(site, times, dim))
        size, resize = _argument(site.node, 3, "output_size")
        if size is not None:
            resize(site.size(size, noted.shape[dim], site.sizes.shape(noted)[dim]))


def _zeros(site: Site) -> None:
    _reshape(site, 0)


def _unflatten(site: Site) -> None:
    noted, source, args = site.before(), site.first(), list[Any](site.node.args)
    dim, given = args[1:3]
    listed = isinstance(given, (tuple, list)) and isinstance(dim, int)
    if not isinstance(noted, Noted) or not listed:
        return
    dim %= len(source.shape)
    wanted = site.sizes.shape(noted)[dim : dim + len(given)]
    old = noted.shape[dim : dim + len(given)]
    fixed = tuple(site.size(g, o, n) for g, o, n in zip(given, old, wanted, strict=True))
    site.node.args = (site.node.args[0], dim, fixed)


def _split(site: Site) -> None:
    """``split``, ``chunk``: pieces get the sizes that their labels ask for."""
    pieces, source = site.before(), site.first()
    if not isinstance(pieces, (tuple, list)) or not all(isinstance(p, Noted) for p in pieces):
        return
    args, kwargs = site.node.args, site.node.kwargs
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    if not isinstance(dim, int):
        return
    dim %= len(source.shape)
    old = [p.shape[dim] for p in pieces]
    new = [site.sizes.shape(p)[dim] for p in pieces]
    chunk = site.node.target in {"chunk", torch.chunk}
    if old == new and (chunk or not _stale(site, new)):
        return
    if chunk:
        chunks: Any = args[1] if len(args) > 1 else kwargs["chunks"]
        if _even(new, -(-sum(new) // int(chunks))):
            return
        site.node.target = "split" if site.node.op == "call_method" else torch.split
    one = isinstance(args[1] if len(args) > 1 else None, int)
    uniform = one and not chunk and _even(new, new[0])
    site.node.args = (args[0], new[0] if uniform else new, dim)
    site.node.kwargs = {}


def _stale(site: Site, new: list[int]) -> bool:
    """Whether the sizes of pieces are computed from a width that has grown, though they do not."""
    given: Any = fx.node.map_arg(site.node.args[1:2], site.values.__getitem__)
    told = given[0] if given else None
    if isinstance(told, int):
        return not _even(new, told)
    return isinstance(told, (tuple, list)) and list(told) != new


def _even(sizes: list[int], per: int) -> bool:
    return all(s == per for s in sizes[:-1]) and 0 < sizes[-1] <= per


def _moved(index: int, gains: np.ndarray) -> int:
    """Where position (or bound) ``index`` lies after growth."""
    return index + int(gains[:index].sum())


def _getitem(site: Site) -> None:
    """Bounds and positions of an index along dimensions that grow."""
    source = site.first()
    if not isinstance(source, Noted):
        return
    given = site.node.args[1]
    items = list(given) if isinstance(given, tuple) else [given]
    if any(isinstance(i, (fx.Node, list, torch.Tensor)) for i in items):
        return
    used = sum(i is not None and i is not Ellipsis for i in items)
    dim, fixed = 0, []
    for item in items:
        if item is Ellipsis:
            dim += len(source.shape) - used
        elif item is not None:
            fixed_item = _bounds(item, site.sizes.gains(source, dim))
            dim += 1
            fixed.append(fixed_item)
            continue
        fixed.append(item)
    position = tuple(fixed) if isinstance(given, tuple) else fixed[0]
    site.node.update_arg(1, position)


def _bounds(item: Any, gains: np.ndarray) -> Any:
    size = len(gains)
    if not gains.any():
        return item
    if isinstance(item, int):
        return _moved(item % size, gains)
    if isinstance(item, slice) and not any(
        isinstance(b, fx.Node) for b in (item.start, item.stop, item.step)
    ):
        start, stop, step = item.indices(size)
        return slice(_moved(start, gains), _moved(stop, gains), step)
    return item


def _narrow(site: Site) -> None:
    source = site.first()
    if not isinstance(source, Noted) or len(site.node.args) < 4:
        return
    x, dim, start, length = site.node.args[:4]
    if not (isinstance(dim, int) and isinstance(start, int) and isinstance(length, int)):
        return
    cut = _bounds(slice(start, start + length), site.sizes.gains(source, dim % len(source.shape)))
    site.node.args = (x, dim, cut.start, cut.stop - cut.start)


def _scaled(site: Site) -> None:
    """Attention whose kernel takes its scale from the size of heads keeps the scale it had."""
    keep_numbers(site)
    query, _ = _argument(site.node, 0, "query")
    before = site.planes.get(query)
    if isinstance(before, Noted) and site.node.kwargs.get("scale") is None:
        old, new = before.shape[-1], site.values[query].shape[-1]
        if old != new:
            site.node.update_kwarg("scale", old**-0.5)


def _argument(node: fx.Node, position: int, name: str) -> tuple[Any, Callable[[Any], None]]:
    if len(node.args) > position:
        return node.args[position], lambda value: node.update_arg(position, value)
    return node.kwargs.get(name), lambda value: node.update_kwarg(name, value)


def _conv(site: Site) -> None:
    """Set ``groups`` of a functional convolution: input channels over the weight's."""
    groups, update = _argument(site.node, 6, "groups")
    weight, _ = _argument(site.node, 1, "weight")
    if isinstance(groups, int) and groups > 1:
        x = site.operand()
        update(x.shape[1] // site.values[weight].shape[1])


def _group_norm(site: Site) -> None:
    source = site.first()
    groups, update = _argument(site.node, 1, "num_groups")
    if isinstance(groups, int) and groups > 1 and isinstance(source, Noted):
        x = site.operand()
        update(x.shape[1] // (source.shape[1] // groups))


def _layer_norm(site: Site) -> None:
    """Normalised shape of layer and RMS normalisation."""
    source = site.first()
    shape, update = _argument(site.node, 1, "normalized_shape")
    if isinstance(source, Noted) and isinstance(shape, (tuple, list)):
        x = site.operand()
        update(tuple(x.shape[-len(shape) :]))


def _guarded(site: Site) -> None:
    """Guard a size at the new width; the code goes on with the number that it was."""
    source, expected = site.node.args[:2]
    if isinstance(source, fx.Node) and not isinstance(expected, bool):
        kind = float if isinstance(expected, float) else int
        site.node.update_arg(1, kind(site.values[source]))


PATCHES: dict[Any, Callable[[Site], None]] = {
    guard: _guarded,
    "view": _view,
    "reshape": _view,
    "expand": _view,
    torch.reshape: _view,
    "broadcast_to": _view,
    torch.broadcast_to: _view,
    **dict.fromkeys(("repeat", "tile", torch.tile), _repeat),
    **dict.fromkeys(("repeat_interleave", torch.repeat_interleave), _interleave),
    "new_zeros": _view,
    torch.zeros: _zeros,
    "unflatten": _unflatten,
    torch.unflatten: _unflatten,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _split,
    torch.split: _split,
    torch.chunk: _split,
    operator.getitem: _getitem,
    operator.setitem: _getitem,
    "narrow": _narrow,
    torch.narrow: _narrow,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.conv3d: _conv,
    F.group_norm: _group_norm,
    F.scaled_dot_product_attention: _scaled,
    **dict.fromkeys((F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm), _layer_norm),
}


# Arithmetic of a tensor with a number, where a number computed from a width (the scale
# of attention) must keep its value.
ARITHMETIC = {
    *(
        operator.mul,
        operator.truediv,
        operator.add,
        operator.sub,
        operator.pow,
        operator.imul,
        operator.itruediv,
    ),
    *(torch.mul, torch.div, torch.add, torch.sub, torch.pow),
    *("mul", "mul_", "div", "div_", "add", "add_", "sub", "sub_", "pow"),
}


def keep_numbers(site: Site) -> None:
    """Give a tensor's partners in arithmetic the values they had before growth."""
    if not isinstance(site.before(), Noted):
        return
    for number in site.node.all_input_nodes:
        new, old = site.values[number], site.planes.get(number)
        if isinstance(new, (int, float)) and isinstance(old, (int, float)) and new != old and new:
            with site.node.graph.inserting_before(site.node):
                # A ratio, so that what depends on the batch still does.
                kept = site.node.graph.call_function(operator.mul, (number, old / new))
            site.node.replace_input_with(number, kept)


def patch_of(target: Any) -> Callable[[Site], None] | None:
    """Find what corrects the nodes of a function or method, if anything does."""
    if is_pattern(target):
        return patch_pattern
    return PATCHES.get(target, keep_numbers if target in ARITHMETIC else None)
