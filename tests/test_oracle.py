"""The permutation oracle on every group of real models."""

from __future__ import annotations

import pytest
import torch
import torchvision
from checks import calibrated, randomised
from oracle import complaints

import fxgrow


def build(name, size=64):
    torch.manual_seed(0)
    model = randomised(torchvision.models.get_model(name, weights=None))
    example = torch.randn(2, 3, size, size, dtype=torch.float64)
    return calibrated(model, example), example


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "mobilenet_v3_small", "efficientnet_b0"]
)
def test_every_group_of_a_convolutional_network(name):
    model, example = build(name, 64 if name == "mobilenet_v3_small" else 32)
    groups = fxgrow.inspect(model, example).groups
    assert complaints(model, groups, example, omit=1) == []


def test_every_group_of_a_small_vision_transformer():
    torch.manual_seed(0)
    model = randomised(torchvision.models.VisionTransformer(64, 16, 2, 4, 32, 48))
    example = torch.randn(2, 3, 64, 64).double()
    groups = fxgrow.inspect(model, example).groups
    assert complaints(model, groups, example, omit=9) == []


@pytest.mark.slow
def test_every_group_of_vit_b_16():
    torch.manual_seed(0)
    model = randomised(torchvision.models.vit_b_16())
    example = torch.randn(1, 3, 224, 224).double()
    groups = fxgrow.inspect(model, example).groups
    assert len(groups) >= 24, "12 MLP widths and 12 numbers of heads"
    assert complaints(model, groups, example, omit=0) == []


def test_the_oracle_notices_a_missing_slot():
    from dataclasses import replace

    model, example = build("resnet18")
    group = max(fxgrow.inspect(model, example).groups, key=lambda g: len(g.slots))
    assert len(group.slots) > 10, "a stage of residual blocks"
    for slot in group.slots:
        rest = replace(group, slots=tuple(s for s in group.slots if s is not slot))
        assert complaints(model, [rest], example, omit=0) != []
