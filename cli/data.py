"""DATA references → re-iterables of (inputs, targets) batches."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from fxgrow.errors import DataError, FileError, InputError
from fxgrow.files.archive import check_archive
from fxgrow.files.header import read_header

from .references import call, first_line, is_code_reference, resolve
from .shapes import Inputs, first_tensor, random_like, run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

FORMS = (
    "sklearn:digits, a folder of images (one subfolder a class), an .npz or .safetensors "
    "with 'inputs' and 'targets', or module:factory returning a DataLoader"
)
_INPUT_KEYS = ("inputs", "x", "X")
_TARGET_KEYS = ("targets", "y", "Y")
RANDOM_BATCHES = 4
# as torchvision's and timm's weights expect their images
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# what damaged arrays make NumPy raise
_UNREADABLE = (
    *(OSError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, MemoryError),
    *(SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error),
)

Batches = Iterable[Any]


def find_data(
    reference: str,
    model: nn.Module,
    *,
    inputs: Inputs | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Batches:
    """Load what ``reference`` names.

    Parameters
    ----------
    reference : str
        One of the forms that the help text lists.
    model : torch.nn.Module
        Its first parameter gives the floating point type of the inputs.
    inputs : tensor, tuple or dict, optional
        Example inputs; flat samples take their shape, images their size, and integers
        their type (bytes are divided by 255 where the model takes floats).
    batch_size : int
        Samples a batch; a DataLoader keeps its own.
    seed : int
        Of the order of the samples.

    Raises
    ------
    DataError, FileError, InputError
        If there is nothing there, or not what it should be.
    """
    path = Path(reference)
    if path.suffix in {".npz", ".safetensors"}:
        return _loader(*_arrays(path), model, inputs, batch_size, seed)
    if path.is_dir():
        return _image_folder(path, inputs, batch_size, seed)
    if reference.startswith("sklearn:"):
        return _loader(*_sklearn(reference[8:]), model, inputs, batch_size, seed)
    if is_code_reference(reference):
        return _from_code(reference)
    what = (
        "there is no such file or folder" if path.suffix or "/" in reference else "not understood"
    )
    msg = f"--data {reference}: {what}; --data takes {FORMS}"
    raise FileError(msg)


def random_data(model: nn.Module, inputs: Inputs, *, batch_size: int = 8, seed: int = 0) -> Batches:
    """Standard-normal inputs with random targets of the model's own shapes.

    Classes for an output of shape ``(batch, classes)``, else standard-normal targets.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(RANDOM_BATCHES):
        drawn = random_like(inputs, model, batch_size, generator)
        batches.append((drawn, _random_targets(run(model, drawn), generator)))
    return batches


def _random_targets(output: Any, generator: torch.Generator) -> torch.Tensor:
    tensor = first_tensor(dict(output) if hasattr(output, "keys") else _as_tuple(output))
    if tensor is None:
        msg = f"the model returns a {type(output).__name__}: no random targets fit; pass --data"
        raise DataError(msg)
    if tensor.ndim == 2 and tensor.shape[1] > 1:
        return torch.randint(tensor.shape[1], (tensor.shape[0],), generator=generator)
    return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def _as_tuple(output: Any) -> Any:
    return tuple(output) if isinstance(output, (list, tuple)) else output


# -------------------------------------------------------------------- arrays


def _loader(
    samples: torch.Tensor,
    targets: torch.Tensor,
    model: nn.Module,
    inputs: Inputs | None,
    batch_size: int,
    seed: int,
) -> Batches:
    if len(samples) != len(targets):
        msg = f"the data have {len(samples)} inputs but {len(targets)} targets; make them match"
        raise DataError(msg)
    if not len(samples):
        msg = "the data are empty: 0 inputs; pass data with at least one sample"
        raise DataError(msg)
    like = first_tensor(inputs)
    dataset = TensorDataset(_shaped(_typed(samples, model, like), like), targets)
    generator = torch.Generator().manual_seed(seed)
    # a last batch of one sample would break batch normalisation in train mode
    odd = len(samples) > batch_size and len(samples) % batch_size == 1
    return DataLoader(dataset, batch_size, shuffle=True, drop_last=odd, generator=generator)


