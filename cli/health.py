"""What ``fxgrow doctor`` says: versions, devices, and what a model would need."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from fxgrow.errors import FxgrowError

from .discover import Source, find_model
from .shapes import describe, find_inputs, run
from .work import Opened, inspect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .zoos import Found

SCHEMA = "fxgrow.doctor/1"
NEEDED = ("torch", "torchvision", "safetensors", "networkx", "numpy", "rich", "typer")
OPTIONAL: Mapping[str, str] = {
    "timm": "zoo",
    "transformers": "transformers",
    "matplotlib": "plot",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "scikit-learn": "demo",
    "lightning": "lightning",
    "accelerate": "accelerate",
}
"""Package → the extra that brings it."""


def here() -> dict[str, Any]:
    """Say what is installed, and what computes here."""
    return {
        "schema": SCHEMA,
        "fxgrow": _version("fxgrow"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cuda": torch.version.cuda,
        "packages": {name: _version(name) for name in NEEDED},
        "optional": {
            name: {"version": _version(name), "extra": extra} for name, extra in OPTIONAL.items()
        },
        "devices": _devices(),
        "model": None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: list[dict[str, Any]] = [
        {"name": "cpu", "what": f"{cores} cores, {torch.get_num_threads()} threads", "bytes": None}
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            found.append(
                {"name": f"cuda:{index}", "what": card.name, "bytes": int(card.total_memory)}
            )
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "what": "Apple GPU", "bytes": None})
    return found


def needs(source: Source, shapes: Sequence[str]) -> dict[str, Any]:
    """Try step by step to open, run and analyse a model; say how far that goes.

    Returns
    -------
    dict
        ``problem``: None, or one sentence on what the model still needs. Times in
        seconds, memory in bytes.
    """
    report: dict[str, Any] = {
        "reference": source.reference,
        "problem": None,
        **dict.fromkeys(("class", "params", "dtype", "inputs", "forward_seconds")),
        **dict.fromkeys(("analysis_seconds", "groups", "frozen", "coverage", "unsupported")),
        **dict.fromkeys(("grow_bytes", "train_bytes")),
    }
    steps: tuple[Callable[[dict[str, Any]], None], ...]
    found: list[Any] = []

    def opened(known: dict[str, Any]) -> None:
        found.append(find_model(source))
        known.update(_size(found[0]))

    def ran(known: dict[str, Any]) -> None:
        inputs = find_inputs(found[0], shapes, source.seed)
        found.append(inputs)
        begin = time.perf_counter()
        run(found[0].model, inputs)
        known.update(inputs=describe(inputs), forward_seconds=time.perf_counter() - begin)

    def analysed(known: dict[str, Any]) -> None:
        begin = time.perf_counter()
        seen = inspect(Opened(found[0], found[1], bool(shapes)), (), (), strict=False)
        known.update(
            analysis_seconds=time.perf_counter() - begin,
            groups=len(seen.groups),
            frozen=len(seen.frozen),
            coverage=seen.coverage,
            unsupported=[operation.op for operation in seen.unsupported],
        )

    steps = (opened, ran, analysed)
    for step in steps:
        try:
            step(report)
        except FxgrowError as error:
            report["problem"] = " ".join(str(error).split())
            break
    return report


def _size(found: Found) -> dict[str, Any]:
    parameters = list(found.model.parameters())
    tensors = [*parameters, *found.model.buffers()]
    weights = sum(t.numel() * t.element_size() for t in tensors)
    floats = (p for p in parameters if p.is_floating_point())
    first = next(floats, torch.zeros(()))
    return {
        "class": type(found.model).__name__,
        "params": sum(p.numel() for p in parameters),
        "dtype": str(first.dtype).removeprefix("torch."),
        # the original, the wider one, and the clone that votes with its gradients and moments
        "grow_bytes": 5 * weights,
        "train_bytes": 4 * weights,  # weights, gradients, two moments of Adam
    }
