"""Batches, model calls and losses: everything that touches the caller's data.

Data are a re-iterable of ``(inputs, targets)`` batches, e.g. a ``DataLoader`` or a list.
``inputs`` is a tensor, a tuple (or list) of positional arguments, or a dict of keyword
arguments of the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .errors import DataError, InputError

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; ``total`` is 0 when it is not known."""

LossFn = Callable[[Any, Any], torch.Tensor]


def batches(data: Iterable[Any], module: torch.nn.Module) -> Iterator[tuple[Any, Any]]:
    """Iterate once over ``data``, moved to where ``module`` lives.

    Floating point inputs and targets are cast to the dtype of the module's first
    floating point parameter; integers keep theirs.

    Parameters
    ----------
    data : iterable of (inputs, targets)
        Must be re-iterable; it is left as it is.
    module : torch.nn.Module
        Gives device and dtype.

    Yields
    ------
    tuple
        ``(inputs, targets)`` of one batch.

    Raises
    ------
    DataError
        No batches, a one-shot iterator, or a batch that is not a pair.
    """
    check_data(data)
    like = _anchor(module)
    empty = True
    for number, batch in enumerate(data):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise DataError(
                f"batch {number} of the data is {_describe(batch)}, not a pair "
                "(inputs, targets); let the data yield such pairs"
            )
        empty = False
        yield _move(batch[0], like), _move(batch[1], like)
    if empty:
        raise DataError("the data hold no batch; pass a DataLoader or a list with at least one")


def check_data(data: Iterable[Any]) -> None:
    """Raise :class:`~fxgrow.errors.DataError` unless ``data`` can be iterated repeatedly."""
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise DataError(
            f"data is {_describe(data)}, which can't be iterated; "
            "pass a DataLoader or a list of (inputs, targets) batches"
        )
    if isinstance(data, Iterator):
        raise DataError(
            "data is a one-shot iterator (a generator?), but it is read several times; "
            "pass a DataLoader or a list of (inputs, targets) batches"
        )


def count_batches(data: Iterable[Any]) -> int:
    """Return the number of batches, 0 when ``data`` does not tell."""
    try:
        return len(data)  # type: ignore[arg-type]  # asking is the only way to know
    except TypeError:
        return 0


