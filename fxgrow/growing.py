"""One growth in the middle of a training, and the settings that all growths share."""

from __future__ import annotations

import copy
import inspect as signatures
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch

from .api import expand, inspect
from .budgets import Size
from .checkpoint import undisturbed
from .data import batch_loss, batches, check_data
from .distributors import NEEDS_VOTE
from .errors import InputError
from .ir import Fill
from .reduce import samples
from .stages import check_growable, shared_example

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .data import LossFn
    from .distributed import Team
    from .ir import Growth, Unit

__all__ = ["GrowthSettings", "with_own_iterator"]

_OURS = {"model", "data", "budget", "unit", "loss", "seed", "emit", "example_inputs", "device"}
OPTIONS = frozenset(signatures.signature(expand).parameters) - _OURS
"""Arguments of :func:`fxgrow.expand` that are passed on as they are."""


@dataclass(frozen=True)
class GrowthSettings:
    """What all growths of a run have in common; see :class:`fxgrow.Grower`."""

    data: Iterable[Any] | None
    generators: Mapping[str, torch.Generator]
    unit: Unit
    loss: LossFn | str | None
    seed: int
    emit: str
    fill: Fill
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.options) - OPTIONS)
        if unknown:
            raise InputError(
                f"unknown argument {unknown[0]!r}; besides its own, Grower takes those of "
                f"expand(): {', '.join(sorted(OPTIONS))}"
            )
        for name, allowed in (("emit", ("graph", "module")), ("fill", get_args(Fill))):
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                raise InputError(f"{name} is {value!r}; take one of {', '.join(allowed)}")
        if self.data is not None:
            check_data(self.data)
        elif self.options.get("distributor", "svod") in NEEDS_VOTE:
            name = self.options.get("distributor", "svod")
            raise InputError(
                f"the votes of distributor {name!r} need data; pass data=, or distributor='uniform'"
            )

    @property
    def again(self) -> dict[str, Any]:
        """What :func:`fxgrow.widen` needs to repeat a growth."""
        return {"emit": self.emit, "rules": self.options.get("rules", ())}

    def example(self, module: torch.nn.Module, given: Any, team: Team) -> Any:
        """Return example inputs, the same on all ranks; the random states are left alone."""
        with undisturbed(self.generators, self.seed):
            return shared_example(team, module, with_own_iterator(self.data), given)

    def size(self, module: torch.nn.Module, example: Any) -> Size:
        """Measure a model.

        Raises
        ------
        NothingToGrow
            When every group is frozen.
        """
        names = ("include", "exclude", "inner", "rules")
        chosen = {name: self.options.get(name, ()) for name in names}
        inspection = inspect(module, example, **chosen)
        check_growable(inspection)
        return Size.measured(inspection.groups, inspection.params, inspection.flops)

    def grow(
        self, module: torch.nn.Module, example: Any, budget: float, round_: int, team: Team
    ) -> tuple[Growth, tuple[float | None, float | None]]:
        """Grow a module once; the random states are left alone.

        Parameters
        ----------
        module : torch.nn.Module
            Never changed.
        example : tensor, tuple or dict
            Example inputs.
        budget : float
            In ``unit``.
        round_ : int
            Growths made so far; each has its own seed.
        team : Team
            Ranks that grow the module together.

        Returns
        -------
        growth : Growth
        losses : tuple of (float or None)
            Before and after, on the first batch of all ranks, in eval mode.
        """
        seed = self.seed + round_
        data = with_own_iterator(self.data)
        with undisturbed(self.generators, seed):
            first = None if data is None else next(iter(batches(data, module)))
            growth = expand(
                module,
                data,
                budget=budget,
                unit=self.unit,
                loss=self.loss,
                seed=seed,
                emit=self.emit,
                example_inputs=example,
                **{**self.options, "process_group": team},
            )
            if first is None:
                return growth, (None, None)
            losses = [_eval_loss(each, first, self.loss) for each in (module, growth.module)]
            (both,) = team.mean(
                [torch.tensor(losses).double()], samples(first[0]), "the first batch"
            )
            before, after = losses if both is None else both.tolist()
            return growth, (before, after)


def _eval_loss(module: torch.nn.Module, batch: Any, loss: LossFn | str | None) -> float:
    twin = copy.deepcopy(module, {id(p): p for p in module.parameters()}).eval()
    inputs, targets = batch
    with torch.no_grad():
        return float(batch_loss(twin, inputs, targets, loss, 0))


def with_own_iterator(data: Iterable[Any] | None) -> Any:
    """Return the data; a loader whose workers live on is copied.

    Such a loader has one iterator, and starting it again would cut off the epoch that
    the training loop is in.
    """
    if getattr(data, "_iterator", None) is None:
        return data
    twin = copy.copy(data)
    twin._iterator = None  # type: ignore[union-attr]  # it has one, see above
    return twin
