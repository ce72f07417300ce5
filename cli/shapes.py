"""Example inputs for a model: given, stored, known, or found by trying."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxgrow.errors import InputError
from fxgrow.plain import eagerly
from fxgrow.stages import to_device

from .references import first_line

if TYPE_CHECKING:
    from .zoos import Found

Inputs = torch.Tensor | tuple[Any, ...] | dict[str, Any]

BATCH = 2  # the least that batch normalisation can train on
# a flatten → Linear model takes one size only; others take most: 32 is cheap and common
SIDES = (32, 28, 64, 224, 8, 16, 48, 96, 128, 256, 299, 384, 512)
LENGTHS = (128, 64, 256, 512, 1024, 4096, 16000)
VOLUMES = ((16, 112, 112), (16, 32, 32), (32, 32, 32), (8, 16, 16), (16, 224, 224), (64, 64, 64))
ASK = "name it, e.g. --input 1x3x224x224 or --input 1x128:int64"
CALL_ERRORS = (
    RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError, KeyError,
    NotImplementedError,
)  # fmt: skip  # what a forward pass raises on inputs that it was not made for


def find_inputs(found: Found, given: Sequence[str] = (), seed: int = 0) -> Inputs:
    """Return inputs that the model's forward pass has been seen to take.

    In this order: ``--input``, inputs stored with the model, what its zoo documents,
    sizes that fit its first layer.

    Raises
    ------
    InputError
        If the given inputs don't fit, or none were found; names the flag.
    """
    generator = torch.Generator().manual_seed(seed)
    if given:
        inputs = parse_inputs(given, found.model, generator)
        return _tried(found.model, inputs, f"--input {' --input '.join(given)}")
    if found.inputs is not None:
        return _tried(found.model, found.inputs, "the example inputs stored with the model")
    for candidate in _candidates(found, generator):
        if _failure(found.model, candidate) is None:
            return candidate
    msg = f"the input shape of {found.stem} could not be found; {ASK}"
    raise InputError(msg)


def parse_inputs(
    given: Sequence[str], model: nn.Module, generator: torch.Generator
) -> tuple[Any, ...] | dict[str, Any]:
    """Turn ``1x3x32x32``, ``1x16:int64`` or ``name=1x16:int64`` into random tensors.

    Raises
    ------
    InputError
        If one is malformed, or named and positional ones are mixed.
    """
    parsed = [_parse_one(text, model, generator) for text in given]
    names = [name for name, _ in parsed if name]
    if not names:
        return tuple(tensor for _, tensor in parsed)
    if len(names) < len(parsed):
        msg = f"--input: name all inputs or none; these have names: {', '.join(names)}"
        raise InputError(msg)
    return dict(parsed)


def describe(inputs: Any) -> str:
    """Write the shapes of inputs as ``--input`` takes them."""
    if isinstance(inputs, dict):
        return ", ".join(f"{name}={describe(value)}" for name, value in inputs.items())
    if isinstance(inputs, tuple):
        return ", ".join(describe(value) for value in inputs)
    if not isinstance(inputs, torch.Tensor):
        return repr(inputs)
    shape = "x".join(map(str, inputs.shape))
    return shape if inputs.is_floating_point() else f"{shape}:{str(inputs.dtype)[6:]}"


def first_tensor(inputs: Any) -> torch.Tensor | None:
    """Return the first tensor of inputs."""
    if isinstance(inputs, dict):
        inputs = tuple(inputs.values())
    if isinstance(inputs, tuple):
        return next((value for value in inputs if isinstance(value, torch.Tensor)), None)
    return inputs if isinstance(inputs, torch.Tensor) else None


def random_like(inputs: Inputs, model: nn.Module, batch: int, generator: torch.Generator) -> Inputs:
    """Return fresh random inputs of the same shapes with another batch size."""
    if isinstance(inputs, dict):
        pairs = inputs.items()
        return {name: _redrawn(value, model, batch, generator) for name, value in pairs}
    if isinstance(inputs, tuple):
        return tuple(_redrawn(value, model, batch, generator) for value in inputs)
    redrawn: torch.Tensor = _redrawn(inputs, model, batch, generator)
    return redrawn


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Call a copy of the model in eval mode, without gradients."""
    scratch = copy.deepcopy(model).eval()  # a forward pass may fill caches
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if on_meta:
        inputs = to_device(inputs, "meta")
    with torch.no_grad(), eagerly(scratch) if on_meta else nullcontext():
        if isinstance(inputs, dict):
            return scratch(**inputs)
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        return scratch(*arguments)