def _typed(samples: torch.Tensor, model: nn.Module, like: torch.Tensor | None) -> torch.Tensor:
    """Give samples the model's floating point type; bytes become numbers from 0 to 1."""
    integers_wanted = like is not None and not like.is_floating_point()
    if not samples.is_floating_point() and integers_wanted:
        return samples.long()
    scale = 255 if samples.dtype == torch.uint8 else 1
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    wanted = next(floats, torch.float32)
    if samples.is_floating_point() or like is not None:
        return samples.to(wanted) / scale
    return samples


def _shaped(samples: torch.Tensor, like: torch.Tensor | None) -> torch.Tensor:
    """Give samples the model's own shape where the number of values agrees."""
    if like is None or samples.shape[1:] == like.shape[1:]:
        return samples
    return (
        samples.reshape(-1, *like.shape[1:]) if samples[0].numel() == like[0].numel() else samples
    )


def _arrays(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    if not path.is_file():
        msg = f"--data {path}: there is no such file"
        raise FileError(msg)
    content = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    samples = next((content[key] for key in _INPUT_KEYS if key in content), None)
    targets = next((content[key] for key in _TARGET_KEYS if key in content), None)
    if samples is None or targets is None:
        listing = ", ".join(map(repr, content)) or "nothing"
        msg = f"--data {path}: needs 'inputs' and 'targets' (or x and y), it holds {listing}"
        raise DataError(msg)
    if samples.ndim == 0 or targets.ndim == 0:
        msg = f"--data {path}: inputs and targets need a first axis of samples"
        raise DataError(msg)
    if targets.is_floating_point():
        targets = targets.float()
    return samples, targets if targets.is_floating_point() else targets.long()


def _read_npz(path: Path) -> Mapping[str, torch.Tensor]:
    check_archive(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: torch.from_numpy(archive[key]) for key in archive.files}
    except _UNREADABLE as error:
        msg = f"--data {path}: damaged, or holds what is no array of numbers ({first_line(error)})"
        raise FileError(msg) from error


def _read_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        read_header(path)
        return dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        msg = f"--data {path}: damaged, or no .safetensors file ({first_line(error)})"
        raise FileError(msg) from error


def _sklearn(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        msg = "--data sklearn:... needs scikit-learn; `pip install scikit-learn`"
        raise InputError(msg) from None
    names = ("breast_cancer", "diabetes", "digits", "iris", "wine")
    if name not in names:
        msg = f"--data sklearn:{name}: not known; it is one of {', '.join(names)}"
        raise InputError(msg)
    bunch = getattr(datasets, f"load_{name}")()
    if name == "digits":
        samples = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    else:
        samples = torch.from_numpy(bunch.data).float()
        samples = (samples - samples.mean(0)) / samples.std(0)
    targets = torch.from_numpy(np.asarray(bunch.target))
    return samples, targets.float().unsqueeze(1) if name == "diabetes" else targets.long()


# ------------------------------------------------------------- folders, code


def _image_folder(path: Path, inputs: Inputs | None, batch_size: int, seed: int) -> Batches:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    like = first_tensor(inputs)
    if like is None or like.ndim != 4:
        msg = f"--data {path}: images need a model of images; name their size: --input 1x3x224x224"
        raise InputError(msg)
    channels, height, width = like.shape[1:]
    steps: list[Any] = [transforms.Resize((height, width)), transforms.ToTensor()]
    if channels == 3:
        steps.append(transforms.Normalize(_MEAN, _STD))
    elif channels == 1:
        steps.insert(0, transforms.Grayscale())
    else:
        msg = f"--data {path}: images have 1 or 3 channels, the model takes {channels}"
        raise DataError(msg)
    try:
        dataset = ImageFolder(str(path), transform=transforms.Compose(steps))
    except (FileNotFoundError, RuntimeError) as error:
        msg = f"--data {path}: one subfolder per class with images in it is needed: "
        raise DataError(msg + first_line(error)) from error
    generator = torch.Generator().manual_seed(seed)
    odd = len(dataset) > batch_size and len(dataset) % batch_size == 1
    return DataLoader(dataset, batch_size, shuffle=True, drop_last=odd, generator=generator)


def _from_code(reference: str) -> Batches:
    made = resolve(reference)
    if callable(made):
        made = call(made, reference)
    if not isinstance(made, Iterable):
        msg = f"--data {reference}: gave {type(made).__name__}; it must give a DataLoader"
        raise DataError(msg)
    return made
