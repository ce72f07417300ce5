"""Models of the zoos, by names such as ``torchvision:resnet18``: built small, with inputs.

A torchvision model goes by its name, a timm model by that of its architecture's module
(``timm:resnet`` is the smallest model that this module defines, see ``data/timm_models.json``),
a transformers model by that of its family.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from unittest import mock

import torch
from checks import calibrated, doubled, randomised
from zoo_others import others
from zoo_prepared import PIXELS, prepared, smallest

SMALLEST = {"vit_b": 64, "vit_l": 64, "vit_h": 56}  # built for so few pixels: they know how many
SIZES = {"inception_v3": 299, "maxvit_t": 224}  # an auxiliary head, windows of seven
TIMM = Path(__file__).parent / "data" / "timm_models.json"


def size_of(name):
    """Pixels at which a torchvision classifier is checked: few."""
    return SMALLEST.get(name[:5]) or SIZES.get(name.removeprefix("quantized_"), 64)


def classifier(name):
    """A torchvision classifier; quantizable ones in their float form."""
    from torchvision import models

    options = {"init_weights": False} if "googlenet" in name or "inception" in name else {}
    if name.startswith("quantized"):
        options["quantize"] = False
    if name[:5] in SMALLEST:
        options["image_size"] = size_of(name)
    model = models.get_model(name, weights=None, **options)
    return prepared(model, size_of(name))


def segmenter(name):
    from torchvision import models

    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    model = models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **options)
    return prepared(model, 64)


def video(name):
    from torchvision import models

    if name.startswith("mvit"):
        return prepared(_small_mvit(name), torch.randn(2, 3, 4, 64, 64))
    frames, size = (14, 224) if name == "s3d" else (4, 64)  # it pools seven by seven
    model = models.get_model(name, weights=None, num_classes=10)
    return prepared(model, torch.randn(2, 3, frames, size, size))


def _small_mvit(name):
    """Position tables fit one size of video only, and the builder has no argument for it."""
    from torchvision.models.video import mvit

    def small(*args, spatial_size, temporal_size, **options):
        return made(*args, spatial_size=(64, 64), temporal_size=4, **options)

    made = mvit._mvit
    with mock.patch.object(mvit, "_mvit", small):
        return getattr(mvit, name)(weights=None, num_classes=10)


def flow(name):
    """RAFT, told to count its pixels in float64: its own code says float32."""
    from torchvision import models
    from torchvision.models.optical_flow import raft

    counted = raft.make_coords_grid
    raft.make_coords_grid = lambda *args: counted(*args).double()
    # The pyramid of correlations needs sixteen eighths of a pixel at its top.
    pair = torch.rand(2, 1, 3, 128, 128) * 2 - 1
    model, example = prepared(models.get_model(name, weights=None), (pair[0], pair[1]))
    return model, {"image1": example[0], "image2": example[1], "num_flow_updates": 2}


def target(size, *, masks=False, keypoints=False):
    """What a detector is trained towards: two boxes an image."""
    boxes = torch.tensor([[4.0, 6.0, 40.0, 44.0], [10.0, 12.0, 58.0, 60.0]])
    found = {"boxes": boxes, "labels": torch.tensor([1, 1])}
    if masks:
        found["masks"] = torch.zeros(2, size, size, dtype=torch.uint8)
        found["masks"][:, 10:40, 12:40] = 1
    if keypoints:
        found["keypoints"] = torch.tensor([[[20.0, 20.0, 1.0]] * 17, [[30.0, 40.0, 1.0]] * 17])
    return found


def detector(name):
    """A detector that finds something: no score is too low for it."""
    from torchvision import models

    rcnn = "rcnn" in name
    limit = {"box_score_thresh": 0.0} if rcnn else {"score_thresh": 0.0}
    sizes = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 128}
    model = models.get_model(
        name, weights=None, weights_backbone=None, **limit, **sizes, **_few(name)
    )
    images = [torch.rand(3, 96, 96), torch.rand(3, 96, 112)]
    targets = [
        target(s, masks=name.startswith("mask"), keypoints=name.startswith("key")) for s in (96, 96)
    ]
    if name.startswith("mask"):
        targets[1]["masks"] = torch.nn.functional.pad(targets[1]["masks"], (0, 16))
    model = randomised(model)
    # Keypoints must be float32, says its code.
    targets = [{k: v if k == "keypoints" else doubled(v) for k, v in t.items()} for t in targets]
    example = ([i.double() for i in images], targets)
    return calibrated(model, example), example


def _few(name):
    """Few proposals and detections, so that a check takes seconds."""
    if "rcnn" in name:
        few = {"rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 50}
        few |= {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20}
        return {**few, "box_detections_per_img": 5}
    few = {"detections_per_img": 5, "topk_candidates": 50}
    # It multiplies pixels by 255: random weights would make every score 1, every box the image.
    return {**few, "image_std": [1.0] * 3} if name == "ssd300_vgg16" else few


def torchvision_kinds():
    """Name of every torchvision model, with what builds it."""
    from torchvision import models

    kinds = {name: classifier for name in models.list_models(module=models)}
    kinds |= {name: classifier for name in models.list_models(module=models.quantization)}
    for module, build in (
        (models.segmentation, segmenter),
        (models.video, video),
        (models.optical_flow, flow),
        (models.detection, detector),
    ):
        kinds |= {name: build for name in models.list_models(module=module)}
    return kinds


def of_torchvision(name):
    return torchvision_kinds()[name](name)


def of_timm(module):
    """The smallest timm model of an architecture's module, at the fewest pixels that it takes."""
    import timm

    name = json.loads(TIMM.read_text(encoding="utf-8"))[module]
    told = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    native, least = told.input_size[-1], (told.min_input_size or told.input_size)[-1]
    return smallest(lambda size: _timm_model(name, size, native), (*PIXELS, least, native))


def _timm_model(name, size, native):
    import timm

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if size != native:
            try:
                return timm.create_model(name, pretrained=False, img_size=size)
            except TypeError:  # a model of any size has no such argument
                pass
        return timm.create_model(name, pretrained=False)


def of_transformers(family):
    """A small model of transformers, from a random configuration."""
    from networks_language import made

    model, inputs, _ = made(family, attention="eager")
    return randomised(model), inputs


def transformers_families():
    from networks_language import MODELS

    return list(MODELS)


ZOOS = {
    "torchvision": (of_torchvision, lambda: list(torchvision_kinds())),
    "timm": (of_timm, lambda: list(json.loads(TIMM.read_text(encoding="utf-8")))),
    "transformers": (of_transformers, transformers_families),
}


def names(zoo=None):
    """Names of all models, or of those of one zoo (of further libraries only then)."""
    chosen = ZOOS if zoo is None else {zoo: {**ZOOS, **others()}[zoo]}
    return [f"{z}:{n}" for z, (_, listed) in chosen.items() for n in listed()]


def build(name):
    """A model with random weights, float64, dropout off, and its example inputs."""
    zoo, _, short = name.rpartition(":")
    torch.manual_seed(0)
    return {**ZOOS, **others()}[zoo or "torchvision"][0](short)