# -------------------------------------------------------------------- trying


def _tried(model: nn.Module, inputs: Inputs, where: str) -> Inputs:
    failure = _failure(model, inputs)
    if failure is None:
        return inputs
    msg = f"the model does not take {where} ({describe(inputs)}): {failure}; {ASK}"
    raise InputError(msg)


def _failure(model: nn.Module, inputs: Inputs) -> str | None:
    try:
        run(model, inputs)
    except CALL_ERRORS as error:
        return first_line(error)
    return None


def _candidates(found: Found, generator: torch.Generator) -> Iterator[torch.Tensor]:
    if found.zoo_size is not None:
        yield _normal((BATCH, *found.zoo_size), found.model, generator)
    layer = next((m for m in found.model.modules() if _kind(m)), None)
    if layer is None:
        return
    if isinstance(layer, nn.Embedding):
        for length in (16, 8, 32, 128):
            yield torch.randint(layer.num_embeddings, (BATCH, length), generator=generator)
        return
    for shape in _shapes(layer):
        yield _normal((BATCH, *shape), found.model, generator)


def _kind(module: nn.Module) -> bool:
    kinds = (nn.Embedding, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)
    return isinstance(module, kinds)


def _shapes(layer: nn.Module) -> Iterator[tuple[int, ...]]:
    """Sizes of one sample that the first layer could take, likeliest first."""
    channels = getattr(layer, "in_channels", 0)
    if isinstance(layer, nn.Conv1d):
        yield from ((channels, length) for length in LENGTHS)
    elif isinstance(layer, nn.Conv2d):
        yield from ((channels, side, side) for side in SIDES)
    elif isinstance(layer, nn.Conv3d):
        yield from ((channels, *volume) for volume in VOLUMES)
    elif isinstance(layer, nn.RNNBase):
        yield (16, layer.input_size)
    elif isinstance(layer, nn.Linear):
        yield (layer.in_features,)
        yield (16, layer.in_features)
        yield from _flattened(layer.in_features)


def _flattened(features: int) -> Iterator[tuple[int, ...]]:
    """Images that flatten to ``features`` numbers: grey, then colour."""
    for channels in (1, 3):
        side = round((features / channels) ** 0.5)
        if channels * side * side == features:
            yield (channels, side, side)


# ------------------------------------------------------------------- drawing


def _parse_one(text: str, model: nn.Module, generator: torch.Generator) -> tuple[str, torch.Tensor]:
    match = re.fullmatch(r"(?:(\w+)=)?(\d+(?:x\d+)*)(?::(\w+))?", text.strip())
    dtype = getattr(torch, match[3], None) if match and match[3] else None
    if match is None or (match[3] and not isinstance(dtype, torch.dtype)):
        msg = f"--input {text}: not understood; write 1x3x224x224, 1x128:int64 or name=1x128:int64"
        raise InputError(msg)
    shape = tuple(map(int, match[2].split("x")))
    if 0 in shape:
        msg = f"--input {text}: a size of 0 leaves nothing to compute"
        raise InputError(msg)
    return match[1] or "", _draw(shape, dtype, model, generator)


def _draw(
    shape: tuple[int, ...], dtype: torch.dtype | None, model: nn.Module, generator: torch.Generator
) -> torch.Tensor:
    if dtype is None or dtype.is_floating_point:
        return _normal(shape, model, generator, dtype)
    if dtype.is_complex:
        return torch.randn(shape, dtype=dtype, generator=generator)
    return torch.randint(_vocabulary(model), shape, generator=generator).to(dtype)


def _vocabulary(model: nn.Module) -> int:
    """Integers below this are safe for every embedding of the model."""
    sizes = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    return min(sizes, default=2)


def _normal(
    shape: tuple[int, ...],
    model: nn.Module,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    if dtype is None:
        floats = (p.dtype for p in model.parameters() if p.is_floating_point())
        dtype = next(floats, torch.float32)
    return torch.randn(shape, generator=generator).to(dtype)


def _redrawn(value: Any, model: nn.Module, batch: int, generator: torch.Generator) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    shape = (batch, *value.shape[1:])
    return _draw(shape, value.dtype, model, generator)
