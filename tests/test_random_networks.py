"""Random architectures: every group of every network grows exactly, or is frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

import fxgrow

SIZE = 4  # pixels a side


@dataclass
class Recipe:
    """Widths, a list of blocks, and a head: all that a network is built from."""

    width: int
    blocks: list[tuple[str, int]]
    head: str
    seed: int
    groups: list[str] = field(default_factory=list)


def _conv(width: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, size, 3, padding=1), nn.BatchNorm2d(size), nn.ReLU())


def _residual(w: int, s: int) -> nn.Module:
    inner = nn.Conv2d(w, s, 1, bias=False)
    return nn.Sequential(inner, nn.BatchNorm2d(s), nn.GELU(), nn.Conv2d(s, w, 3, padding=1))


def _depthwise(w: int, s: int) -> nn.Module:
    conv = nn.Conv2d(w, 2 * w, 3, padding=1, groups=w)
    return nn.Sequential(conv, nn.BatchNorm2d(2 * w), nn.SiLU())


def _grouped(w: int, s: int) -> nn.Module:
    conv = nn.Conv2d(4 * s, 2 * s, 3, padding=1, groups=2)
    return nn.Sequential(nn.Conv2d(w, 4 * s, 1), nn.ReLU(), conv)


def _groupnorm(w: int, s: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(w, 2 * s, 1), nn.GroupNorm(2, 2 * s), nn.ReLU())


def _excite(w: int, s: int) -> nn.Module:
    squeeze = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(w, s, 1), nn.ReLU()]
    return nn.Sequential(*squeeze, nn.Conv2d(s, w, 1), nn.Sigmoid())


def _mlp(norm: nn.Module, w: int, s: int) -> nn.Module:
    return nn.Sequential(norm, nn.Linear(w, s), nn.GELU(), nn.Linear(s, w))


# Kind of block → (input width, size) → (its module, output width).
BUILDERS: dict[str, Callable[[int, int], tuple[nn.Module, int]]] = {
    "conv": lambda w, s: (_conv(w, s), s),
    "residual": lambda w, s: (_residual(w, s), w),
    "concat": lambda w, s: (nn.Conv2d(w, s, 3, padding=1), w + s),
    "twice": lambda w, s: (nn.Sequential(nn.Conv2d(w, w, 1), nn.Tanh()), w),
    "gate": lambda w, s: (nn.Conv2d(w, 2 * s, 1), s),
    "depthwise": lambda w, s: (_depthwise(w, s), 2 * w),
    "grouped": lambda w, s: (_grouped(w, s), 2 * s),
    "groupnorm": lambda w, s: (_groupnorm(w, s), 2 * s),
    "excite": lambda w, s: (_excite(w, s), w),
    "shuffle": lambda w, s: (nn.Conv2d(w, 2 * s, 1), 2 * s),
    "layernorm": lambda w, s: (nn.LayerNorm(w), w),
    "prenorm": lambda w, s: (_mlp(nn.LayerNorm(w), w, s), w),
    "prerms": lambda w, s: (_mlp(nn.RMSNorm(w, eps=0.01), w, s), w),
    "up": lambda w, s: (nn.ConvTranspose2d(w, s, 3, padding=1), s),
}


class RandomNet(nn.Module):
    """A stem, random blocks over one running tensor, and a head."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.layers = nn.ModuleDict()
        self.stem = nn.Conv2d(2, recipe.width, 3, padding=1)
        width = recipe.width
        for number, (kind, size) in enumerate(recipe.blocks):
            width = self._add(f"{number}{kind}", kind, width, size)
        self.head_kind = recipe.head
        if recipe.head == "flatten":
            self.head = nn.Sequential(nn.Linear(width * SIZE * SIZE, 5), nn.ReLU(), nn.Linear(5, 3))
        elif recipe.head == "attention":
            self.attention = nn.MultiheadAttention(
                width, 2 if width % 2 == 0 else 1, batch_first=True
            )
            self.head = nn.Linear(width, 3)
        else:
            self.head = nn.Linear(width, 3)

    def _add(self, name: str, kind: str, width: int, size: int) -> int:
        self.layers[name], out = BUILDERS[kind](width, size)
        return out

    def _block(self, kind: str, layer: nn.Module, x: Tensor) -> Tensor:
        if kind in {"residual"}:
            return x + layer(x)
        if kind == "concat":
            return torch.cat([x, F.relu(layer(x))], dim=1)
        if kind == "twice":
            return layer(layer(x)) + x
        if kind == "gate":
            a, b = layer(x).chunk(2, dim=1)
            return a * torch.sigmoid(b)
        if kind == "excite":
            return x * layer(x)
        if kind == "shuffle":
            y = layer(x)
            n, c, h, w = y.shape
            return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        if kind == "layernorm":
            return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if kind in {"prenorm", "prerms"}:
            return x + layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return layer(x)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for number, (kind, _) in enumerate(self.recipe.blocks):
            x = self._block(kind, self.layers[f"{number}{kind}"], x)
        if self.head_kind == "flatten":
            return self.head(torch.flatten(x, 1))
        if self.head_kind == "attention":
            tokens = x.flatten(2).transpose(1, 2)
            mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
            return self.head((tokens + mixed).mean(1))
        return self.head(x.mean((2, 3)))


KINDS = sorted(BUILDERS)
RECIPES = st.builds(
    Recipe,
    width=st.integers(2, 6),
    blocks=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(2, 5)), min_size=1, max_size=4),
    head=st.sampled_from(["flatten", "pool", "attention"]),
    seed=st.integers(0, 100),
)


@pytest.mark.timeout(900)  # 500 networks: minutes where other work runs beside
@settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(recipe=RECIPES, pick=st.integers(0, 1000), units=st.integers(1, 3))
def test_random_networks_grow_exactly(recipe: Recipe, pick: int, units: int) -> None:
    model = RandomNet(recipe).double()
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():  # nothing may be invariant by chance
                tensor.add_(
                    torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 0.3
                )
    x = torch.randn(3, 2, SIZE, SIZE, generator=generator, dtype=torch.float64)
    inspection = fxgrow.inspect(model, x)
    assert not inspection.unsupported
    assert all(group.reason is not None for group in inspection.frozen)
    if not inspection.groups:  # e.g. one normalisation over two widths side by side
        assert any(kind == "layernorm" for kind, _ in recipe.blocks)
        return
    single = inspection.groups[pick % len(inspection.groups)]
    everything = {g.name: units * g.multiple_of for g in inspection.groups}
    for additions in ({single.name: units * single.multiple_of}, everything):
        growth = fxgrow.widen(model, x, additions)
        assert growth.verification is not None
        assert growth.verification.eval_error <= 1e-10
        assert growth.verification.train_error <= 1e-10
    # Another batch size than the example's.
    more = torch.randn(5, 2, SIZE, SIZE, generator=generator, dtype=torch.float64)
    model.eval()
    with torch.no_grad():
        old, new = model(more), growth.module.eval()(more)
    assert (old - new).abs().max() <= 1e-10 * old.abs().max().clamp(min=1)
