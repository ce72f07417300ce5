"""torchvision's classifiers: the smallest of each family here, all of them in the zoo run."""

from __future__ import annotations

import pytest
import torch
import torchvision
import zoo
import zoo_models
from torchvision.models import swin_transformer

import fxgrow

CONVOLUTIONAL = {
    "alexnet": "alexnet",
    "vgg": "vgg11",
    "resnet": "resnet18",
    "resnext": "resnext50_32x4d",
    "wide_resnet": "wide_resnet50_2",
    "densenet": "densenet121",
    "googlenet": "googlenet",
    "inception": "inception_v3",
    "mobilenet_v2": "mobilenet_v2",
    "mobilenet_v3": "mobilenet_v3_small",
    "mnasnet": "mnasnet0_5",
    "squeezenet": "squeezenet1_1",
    "shufflenet": "shufflenet_v2_x0_5",
    "regnet_x": "regnet_x_400mf",
    "regnet_y": "regnet_y_400mf",
    "efficientnet": "efficientnet_b0",
    "efficientnet_v2": "efficientnet_v2_s",
    "convnext": "convnext_tiny",
}
# Seconds a group: one of them alone will do.
HEAVY = {"alexnet", "vgg", "resnext", "wide_resnet", "densenet", "inception", "convnext"}
HEAVY |= {"efficientnet_v2"}


def small_inception():
    """Without the auxiliary head, which needs 299 px (the zoo run has it)."""
    torch.manual_seed(0)
    model = torchvision.models.inception_v3(init_weights=False, aux_logits=False)
    return zoo_models.prepared(model, 96)


@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_smallest_of_a_convolutional_family(family):
    built = small_inception() if family == "inception" else None
    singles = 1 if family in HEAVY else 3
    outcome = zoo.check_model(CONVOLUTIONAL[family], singles=singles, built=built)
    assert outcome.wrong == []
    assert outcome.coverage >= 0.99, outcome.reasons


def vit():
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48
    )


def swin(version):
    own = {
        1: {},
        2: {
            "block": swin_transformer.SwinTransformerBlockV2,
            "downsample_layer": swin_transformer.PatchMergingV2,
        },
    }[version]
    return torchvision.models.SwinTransformer([2, 2], 24, [1, 1], [3, 6], [4, 4], **own)


def maxvit():
    return torchvision.models.MaxVit((32, 32), 8, 4, [16], [1], 4, 0.0, num_classes=7)


TRANSFORMERS = {"vit": vit, "swin": lambda: swin(1), "swin_v2": lambda: swin(2), "maxvit": maxvit}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_a_small_one_of_a_transformer_family(family):
    torch.manual_seed(0)
    built = zoo_models.prepared(TRANSFORMERS[family](), 32)
    names = [group.name for group in fxgrow.inspect(*built).groups]
    assert any("mlp" in name for name in names), "no MLP width grows"
    assert any(name.endswith(("qkv", "self_attention")) for name in names), "no heads grow"
    assert zoo.check_model(family, built=built).wrong == []
