"""What the engine's tests check, written without the engine: sameness and gradients."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DROPOUTS = ("p", "dropout", "attention_dropout", "drop_rate", "drop_prob", "dropout_p")


def tensors(value):
    """All tensors of a nested output, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


class Float64(TorchDispatchMode):
    """Casts of a model's own code to float32 leave float64 as it is: rounding hides mistakes."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


def run(model, example):
    double = any(p.dtype is torch.float64 for p in model.parameters())
    with Float64() if double else nullcontext():
        if isinstance(example, dict):
            return model(**example)
        return model(*example) if isinstance(example, tuple) else model(example)


def outputs(model, example, *, training=False, seed=0):
    """Float outputs of a twin of ``model`` (own buffers, shared parameters)."""
    shared = {id(p): p for p in model.parameters()}
    for module in model.modules():  # what hooks have computed can't be copied
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                shared[id(value)] = value.detach()
    return outputs_of(copy.deepcopy(model, shared), example, training=training, seed=seed)


def outputs_of(model, example, *, training=False, seed=0):
    """Float outputs of ``model`` itself, whose buffers may change."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [t for t in tensors(run(model.train(training), example)) if t.is_floating_point()]


def difference(before, after):
    """Largest difference, relative to the largest output of each tensor."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return float("inf")
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        gap = ((a - b).abs().max() / a.abs().max().clamp_min(1e-300)).item() if a.numel() else 0.0
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def no_dropout(model):
    """Set every dropout rate to 0, also those kept as plain attributes."""
    for module in model.modules():
        for name in DROPOUTS:
            if isinstance(module.__dict__.get(name), float):
                setattr(module, name, 0.0)
    return model


def randomised(model, seed=0, scale=1.0):
    """Float64, without dropout, with random parameters and running statistics.

    Fresh models have constant entries that hide mistakes (norm weights of 1, biases of 0).
    ``scale``: of the weights, 1 keeps the size of activations under ReLU.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like):
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    def uniform(like):
        return torch.rand(like.shape, generator=generator, dtype=torch.float64)

    model = no_dropout(model).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            leaf = name.rpartition(".")[2]
            if p.ndim >= 2:
                p.copy_(normal(p) * scale * (2 / max(p.numel() // max(p.shape[0], 1), 1)) ** 0.5)
            elif "bias" in leaf:
                p.copy_(0.1 * normal(p))
            else:
                p.copy_(0.5 + uniform(p))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.1 * normal(b))
            elif name.endswith("running_var"):
                b.copy_(0.5 + uniform(b))
    return model


def doubled(example):
    """Floats of an example as float64."""
    if isinstance(example, torch.Tensor):
        return example.double() if example.is_floating_point() else example
    if isinstance(example, dict):
        return {k: doubled(v) for k, v in example.items()}
    return type(example)(map(doubled, example)) if isinstance(example, (tuple, list)) else example


def errors(old, new, example):
    """Differences of two models in eval and in train mode."""
    return tuple(
        difference(outputs(old, example, training=t), outputs(new, example, training=t))
        for t in (False, True)
    )


def step(group, units=2):
    """A small legal addition to a group."""
    return -(-units // group.multiple_of) * group.multiple_of


def from_zero(slot):
    """Whether an entry reads zeros at first: random columns behind the norm of a stream."""
    return slot.role == "consumer" and slot.filling.kind not in {"", "zero", "centre"}


def from_later(group, slot):
    """Whether an entry can only train once others have moved.

    So do entries of a stream of zeros, and what reads a tied table: its new columns are zero.
    """
    return group.tied or (group.recipe == "zero" and slot.filling.kind == "zero")


def new_entries(module, groups, roles, *, wanted=lambda group, slot: True):
    """Yield (where, parameter, dim, new positions) of the slots with these roles."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for group in groups:
        for slot in group.slots:
            p = parameters.get(slot.tensor)
            if slot.role in roles and p is not None and p.requires_grad and wanted(group, slot):
                new = torch.from_numpy(slot.new.reshape(-1))
                yield f"{group.name}: {slot.tensor}[{slot.dim}]", p, slot.dim, new


def backward(module, example, seed=0):
    """Gradients of a random projection of the outputs, train mode; returns the loss."""
    module.train()
    module.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = list(tensors(run(module, example)))
    for out in found:
        if out.is_floating_point() and out.requires_grad:
            target = torch.randn(out.shape, generator=generator, dtype=torch.float64)
            largest = out.detach().abs().max() if out.numel() else 0.0
            if largest > 1e6:  # networks without norms: the loss would overflow
                out = out / largest
            loss = loss + ((out - target) ** 2).mean()
    loss.backward()
    return loss.item()


def untrained(module, groups, example, lr=1e-2, late=(), *, inplace=False):
    """Slots whose new entries get no gradient, or don't move (empty: all train).

    Fresh consumers must have a gradient at once (those called ``late`` after a step), and
    producers after one step. What reads a normalised stream has to wait a step, but is no
    zero, and what writes new entries of means or zeros has a gradient at once; only in a
    stream of zeros, the last writers and their raw readers may wait for each other.
    """
    if not inplace:  # else ``module`` itself is trained: the largest fit in memory only once
        module = copy.deepcopy(module)
    problems = []
    backward(module, example)
    consumers = list(
        new_entries(
            module,
            groups,
            {"consumer"},
            wanted=lambda group, slot: not (from_zero(slot) or from_later(group, slot)),
        )
    )
    waiting = [c for c in consumers if any(name in c[0] for name in late)]
    consumers = [c for c in consumers if not any(name in c[0] for name in late)]
    waiting += new_entries(
        module,
        groups,
        {"consumer"},
        wanted=lambda group, slot: from_zero(slot) or from_later(group, slot),
    )
    problems += _dead(module, groups, late)
    before = [p.detach().index_select(d, i).clone() for _, p, d, i in consumers]
    for where, p, dim, new in consumers:
        if p.grad is None or not p.grad.index_select(dim, new).any():
            problems.append(f"{where}: consumer without gradient")
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=lr)
    _step(optimizer)
    for (where, p, dim, new), old in zip(consumers, before, strict=True):
        if torch.equal(p.detach().index_select(dim, new), old):
            problems.append(f"{where}: consumer does not move")
    backward(module, example)
    waiting += new_entries(module, groups, {"producer", "norm"})
    patience = 2 if any(g.recipe == "zero" for g in groups) else 0
    while patience and any(map(_still, waiting)):
        patience -= 1
        _step(optimizer)
        backward(module, example)
    return problems + [f"{w[0]}: without gradient after some steps" for w in waiting if _still(w)]


def _step(optimizer):
    """A step no longer than the weights times its rate: steep networks would saturate."""
    parameters = optimizer.param_groups[0]["params"]
    length = torch.nn.utils.get_total_norm(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, length)
    optimizer.step()


def _still(entry):
    """Whether entries have no gradient."""
    _, p, dim, new = entry
    # A bias may have none by mathematics: before a norm, or added to keys.
    return p.grad is None or (p.ndim > 1 and not p.grad.index_select(dim, new).any())


def _dead(module, groups, late):
    """Units of streams that are zero on both sides, or whose writers have no gradient."""
    problems = []
    for where, p, dim, new in new_entries(
        module, groups, {"consumer"}, wanted=lambda _, slot: from_zero(slot)
    ):
        if not p.index_select(dim, new).any() and not any(name in where for name in late):
            problems.append(f"{where}: zero on both sides")
    kinds = {"mean", "zero"}
    for group in groups:
        writers = list(
            new_entries(
                module, [group], {"producer"}, wanted=lambda _, slot: slot.filling.kind in kinds
            )
        )
        still = [
            where
            for where, p, dim, new in writers
            if p.grad is None or not p.grad.index_select(dim, new).any()
        ]
        if group.recipe == "zero" and len(still) < len(writers):
            continue  # the others move first
        problems += [
            f"{where}: writer of a stream without gradient"
            for where in still
            if not any(name in where for name in late)
        ]
    return problems


def calibrated(model, example):
    """Bring running statistics near the truth: deep networks explode without."""
    norms = [m for m in model.modules() if getattr(m, "running_var", None) is not None]
    before = [(m.running_mean.clone(), m.running_var.clone(), m.momentum) for m in norms]
    for module in norms:
        module.momentum = 1.0
    with torch.no_grad():
        run(model.train(), example)
        for module, (mean, var, momentum) in zip(norms, before, strict=True):
            module.running_mean.add_(mean)
            module.running_var.mul_(var).add_(0.1)
            module.momentum = momentum
    return model
