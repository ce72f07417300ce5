"""Transfer: a trained narrow model, loaded into a wide one of the same architecture."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import report as reports
from .alike import check_alike, lasting_tensors
from .errors import FxgrowError, InputError, UnsupportedError, VerificationError
from .inspection import inspect_model
from .ir import Growth, IndexMap, Plan
from .matching import match_units
from .module import GrownModule
from .placed import held
from .plain import collector_paused, duplicate, plain
from .spread import places, spread_average
from .stages import input_spec
from .trace import trace
from .verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .inspection import Inspection
    from .matching import Matching

__all__ = ["transfer", "transferred_again"]


@collector_paused()
def transfer(
    source: torch.nn.Module,
    target: torch.nn.Module,
    example_inputs: Any,
    *,
    seed: int = 0,
    emit: str = "module",
) -> Growth:
    """Load a trained narrow model into a wider one of the same architecture; function kept.

    Both are traced and labelled. A narrow unit becomes a wide unit that has slices in the
    same tensors, whatever concatenation, flattening or channel shuffle lies between; the
    wide model's other units stay as they are, and what reads them is set to zero. Where a
    normalisation over the channels mixes all units (residual streams of transformers), the
    width must be a whole multiple: units are repeated, and what reads them is split.

    Parameters
    ----------
    source : torch.nn.Module
        Never changed.
    target : torch.nn.Module
        Wider, or as wide, with the same tensor names; its classes may differ. Never changed.
    example_inputs : tensor, tuple or dict
        One tensor, positional arguments, or keyword arguments of ``forward``.
    seed : int
        Of the uneven shares that units and their copies get.
    emit : {"module", "graph"}
        A copy of ``target``, or a ``torch.fx.GraphModule`` of it.

    Returns
    -------
    Growth
        ``migrate`` carries the source's optimizer over; ``index_map`` leads from the source's
        tensors to the result's.

    Raises
    ------
    InputError
        For impossible arguments, or when a model does not run on the example inputs.
    TraceError
        When no graph of a model can be had.
    UnsupportedError
        When tensors or units have no counterpart; names them, and what to change.
    VerificationError
        When the result would compute another function. Nothing is returned then.

    Notes
    -----
    New units keep the initial values that ``target`` gave them, running statistics included.

    Examples
    --------
    >>> import torch, fxgrow
    >>> def net(width):
    ...     parts = torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 2)
    ...     return torch.nn.Sequential(*parts)
    >>> growth = fxgrow.transfer(net(8), net(12), torch.zeros(1, 4))
    >>> growth.plan.additions
    {'0': 4}
    """
    if emit not in {"graph", "module"}:
        raise InputError(f"emit is {emit!r}; take 'module' or 'graph'")
    source, module = plain(source), duplicate(plain(target))
    check_alike(source, module)
    with _named("source"):
        narrow = held(inspect_model(source, example_inputs))
    with _named("target"):
        wide = held(inspect_model(module, example_inputs))
    old, new = lasting_tensors(source), lasting_tensors(module)
    matching = match_units(narrow, wide, _shapes(old), _shapes(new))
    check_units(narrow, wide, matching)
    growth = _growth(source, module, narrow, matching, seed)
    with torch.no_grad():
        _load(growth, old, new)
    if emit == "graph":
        module = _as_graph(module, example_inputs)
    verification = verify(source, module, narrow.analysis.traced.inputs)
    if not verification.passed:
        raise VerificationError(
            "the target computes another function with the source's weights (relative difference "
            f"{verification.eval_error:.1e} in eval, {verification.train_error:.1e} in train mode, "
            f"allowed {verification.tolerance:.0e}); {_suspects(matching)}"
        )
    report = {
        **growth.report,
        "emit": emit,
        "verification": reports.verification_dict(verification),
        "inputs": input_spec(narrow.analysis.traced.inputs),
    }
    return replace(growth, module=module, verification=verification, report=report)


@contextmanager
def _named(which: str) -> Iterator[None]:
    """Say which of two models an error is about."""
    try:
        yield
    except FxgrowError as error:
        raise type(error)(f"{which}: {error}") from error


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _growth(
    source: torch.nn.Module,
    module: torch.nn.Module,
    narrow: Inspection,
    matching: Matching,
    seed: int,
) -> Growth:
    """Say what grew; the module still has its own values."""
    rows = {g.name: g for g in (*narrow.groups, *matching.rows)}
    additions = {group.name: group.added for group in matching.groups}
    spent = narrow.costs.neurons(list(rows.values()), additions)
    plan = Plan(additions, budget=float(spent), unit="neurons", spent=spent)
    shown = replace(narrow, groups=tuple(rows.values()))
    report = reports.growth_dict(shown, plan, module=module)
    report |= {"seed": seed, "edits": [], "transfer": True}
    sources = dict(source.named_parameters())
    return Growth(
        module, plan, None, matching.index_map, None, report, matching.groups, sources=sources
    )


def _load(growth: Growth, old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> None:
    """Give the module the source's values, in place; new units keep theirs, unread."""
    grown = places(growth)
    for name, tensor in old.items():
        own = new[name]
        place = grown.get(name)
        value = tensor.detach().clone()
        if place is not None:
            value = torch.empty_like(own, requires_grad=False)
            spread_average(place, tensor, value, own)
        own.data = value


