"""Two models side by side: the same inputs, outputs and shapes compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .errors import DataError, InputError, VerificationError
from .plain import plain
from .reduce import samples
from .report import count_params
from .trace import Inputs
from .verify import LOW, TOLERANCES, outputs, tensors_in, twin

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SCHEMA", "Comparison", "Difference", "Reshaped", "compare"]

SCHEMA = "fxgrow.verify/1"


@dataclass(frozen=True)
class Difference:
    """How far outputs are apart in one mode.

    Attributes
    ----------
    largest : float
        Largest absolute difference; infinite where shapes differ or a value is NaN.
    relative : float
        The same, relative to the largest absolute output of the first model (by batch).
    mean : float
        Mean absolute difference.
    same_class : float or None
        Share of positions at which both have their largest output in the same place along
        the last axis of the first output; None for outputs of one value.
    """

    largest: float
    relative: float
    mean: float
    same_class: float | None


@dataclass(frozen=True)
class Reshaped:
    """A tensor of another shape in the second model."""

    name: str
    first: tuple[int, ...]
    second: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """Outcome of :func:`compare`.

    Attributes
    ----------
    eval, train : Difference
        By mode; in train mode with the same random state and without dropout.
    samples : int
        Inputs compared.
    tolerance : float
        Relative difference that is allowed.
    dtype : str
        In which outputs were compared.
    params : tuple of int
        Parameter elements of both.
    tensors_alike : int
        Tensors of the state dicts with the same name and shape.
    changed : tuple of Reshaped
        Those of another shape.
    only_first, only_second : tuple of str
        Names of tensors that the other model lacks.
    """

    eval: Difference
    train: Difference
    samples: int
    tolerance: float
    dtype: str
    params: tuple[int, int]
    tensors_alike: int
    changed: tuple[Reshaped, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    @property
    def same_function(self) -> bool:
        """Whether outputs agree in both modes, within the tolerance."""
        return max(self.eval.relative, self.train.relative) <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON types (schema ``fxgrow.verify/1``)."""
        first, second = self.params
        return {
            "schema": SCHEMA,
            "same_function": self.same_function,
            **asdict(self),
            "params": {"first": first, "second": second},
        }


def compare(
    first: nn.Module,
    second: nn.Module,
    inputs: Iterable[Any],
    *,
    tolerance: float | None = None,
) -> Comparison:
    """Compare the outputs and tensors of two models.

    Parameters
    ----------
    first, second : torch.nn.Module
        Never changed: copies run, which share their parameters.
    inputs : iterable of tensor, tuple or dict
        One for each batch.
    tolerance : float, optional
        Largest relative difference of the same function; by default as for
        :func:`fxgrow.widen`: 1e-10 in float64, 1e-3 in float32.

    Returns
    -------
    Comparison

    Raises
    ------
    DataError
        When there are no inputs, or the first model does not take them.
    InputError
        When the second model does not take what the first one takes.

    Examples
    --------
    >>> import torch, fxgrow
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> wider = fxgrow.widen(net, torch.zeros(1, 4), {"0": 3}).module
    >>> result = compare(net, wider, [torch.randn(5, 4)])
    >>> result.same_function, [row.name for row in result.changed]
    (True, ['0.weight', '0.bias', '2.weight'])
    """
    first, second = plain(first), plain(second)
    floats = (p.dtype for p in first.parameters() if p.is_floating_point())
    dtype = next(floats, torch.float32)
    wide = dtype in LOW
    twins = twin(first, wide=wide), twin(second, wide=wide)
    tallies = {"eval": _Tally(), "train": _Tally()}
    count = 0
    for example in inputs:
        count += samples(example)
        for mode, tally in tallies.items():
            tally.add(*_both(twins, Inputs.of(example), mode == "train", wide))
    if not count:
        raise DataError("there are no inputs to compare the models on; give one batch at least")
    dtype = torch.float32 if wide else dtype
    return Comparison(
        tallies["eval"].difference(),
        tallies["train"].difference(),
        count,
        TOLERANCES.get(dtype, 1e-3) if tolerance is None else tolerance,
        str(dtype).removeprefix("torch."),
        (count_params(first), count_params(second)),
        *_tensors(first, second),
    )


def _both(
    twins: tuple[nn.Module, nn.Module], example: Inputs, training: bool, wide: bool
) -> tuple[Any, Any]:
    try:
        return outputs(*twins, example, training=training, wide=wide)
    except VerificationError as error:
        why = (str(error.__cause__).strip().splitlines() or [""])[0]
        raise InputError(
            f"the second model does not run on inputs that the first one takes: {why}; "
            "compare models of the same interface"
        ) from error
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        why = (str(error).strip().splitlines() or [""])[0]
        raise DataError(f"the first model does not run on these inputs: {why}") from error


class _Tally:
    """Adds up differences over batches."""

    def __init__(self) -> None:
        self.largest = self.relative = self.total = 0.0
        self.count = self.places = self.agreeing = 0

    def add(self, before: Any, after: Any) -> None:
        """Compare one batch."""
        old, new = list(tensors_in(before)), list(tensors_in(after))
        if [a.shape for a in old] != [b.shape for b in new]:
            self.largest = self.relative = self.total = float("inf")
            self.count += 1
            return
        for position, (a, b) in enumerate(zip(old, new, strict=True)):
            if a.numel():
                self._pair(a, b)
                if position == 0:
                    self._classes(a, b)

    def _pair(self, a: torch.Tensor, b: torch.Tensor) -> None:
        wide = torch.complex128 if a.is_complex() else torch.float64
        gaps = (a.to(wide) - b.to(wide)).abs()
        worst = gaps.max().item()
        scale = a.to(wide).abs().max().item()
        worst = worst if worst == worst else float("inf")  # NaN counts as wrong
        self.largest = max(self.largest, worst)
        self.relative = max(self.relative, worst / (scale or 1.0))
        self.total += gaps.sum().item()
        self.count += gaps.numel()

    def _classes(self, a: torch.Tensor, b: torch.Tensor) -> None:
        if a.ndim < 2 or a.shape[-1] < 2 or a.is_complex():
            return
        same = a.argmax(-1) == b.argmax(-1)
        self.agreeing += int(same.sum().item())
        self.places += same.numel()

    def difference(self) -> Difference:
        """Return the sum of it all."""
        mean = self.total / max(self.count, 1)
        share = self.agreeing / self.places if self.places else None
        return Difference(
            self.largest, self.relative, mean if mean == mean else float("inf"), share
        )


def _tensors(
    first: nn.Module, second: nn.Module
) -> tuple[int, tuple[Reshaped, ...], tuple[str, ...], tuple[str, ...]]:
    old, new = _shapes(first), _shapes(second)
    both = [name for name in old if name in new]
    changed = [Reshaped(name, old[name], new[name]) for name in both if old[name] != new[name]]
    return (
        len(both) - len(changed),
        tuple(changed),
        _without(old, new),
        _without(new, old),
    )


def _without(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    there = set(known)
    return tuple(name for name in names if name not in there)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    state: Sequence[tuple[str, Any]] = list(module.state_dict().items())
    return {name: tuple(value.shape) for name, value in state if isinstance(value, torch.Tensor)}
