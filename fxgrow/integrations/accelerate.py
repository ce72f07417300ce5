"""A Grower for models and optimizers that Accelerate has prepared."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator

from ..grower import Grower
from .inside import Pairs, as_pair

__all__ = ["accelerated"]


def accelerated(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: Any,
    *,
    data: Iterable[Any] | None = None,
    **options: Any,
) -> Grower:
    """Return a Grower for what ``accelerator.prepare`` returned.

    Parameters
    ----------
    accelerator : accelerate.Accelerator
    model : torch.nn.Module
        Prepared; the models that the Grower returns are prepared as well.
    optimizer : accelerate.optimizer.AcceleratedOptimizer
        Prepared; schedulers and the gradient scaler go on.
    data : re-iterable of (inputs, targets), optional
        E.g. the prepared training loader.
    **options
        More arguments of :class:`fxgrow.Grower`.

    Returns
    -------
    Grower
    """

    def unwrap(prepared: torch.nn.Module) -> torch.nn.Module:
        module: torch.nn.Module = accelerator.unwrap_model(prepared, keep_fp32_wrapper=True)
        if "_original_forward" not in module.__dict__:
            return module
        # Mixed precision has put another forward into the module itself: leave that one
        # as it is, and look at one with the same parameters but without it.
        twin = copy.copy(module)
        for name in ("forward", "_original_forward"):
            twin.__dict__.pop(name, None)
        return twin

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        prepared: torch.nn.Module = accelerator.prepare_model(module)
        # prepare_model appends; the one that has been outgrown must not be saved or clipped
        accelerator._models[:] = [each for each in accelerator._models if each is not grower.model]
        return prepared

    pairs = None if data is None else Pairs(data, as_pair)
    bare = getattr(optimizer, "optimizer", optimizer)
    grower = Grower(model, bare, data=pairs, unwrap=unwrap, wrap=wrap, **options)
    return grower
