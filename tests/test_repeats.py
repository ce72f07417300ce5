"""What code repeats as often as there are heads follows them: masks, along the batch."""

from __future__ import annotations

import pytest
import torch
from checks import doubled, randomised
from exactly import grows_exactly
from torch import nn

import fxgrow


class Masked(nn.Module):
    """Heads beside the samples; ``repeated`` gives every head the mask of its sample."""

    def __init__(self, repeated, *, own, width=16, heads=4):
        super().__init__()
        self.repeated, self.own = repeated, own
        self.heads, self.size, self.config = heads, width // heads, {"heads": heads}
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x, mask):
        if self.own and x.sum() > 1e9:  # no graph of this can be had
            return x
        batch, length, _ = x.shape

        def split(y):
            y = y.view(batch, length, self.heads, self.size).transpose(1, 2)
            return y.reshape(batch * self.heads, length, self.size)

        scores = split(self.q(x)) @ split(self.k(x)).transpose(1, 2) * self.size**-0.5
        mixed = (scores + self.repeated(self, mask)).softmax(-1) @ split(self.v(x))
        mixed = mixed.view(batch, self.heads, length, self.size).transpose(1, 2)
        return self.o(mixed.reshape(batch, length, -1))


class Net(nn.Module):
    """The heads, and a stream around them."""

    def __init__(self, repeated, *, own):
        super().__init__()
        self.heads, self.out = Masked(repeated, own=own), nn.Linear(16, 3)

    def forward(self, x, mask):
        return self.out(x + self.heads(x, mask))


def interleaved(net, mask):
    return mask.repeat_interleave(net.heads, dim=0)


def interleaved_to_size(net, mask):
    return torch.repeat_interleave(mask, net.heads, 0, output_size=mask.shape[0] * net.heads)


def side_by_side(net, mask):
    return mask[:, None].repeat(1, net.heads, 1, 1).flatten(0, 1)


def from_a_dict(net, mask):
    return mask.repeat_interleave(net.config["heads"], dim=0)


def by_a_number(net, mask):
    return mask.repeat_interleave(4, dim=0)


EXAMPLE = doubled((torch.randn(2, 5, 16), torch.randn(2, 5, 5)))
REPEATED = [interleaved, interleaved_to_size, side_by_side, from_a_dict]


@pytest.mark.parametrize("own", [False, True], ids=["graph", "own"])
@pytest.mark.parametrize("repeated", REPEATED)
def test_heads_grow_with_the_masks_repeats(repeated, own):
    model = randomised(Net(repeated, own=own))
    groups = fxgrow.inspect(model, EXAMPLE).groups
    assert [(g.name, g.width) for g in groups] == [("heads.q", 4)]
    grows_exactly(model, EXAMPLE)


def test_a_number_in_the_code_repeats_as_often_as_before():
    inspection = fxgrow.inspect(Net(by_a_number, own=True).double(), EXAMPLE)
    assert {g.name: g.reason.code for g in inspection.frozen}["heads.q"] == "hidden_size"
    assert not inspection.groups
