"""Analysis against Torch-Pruning on the same models, and its growth with depth.

Run by ``python benchmarks/analysis.py --peer``, ``--depth`` and ``--page``. Every model is
measured in a process of its own: one forward pass, ``fxgrow.inspect``, and Torch-Pruning's
``build_dependency`` with all its groups take turns on one thread. Seconds are those of the
processor (wall-clock seconds are kept beside them), so that other programs disturb less.
"""

from __future__ import annotations

import copy
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import fxgrow

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "analysis.json"
PAGE = ROOT / "docs" / "speed.md"
INSTALL = "the peer is not installed: pip install 'fxgrow[bench]' (or torch-pruning)"
MODELS = (
    *("alexnet", "convnext_tiny", "densenet121", "densenet201", "efficientnet_b0"),
    *("efficientnet_b4", "googlenet", "inception_v3", "maxvit_t", "mnasnet1_0"),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "regnet_x_400mf"),
    *("regnet_y_400mf", "resnet18", "resnet50", "resnet152", "shufflenet_v2_x1_0"),
    *("squeezenet1_0", "swin_t", "vgg16_bn", "vit_b_16"),
    *("timm:resnet10t", "timm:convnext_atto", "timm:ghostnet_050", "timm:levit_128s"),
    *("timm:mixer_s32_224", "timm:mobilevit_xxs", "timm:vit_tiny_patch16_224"),
)
DEPTHS = (18, 20, 56, 110, 164, 326, 650, 1202)
SIZES = {"inception_v3": 299}
MARK = "figure: "
AIM = 5.0


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, before, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity()
        if before != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.shortcut(x))


def resnet(depth):
    """A residual network for small images: 3 stages (4 for 18 layers) of equal length."""
    stages = 4 if depth == 18 else 3
    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    before = 16
    for stage in range(stages):
        for i in range((depth - 2) // (2 * stages)):
            layers.append(Block(before, 16 << stage, 2 if stage and not i else 1))
            before = 16 << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def build(name, size):
    """Return a model in eval mode with random weights, and one example."""
    torch.manual_seed(0)
    if name.startswith("depth:"):
        return resnet(int(name[6:])).eval(), torch.randn(1, 3, size, size)
    if name.startswith("timm:"):
        import timm

        model = timm.create_model(name[5:], pretrained=False).eval()
        return model, torch.randn(1, *model.default_cfg["input_size"])
    import torchvision

    plain = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    model = torchvision.models.get_model(name, weights=None, **plain).eval()
    return model, torch.randn(1, 3, *[SIZES.get(name, size)] * 2)


def peer_of(model, example):
    """Return what the peer does for an analysis."""
    try:
        import torch_pruning
    except ImportError:
        raise SystemExit(INSTALL) from None

    def run():
        graph = torch_pruning.DependencyGraph().build_dependency(model, example)
        return list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))

    return run


def timed(action):
    """Processor and wall-clock seconds of one call, which pays for no one else's garbage."""
    gc.collect()
    wall, own = time.perf_counter(), time.process_time()
    action()
    return time.process_time() - own, time.perf_counter() - wall


def in_turns(actions, repeats, limit):
    """Medians of several rounds, fewer where they take longer than ``limit`` seconds."""
    found = {name: [] for name in actions}
    begin = time.perf_counter()
    for turn in range(repeats + 1):
        for name, action in actions.items():
            spent = timed(action)
            if turn:  # the first one warms up
                found[name].append(spent)
        if turn > 1 and time.perf_counter() - begin > limit:
            break
    return {
        name: {
            "seconds": statistics.median(s for s, _ in own),
            "wall": statistics.median(w for _, w in own),
            "repeats": len(own),
        }
        for name, own in found.items()
    }


def tell(**figure):
    """Hand figures to the parent; later ones replace earlier ones."""
    print(MARK + json.dumps(figure), flush=True)


def measure_one(name, size, repeats, peer=True):
    """Measure one model, in this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, example = build(name, size)
    twin = copy.deepcopy(model)

    def forward():
        with torch.no_grad():
            model(example)

    own = {"forward": forward, "inspect": lambda: fxgrow.inspect(model, example)}
    own["deepcopy"] = lambda: copy.deepcopy(model)
    found = fxgrow.inspect(model, example)
    graphs = [graph for _, graph in found.analysis.traced.distinct]
    about = {
        "model": name,
        "size": example.shape[-1],
        "operations": sum(len(graph.nodes) for graph in graphs),
        "graphs": len(graphs),
        "groups": len(found.groups),
    }
    alone = in_turns(own, min(repeats, 3), 5)
    tell(**about, **alone, peer_error="over the time limit")
    if not peer:
        return
    run = peer_of(twin, example)
    try:
        spent, wall = timed(run)
    except SystemExit:
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the result
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        tell(**about, **alone, peer_error=reason)
        return
    once = {"seconds": spent, "wall": wall, "repeats": 1}
    tell(**about, **alone, peer=once, peer_error="")
    tell(**about, **in_turns({**own, "peer": run}, repeats, 15), peer_error="")


def measure(name, size, repeats, timeout):
    """Measure one model in a process of its own; what it told before the limit counts."""
    command = [sys.executable, str(Path(__file__).with_name("analysis.py")), name]
    command += ["--one", "--size", str(size), "--repeats", str(repeats)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout + 45, check=False)
        out, errors = done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        out, errors = late.stdout or b"", b"over the time limit"
    lines = [line for line in out.decode().splitlines() if line.startswith(MARK)]
    if not lines:
        text = errors.decode().strip().splitlines() or ["nothing was said"]
        if text[-1].startswith("the peer is not installed"):
            raise SystemExit(text[-1])
        return {"model": name, "error": text[-1][:200]}
    return json.loads(lines[-1][len(MARK) :])


def run(kind, names, size, repeats, timeout, into=RESULTS):
    """Measure many models and keep the figures."""
    known = json.loads(into.read_text()) if into.exists() else {}
    known["versions"] = versions()
    rows = known[kind] = []
    for name in names:
        row = measure(name, size, repeats, timeout)
        rows.append(row)
        print(line(row), flush=True)
        into.write_text(json.dumps(known, indent=1) + "\n")


def versions():
    """What the figures were made with."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "timm", "torch-pruning"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def ratio(row):
    """Seconds of the peer over ours, None where it has none."""
    return row["peer"]["seconds"] / row["inspect"]["seconds"] if "peer" in row else None


def line(row):
    """Describe one model's figures in a line."""
    if "error" in row:
        return f"{row['model']}: {row['error']}"
    times = " ".join(
        f"{k} {row[k]['seconds'] * 1e3:.1f}" for k in ("forward", "inspect", "peer") if k in row
    )
    end = f"{ratio(row):.2f}x" if "peer" in row else row["peer_error"]
    return f"{row['model']}: {row['operations']} ops, ms {times}, {end}"


def slope(rows, what="inspect"):
    """Exponent of a power law fitted to seconds over operations."""
    from math import log

    xs = [log(row["operations"]) for row in rows]
    ys = [log(row[what]["seconds"]) for row in rows]
    return statistics.linear_regression(xs, ys).slope
