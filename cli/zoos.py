"""Models by reference: torchvision, timm, the Hugging Face hub, folders, Python factories."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxgrow.errors import FileError, InputError

from .references import CALL_ERRORS, call, first_line, is_code_reference, resolve
from .suggest import hint, near

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fxgrow import Growth

FORMS = (
    "a .pt or .safetensors file, torchvision:NAME, timm:NAME, hf-hub:ORG/NAME, local-dir:FOLDER, "
    "module:factory or file.py:factory"
)


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
    growth : Growth or None
        The last of these.
    """

    model: torch.nn.Module
    stem: str
    inputs: Any = None
    zoo_size: tuple[int, ...] | None = None
    path: Path | None = None
    history: tuple[dict[str, Any], ...] = ()
    growth: Growth | None = None


def build(reference: str, seed: int = 0, kwargs: Mapping[str, Any] | None = None) -> Found:
    """Build the model that a reference to a zoo, a folder or Python code names.

    Parameters
    ----------
    reference : str
        See ``FORMS``.
    seed : int
        Of the initial weights.
    kwargs : mapping, optional
        Passed to what builds the model.

    Raises
    ------
    FileError
        If a folder or trained weights can't be had.
    InputError
        If the reference has no known form, names nothing, or its call fails.
    """
    zoo, _, name = reference.partition(":")
    builder = _BUILDERS.get(zoo)
    if builder is None and not is_code_reference(reference):
        what = "there is no such file" if Path(reference).suffix else "is no model reference"
        meant = [f"{close}:{name}" for close in near(zoo, _BUILDERS, most=1)] if name else []
        close = f"did you mean {meant[0]}? " if meant else ""
        msg = f"{reference}: {what}; {close}MODEL is {FORMS}"
        raise InputError(msg)
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        # zoos announce future changes of their initialisation: of no use to our reader
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        found = (
            _factory(reference, kwargs or {})
            if builder is None
            else builder(name, dict(kwargs or {}))
        )
    return replace(found, inputs=stored_inputs(found.model, found.inputs))


def stored_inputs(model: torch.nn.Module, inputs: Any) -> Any:
    """Prefer what came with the model; else its attribute (the second is Lightning's)."""
    if inputs is None:
        inputs = getattr(model, "example_inputs", None)
    if inputs is None:
        inputs = getattr(model, "example_input_array", None)
    return inputs if isinstance(inputs, (torch.Tensor, tuple, dict)) else None


# ---------------------------------------------------------------- torchvision


def _torchvision(reference: str, kwargs: dict[str, Any]) -> Found:
    from torchvision import models

    name, _, tag = reference.partition("@")
    offers = models.list_models()
    if name.lower() not in offers:
        msg = f"torchvision has no model {name!r}; {hint(name, offers)}"
        raise InputError(msg)
    weights = _torchvision_weights(name, tag) if tag else None
    options = {} if weights else _quiet(name)
    make = _within(f"torchvision:{reference}", kwargs, downloads=weights is not None)
    model = make(lambda: models.get_model(name, weights=weights, **{**options, **kwargs}))
    return Found(model, name, zoo_size=_torchvision_size(name))


def _torchvision_weights(name: str, tag: str) -> Any:
    from torchvision import models

    members = models.get_model_weights(name).__members__
    by_lower = {key.lower(): weights for key, weights in members.items()}
    wanted = tag.rpartition(".")[2].lower()
    if wanted not in by_lower:
        msg = f"torchvision:{name} has no weights {tag!r}; {hint(tag, members)}"
        raise InputError(msg)
    return by_lower[wanted]


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


# ------------------------------------------------------------------ timm, hub


def _timm(reference: str, kwargs: dict[str, Any]) -> Found:
    timm = _package("timm")
    name, _, tag = reference.partition("@")
    bare = name.partition(".")[0]
    if not timm.is_model(bare):
        msg = f"timm has no model {name!r}; {hint(bare, timm.list_models())}"
        raise InputError(msg)
    if tag and tag.lower() != "default":
        name = f"{bare}.{tag}"
    tags = [offer.partition(".")[2] for offer in timm.list_pretrained(f"{bare}.*")]
    if "." in name and name.partition(".")[2] not in tags:
        wanted = name.partition(".")[2]
        msg = f"timm:{bare} has no weights {wanted!r}; {hint(wanted, tags)}"
        raise InputError(msg)
    return _timm_model(f"timm:{reference}", name, bare, kwargs, trained=bool(tag))


