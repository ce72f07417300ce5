"""Which trained models' functions go into which wider ones: pairs of real architectures.

Writes ``docs/transfer.md``: what was exact, and what was refused, in which words.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torchvision import models
from torchvision.models import efficientnet, mobilenetv3, regnet, resnet, squeezenet, vgg
from torchvision.models.googlenet import Inception

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1e-10
PAGE = """# Transfer

`fxgrow.transfer(source, target, example_inputs)` loads a trained model into a wider one of the same
architecture that you built; the result is your own class and computes what the source did. In the
shell: `fxgrow transfer model.pt --arch net.py:narrow net.py:wide`.

Tensor names must be the same, classes need not be. Units are matched by the tensors that they have
slices in, so concatenations, heads, convolution groups and channel shuffles come out by themselves.
New units keep the values that your wide model gave them; what reads them is zero. Under a
normalisation over the channels (residual streams of transformers) a width must be a whole multiple.
`growth.migrate(optimizer)` carries the source's optimizer over.

Written by `python benchmarks/transfer.py` ({versions}); do not edit.

## Exact pairs

Both models get random weights and statistics (of different seeds) and run in float64 on two images.
Errors are the largest difference of source's and result's outputs, relative to the largest output,
in eval and in train mode (dropout off); {verdict}.

| pair | parameters (M) | groups grown | units repeated | eval | train | s |
|---|--:|--:|--:|--:|--:|--:|
{rows}

## Refused pairs

| pair | why |
|---|---|
{refusals}
"""


def fires(width):
    """Fire modules as in SqueezeNet, with squeeze and expand widths in proportion."""
    parts, channels = [nn.Conv2d(3, 4 * width, 3, 2), nn.ReLU()], 4 * width
    for number in range(1, 5):
        squeeze, expand = width * number, 4 * width * number
        parts.append(squeezenet.Fire(channels, squeeze, expand, expand))
        channels = 2 * expand
    return nn.Sequential(*parts, nn.Conv2d(channels, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def inceptions(*widths):
    """Four Inception blocks as in GoogLeNet, branches of unequal widths."""
    parts, channels = [nn.Conv2d(3, 16, 3, 2), nn.ReLU()], 16
    for factor in (1, 2, 3, 4):
        a, b, c, d, e, f = (factor * width for width in widths)
        parts.append(Inception(channels, a, b, c, d, e, f))
        channels = a + c + e + f
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def regnet_of(*widths):
    """A RegNet with squeeze and excitation, groups of 16 channels."""
    params = regnet.BlockParams([1, 2, 3, 1], widths, [16] * 4, [1.0] * 4, [2] * 4, se_ratio=0.25)
    return regnet.RegNet(params)


def efficientnet_of(width):
    """EfficientNet-B0's blocks at another width."""
    block = partial(efficientnet.MBConvConfig, width_mult=width, depth_mult=1.0)
    blocks = [
        block(1, 3, 1, 32, 16, 1), block(6, 3, 2, 16, 24, 2), block(6, 5, 2, 24, 40, 2),
        block(6, 3, 2, 40, 80, 3), block(6, 5, 1, 80, 112, 3), block(6, 5, 2, 112, 192, 4),
        block(6, 3, 1, 192, 320, 1),
    ]  # fmt: skip
    return models.EfficientNet(blocks, 0.2)


def mobilenet3_of(width):
    """MobileNetV3-small's first blocks at another width."""
    block = partial(mobilenetv3.InvertedResidualConfig, width_mult=width)
    blocks = [
        block(16, 3, 16, 16, True, "RE", 2, 1), block(16, 3, 72, 24, False, "RE", 2, 1),
        block(24, 3, 88, 24, False, "RE", 1, 1), block(24, 5, 96, 40, True, "HS", 2, 1),
        block(40, 5, 240, 40, True, "HS", 1, 1), block(40, 5, 120, 48, True, "HS", 1, 1),
    ]  # fmt: skip
    return models.MobileNetV3(blocks, 576)


def vit(hidden, heads, mlp):
    return models.VisionTransformer(64, 16, 4, heads, hidden, mlp)


def timm_vit(name, **options):
    import timm

    return timm.create_model(name, img_size=64, **options)


def timm_heads(heads):
    from timm.layers.attention import Attention

    class Heads(Attention):
        def __init__(self, *args, **options):
            super().__init__(*args, **options, attn_head_dim=64)

    return timm_vit("vit_tiny_patch16_224", num_heads=heads, attn_layer=Heads)


def swin(width, heads, ratio):
    return models.SwinTransformer([4, 4], width, [2, 2], heads, [4, 4], mlp_ratio=ratio)


def convnext(width):
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    sizes = [width, 2 * width, 4 * width]
    pairs = zip(sizes, [*sizes[1:], None], [2, 2, 3], strict=True)
    return ConvNeXt([CNBlockConfig(a, b, layers) for a, b, layers in pairs])


def vgg_of(*widths):
    """VGG's layers with few classifier neurons; 49 columns of it read each channel."""
    *_, last, hidden = widths
    layers = [part for width in widths[:-1] for part in (width, "M")]
    features = [vgg.make_layers(layers, batch_norm=True), nn.AdaptiveAvgPool2d(7), nn.Flatten()]
    classifier = [nn.Linear(49 * last, hidden), nn.ReLU(), nn.Linear(hidden, 10)]
    return nn.Sequential(*features, *classifier)


def resnext(groups, width):
    return resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], groups=groups, width_per_group=width)


def densenet(growth):
    return models.DenseNet(growth, (6, 12, 24, 16), 64)