def call_model(module: torch.nn.Module, inputs: Any) -> Any:
    """Call ``module`` on the inputs of one batch.

    Parameters
    ----------
    module : torch.nn.Module
        The model, used in its present mode.
    inputs : tensor, tuple, list or mapping
        One argument, positional arguments, or keyword arguments.

    Returns
    -------
    Any
        What the model returns.

    Raises
    ------
    DataError
        The model can't take these inputs; names their shapes.
    """
    try:
        if isinstance(inputs, Mapping):
            return module(**inputs)
        if isinstance(inputs, (tuple, list)):
            return module(*inputs)
        return module(inputs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = str(error).strip().splitlines()
        raise DataError(
            f"the model can't be called on inputs of {_describe(inputs)}: "
            f"{first[0] if first else type(error).__name__}; "
            "check the batches' shapes against what the model expects"
        ) from error


def resolve_loss(loss: LossFn | str | None, targets: Any = None) -> LossFn:
    """Turn the ``loss`` argument into a function of ``(outputs, targets)``.

    Parameters
    ----------
    loss : callable, str or None
        A callable gets the model's outputs as they are. A name out of
        :data:`LOSSES` and None work on the main tensor of the outputs
        (:func:`main_output`).
    targets : Any
        Targets of a batch; with ``loss=None`` integer targets mean cross entropy and
        floating point targets mean squared error.

    Returns
    -------
    callable
        ``(outputs, targets) -> scalar tensor``.

    Raises
    ------
    InputError
        An unknown name, or None with targets that are not a tensor.
    """
    if callable(loss):
        return loss
    if loss is None:
        if not isinstance(targets, torch.Tensor):
            raise InputError(
                f"targets are {_describe(targets)}, so the loss can't be guessed; "
                "pass loss=callable(outputs, targets)"
            )
        loss = "mse" if targets.is_floating_point() else "cross_entropy"
    if loss not in LOSSES:
        raise InputError(f"unknown loss {loss!r}; take one of {', '.join(sorted(LOSSES))}")
    function = LOSSES[loss]
    return lambda outputs, wanted: function(main_output(outputs), wanted)


def main_output(outputs: Any) -> torch.Tensor:
    """Return the tensor that a default loss judges.

    ``outputs`` itself, else its ``logits`` (attribute or key), else its first tensor.

    Raises
    ------
    DataError
        There is no tensor in the outputs.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    logits = getattr(outputs, "logits", logits)
    if isinstance(logits, torch.Tensor):
        return logits
    items: Iterable[Any] = ()
    if isinstance(outputs, Mapping):
        items = outputs.values()
    elif isinstance(outputs, Sequence) and not isinstance(outputs, str):
        items = outputs
    for item in items:
        if isinstance(item, torch.Tensor):
            return item
    raise DataError(
        f"the model returns {_describe(outputs)}, in which no output tensor was found; "
        "pass loss=callable(outputs, targets)"
    )


def batch_loss(
    module: torch.nn.Module, inputs: Any, targets: Any, loss: LossFn | str | None, number: int
) -> torch.Tensor:
    """Loss of one batch, checked.

    Parameters
    ----------
    module : torch.nn.Module
        The model.
    inputs, targets : Any
        One batch, already on the model's device.
    loss : callable, str or None
        See :func:`resolve_loss`.
    number : int
        Index of the batch, for messages.

    Returns
    -------
    torch.Tensor
        A finite scalar.

    Raises
    ------
    DataError
        The loss fails on these shapes, is not a scalar tensor, or is not finite.
    """
    outputs = call_model(module, inputs)
    function = resolve_loss(loss, targets)
    try:
        value = function(outputs, targets)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(
            f"the loss of batch {number} can't be computed from outputs of {_describe(outputs)} "
            f"and targets of {_describe(targets)}: {error}; check targets and loss"
        ) from error
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        raise DataError(f"the loss of batch {number} is {_describe(value)}, not one number")
    if not bool(torch.isfinite(value.detach())):
        raise DataError(
            f"the loss of batch {number} is {value.item()}; look for NaN or inf in that batch "
            "and in the model's weights, or lower the learning rate"
        )
    return value.reshape(())


@contextlib.contextmanager
def seeded(seed: int, module: torch.nn.Module) -> Iterator[None]:
    """Run a block under its own random state; the caller's is restored afterwards."""
    device = _anchor(module).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _anchor(module: torch.nn.Module) -> torch.Tensor:
    """First floating point parameter (else a CPU scalar): gives device and dtype."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter
    return torch.zeros(())


def _move(value: Any, like: torch.Tensor) -> Any:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        dtype = like.dtype if value.is_floating_point() else None
        return value.to(device=like.device, dtype=dtype, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _move(item, like) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_move(item, like) for item in value)
    return value


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)) and len(value) <= 8:
        return "(" + ", ".join(_describe(v) for v in value) + ")"
    return f"type {type(value).__name__}"


def _cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if targets.is_floating_point():  # class probabilities
        return F.cross_entropy(outputs, targets)
    by_position = outputs.shape[:-1] == targets.shape
    by_channel = outputs.shape[:1] + outputs.shape[2:] == targets.shape
    if outputs.ndim > 2 and by_position and not by_channel:  # token logits: classes last
        outputs = outputs.movedim(-1, 1)
    return F.cross_entropy(outputs, targets.long())


def _regression(function: LossFn) -> LossFn:
    def call(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if outputs.numel() == targets.numel():  # (N, 1) against (N,) would broadcast to (N, N)
            targets = targets.reshape(outputs.shape)
        return function(outputs, targets.to(outputs.dtype))

    return call


LOSSES: Mapping[str, LossFn] = {
    "bce_with_logits": _regression(F.binary_cross_entropy_with_logits),
    "cross_entropy": _cross_entropy,
    "huber": _regression(F.huber_loss),
    "l1": _regression(F.l1_loss),
    "mse": _regression(F.mse_loss),
    "nll": lambda outputs, targets: F.nll_loss(outputs, targets.long()),
    "smooth_l1": _regression(F.smooth_l1_loss),
}
"""Losses by name."""
