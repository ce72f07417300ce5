"""Front end: a module becomes one fx graph per mode.

A shadow of the model (own modules, shared parameters) is traced once in eval and once
in train mode; where no code reads the training flag, or both graphs are alike, one
graph serves both.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from .errors import InputError, TraceError
from .kept import Keeper
from .module import GrownModule
from .plain import duplicate, eagerly, set_mode
from .rules.own import Declaration, Rules
from .tracer import FAILURES, Flag, graph_of
from .walks import modules, parameters
from .whole import whole_graph

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Inputs", "Traced", "no_fast_path", "shadow", "trace"]


@dataclass(frozen=True)
class Inputs:
    """Example inputs, normalised: positional and keyword arguments."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, example: Any) -> Inputs:
        """Accept a tensor, a tuple of positional or a dict of keyword arguments.

        Raises
        ------
        InputError
            When ``example`` is none of these.
        """
        if isinstance(example, Inputs):
            return example
        if isinstance(example, torch.Tensor):
            return cls((example,), {})
        if isinstance(example, (tuple, list)):
            return cls(tuple(example), {})
        if isinstance(example, dict):
            return cls((), dict(example))
        raise InputError(
            "example_inputs must be a tensor, a tuple of positional arguments or a dict of "
            f"keyword arguments, not {type(example).__name__}"
        )

    def double(self) -> Inputs:
        """Floating point tensors in float64."""

        def cast(value: Any) -> Any:
            floating = isinstance(value, torch.Tensor) and value.is_floating_point()
            return value.double() if floating else value

        args, kwargs = fx.node.map_aggregate((self.args, dict(self.kwargs)), cast)
        return Inputs(tuple(args), dict(kwargs))

    def doubled(self) -> Inputs:
        """Every sample twice: norms can't train on batches of one value per channel."""

        def twice(value: Any) -> Any:
            return (
                torch.cat([value, value])
                if isinstance(value, torch.Tensor) and value.ndim
                else value
            )

        args, kwargs = fx.node.map_aggregate((self.args, dict(self.kwargs)), twice)
        return Inputs(tuple(args), dict(kwargs))


@dataclass(frozen=True, eq=False)
class Traced:
    """A shadow of the model (own structure, shared parameters) and its graphs.

    ``graphs`` maps ``"eval"`` and ``"train"`` to graphs; both are the same object
    where the two modes do not differ. ``obstacle`` says why the model is no graph; then
    each graph only calls the model as it is.
    """

    root: nn.Module
    graphs: Mapping[str, fx.Graph]
    inputs: Inputs
    obstacle: str = ""
    rules: Rules = field(default_factory=Rules)

    @property
    def distinct(self) -> list[tuple[str, fx.Graph]]:
        """The graphs that differ, with their modes."""
        items = list(self.graphs.items())
        return items[:1] if items[0][1] is items[1][1] else items


def shadow(model: nn.Module, replace: Mapping[int, Any] | None = None) -> nn.Module:
    """Deep copy of ``model`` that shares its parameters (or takes ``replace``'s).

    Raises
    ------
    TraceError
        When the model can't be copied.
    """
    memo: dict[int, Any] = (
        {id(p): p for p in parameters(model)} if replace is None else dict(replace)
    )
    try:
        return duplicate(model, memo)
    except FAILURES as error:
        raise TraceError(
            f"the model can't be copied ({error}); drop non-leaf tensors that its modules hold "
            "as attributes"
        ) from error


def _same(a: fx.Graph, b: fx.Graph) -> bool:
    """Whether two graphs are alike node by node."""
    if len(a.nodes) != len(b.nodes):
        return False
    pairs: dict[fx.Node, fx.Node] = {}
    for x, y in zip(a.nodes, b.nodes, strict=True):
        if x.op != y.op or x.target != y.target:
            return False
        pairs[x] = y
        args = fx.node.map_arg((x.args, x.kwargs), lambda n: pairs.get(n, n))
        if not _equal(args, (y.args, y.kwargs)):
            return False
    return True


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return a is b
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    return bool(a == b)


def trace(
    model: nn.Module,
    example: Any,
    rules: Iterable[Declaration] | Rules = (),
    *,
    whole: bool = False,
) -> Traced:
    """Trace a shadow of ``model`` in eval and in train mode.

    A model that is no graph is called as it is, by a graph of one node.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed: the shadow shares its parameters and copies all else.
    example : tensor, tuple, dict or Inputs
        Example inputs.
    rules : iterable of Declaration
        The caller's (see :mod:`fxgrow.rules.own`): what they name stays whole.
    whole : bool
        Do not try to trace; call the model as it is.

    Returns
    -------
    Traced

    Raises
    ------
    InputError
        When ``example`` or ``rules`` is none of these.
    TraceError
        When the model can't be copied.
    """
    inputs, own = Inputs.of(example), Rules.of(rules)
    root = shadow(model)
    if whole:
        return _untraced(root, inputs, "it was not to be traced", own)
    _refuse_computed(root)
    if isinstance(root, GrownModule):  # carries its graphs
        return Traced(root, {"eval": root.graph, "train": root.train_graph}, inputs, rules=own)
    try:
        return Traced(root, _graphs(root, inputs, own), inputs, rules=own)
    except TraceError as error:
        # What tracing left on the shadow (caches of traced values) must not be run.
        return _untraced(shadow(model), inputs, str(error), own)


def _untraced(root: nn.Module, inputs: Inputs, why: str, rules: Rules) -> Traced:
    graphs = {mode: whole_graph(inputs) for mode in ("eval", "train")}
    return Traced(root, graphs, inputs, why, rules)


def _graphs(root: nn.Module, inputs: Inputs, own: Rules) -> dict[str, fx.Graph]:
    parts = modules(root)
    modes = [module.training for module in parts]
    keeper = Keeper(parameters(root))
    graphs = {}
    try:
        for mode in ("eval", "train"):
            flag = Flag(mode == "train")
            for module in parts:
                module.__dict__["training"] = flag
            with no_fast_path(), eagerly(root):
                graphs[mode] = graph_of(root, inputs, own, keeper)
            if not flag.read:  # nobody asked: both modes are alike
                graphs["train"] = graphs["eval"]
                break
    finally:
        for module, training in zip(parts, modes, strict=True):
            set_mode(module, training)
    if graphs["eval"] is not graphs["train"] and _same(graphs["eval"], graphs["train"]):
        graphs["eval"] = graphs["train"]  # only this one may hold checkpoints
    return graphs


def _refuse_computed(root: nn.Module) -> None:
    """Refuse a root whose hooks compute its weights: a graph starts after the hooks."""
    tensors = [name for name, v in root.__dict__.items() if isinstance(v, torch.Tensor)]
    if tensors and root._forward_pre_hooks:
        raise TraceError(
            f"a hook may compute {tensors[0]!r} of the outermost module, where a graph can't see "
            "it; wrap the model (torch.nn.Sequential(model)), or use "
            "torch.nn.utils.parametrize in place of the hook"
        )


@contextmanager
def no_fast_path() -> Iterator[None]:
    """Keep attention and recurrent layers from fused kernels, which hide what they do."""
    attention = torch.backends.mha.get_fastpath_enabled()
    onednn, cudnn = torch._C._get_mkldnn_enabled(), torch.backends.cudnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    # torch.backends.mkldnn.flags would warn of other hardware than there is.
    torch._C._set_mkldnn_enabled(False)
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(attention)
        torch._C._set_mkldnn_enabled(onednn)
        torch.backends.cudnn.enabled = cudnn
