"""Small widened networks with their groups written by hand, for tests without the engine."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn

from fxgrow.ir import Group, GrownGroup, GrownSlot, Slot


def slot(tensor, dim, role, width, added, slices=1):
    rows = np.arange((width + added) * slices).reshape(-1, slices)
    return GrownSlot(tensor, dim, role, rows[:width], rows[width:])


def ungrown(group: GrownGroup, params=1, rows=1, multiple=1) -> Group:
    slots = tuple(Slot(s.tensor, s.dim, s.role, s.old) for s in group.slots)
    return Group(group.name, group.width, multiple, rows, params, 2 * params, (), slots)


def zero_outgoing(module: nn.Module, grown: list[GrownGroup]) -> None:
    params = dict(module.named_parameters())
    with torch.no_grad():
        for group in grown:
            for s in group.slots:
                if s.role == "consumer":
                    params[s.tensor].index_fill_(s.dim, torch.from_numpy(s.new.ravel()), 0.0)


def mlp(widths=(8, 6), added=(3, 2), inputs=5, outputs=4, dtype=torch.float64, bias=True, seed=0):
    """Return a widened MLP ``0, 2, 4, ...`` and its groups, shallowest first."""
    torch.manual_seed(seed)
    sizes = [inputs, *(w + k for w, k in zip(widths, added, strict=True)), outputs]
    layers: list[nn.Module] = []
    grown = []
    for i, (rows_in, rows_out) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(rows_in, rows_out, bias=bias, dtype=dtype), nn.Tanh()]
        if i < len(widths):
            spans = [(f"{2 * i}.weight", 0, "producer"), (f"{2 * i + 2}.weight", 1, "consumer")]
            if bias:
                spans.append((f"{2 * i}.bias", 0, "producer"))
            slots = tuple(slot(*span, widths[i], added[i]) for span in spans)
            grown.append(GrownGroup(f"h{i}", widths[i], added[i], slots))
    module = nn.Sequential(*layers[:-1])
    zero_outgoing(module, grown)
    return module, grown


def convnet(width=4, added=3, dtype=torch.float64, seed=0, norm=nn.BatchNorm2d):
    """Conv, norm, depthwise conv, norm, 1x1 transposed conv, norm, flatten with 4 columns."""
    torch.manual_seed(seed)
    size = width + added
    module = nn.Sequential(
        nn.Conv2d(2, size, 3, padding=1),
        norm(size),
        nn.ReLU(),
        nn.Conv2d(size, size, 3, padding=1, groups=size),
        norm(size),
        nn.ReLU(),
        nn.ConvTranspose2d(size, size, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(4 * size, 3),
    ).to(dtype)
    first = [("0.weight", 0, "producer"), ("0.bias", 0, "producer")]
    first += [("3.weight", 0, "producer"), ("3.bias", 0, "producer"), ("6.weight", 0, "consumer")]
    for name in ("1", "4"):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module.get_submodule(name), leaf) is not None:
                first.append((f"{name}.{leaf}", 0, "norm"))
    second = [("6.weight", 1, "producer"), ("6.bias", 0, "producer")]
    grown = [
        GrownGroup("conv", width, added, tuple(slot(*s, width, added) for s in first)),
        GrownGroup(
            "up",
            width,
            added,
            (
                *(slot(*s, width, added) for s in second),
                slot("10.weight", 1, "consumer", width, added, 4),
            ),
        ),
    ]
    zero_outgoing(module, grown)
    return module, grown


def data(shape=(5,), classes=4, batches=4, size=6, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, *shape, generator=generator, dtype=dtype),
            torch.randint(classes, (size,), generator=generator),
        )
        for _ in range(batches)
    ]


IMAGES = {"shape": (2, 5, 5), "classes": 3}