# Name → (source, target).
PAIRS = {
    "resnet50 → wide_resnet50_2": (models.resnet50, models.wide_resnet50_2),
    "resnext50 32x4d → 64x4d": (partial(resnext, 32, 4), partial(resnext, 64, 4)),
    "mobilenet_v2 1.0 → 1.4": (models.mobilenet_v2, partial(models.mobilenet_v2, width_mult=1.4)),
    "mobilenet_v3 blocks 1.0 → 1.5": (partial(mobilenet3_of, 1.0), partial(mobilenet3_of, 1.5)),
    "mnasnet0_5 → mnasnet1_0": (models.mnasnet0_5, models.mnasnet1_0),
    "densenet121, growth 32 → 40": (partial(densenet, 32), partial(densenet, 40)),
    "shufflenet_v2 x0_5 → x1_0": (models.shufflenet_v2_x0_5, models.shufflenet_v2_x1_0),
    "shufflenet_v2 x1_0 → x2_0": (models.shufflenet_v2_x1_0, models.shufflenet_v2_x2_0),
    "efficientnet_b0 blocks 1.0 → 1.2": (
        partial(efficientnet_of, 1.0),
        partial(efficientnet_of, 1.2),
    ),
    "squeezenet's Fire blocks × 1.5": (partial(fires, 8), partial(fires, 12)),
    "googlenet's Inception blocks": (
        partial(inceptions, 8, 12, 16, 4, 6, 5),
        partial(inceptions, 12, 13, 20, 7, 8, 6),
    ),
    "regnet_y, groups of 16": (
        partial(regnet_of, 32, 64, 96, 160),
        partial(regnet_of, 48, 96, 160, 256),
    ),
    "vgg with batch norm": (partial(vgg_of, 16, 32, 48, 64), partial(vgg_of, 24, 32, 64, 80)),
    "vit, mlp 384 → 512": (partial(vit, 192, 3, 384), partial(vit, 192, 3, 512)),
    "vit, heads 3 → 5 (timm)": (partial(timm_heads, 3), partial(timm_heads, 5)),
    "vit, hidden 192 → 384 and all else": (partial(vit, 192, 3, 768), partial(vit, 384, 6, 1536)),
    "vit_tiny → vit_small (timm)": (
        partial(timm_vit, "vit_tiny_patch16_224"),
        partial(timm_vit, "vit_small_patch16_224"),
    ),
    "swin, mlp ratio 4 → 6": (partial(swin, 48, [3, 6], 4.0), partial(swin, 48, [3, 6], 6.0)),
    "swin, all widths × 2": (partial(swin, 48, [3, 6], 4.0), partial(swin, 96, [6, 12], 4.0)),
    "convnext, all widths × 2": (partial(convnext, 32), partial(convnext, 64)),
}  # fmt: skip
REFUSED = {
    "resnet18 → resnet34": (models.resnet18, models.resnet34),
    "mobilenet_v2 1.4 → 1.0": (partial(models.mobilenet_v2, width_mult=1.4), models.mobilenet_v2),
    "resnext50 32x4d → 32x8d": (partial(resnext, 32, 4), partial(resnext, 32, 8)),
    "vit, hidden 192 → 256": (partial(vit, 192, 3, 384), partial(vit, 256, 4, 512)),
    "vit, head size 64 → 32": (partial(vit, 192, 3, 384), partial(vit, 192, 6, 384)),
    "1000 → 1001 classes": (models.mobilenet_v2, partial(models.mobilenet_v2, num_classes=1001)),
}


def build(pair):
    """Source and target with unlike random weights, in float64, and an input."""
    from checks import calibrated, randomised

    torch.manual_seed(0)
    example = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    source, target = pair
    return calibrated(randomised(source(), 0), example), randomised(target(), 1), example


def measure(name):
    """Transfer one pair; the check is not the library's own but the tests'."""
    from checks import errors, outputs

    import fxgrow

    source, target, example = build(PAIRS[name])
    for mode in (False, True):  # two images that look alike would test nothing
        (out,) = outputs(source, example, training=mode)
        assert (out[0] - out[1]).abs().max() > 1e-6 * out.abs().max(), name
    start = time.perf_counter()
    growth = fxgrow.transfer(source, target, example)
    seconds = time.perf_counter() - start
    totals = growth.report["totals"]
    copied = sum(g.added for g in growth.groups if g.recipe == "copies")
    return {
        "name": name,
        "params": (totals["params"], totals["new_params"]),
        "grown": len(growth.groups),
        "copied": copied,
        "errors": errors(source, growth.module, example),
        "seconds": seconds,
    }


def row(result):
    before, after = (f"{count / 1e6:.2f}" for count in result["params"])
    evaluation, training = (f"{error:.0e}" for error in result["errors"])
    cells = (
        result["name"], f"{before} → {after}", result["grown"], result["copied"] or "",
        evaluation, training, f"{result['seconds']:.1f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def refusal(name):
    """The library's words for a pair that can't be."""
    import fxgrow

    source, target, example = build(REFUSED[name])
    try:
        fxgrow.transfer(source, target, example)
    except fxgrow.UnsupportedError as error:
        return f"| {name} | {str(error).replace('|', '/')} |"
    raise SystemExit(f"{name} was to be refused, and was not")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "transfer.md")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    refusals = [refusal(name) for name in REFUSED]
    rows, worst = [], 0.0
    for name in PAIRS:
        result = measure(name)
        worst = max(worst, *result["errors"])
        rows.append(row(result))
        print(rows[-1], flush=True)
    from importlib.metadata import version

    packages = ("torch", "torchvision", "timm")
    text = PAGE.format(
        versions=", ".join(f"{name} {version(name)}" for name in packages),
        verdict=f"the largest of these {len(rows)} pairs is {worst:.0e}",
        rows="\n".join(rows),
        refusals="\n".join(refusals),
    )
    options.page.write_text(text, encoding="utf-8")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
