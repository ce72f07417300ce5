"""Networks that people use, small: ``MODELS[name]`` builds (library, model, inputs)."""

from __future__ import annotations

import functools

import torch
from torch import nn


def image(size, count=2, channels=3):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def _vision(build, size=64):
    def made():
        import torchvision

        return "torchvision", build(torchvision.models), image(size)

    return made


def _small_head(model, inputs):
    model.classifier = nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 10))
    return model


def _convnext(m):
    from torchvision.models.convnext import CNBlockConfig

    return m.ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], num_classes=10)


def _swin(m, version=1):
    from torchvision.models import swin_transformer as s

    own = {1: {}, 2: {"block": s.SwinTransformerBlockV2, "downsample_layer": s.PatchMergingV2}}
    return m.SwinTransformer(
        [2, 2],
        24,
        [2, 2],
        [3, 6],
        [4, 4],
        num_classes=10,
        stochastic_depth_prob=0.0,
        **own[version],
    )


def _detector():
    import torchvision

    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    )
    images = list(image(96))
    boxes = torch.tensor([[10.0, 10, 60, 60], [30, 20, 90, 80]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 3])} for _ in images]
    return "torchvision", model, (images, targets)


def _video():
    import torchvision

    x = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    return "torchvision", torchvision.models.video.mc3_18(num_classes=10), x


def _flow():
    import torchvision

    model = torchvision.models.optical_flow.raft_small()
    return "torchvision", model, {"image1": image(128), "image2": image(128), "num_flow_updates": 2}


def _quantizable():
    import torchvision

    model = torchvision.models.quantization.resnet18(weights=None, quantize=False, num_classes=10)
    return "torchvision", model, image(64)


def _timm(name, size=64, **options):
    def made():
        import timm

        return (
            "timm",
            timm.create_model(name, pretrained=False, num_classes=10, **options),
            image(size),
        )

    return made


def _mixer():
    import timm

    model = timm.models.MlpMixer(10, 32, patch_size=8, num_blocks=2, embed_dim=32)
    return "timm", model, image(32)


def _language(name):
    from networks_language import made

    model, inputs, _ = made(name)
    single = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return "transformers", model.float(), single


SMALL_VIT = {"depth": 2, "embed_dim": 32, "num_heads": 4}
MODELS = {
    "alexnet": _vision(lambda m: _small_head(m.AlexNet(10), 256 * 36)),
    "vgg11_bn": _vision(lambda m: _small_head(m.vgg11_bn(init_weights=False), 512 * 49), 32),
    "resnet18": _vision(lambda m: m.resnet18(num_classes=10)),
    "densenet": _vision(lambda m: m.DenseNet(8, (2, 2, 2), 16, num_classes=10)),
    "mobilenet_v2": _vision(lambda m: m.mobilenet_v2(num_classes=10)),
    "mobilenet_v3_small": _vision(lambda m: m.mobilenet_v3_small(num_classes=10)),
    "mnasnet0_5": _vision(lambda m: m.mnasnet0_5(num_classes=10)),
    "squeezenet1_1": _vision(lambda m: m.squeezenet1_1(num_classes=10)),
    "shufflenet_v2_x0_5": _vision(lambda m: m.shufflenet_v2_x0_5(num_classes=10)),
    "regnet_y_400mf": _vision(lambda m: m.regnet_y_400mf(num_classes=10)),
    "efficientnet_b0": _vision(lambda m: m.efficientnet_b0(num_classes=10)),
    "convnext": _vision(_convnext, 32),
    "vit": _vision(lambda m: m.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=10), 32),
    "swin": _vision(_swin, 32),
    "swin_v2": _vision(functools.partial(_swin, version=2), 32),
    "maxvit": _vision(lambda m: m.MaxVit((32, 32), 8, 4, [16], [1], 4, 0.0, num_classes=10), 32),
    "ssdlite320": _detector,
    "lraspp": _vision(
        lambda m: m.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=5
        )
    ),
    "mc3_18": _video,
    "raft_small": _flow,
    "quantizable_resnet18": _quantizable,
    "timm_vit": _timm("vit_tiny_patch16_224", 32, img_size=32, patch_size=8, **SMALL_VIT),
    "timm_swin": _timm(
        "swin_tiny_patch4_window7_224",
        32,
        img_size=32,
        patch_size=2,
        window_size=4,
        depths=(2, 2),
        embed_dim=24,
        num_heads=(3, 6),
        drop_path_rate=0.0,
    ),
    "timm_convnext_atto": _timm("convnext_atto"),
    "timm_mobilenetv3_small_050": _timm("mobilenetv3_small_050"),
    "timm_mixer": _mixer,
    "timm_levit_128s": _timm("levit_128s", 64, img_size=64),
    "timm_coatnet_nano": _timm("coatnet_nano_rw_224", 64, img_size=64),
    "timm_regnety_002": _timm("regnety_002"),
    "timm_resnet10t": _timm("resnet10t"),
    "timm_mobilevitv2_050": _timm("mobilevitv2_050"),
    **{
        f"hf_{name}": functools.partial(_language, name)
        for name in ("bert", "gpt2", "llama", "mixtral", "t5", "vit", "swin", "clip", "whisper")
    },
}


def build(name, seed=0):
    """Library, model and inputs; heads that begin as zeros get values, else all outputs are 0."""
    torch.manual_seed(seed)
    library, model, example = MODELS[name]()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1 and not p.any():
                nn.init.normal_(p, std=0.1)
    return library, model, example
