"""MODEL references → models: files, zoos, Python factories."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fxgrow import io
from fxgrow.errors import FileError, InputError

from .references import call, first_line, is_code_reference, resolve

FORMS = "a .pt or .safetensors file, torchvision:NAME, timm:NAME, module:factory, file.py:factory"
_STATE_KEYS = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, torch.compile


@dataclass(frozen=True, eq=False)
class Found:
    """A model and what its source tells of its inputs.

    Attributes
    ----------
    model : torch.nn.Module
        On the CPU.
    stem : str
        What an output file is called after.
    inputs : tuple, dict or None
        Stored example inputs.
    zoo_size : tuple of int or None
        Size of one input as its zoo documents it, without the batch.
    path : Path or None
        The file it came from.
    history : tuple of dict
        Earlier growths, when it is a grown model of ours.
    """

    model: torch.nn.Module
    stem: str
    inputs: Any = None
    zoo_size: tuple[int, ...] | None = None
    path: Path | None = None
    history: tuple[dict[str, Any], ...] = ()


def find_model(
    reference: str, *, arch: str | None = None, trust_pickle: bool = False, seed: int = 0
) -> Found:
    """Load or build the model that ``reference`` names.

    Raises
    ------
    FileError
        If a file is missing, damaged, or a pickle that is not trusted.
    InputError
        If the reference has no known form, or ``arch`` is missing or does not fit.
    """
    path = Path(reference)
    if path.suffix in {".pt", ".pth", ".bin", ".ckpt"}:
        return _from_checkpoint(path, arch, trust_pickle, seed)
    if path.name.endswith((".safetensors", ".safetensors.index.json")):
        return _from_growth(path, arch, seed)
    if arch is not None:
        msg = f"--arch goes with a file of weights; {reference!r} is a model already"
        raise InputError(msg)
    return build(reference, seed)


def build(reference: str, seed: int = 0) -> Found:
    """Build a model from ``torchvision:``, ``timm:``, ``module:factory``, ``file.py:factory``."""
    zoo, _, name = reference.partition(":")
    builder = {"torchvision": _torchvision, "timm": _timm}.get(zoo)
    if builder is None and not is_code_reference(reference):
        what = "there is no such file" if Path(reference).suffix else "is no model reference"
        msg = f"{reference}: {what}; MODEL is {FORMS}"
        raise InputError(msg)
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        # zoos announce future changes of their initialisation: of no use to our reader
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        found = _factory(reference) if builder is None else builder(name)
    return replace(found, inputs=_stored_inputs(found.model, found.inputs))


# ---------------------------------------------------------------- zoos, code


def _torchvision(name: str) -> Found:
    from torchvision import models

    try:
        model = models.get_model(name, weights=None, **_quiet(name))
    except ValueError:
        near = _near(name, models.list_models())
        msg = f"torchvision has no model {name!r}; {near}"
        raise InputError(msg) from None
    return Found(model, name, zoo_size=_torchvision_size(name))


def _quiet(name: str) -> dict[str, bool]:
    """Keep two old models from changing how they are initialised (and from warning)."""
    return {"init_weights": True} if name in {"googlenet", "inception_v3"} else {}


def _torchvision_size(name: str) -> tuple[int, ...] | None:
    from torchvision import models

    for weights in models.get_model_weights(name):
        size = getattr(weights.transforms(), "crop_size", None)
        if size:
            side = tuple(size) if len(size) == 2 else (size[0], size[0])
            return (3, *side)
    return None


def _timm(name: str) -> Found:
    try:
        import timm
    except ModuleNotFoundError:
        msg = "timm is not installed; `pip install timm` brings its models"
        raise InputError(msg) from None
    if not timm.is_model(name):
        msg = f"timm has no model {name!r}; {_near(name, timm.list_models())}"
        raise InputError(msg)
    model = timm.create_model(name, pretrained=False)
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    return Found(model, name, zoo_size=tuple(size) if size else None)


def _near(name: str, offers: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, offers, n=3)
    return f"did you mean {', '.join(near)}?" if near else f"it has {len(offers)} others"


def _factory(reference: str) -> Found:
    made = resolve(reference)
    if not isinstance(made, torch.nn.Module):
        made = call(made, reference)
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, torch.nn.Module):
        msg = (
            f"{reference}: gave {type(model).__name__}; it must give a torch.nn.Module, "
            "or a pair (module, example inputs)"
        )
        raise InputError(msg)
    return Found(model, reference.rpartition(":")[2].rpartition(".")[2], inputs)


def _stored_inputs(model: torch.nn.Module, inputs: Any) -> Any:
    """Prefer what came with the model; else its attribute (the second is Lightning's)."""
    if inputs is None:
        inputs = getattr(model, "example_inputs", None)
    if inputs is None:
        inputs = getattr(model, "example_input_array", None)
    return inputs if isinstance(inputs, (torch.Tensor, tuple, dict)) else None


# --------------------------------------------------------------------- files


def _from_checkpoint(path: Path, arch: str | None, trust: bool, seed: int) -> Found:
    content = io.open_pickle(path, trust=trust)
    inputs = content.get("example_inputs") if isinstance(content, dict) else None
    whole = _whole_module(content)
    if whole is not None:
        if arch is not None:
            msg = f"{path}: holds a whole module, so leave --arch out"
            raise InputError(msg)
        return Found(whole, path.stem, _stored_inputs(whole, inputs), path=path)
    weights = _state_dict(path, content)
    arch = arch or _own_arch(content)
    if arch is None:
        msg = f"{path}: holds weights only; name what builds the model: --arch torchvision:resnet18"
        raise InputError(f"{msg} or --arch file.py:factory")
    found = build(arch, seed)
    _load_weights(path, arch, found.model, weights)
    if inputs is None:
        inputs = found.inputs
    return replace(found, stem=path.stem, path=path, inputs=inputs)


def _own_arch(content: Any) -> str | None:
    """Read a checkpoint's own ``"arch"``; only zoo names, for others would run local code."""
    arch = content.get("arch") if isinstance(content, dict) else None
    if isinstance(arch, str) and arch.startswith(("torchvision:", "timm:")):
        return arch
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
    path: Path, arch: str, model: torch.nn.Module, weights: Mapping[str, torch.Tensor]
) -> None:
    try:
        model.load_state_dict(weights, strict=True)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        details = [line.strip() for line in str(error).splitlines()[1:]]
        why = details[0] if details else first_line(error)
        msg = f"{path}: its weights don't fit --arch {arch}: {why[:200]}"
        raise InputError(msg) from error


def _from_growth(path: Path, arch: str | None, seed: int) -> Found:
    meta = io.read_meta(path)
    if arch is None:
        msg = f"{path}: is a growth; name the model it grew from: --arch torchvision:resnet18"
        raise InputError(f"{msg} or --arch file.py:factory")
    base = build(arch, seed)
    growth = io.load(path, base.model)
    inputs = io.example_inputs(meta["inputs"])
    steps = tuple(meta["steps"])
    stem = path.name.partition(".safetensors")[0]
    return replace(base, model=growth.module, stem=stem, inputs=inputs, path=path, history=steps)
