"""MODEL references → models; here those that are files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from fxgrow import io
from fxgrow.errors import FileError, InputError
from fxgrow.files.shards import INDEX

from .references import ZOOS, first_line
from .zoos import Found, build, stored_inputs

_STATE_KEYS = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, torch.compile
WEIGHTS = frozenset({".pt", ".pth", ".bin", ".ckpt", ".safetensors"})


@dataclass(frozen=True)
class Source:
    """How a model is to be had.

    Attributes
    ----------
    reference : str
        One of the forms of MODEL.
    arch : str or None
        What builds the model that a file of weights is for.
    trust_pickle : bool
        Whether a pickled module may be opened, which runs code.
    kwargs : mapping
        Passed to what builds the model.
    seed : int
        Of initial weights.
    """

    reference: str
    arch: str | None = None
    trust_pickle: bool = False
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def is_file(self) -> bool:
        """Whether it is a file of weights or a pickled module."""
        zoo = self.reference.startswith(ZOOS)
        path = Path(self.reference)
        return not zoo and (path.suffix in WEIGHTS or path.name.endswith(INDEX))


def find_model(source: Source) -> Found:
    """Load or build the model that a source names.

    Raises
    ------
    FileError
        If a file is missing, damaged, or a pickle that is not trusted.
    InputError
        If the reference has no known form, or ``arch`` is missing or does not fit.
    """
    if source.is_file:
        path = Path(source.reference)
        if path.suffix != ".safetensors" and not path.name.endswith(INDEX):
            return _from_checkpoint(path, source)
        return _from_growth(path, source) if _is_growth(path) else _from_tensors(path, source)
    if source.arch is not None:
        msg = f"--arch goes with a file of weights; {source.reference!r} is a model already"
        raise InputError(msg)
    return build(source.reference, source.seed, source.kwargs)


def is_whole(source: Source) -> bool:
    """Whether a file holds a whole module, as far as it may be opened to see."""
    path = Path(source.reference)
    if path.suffix == ".safetensors" or not source.trust_pickle:
        return False
    return _whole_module(io.open_pickle(path, trust=source.trust_pickle)) is not None


# --------------------------------------------------------------------- files


def _from_checkpoint(path: Path, source: Source) -> Found:
    content, arch = io.open_pickle(path, trust=source.trust_pickle), source.arch
    inputs = content.get("example_inputs") if isinstance(content, dict) else None
    whole = _whole_module(content)
    if whole is not None:
        if arch is not None:
            msg = f"{path}: holds a whole module, so leave --arch out"
            raise InputError(msg)
        if source.kwargs:
            msg = f"{path}: holds a whole module, so leave --model-kwargs out"
            raise InputError(msg)
        return Found(whole, path.stem, stored_inputs(whole, inputs), path=path)
    weights = _state_dict(path, content)
    arch = arch or _own_arch(content)
    if arch is None:
        msg = f"{path}: holds weights only; name what builds the model: --arch torchvision:resnet18"
        raise InputError(f"{msg} or --arch file.py:factory")
    found = build(arch, source.seed, source.kwargs)
    _load_weights(path, arch, found.model, weights)
    if inputs is None:
        inputs = found.inputs
    return replace(found, stem=path.stem, path=path, inputs=inputs)


def _own_arch(content: Any) -> str | None:
    """Read a checkpoint's own ``"arch"``; only zoo names, for others would run local code."""
    arch = content.get("arch") if isinstance(content, dict) else None
    if isinstance(arch, str) and arch.startswith(("torchvision:", "timm:")) and "@" not in arch:
        return arch  # without @: no file makes us download anything
    return None


def _whole_module(content: Any) -> torch.nn.Module | None:
    if isinstance(content, Mapping):
        content = content.get("model")
    return content if isinstance(content, torch.nn.Module) else None


def _state_dict(path: Path, content: Any) -> dict[str, torch.Tensor]:
    if isinstance(content, Mapping):
        for candidate in (content, *(content.get(key) for key in _STATE_KEYS)):
            if isinstance(candidate, Mapping) and _is_state(candidate):
                return _unwrapped(candidate)
    what = type(content).__name__
    msg = f"{path}: holds a {what}, neither a module nor a state dict; save model.state_dict()"
    raise FileError(msg)


def _is_state(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(tensor, torch.Tensor) for tensor in value.values())


def _unwrapped(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return dict(state)


def _load_weights(
    path: Path,
    arch: str,
    model: torch.nn.Module,
    weights: Mapping[str, torch.Tensor],
    remark: str = "",
) -> None:
    try:
        model.load_state_dict(weights, strict=True)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        details = [line.strip() for line in str(error).splitlines()[1:]]
        why = details[0] if details else first_line(error)
        msg = f"{path}: its weights don't fit --arch {arch}: {why[:200]}{remark}"
        raise InputError(msg) from error


def _is_growth(path: Path) -> bool:
    """Tell our own files from plain weights; what is neither is refused by who reads growths."""
    if path.name.endswith(INDEX):
        return True
    try:
        with safe_open(str(path), framework="pt") as file:
            return "fxgrow" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return True


def _from_tensors(path: Path, source: Source) -> Found:
    """Read plain weights, as other programs write them."""
    if source.arch is None:
        msg = (
            f"{path}: holds weights, but was not written by fxgrow; name what builds the model: "
            "--arch torchvision:resnet18 or --arch file.py:factory"
        )
        raise InputError(msg)
    found = build(source.arch, source.seed, source.kwargs)
    weights = _unwrapped(load_file(path))
    _load_weights(path, source.arch, found.model, weights, ", and was not written by fxgrow")
    return replace(found, stem=path.stem, path=path)


def _from_growth(path: Path, source: Source) -> Found:
    meta = io.read_meta(path)
    if source.arch is None:
        msg = f"{path}: is a growth; name the model it grew from: --arch torchvision:resnet18"
        raise InputError(f"{msg} or --arch file.py:factory")
    base = build(source.arch, source.seed, source.kwargs)
    growth = io.load(path, base.model)
    return replace(
        base,
        model=growth.module,
        stem=path.name.partition(".safetensors")[0],
        inputs=io.example_inputs(meta["inputs"]),
        path=path,
        history=tuple(meta["steps"]),
        growth=growth,
    )
