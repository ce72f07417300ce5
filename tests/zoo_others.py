"""Models of further libraries, which nothing was built for; see :mod:`zoo_models`.

They are optional: what is not installed has no names here. pytorchcv goes by the modules of its
architectures (the first model of each that has the fewest letters), segmentation_models_pytorch
by its decoders, vit-pytorch by its modules, with small sizes by the names of their arguments,
the libraries of :mod:`zoo_wider` by their classes.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import partial
from importlib.util import find_spec

import torch
from zoo_prepared import PIXELS, prepared, smallest
from zoo_wider import WIDER, of_wider

# Arguments of vit-pytorch's classes, by name: as small as its examples allow.
SMALL = {
    "image_size": 64, "patch_size": 16, "image_patch_size": 16, "num_classes": 10, "dim": 32,
    "depth": 2, "heads": 4, "mlp_dim": 64, "channels": 3, "dim_head": 8, "frames": 4,
    "frame_patch_size": 2, "seq_len": 64, "max_tokens_per_depth": (9, 4), "cls_depth": 2,
    "num_memories": 4, "num_patches": 8, "num_tokens": 10, "max_length": 16,
    "spatial_depth": 2, "temporal_depth": 2, "num_register_tokens": 2, "s1_emb_dim": 32,
}  # fmt: skip
CLASSES = {  # where a module has several, its examples take this one
    "cait": "CaiT", "cct": "CCT", "nest": "NesT", "pit": "PiT", "rvt": "RvT", "t2t": "T2TViT",
}  # fmt: skip


def pytorchcv_families():
    """Module of every architecture, with the model that is checked."""
    from pytorchcv import model_provider

    found = {}
    for name, build in model_provider._models.items():
        module = build.__module__.rpartition(".")[2]
        if module not in found or (len(name), name) < (len(found[module]), found[module]):
            found[module] = name
    return dict(sorted(found.items()))


def of_pytorchcv(module):
    from pytorchcv import model_provider

    name = pytorchcv_families()[module]
    first = model_provider.get_model(name, pretrained=False)
    native = max(getattr(first, "in_size", (224, 224)))

    def make(_):
        return model_provider.get_model(name, pretrained=False)

    return smallest(make, (*PIXELS, native), getattr(first, "in_channels", 3))


def decoders():
    import segmentation_models_pytorch as smp

    return sorted(key for key in smp.MODEL_ARCHITECTURES_MAPPING)


def of_smp(decoder):
    import segmentation_models_pytorch as smp

    encoder = "tu-vit_tiny_patch16_224" if decoder == "dpt" else "resnet18"
    options = {"encoder_weights": None, "classes": 5}
    if decoder == "dpt":
        options["dynamic_img_size"] = True
    return prepared(smp.create_model(decoder, encoder, **options), 64)


def vit_modules():
    import vit_pytorch

    return sorted(m.name for m in pkgutil.iter_modules(vit_pytorch.__path__))


def of_vit_pytorch(module):
    """The class of a module that takes images; arguments by their names."""
    own = importlib.import_module(f"vit_pytorch.{module}")
    classes = {
        name: c
        for name, c in vars(own).items()
        if inspect.isclass(c) and issubclass(c, torch.nn.Module) and c.__module__ == own.__name__
    }
    name = CLASSES.get(module) or list(classes)[-1]
    wanted = inspect.signature(classes[name]).parameters
    given = {k: v for k, v in SMALL.items() if k in wanted and wanted[k].default is wanted[k].empty}
    given |= {k: SMALL[k] for k in ("dim_head", "num_classes") if k in wanted}
    model = classes[name](**given)
    shape = (2, 3, 4, 64, 64) if "frames" in given else (2, 3, 64, 64)
    if "seq_len" in given:
        shape = (2, 3, 64)
    return prepared(model, torch.randn(shape))


OTHERS = {
    "pytorchcv": ("pytorchcv", of_pytorchcv, lambda: list(pytorchcv_families())),
    "smp": ("segmentation_models_pytorch", of_smp, decoders),
    "vit-pytorch": ("vit_pytorch", of_vit_pytorch, vit_modules),
    **{
        zoo: (package, partial(of_wider, zoo), partial(list, table))
        for zoo, (package, _, table) in WIDER.items()
    },
}


def others():
    """Those of the libraries that are installed, as :data:`zoo_models.ZOOS` has them."""
    return {
        zoo: (build, names) for zoo, (package, build, names) in OTHERS.items() if find_spec(package)
    }
