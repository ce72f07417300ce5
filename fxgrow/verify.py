"""The numeric check: old and new model, same inputs, same outputs.

Shares no code with the rewriter.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from .casts import Exact
from .errors import VerificationError
from .ir import Verification
from .kept import Keeping, kept
from .plain import duplicate, eagerly, plain
from .walks import parameters

if TYPE_CHECKING:
    from collections.abc import Iterator

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
LOW = {torch.float16, torch.bfloat16}


def verify(old: nn.Module, new: nn.Module, example: Any) -> Verification:
    """Compare outputs in eval and in train mode (same random state, dropout off).

    Parameters and inputs of half precision are compared in float32 where the model allows
    (a model that casts by hand does not), since a wrong model hides in their rounding.
    Errors are relative to the largest absolute output of the original. Neither model
    is changed: both run as copies that share their parameters.

    Parameters
    ----------
    old, new : torch.nn.Module
    example : tensor, tuple, dict or Inputs
        Example inputs.

    Returns
    -------
    Verification
        ``partition`` is true: the rewriter has checked it before.

    Raises
    ------
    VerificationError
        When ``new`` does not run.
    """
    old = plain(old)
    dtype = next((p.dtype for p in old.parameters() if p.is_floating_point()), torch.float32)
    wide = any(t.dtype in LOW for t in [*old.parameters(), *old.buffers()])
    try:
        errors = _errors(old, new, example, wide=wide)
        dtype = torch.float32 if wide else dtype
    except _CastsByHand:
        errors = _errors(old, new, example, wide=False)
    return Verification(
        errors[False],
        errors[True],
        True,
        TOLERANCES.get(dtype, 1e-3),
        str(dtype).removeprefix("torch."),
    )


class _CastsByHand(Exception):
    """The original does not run in float32."""


def _errors(old: nn.Module, new: nn.Module, example: Any, *, wide: bool) -> dict[bool, float]:
    """Largest relative difference by mode."""
    twins = twin(old, wide=wide), twin(new, wide=wide)
    return {
        training: _error(*twins, example, training=training, wide=wide)
        for training in (False, True)
    }


def _error(old: nn.Module, new: nn.Module, example: Any, *, training: bool, wide: bool) -> float:
    """Largest relative difference, without the rounding of casts in the models' own code.

    Where there are such casts, the models must also agree as they are, as far as these round.
    """
    exact = Exact()
    try:
        with exact:
            error = _difference(*outputs(old, new, example, training=training, wide=wide))
    except (RuntimeError, _CastsByHand, VerificationError):
        return _difference(*outputs(old, new, example, training=training, wide=wide))
    if exact.ignored:
        rounded = _difference(*outputs(old, new, example, training=training, wide=wide))
        allowed = max(TOLERANCES[dtype] for dtype in exact.ignored)
        return error if rounded <= allowed else max(error, rounded)
    return error


def outputs(
    old: nn.Module, new: nn.Module, example: Any, *, training: bool, wide: bool
) -> tuple[Any, Any]:
    """Run both on the same inputs, in one mode, from the same random state.

    Raises
    ------
    VerificationError
        When ``new`` does not run.
    """
    with torch.no_grad(), _repeatable(), eagerly():
        torch.manual_seed(0)
        try:
            before = _run(old, example, training=training, wide=wide)
        except RuntimeError as error:
            if not wide:
                raise
            raise _CastsByHand from error
        except ValueError:  # a norm can't train on one value per channel: give it two
            if not hasattr(example, "doubled") or not training:
                raise
            example = example.doubled()
            torch.manual_seed(0)
            before = _run(old, example, training=training, wide=wide)
        torch.manual_seed(0)
        try:
            return before, _run(new, example, training=training, wide=wide)
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            raise VerificationError(
                f"the widened model does not run: {error}. Sizes in the model's own Python code "
                "can't be changed: use emit='graph', or exclude the group"
            ) from error


@contextmanager
def _repeatable() -> Iterator[None]:
    """Leave the caller's random state untouched."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


class _NoDropout(TorchFunctionMode):
    """Makes dropout the identity: its mask's shape changes with the width."""

    _MASKING = frozenset(
        {"dropout", "dropout_", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"}
    )
    _RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
    _POSITION: ClassVar[dict[str, int]] = {
        "scaled_dot_product_attention": 4,
        "multi_head_attention_forward": 10,
    }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in self._MASKING:
            return args[0] if args else kwargs["input"]
        if name in self._RECURRENT:  # (input, [batch sizes,] state, weights, bias, layers, dropout)
            weights = next(i for i, value in enumerate(args) if isinstance(value, list))
            return func(*args[: weights + 3], 0.0, *args[weights + 4 :], **kwargs)
        position = self._POSITION.get(name)
        if position is not None:
            if len(args) > position:
                args = (*args[:position], 0.0, *args[position + 1 :])
            else:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


def twin(model: nn.Module, *, wide: bool) -> nn.Module:
    """Copy of a model with buffers and modes of its own; ``wide``: half precision as float32."""
    shared: dict[int, Any] = {id(p): p for p in model.parameters()}
    if wide:
        tensors = [*model.parameters(), *model.buffers()]
        shared.update({id(t): _wider(t) for t in tensors if t.dtype in LOW})
    return duplicate(model, shared)


def _run(twin: nn.Module, example: Any, *, training: bool, wide: bool) -> Any:
    twin.train(training)
    args, kwargs = _arguments(example)
    if wide:
        args, kwargs = map_aggregate((args, kwargs), _wider)
    with kept(parameters(twin)) as keeper, Keeping(keeper), _NoDropout():
        return twin(*args, **kwargs)


def _wider(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.dtype not in LOW:
        return value
    single = value.detach().float()
    return nn.Parameter(single) if isinstance(value, nn.Parameter) else single


def _arguments(example: Any) -> tuple[Any, Any]:
    if isinstance(example, torch.Tensor):
        return (example,), {}
    if isinstance(example, dict):
        return (), example
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    return example.args, dict(example.kwargs)


def _difference(before: Any, after: Any) -> float:
    old, new = list(tensors_in(before)), list(tensors_in(after))
    if len(old) != len(new) or any(a.shape != b.shape for a, b in zip(old, new, strict=False)):
        return float("inf")
    worst = 0.0
    for a, b in zip(old, new, strict=True):
        if not a.numel():
            continue
        if not a.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(a, b) else float("inf"))
            continue
        scale = a.abs().max().double().item() or 1.0
        gap = (a.double() - b.double()).abs().max().item() / scale
        worst = max(worst, gap if gap == gap else float("inf"))  # NaN counts as wrong
    return worst


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of nested outputs, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
