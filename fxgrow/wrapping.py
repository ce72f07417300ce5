"""DDP, FSDP2 and ``torch.compile``: off for growth, and on again afterwards."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .errors import InputError, UnsupportedError
from .sharding import (
    check_shards,
    fsdp_group,
    is_shard,
    is_sharded,
    plain_copy,
    shard_like,
    spread_like,
    whole,
)
from .walks import modules

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = [
    "check_wrapping",
    "group_of",
    "move_optimizer",
    "parameters_of",
    "rewrap",
    "unwrap",
]

_ASK = "pass wrap=callable, which gets the grown module and returns it wrapped"


def unwrap(model: nn.Module) -> nn.Module:
    """Return the plain module inside DDP, FSDP2 and ``torch.compile``, however nested.

    Parameters
    ----------
    model : torch.nn.Module
        A plain module is returned as it is. Never changed.

    Returns
    -------
    torch.nn.Module
        Of DDP and ``torch.compile`` the very module inside. Of FSDP2
        (``fully_shard``) a copy with whole parameters on every rank, so all ranks must
        call this, and each needs memory for the whole model, on the mesh's device.

    Raises
    ------
    UnsupportedError
        For FSDP1 and for modules compiled before they were sharded.
    """
    for layer, module in _layers(model):
        model = layer.inner(module)
    return model


def rewrap(
    module: nn.Module,
    like: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
) -> nn.Module:
    """Wrap a grown module as the old model was wrapped.

    Parameters
    ----------
    module : torch.nn.Module
        Plain, the same on every rank. FSDP2 shards it in place.
    like : torch.nn.Module
        The old model in its DDP, FSDP2 and ``torch.compile``.
    optimizer : torch.optim.Optimizer, optional
        Holds ``module``'s parameters (after ``Growth.migrate``). It holds those of the
        wrapped module afterwards, its state sharded alike.
    wrap : callable, optional
        Does the wrapping in place of all this, ``module -> wrapped module``.

    Returns
    -------
    torch.nn.Module
        DDP with the old arguments and stateless communication hooks; ``fully_shard`` on
        the same submodules with mesh, precision, offload and reshard policies (a graph
        that does not call a container shards the layers inside it together);
        ``torch.compile`` with the same backend and options.

    Raises
    ------
    UnsupportedError
        Where the old arguments can't be read; nothing is wrapped then.
    """
    if wrap is None:
        check_wrapping(like)
    before = dict(module.named_parameters())
    wrapped = module
    if wrap is not None:
        wrapped = wrap(module)
    else:
        for layer, old in reversed(list(_layers(like))):
            wrapped = layer.again(wrapped, old)
    if optimizer is not None:
        move_optimizer(optimizer, before, wrapped)
    return wrapped


def check_wrapping(model: nn.Module) -> None:
    """Refuse wrappings that :func:`rewrap` can't repeat.

    Parameters
    ----------
    model : torch.nn.Module
        Wrapped or plain.

    Raises
    ------
    UnsupportedError
        Names the argument that can't be read or carried over.
    """
    if any(getattr(part, "_compiled_call_impl", None) is not None for part in model.modules()):
        raise UnsupportedError(
            "a module was compiled in place by .compile(), and with which arguments can't be "
            f"read back; use model = torch.compile(model, ...), or {_ASK}"
        )
    for layer, module in _layers(model):
        layer.check(module)


def move_optimizer(
    optimizer: torch.optim.Optimizer,
    source: nn.Module | Mapping[str, torch.Tensor],
    target: nn.Module | Mapping[str, torch.Tensor],
) -> None:
    """Let an optimizer hold ``target``'s parameters in place of ``source``'s, by name.

    State of a parameter's shape is gathered where ``source`` is sharded, and sharded where
    ``target`` is: ``move_optimizer(optimizer, fsdp_model, fxgrow.unwrap(fsdp_model))``
    prepares ``Growth.migrate``. All ranks must call it. Each needs memory for the whole
    state, tensor by tensor.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Changed in place; options, groups and order are kept.
    source, target : torch.nn.Module or dict of str to torch.Tensor
        Wrapped or plain, with the same names.

    Raises
    ------
    InputError
        ``target`` lacks a parameter of ``source`` that the optimizer holds. Nothing is
        changed then. Parameters of other modules stay as they are.
    """
    new = parameters_of(target)
    twins: dict[int, torch.Tensor] = {}
    names = {id(param): name for name, param in parameters_of(source).items()}
    for param in new.values():
        names.pop(id(param), None)  # in both, so it stays
    for param in (param for group in optimizer.param_groups for param in group["params"]):
        name = names.get(id(param))
        if name is not None and name not in new:
            raise InputError(
                f"the optimizer holds {name!r}, which the other module lacks; "
                "pass modules with the same names"
            )
        twins[id(param)] = param if name is None else new[name]
    state: dict[Any, Any] = {}
    for param, own in optimizer.state.items():
        twin = twins.get(id(param), param)
        state[twin] = (
            {
                key: spread_like(whole(value), twin) if _has_shape(value, param) else value
                for key, value in own.items()
            }
            if twin is not param
            else own
        )
    for group in optimizer.param_groups:
        group["params"][:] = [twins[id(param)] for param in group["params"]]
    optimizer.state.clear()
    optimizer.state.update(state)


def group_of(model: nn.Module) -> dist.ProcessGroup | None:
    """Return the process group that a wrapped model trains on, else None."""
    found = None
    for layer, module in _layers(model):
        found = layer.group(module) or found
    return found


# ------------------------------------------------------------------ the table


@dataclass(frozen=True)
class _Layer:
    """One kind of wrapping."""

    fits: Callable[[nn.Module], bool]
    check: Callable[[nn.Module], None]
    inner: Callable[[nn.Module], nn.Module]
    again: Callable[[nn.Module, nn.Module], nn.Module]
    group: Callable[[nn.Module], dist.ProcessGroup | None]
    innermost: bool = False


def _compiled(model: nn.Module) -> bool:
    return isinstance(getattr(model, "_orig_mod", None), nn.Module) and not is_shard(model)


def _compile_again(module: nn.Module, like: Any) -> nn.Module:
    again: nn.Module = like.dynamo_ctx(module)  # holds backend and options
    return again


def _original(model: Any) -> nn.Module:
    inner: nn.Module = model._orig_mod
    return inner


def _ddp_inner(model: Any) -> nn.Module:
    inner: nn.Module = model.module
    return inner


def _check_ddp(like: Any) -> None:
    state = next((state for _, state in like._comm_hooks if _stateful(state)), None)
    for reason, found in (
        ("mixed precision", like.mixed_precision),
        ("delayed all-reduce", like._delay_all_reduce_params),
        (f"a communication hook with state ({type(state).__name__})", state),
    ):
        if found:
            raise UnsupportedError(
                f"DDP was made with {reason}, which can't be carried over; {_ASK}"
            )


def _ddp_again(module: nn.Module, like: Any) -> nn.Module:
    ignored = set(like.parameters_to_ignore)
    if ignored:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
    wrapped = DistributedDataParallel(module, **_ddp_arguments(like))
    for hook, state in like._comm_hooks:
        wrapped.register_comm_hook(state, hook)
    wrapped.train(like.training)
    return wrapped


def _ddp_arguments(like: Any) -> dict[str, Any]:
    """Arguments of DDP's constructor, as far as this version of torch has them."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    arguments = {
        name: getattr(like, name) for name in _DDP_KEPT if name in known and hasattr(like, name)
    }
    if "forward_sync_buffers" not in arguments:  # its older name
        arguments["broadcast_buffers"] = like.broadcast_buffers
    if not like.bucket_bytes_cap_default:
        arguments["bucket_cap_mb"] = like.bucket_bytes_cap / 2**20
    return arguments


