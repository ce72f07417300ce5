"""Activations from which their mean over the units is taken, as norms written by hand do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..flows import Flow, is_linear
from ..planes import lift

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ..planes import Plane
    from ..propagate import Call, Propagation

__all__ = ["note_mean", "without_mean"]

_MEAN_KEY = "_fxgrow_mean"


def note_mean(state: Propagation, call: Call, planes: Sequence[Plane], dims: Sequence[int]) -> None:
    """Let a mean know what it is of, where new units can be made to hold it.

    Parameters
    ----------
    state : Propagation
    call : Call
        Of a mean.
    planes : sequence of Plane
        Of its operand.
    dims : sequence of int
        What it reduces.
    """
    x = call.args[0]
    gone = [p for p in planes if p.dims and tuple(p.dims) == tuple(dims) and is_linear(p.flow)]
    if len(gone) == 1 and call.out.ndim == x.ndim:
        # Calls in place leave the tensor what it is, and change what is known of it.
        call.out.__dict__[_MEAN_KEY] = (x, gone[0], state.value(x), x._version)


def without_mean(
    state: Propagation, call: Call, tensors: Sequence[torch.Tensor], planes: list[Plane]
) -> list[Plane]:
    """Give planes of a difference a flow, where it is that of a tensor and its own mean.

    New units that hold the mean are zero then (:mod:`fxgrow.flows`).

    Parameters
    ----------
    state : Propagation
    call : Call
        Of a sum or a difference.
    tensors : sequence of torch.Tensor
        The two operands.
    planes : list of Plane
        Of the result.
    """
    if call.name.rstrip("_") != "sub" or call.arg(2, "alpha", 1) != 1:
        return planes
    for own, other in (tensors, reversed(tensors)):
        known: Any = other.__dict__.get(_MEAN_KEY)
        if known is None or known[0] is not own or known[2] is not state.value(own):
            continue
        if known[3] == own._version:
            labels = lift(known[1], call.out.ndim, keep_zero=False).labels
            return [
                p._replace(flow=Flow(None, calm=True)) if np.array_equal(p.labels, labels) else p
                for p in planes
            ]
    return planes
