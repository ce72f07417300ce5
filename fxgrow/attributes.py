"""Attributes of modules: sizes that layers keep beside their tensors, corrected.

A table says what each attribute is, from the (new) tensors of its module; layers of
``torch.nn`` that keep other sizes are unknown, not guessed.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.nn.utils.rnn import PackedSequence

from .errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def _groups_of(module: Any, x: torch.Tensor) -> int:
    if module.groups == 1:
        return 1
    if module.transposed:
        return int(module.groups * module.weight.shape[0] // module.in_channels)
    return int(x.shape[1] // module.weight.shape[1])


def _first_size(module: Any) -> int:
    for name in ("weight", "running_mean", "bias"):
        tensor = getattr(module, name, None)
        if tensor is not None:
            return int(tensor.shape[0])
    return int(module.num_features)


def _hidden_size(module: Any, x: Any) -> int:
    names = ("weight_hr_l0", "weight_hh_l0", "weight_hh")  # the first reads the hidden state
    return int(next(p for n in names if (p := module._parameters.get(n)) is not None).shape[1])


def _proj_size(module: Any, x: Any) -> int:
    rows, columns = module.weight_hr_l0.shape if module.proj_size else (0, 1)
    if rows >= columns:
        raise UnsupportedError(
            f"proj_size would become {rows}, but must stay below hidden_size ({columns}); "
            "grow the hidden width as well"
        )
    return int(rows)


# Attribute → its value after growth, from the module's (new) tensors and its input, a
# tensor or, for recurrent layers, a packed sequence.
# ``groups`` comes before the channel counts that it is computed from.
ATTRIBUTES: dict[str, Callable[[Any, Any], Any]] = {
    "groups": _groups_of,
    "num_groups": lambda m, x: (
        1 if m.num_groups == 1 else x.shape[1] // (m.num_channels // m.num_groups)
    ),
    "out_channels": lambda m, x: (
        m.weight.shape[1] * m.groups if m.transposed else m.weight.shape[0]
    ),
    "in_channels": lambda m, x: m.weight.shape[0] if m.transposed else m.weight.shape[1] * m.groups,
    "out_features": lambda m, x: m.weight.shape[0],
    "in_features": lambda m, x: m.weight.shape[1],
    "num_features": lambda m, x: _first_size(m),
    "num_channels": lambda m, x: x.shape[1],
    "num_parameters": lambda m, x: m.weight.shape[0],
    "embedding_dim": lambda m, x: m.weight.shape[1],
    "normalized_shape": lambda m, x: tuple(
        (x if m.weight is None else m.weight).shape[-len(m.normalized_shape) :]
    ),
    "input_size": lambda m, x: next(m.parameters()).shape[1],
    "hidden_size": _hidden_size,
    "proj_size": _proj_size,
    "in1_features": lambda m, x: m.weight.shape[1],
    "in2_features": lambda m, x: m.weight.shape[2],
}


_INPUTS = (torch.Tensor, PackedSequence)


_NO_LAYERS = frozenset({"torch.nn.modules.module", "torch.nn.modules.container"})


@cache
def is_layer(kind: type) -> bool:
    """Whether modules of this type are layers of ``torch.nn``, or of a class derived from one."""
    names = [base.__module__ for base in kind.__mro__]
    return any(n.startswith("torch.nn.") and n not in _NO_LAYERS for n in names)


def patch_owner(root: nn.Module, node: fx.Node, x: Any) -> list[str]:
    """Bring a layer in line whose forward was opened: its tensors are arguments of ``node``."""
    edits = []
    weights = [n for n in node.all_input_nodes if n.op == "get_attr" and "." in str(n.target)]
    for name in dict.fromkeys(str(n.target).rpartition(".")[0] for n in weights):
        edits += patch_module(root.get_submodule(name), name, x)
    return edits


def patch_module(module: nn.Module, name: str, x: Any) -> list[str]:
    """Bring a leaf module's attributes in line with its tensors; return the edits."""
    sized = [name for name in ATTRIBUTES if module.__dict__.get(name) is not None]
    kind: Any = type_before_parametrizations(module)
    if not (sized and is_layer(kind) and isinstance(x, _INPUTS)):
        return []
    edits = []
    for attribute in sized:
        old = module.__dict__[attribute]
        new = ATTRIBUTES[attribute](module, x)
        if new != old:
            setattr(module, attribute, new)
            edits.append(f"{name}.{attribute}: {old} → {new}")
    return edits


def patch_opened(module: Any, name: str) -> list[str]:
    """Bring the attributes of a module that was not called itself in line with its weight.

    Its forward was opened, or another module reads its weight (attention, of its projection).
    """
    if isinstance(module, nn.Linear) and isinstance(module._parameters.get("weight"), nn.Parameter):
        return patch_module(module, name, module.weight)
    if "parametrizations" not in module._modules or not is_parametrized(module, "weight"):
        return []
    with torch.no_grad():
        weight = module.weight
    channels, own = weight.shape[0], module.__dict__
    if "in_channels" in own and not own["transposed"]:
        # Whole groups were added, each with as many outputs as before.
        channels = weight.shape[1] * (own["groups"] * channels // own["out_channels"])
        channels = weight.shape[1] if own["groups"] == 1 else channels
    return patch_module(module, name, weight.new_empty((0, channels)))


def patch_declared(
    module: nn.Module, name: str, sizes: Mapping[str, Callable[[Any], Any]]
) -> list[str]:
    """Set the attributes that the caller declared as sizes; return the edits.

    Raises
    ------
    InputError
        When the module has no such attribute, or a size can't be computed.
    """
    edits = []
    for attribute, size in sizes.items():
        try:
            old, new = getattr(module, attribute), size(module)
        except (AttributeError, TypeError, IndexError, KeyError, ValueError) as error:
            raise InputError(
                f"the size {attribute!r} declared for {type(module).__name__} ({name}) can't be "
                f"computed: {error}; it is a function of the widened module"
            ) from error
        if new != old:
            setattr(module, attribute, new)
            edits.append(f"{name}.{attribute}: {old} → {new}")
    return edits


@contextmanager
def patching_inside(
    module: nn.Module,
    name: str,
    edits: list[str],
    declared: Callable[[nn.Module], Any] = lambda module: None,
) -> Iterator[None]:
    """Patch the layers inside ``module`` as they are called, in a run at the new width.

    ``declared`` returns the :class:`~fxgrow.rules.own.Declaration` of a layer, if there is one.
    """

    def patch(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, args: Any, kwargs: Any) -> None:
            x = next(iter((*args, *kwargs.values())), 0)
            known = declared(layer)
            sizes = {} if known is None else known.sizes
            edits.extend(patch_declared(layer, path, sizes) or patch_module(layer, path, x))

        return hook

    prefix = f"{name}." if name else ""
    handles = [
        layer.register_forward_pre_hook(patch(prefix + path), with_kwargs=True)
        for path, layer in module.named_modules()
        if path
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
