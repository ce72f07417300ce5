"""FSDP2 (``torch.distributed.fsdp.fully_shard``): whole copies, and sharding alike.

Imports torch's FSDP only where a model uses it already.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from .errors import InputError, UnsupportedError
from .walks import modules

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = [
    "check_shards",
    "fsdp_group",
    "is_shard",
    "is_sharded",
    "plain_copy",
    "shard_like",
    "shard_state",
    "spread_like",
    "whole",
    "whole_state",
]

_ASK = "pass wrap=callable, which gets the grown module and returns it sharded"


def is_sharded(model: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to the model or a part of it."""
    kind = _fsdp_class()
    return kind is not None and any(isinstance(part, kind) for part in modules(model))


def is_shard(model: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to this very module."""
    kind = _fsdp_class()
    return kind is not None and isinstance(model, kind)


def whole(tensor: Any) -> torch.Tensor:
    """Return the full tensor of a DTensor (a collective); others as they are."""
    if not hasattr(tensor, "full_tensor"):
        plain: torch.Tensor = tensor
        return plain
    if tensor.device.type != tensor.device_mesh.device_type:  # offloaded to the CPU
        tensor = tensor.to(tensor.device_mesh.device_type)
    full: torch.Tensor = tensor.full_tensor()
    return full


def spread_like(tensor: torch.Tensor, param: Any) -> torch.Tensor:
    """Shard a whole tensor as ``param`` is; as it is where that is no DTensor."""
    if not hasattr(param, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh = param.device_mesh
    spread = distribute_tensor(tensor.to(mesh.device_type), mesh, param.placements)
    return spread.to(param.device)


def whole_state(value: Any) -> Any:
    """Gather every DTensor in a state dict, at any depth (collectives, on all ranks)."""
    if isinstance(value, dict):
        return {key: whole_state(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [whole_state(item) for item in value]
    return whole(value) if isinstance(value, torch.Tensor) else value


def shard_state(optimizer: torch.optim.Optimizer) -> None:
    """Shard whole tensors in an optimizer's state as their parameters are, in place."""
    for param, own in optimizer.state.items():
        for key, value in own.items():
            if isinstance(value, torch.Tensor) and value.shape == param.shape:
                own[key] = spread_like(whole(value), param)


# ------------------------------------------------------------------ whole copies


def plain_copy(model: nn.Module) -> nn.Module:
    """Copy a sharded model into plain modules with whole parameters, on every rank.

    Raises
    ------
    UnsupportedError
        When a part was compiled before it was sharded.
    """
    parts: list[Any] = [part for part in model.modules() if is_shard(part)]
    if any(hasattr(part, "_orig_mod") for part in parts):
        raise UnsupportedError(
            "a part of the model was compiled before fully_shard; shard first, then compile"
        )
    for part in parts:
        part.reshard()
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = _whole_twin(tensor)
    for part in reversed(parts):  # inner ones first, so that outer ones find them copied
        _copy_part(part, memo)
    twin: nn.Module = copy.deepcopy(model, memo)
    for part in twin.modules():
        for mark in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
            part.__dict__.pop(mark, None)
    return twin


def _whole_twin(tensor: torch.Tensor) -> torch.Tensor:
    full = whole(tensor.detach()).clone()
    if not isinstance(tensor, nn.Parameter):
        return full
    return nn.Parameter(full, requires_grad=tensor.requires_grad)


def _copy_part(part: Any, memo: dict[int, Any]) -> None:
    """Copy a module that ``fully_shard`` gave a class of its own, as its former class."""
    former = type(part).__mro__[2]
    hooks = {}
    for table, entries in part.__dict__.items():
        if str(table).endswith("_hooks") and isinstance(entries, dict):
            own = ((key, hook) for key, hook in entries.items() if not _is_fsdp_hook(hook))
            hooks[table] = memo[id(entries)] = OrderedDict(own)
    own_copy: Callable[..., Any] | None = getattr(former, "__deepcopy__", None)
    if own_copy is not None:
        memo[id(part)] = own_copy(part, memo)
        return
    twin: nn.Module = object.__new__(former)
    memo[id(part)] = twin
    state: dict[Any, Any] = {**part.__getstate__(), **hooks}
    for key in [key for key in state if _is_contract_key(key)]:
        del state[key]
    twin.__setstate__(copy.deepcopy(state, memo))


def _is_fsdp_hook(hook: Any) -> bool:
    function = getattr(hook, "func", hook)  # of a partial
    function = getattr(function, "hook", function)  # of state dict hooks
    return str(getattr(function, "__module__", "")).startswith("torch.distributed.")


def _is_contract_key(key: Any) -> bool:
    contract = sys.modules["torch.distributed._composable.contract"]
    return key in (contract.STATE_KEY, contract.REGISTRY_KEY)


# --------------------------------------------------------------- sharding alike


@dataclass(frozen=True, eq=False)
class _Shard:
    """One call of ``fully_shard``."""

    names: tuple[str, ...]
    mesh: Any
    policies: Mapping[str, Any]


def fsdp_group(model: nn.Module) -> dist.ProcessGroup:
    """Return the process group of all ranks of the model's mesh.

    Raises
    ------
    InputError
        The mesh has several dimensions and is not the whole world.
    """
    import torch.distributed as dist

    mesh = _shards(model)[-1].mesh
    if mesh.ndim == 1:
        group: dist.ProcessGroup = mesh.get_group()
        return group
    if mesh.size() == dist.get_world_size() and dist.group.WORLD is not None:
        return dist.group.WORLD
    raise InputError(
        "the model is sharded over a part of the ranks in several dimensions; "
        "pass process_group= with the ranks that hold shares of the data"
    )


def check_shards(like: nn.Module) -> None:
    """Raise UnsupportedError unless :func:`shard_like` can read how ``like`` is sharded."""
    _check_placements(like, _shards(like))


def shard_like(module: nn.Module, like: nn.Module) -> nn.Module:
    """Apply ``fully_shard`` to ``module``, in place, as it was applied to ``like``.

    Raises
    ------
    UnsupportedError
        For tensor parallelism, placements other than rows, several meshes in one call,
        and containers that a graph does not call while its root is not sharded.
    """
    from torch.distributed.fsdp import fully_shard

    shards = _shards(like)
    targets = [_targets(module, shard) for shard in shards]
    if "" not in {name for shard in shards for name in shard.names} and not all(targets):
        raise UnsupportedError(
            "the root is not sharded, and the graph does not call the containers that are; "
            f"grow with emit='module', or {_ASK}"
        )
    ignored = _ignored(module, like)
    done: set[nn.Module] = set()
    for shard, parts in zip(shards, targets, strict=True):
        parts = [part for part in parts if part not in done]
        done.update(parts)
        if parts:
            options = {**shard.policies, **({"ignored_params": ignored} if ignored else {})}
            fully_shard(parts[0] if len(parts) == 1 else parts, mesh=shard.mesh, **options)
    return module.train(like.training)


def _shards(model: nn.Module) -> list[_Shard]:
    """Find the calls of ``fully_shard`` that made ``model``, deepest first."""
    found: dict[int, tuple[Any, list[str]]] = {}
    parts: Iterator[tuple[str, Any]] = model.named_modules()
    for name, part in parts:
        if is_shard(part):
            state = part._get_fsdp_state()
            found.setdefault(id(state), (state, []))[1].append(name)
    groups = {key: _param_groups(state) for key, (state, _) in found.items()}
    spare = next((own[0] for own in groups.values() if own), None)
    shards = []
    for key, (state, names) in found.items():
        group = groups[key][0] if groups[key] else spare
        if group is None or len(groups[key]) > 1 or group.mesh_info.shard_mesh_dim is None:
            raise UnsupportedError(
                f"how {names[0] or 'the model'} is sharded can't be read; {_ASK}"
            )
        policies = {
            "mp_policy": state._mp_policy,
            "offload_policy": group.offload_policy,
            "reshard_after_forward": _reshard_policy(state, group),
        }
        shards.append(_Shard(tuple(names), group.mesh_info.mesh, policies))
    return sorted(shards, key=lambda shard: -max(map(_depth, shard.names)))


def _depth(name: str) -> int:
    return name.count(".") + 1 if name else 0


def _param_groups(state: Any) -> list[Any]:
    several = getattr(state, "_fsdp_param_groups", None)  # since torch 2.11
    single = [state._fsdp_param_group] if several is None else several
    return [group for group in single if group is not None]


def _reshard_policy(state: Any, group: Any) -> bool | int | None:
    if getattr(state, "_auto_reshard_after_forward", None):
        return None
    after = group.post_forward_mesh_info
    if after is None or after is group.mesh_info:
        return after is not None
    size: int = after.shard_mesh_size
    return size


def _check_placements(like: nn.Module, shards: Sequence[_Shard]) -> None:
    dimensions = {shard.mesh.ndim for shard in shards}
    for name, param in like.named_parameters():
        if not hasattr(param, "placements"):
            continue
        placements: Any = param.placements
        rows = all(getattr(p, "dim", 0) == 0 for p in placements)
        if not rows or len(placements) not in dimensions:
            raise UnsupportedError(
                f"{name} is sharded as {placements}, not by rows over FSDP's mesh alone; {_ASK}"
            )


def _ignored(module: nn.Module, like: nn.Module) -> set[nn.Parameter]:
    params = dict(module.named_parameters())
    return {
        params[name]
        for name, param in like.named_parameters()
        if not hasattr(param, "placements") and name in params
    }


def _targets(module: nn.Module, shard: _Shard) -> list[nn.Module]:
    """Find what to shard together. A graph calls leaves, so hooks of a container never fire."""
    if not isinstance(module, fx.GraphModule):
        return [module.get_submodule(name) for name in shard.names]
    calls = _calls(module)
    found: list[nn.Module] = []
    for name in shard.names:
        if not name or any(name == call or name.startswith(f"{call}.") for call in calls):
            found.append(module.get_submodule(name))
            continue
        inside = [call for call in calls if call.startswith(f"{name}.")]
        if any(calls[call] > 1 for call in inside):
            return []  # called again after it was freed: left to the layer around it
        parts = (module.get_submodule(call) for call in inside)
        found += [part for part in parts if any(True for _ in part.parameters())]
    return found


def _calls(module: fx.GraphModule) -> Counter[str]:
    """How often each submodule is called, in the mode where that is most."""
    most: Counter[str] = Counter()
    for graph in (module.graph, getattr(module, "train_graph", module.graph)):
        most |= Counter(str(n.target) for n in graph.nodes if n.op == "call_module")
    return most


def _fsdp_class() -> type[Any] | None:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return getattr(fsdp, "FSDPModule", None)
