"""Small networks and all optimizers of torch, for tests of growth while training."""

from __future__ import annotations

import torch
from torch import nn

import fxgrow

# Every optimizer that treats each entry alone, in its variants.
ELEMENTWISE = {
    "adam": (torch.optim.Adam, {"lr": 1e-2}),
    "adam amsgrad": (torch.optim.Adam, {"lr": 1e-2, "amsgrad": True, "weight_decay": 0.1}),
    "adam foreach": (torch.optim.Adam, {"lr": 1e-2, "foreach": True}),
    "adam fused": (torch.optim.Adam, {"lr": 1e-2, "fused": True}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"lr": 1e-4}),
    "sgd momentum": (
        torch.optim.SGD,
        {"lr": 1e-4, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    ),
    "sgd nesterov": (torch.optim.SGD, {"lr": 1e-4, "momentum": 0.9, "nesterov": True}),
    "sgd fused": (torch.optim.SGD, {"lr": 1e-4, "momentum": 0.9, "fused": True}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-2}),
    "rmsprop centered": (
        torch.optim.RMSprop,
        {"lr": 1e-2, "centered": True, "momentum": 0.5, "weight_decay": 0.1},
    ),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2, "lr_decay": 0.1}),
    "adagrad initial": (torch.optim.Adagrad, {"lr": 1e-2, "initial_accumulator_value": 0.3}),
    "adagrad fused": (torch.optim.Adagrad, {"lr": 1e-2, "fused": True}),
    "nadam": (torch.optim.NAdam, {"lr": 1e-2, "weight_decay": 0.1}),
    "radam": (torch.optim.RAdam, {"lr": 1e-2}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0}),
    "adamax": (torch.optim.Adamax, {"lr": 1e-2}),
    "rprop": (torch.optim.Rprop, {"lr": 1e-2}),
    "asgd": (torch.optim.ASGD, {"lr": 1e-4, "t0": 1}),
}

# torch 2.6 rounds other lengths of a tensor otherwise.
SAME_BITS = sorted(ELEMENTWISE.keys() - ({"nadam"} if torch.__version__ < "2.7" else set()))

# Those that couple the entries of a tensor.
COUPLED = {
    "adafactor": (torch.optim.Adafactor, {"lr": 1e-2, "weight_decay": 0.0}),
}
if hasattr(torch.optim, "Muon"):  # since torch 2.9
    COUPLED["muon"] = (torch.optim.Muon, {"lr": 1e-2, "weight_decay": 0.0})

X = torch.randn(7, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
ADDITIONS = {"0": 3, "2": 2}


def net(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)]
    return nn.Sequential(*layers).to(dtype)


def widened(model, additions=None, **options):
    like = next(model.parameters())
    return fxgrow.widen(model, X.to(like.dtype), additions or ADDITIONS, **options)


def loss_of(model, x=X):
    return model(x.to(next(model.parameters()).dtype)).pow(2).mean()


def train(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def frozen_copy(value):
    """A deep copy in which tensors are their bytes and identities, for comparisons."""
    if isinstance(value, torch.Tensor):
        numbers = value.detach().clone()
        return id(value), str(numbers.dtype), tuple(numbers.shape), numbers.double().tolist()
    if isinstance(value, dict):
        return {
            id(k) if isinstance(k, torch.Tensor) else k: frozen_copy(v) for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [frozen_copy(v) for v in value]
    return value


def picture(optimizer):
    return frozen_copy([optimizer.param_groups, dict(optimizer.state)])


def by_name(growth, optimizer):
    return {
        name: optimizer.state.get(p, {})
        for name, p in growth.module.named_parameters()
        if any(p is q for group in optimizer.param_groups for q in group["params"])
    }


class Master(torch.optim.Optimizer):
    """Momentum in float32, whatever the parameters are; steps counted in Python."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                buffer = state.setdefault("buffer", torch.zeros(p.shape, dtype=torch.float32))
                state["count"] = state.get("count", 0) + 1
                buffer.mul_(0.9).add_(p.grad)
                p.sub_((group["lr"] * buffer).to(p.dtype))


def closure_of(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    return closure