def _timm_model(
    reference: str, name: str, stem: str, kwargs: dict[str, Any], *, trained: bool
) -> Found:
    timm = _package("timm")
    make = _within(reference, kwargs, downloads=trained)
    model = make(lambda: timm.create_model(name, pretrained=trained, **kwargs))
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    return Found(model, stem, zoo_size=tuple(size) if size else None)


def _hub(name: str, kwargs: dict[str, Any]) -> Found:
    reference = f"hf-hub:{name}"
    hub = _package("huggingface_hub")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry
    fetch = _within(reference, {}, downloads=True)
    config = _config(reference, Path(fetch(lambda: hub.hf_hub_download(name, "config.json"))))
    return _from_config(reference, name, config, kwargs)


def _local_dir(name: str, kwargs: dict[str, Any]) -> Found:
    reference, path = f"local-dir:{name}", Path(name)
    if not (path / "config.json").is_file():
        what = "has no config.json" if path.is_dir() else "there is no such folder"
        msg = f"{reference}: {what}; name a folder that timm or transformers saved a model to"
        raise FileError(msg)
    return _from_config(reference, name, _config(reference, path / "config.json"), kwargs)


def _config(reference: str, path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{reference}: its config.json can't be read ({first_line(error)}); get it again"
        raise FileError(msg) from error
    return config if isinstance(config, dict) else {}


def _from_config(
    reference: str, name: str, config: Mapping[str, Any], kwargs: dict[str, Any]
) -> Found:
    """Build a model of timm (its config names an ``architecture``) or of transformers."""
    stem = Path(name).name
    if "architecture" in config:
        return _timm_model(reference, reference, stem, kwargs, trained=True)
    architectures = config.get("architectures") or ()
    transformers = _package("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    kind = getattr(transformers, str(next(iter(architectures), "")), None)
    if kind is None or not hasattr(kind, "from_pretrained"):
        msg = (
            f"{reference}: its config.json names no model that timm or transformers has; "
            "code that comes with a model is never run: write a file.py:factory for it"
        )
        raise InputError(msg)
    # safetensors only: weights as a pickle could run code
    make = _within(reference, kwargs, downloads=True)
    model = make(lambda: kind.from_pretrained(name, use_safetensors=True, **kwargs))
    return Found(model, stem)


def _package(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        package = name.replace("_", "-")
        msg = f"{package} is not installed; `pip install {package}` brings its models"
        raise InputError(msg) from None


def _within(
    reference: str, kwargs: Mapping[str, Any], *, downloads: bool
) -> Callable[[Callable[[], Any]], Any]:
    """Return what runs a call of a zoo and turns its failures into one sentence."""
    failures: tuple[type[BaseException], ...] = (*CALL_ERRORS, *_hub_errors())

    def run(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except failures as error:
            if isinstance(error, TypeError) or (kwargs and not downloads):
                given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
                how = f"with {given} " if given else ""
                why = first_line(error)
                msg = f"{reference}: can't be built {how}({why}); check --model-kwargs"
                raise InputError(msg) from error
            msg = f"{reference}: could not be had ({first_line(error)}); check the name"
            more = " and the network, or name a file" if downloads else ""
            raise FileError(msg + more) from error

    return run


def _hub_errors() -> tuple[type[BaseException], ...]:
    try:
        from huggingface_hub import errors
    except ModuleNotFoundError:
        return ()
    names = ("HfHubHTTPError", "EntryNotFoundError", "HTTPError")
    return tuple(getattr(errors, name) for name in names if hasattr(errors, name))


# ----------------------------------------------------------------------- code


def _factory(reference: str, kwargs: Mapping[str, Any]) -> Found:
    made = resolve(reference)
    if not isinstance(made, torch.nn.Module):
        made = call(made, reference, kwargs)
    elif kwargs:
        msg = f"{reference}: is a model already; --model-kwargs go to a function or class"
        raise InputError(msg)
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, torch.nn.Module):
        msg = (
            f"{reference}: gave {type(model).__name__}; it must give a torch.nn.Module, "
            "or a pair (module, example inputs)"
        )
        raise InputError(msg)
    return Found(model, reference.rpartition(":")[2].rpartition(".")[2], inputs)


_BUILDERS: dict[str, Callable[[str, dict[str, Any]], Found]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf-hub": _hub,
    "local-dir": _local_dir,
}
