"""Units that lie on both sides of a concatenation or split can't be followed by others."""

from __future__ import annotations

import pytest
import torch
from checks import randomised
from exactly import grows_exactly
from torch import nn

import fxgrow


class Skip(nn.Module):
    """A U-Net's step up: two widths side by side, normalised in ``count`` groups."""

    def __init__(self, deep, skipped, count, *, grouped=False):
        super().__init__()
        self.deep = nn.Conv2d(3, deep, 3, padding=1)
        self.skipped = nn.Conv2d(3, skipped, 3, padding=1)
        both = deep + skipped
        self.mixing = (
            nn.Conv2d(both, both, 3, padding=1, groups=count)
            if grouped
            else nn.GroupNorm(count, both)
        )
        self.out = nn.Conv2d(both, 2, 1)

    def forward(self, x):
        both = torch.cat([self.deep(x), self.skipped(x)], dim=1)
        return self.out(torch.tanh(self.mixing(both)))


class Halved(nn.Module):
    """Channels that were normalised together part."""

    def __init__(self, first):
        super().__init__()
        self.first = first
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12)
        self.left, self.right = nn.Conv2d(first, 2, 1), nn.Conv2d(12 - first, 2, 1)

    def forward(self, x):
        left, right = self.norm(self.stem(x)).tanh().split([self.first, 12 - self.first], dim=1)
        return self.left(left) + self.right(right)


IMAGE = torch.randn(2, 3, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("grouped", [False, True], ids=["norm", "convolution"])
@pytest.mark.parametrize(("deep", "skipped", "count", "widths"), [
    (32, 16, 8, [5, 2]),  # the sixth group of six has two channels of the one, four of the other
    (12, 24, 6, [2, 4]),  # none lies across
    (10, 2, 3, [2]),
])  # fmt: skip
def test_a_group_across_a_seam_stays(deep, skipped, count, widths, grouped):
    model = randomised(Skip(deep, skipped, count, grouped=grouped))
    inspection = fxgrow.inspect(model, IMAGE)
    assert [g.width for g in inspection.groups] == widths
    across = [g for g in inspection.frozen if g.reason.code == "seam"]
    assert [g.width for g in across] == ([] if sum(widths) == count else [1])
    grows_exactly(model, IMAGE)


@pytest.mark.parametrize(("first", "widths"), [(6, [1, 1]), (8, [2, 1])])
def test_a_group_that_is_split_stays(first, widths):
    model = randomised(Halved(first))
    inspection = fxgrow.inspect(model, IMAGE)
    assert [g.width for g in inspection.groups] == widths
    grows_exactly(model, IMAGE)