_DDP_KEPT = (
    "batched_grad_copy",
    "device_ids",
    "dim",
    "find_unused_parameters",
    "forward_sync_buffers",
    "gradient_as_bucket_view",
    "output_device",
    "process_group",
    "skip_all_reduce_unused_params",
    "static_graph",
)


def _stateful(state: Any) -> bool:
    """Whether a hook's state is more than the process group that it works on."""
    return state is not None and not hasattr(state, "rank")


def _ddp_group(model: Any) -> dist.ProcessGroup | None:
    group: dist.ProcessGroup = model.process_group
    return group


_LAYERS = (
    _Layer(_compiled, lambda _: None, _original, _compile_again, lambda _: None),
    _Layer(
        lambda model: isinstance(model, DistributedDataParallel),
        _check_ddp,
        _ddp_inner,
        _ddp_again,
        _ddp_group,
    ),
    _Layer(is_sharded, check_shards, plain_copy, shard_like, fsdp_group, innermost=True),
)
"""From the outside inwards; FSDP2 is always innermost."""


def _layers(model: nn.Module) -> Iterator[tuple[_Layer, nn.Module]]:
    """Yield the wrappings from the outermost inwards, without gathering anything."""
    _refuse_fsdp1(model)
    while True:
        layer = next((layer for layer in _LAYERS if layer.fits(model)), None)
        if layer is None:
            return
        yield layer, model
        if layer.innermost:
            return
        model = layer.inner(model)


def _refuse_fsdp1(model: nn.Module) -> None:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    old = getattr(fsdp, "FullyShardedDataParallel", None)
    if old is not None and any(isinstance(part, old) for part in modules(model)):
        raise UnsupportedError(
            "the model is wrapped in FullyShardedDataParallel (FSDP1), which is not supported; "
            "use torch.distributed.fsdp.fully_shard, or pass the plain model"
        )


# ------------------------------------------------------------------ optimizers


def parameters_of(
    holder: nn.Module | Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Name the parameters that an optimizer holds as in the plain module.

    Parameters
    ----------
    holder : torch.nn.Module or dict of str to torch.Tensor
        Wrapped or plain. (A dict is returned as it is.)

    Returns
    -------
    dict of str to torch.Tensor
        DTensors where FSDP2 shards.
    """
    if not isinstance(holder, nn.Module):
        return dict(holder)
    for layer, module in _layers(holder):
        holder = module if layer.innermost else layer.inner(module)
    parts: Iterator[Any] = filter(is_shard, holder.modules())
    for part in parts:
        part.reshard()  # else named_parameters() might show the gathered ones
    return dict(holder.named_parameters())


def _has_shape(value: Any, param: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == param.shape and value.ndim > 0