def check_units(narrow: Inspection, wide: Inspection, matching: Matching) -> None:
    """Hold the partition into units of both models against the maps of all axes.

    Parameters
    ----------
    narrow, wide : Inspection
    matching : Matching

    Raises
    ------
    UnsupportedError
        When the models use different parameters.
    VerificationError
        When a unit of one model would be torn apart or merged in the other.
    """
    before, after = narrow.analysis.state, wide.analysis.state
    pairs, images, rest = [], [], []
    for (name, dim), labels in after.axes.items():
        units = after.book.find(labels)
        axis = matching.index_map.axes.get(name, {}).get(dim)
        if (name, dim) in before.axes:
            old = before.book.find(before.axes[name, dim])
            image = units if axis is None else units[axis.old]
            pairs.append(np.stack([old, image]))
            images.append(image)
        elif axis is None:
            raise UnsupportedError(
                f"the target uses {name} (dim {dim}) otherwise than the source; build both alike"
            )
        if axis is not None:
            rest.append(units[axis.new])
    couples = np.unique(np.concatenate(pairs, axis=1), axis=1)
    torn = len(np.unique(couples[0])) < couples.shape[1]
    merged = len(np.unique(couples[1])) < couples.shape[1]
    mixed = bool(rest) and np.isin(np.concatenate(rest), np.concatenate(images)).any()
    if torn or merged or mixed:
        raise VerificationError(
            "slices of one unit of the source would lie in several units of the target, or the "
            "other way round; the transfer was refused: build both models alike"
        )


def _suspects(matching: Matching) -> str:
    """Name what may be behind another function."""
    several = [g.name for g in matching.groups if any(s.old.shape[1] > 1 for s in g.slots)]
    doubt = f", or the order of entries inside a unit of {several[0]!r}" if several else ""
    return (
        "constants that no tensor holds (activations, strides, eps, scales of attention) may "
        f"differ{doubt}; build both models with the same options but for widths"
    )


def _as_graph(module: torch.nn.Module, example_inputs: Any) -> torch.nn.Module:
    traced = trace(module, example_inputs)
    if traced.obstacle:
        return module
    graphs = traced.graphs
    return GrownModule(traced.root, graphs["eval"], graphs["train"], type(module).__name__)


def transferred_again(
    base: torch.nn.Module, example_inputs: Any, step: Mapping[str, Any], emit: str
) -> Growth:
    """Take the wide model again for a growth file that holds a transfer's weights.

    Parameters
    ----------
    base : torch.nn.Module
        As wide as the target was; its values will be replaced. It is not changed.
    example_inputs : tensor, tuple or dict
    step : dict
        What the file says of the transfer.
    emit : {"module", "graph"}

    Returns
    -------
    Growth
        Without an index map: the file does not hold the narrow model.
    """
    module = duplicate(base)
    if emit == "graph":
        module = _as_graph(module, example_inputs)
    report = {"transfer": True, "seed": step["seed"]}
    return Growth(module, Plan(**step["plan"]), None, IndexMap({}), None, report)
