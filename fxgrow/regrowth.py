"""The shape of a grown module from a record, before its weights are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .checkpoint import regrow
from .io import example_inputs
from .ledger import Ledger
from .stages import to_device
from .wrapping import rewrap, unwrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from .rules.own import Declaration

__all__ = ["regrown"]


def regrown(
    module: torch.nn.Module, record: Mapping[str, Any], rules: Iterable[Declaration] = ()
) -> torch.nn.Module:
    """Repeat the growths of a record on the module that they started from.

    Parameters
    ----------
    module : torch.nn.Module
        As it was before any growth. Never changed.
    record : dict
        What :meth:`fxgrow.run.Run.record` returned.
    rules : sequence of Declaration
        Those that the growths were made with.

    Returns
    -------
    torch.nn.Module
        Of the grown shape, wrapped as ``module``; its weights are still to be loaded.

    Raises
    ------
    InputError
        When the record is damaged, or does not fit the module.
    """
    steps = Ledger.from_dict(record, "min").steps
    if not steps:
        return module
    inner = unwrap(module)
    anchor = next(inner.parameters())
    inputs = to_device(example_inputs(steps[0]["inputs"]), anchor.device)
    options = {"emit": record["emit"], "rules": rules}
    return rewrap(regrow(inner, steps, inputs, options)[-1].module, like=module)
