"""Networks for other programs: ``.pt2``, ONNX, a Python package; each is run before it is kept."""

from __future__ import annotations

import contextlib
import importlib.util
import io as streams
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as tree

from .errors import InputError, UnsupportedError
from .exported import Check, Exported, first_line, passed, shapes_of
from .folder import export_package
from .io import atomic_write
from .plain import duplicate, plain
from .reduce import samples
from .trace import Inputs
from .tracer import FAILURES
from .verify import tensors_in

if TYPE_CHECKING:
    from torch import nn

__all__ = ["export", "format_of"]

LARGEST_ONNX = 2**31 - 2**20
"""Bytes of weights that fit into one ONNX file (protobuf's limit)."""


def export(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    format: str | None = None,
    tolerance: float = 1e-4,
    replace_folder: bool = False,
) -> Exported:
    """Write a model for other programs, run what was written, and compare the outputs.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed; written as in eval mode (a Python package has both modes).
    example_inputs : tensor, tuple or dict
        The first axis of every tensor counts samples.
    path : str or Path
        A file that ends in ``.pt2`` or ``.onnx``, else a folder: a Python package. A file is
        replaced only when the new one is complete and checked.
    format : {"pt2", "onnx", "python"}, optional
        By default what the path says.
    tolerance : float
        Largest relative difference.
    replace_folder : bool
        Whether a package written by us before may be replaced.

    Returns
    -------
    Exported

    Raises
    ------
    InputError
        For unknown formats, and where a package that is needed is not installed.
    FileError
        When it can't be written.
    UnsupportedError
        When torch can't export the model.
    VerificationError
        When what was exported computes something else; nothing is left behind then.
    """
    target = Path(path)
    kind = format or format_of(target)
    if kind not in (*FILES, "python"):
        raise InputError(f"format {kind!r} is not known; take pt2, onnx or python")
    inputs = Inputs.of(example_inputs)
    if samples(inputs.args or inputs.kwargs) < 2:
        inputs = inputs.doubled()  # torch would fix a batch of one
    twin = duplicate(plain(model)).eval()
    if kind == "python":
        return export_package(twin, inputs, target, tolerance, replace_folder)
    data, dynamic, checks, notes = FILES[kind](twin, inputs, tolerance)
    atomic_write(target, lambda temporary: temporary.write_bytes(data))
    return Exported(str(target), kind, len(data), dynamic, checks, notes)


def format_of(path: Path) -> str:
    """Read the format off a path's suffix; a path without one is a folder."""
    by_suffix = {".pt2": "pt2", ".onnx": "onnx", "": "python"}
    if path.suffix not in by_suffix:
        raise InputError(
            f"{path}: no format ends in {path.suffix!r}; take .pt2, .onnx, or a folder's name "
            "without a dot for a Python package"
        )
    return by_suffix[path.suffix]


Made = tuple[bytes, bool, tuple[Check, ...], tuple[str, ...]]
_STATIC = "The number of samples is fixed to that of the example inputs: {why}."


# ------------------------------------------------------------------------ pt2


def _pt2(model: nn.Module, inputs: Inputs, tolerance: float) -> Made:
    program, dynamic, notes = _program(model, inputs)
    buffer = streams.BytesIO()
    with _quiet():
        torch.export.save(program, buffer)
        buffer.seek(0)
        again = torch.export.load(buffer).module()
    checks = tuple(
        _checked("torch.export", model, again, few, tolerance) for few in _batches(inputs, dynamic)
    )
    return buffer.getvalue(), dynamic, checks, notes


def _program(model: nn.Module, inputs: Inputs) -> tuple[Any, bool, tuple[str, ...]]:
    """Export with any number of samples, or with this one where that can't be."""
    shapes = _dynamic(inputs)
    with _quiet():
        try:
            program = torch.export.export(
                model, inputs.args, dict(inputs.kwargs), dynamic_shapes=shapes
            )
            return program, True, ()
        except FAILURES as error:
            why = first_line(error)
        try:
            program = torch.export.export(model, inputs.args, dict(inputs.kwargs))
        except FAILURES as error:
            raise UnsupportedError(
                f"torch.export can't write this model: {first_line(error)}; try a Python package"
            ) from error
    return program, False, (_STATIC.format(why=why),)


def _dynamic(inputs: Inputs) -> Any:
    """Mark the first axis of every tensor that has as many entries as there are samples."""
    count = samples(inputs.args or inputs.kwargs)
    batch = torch.export.Dim("batch", min=1)

    def mark(value: Any) -> Any:
        tensor = isinstance(value, torch.Tensor) and value.ndim
        return {0: batch} if tensor and value.shape[0] == count else None

    return tree.tree_map(mark, dict(inputs.kwargs) if inputs.kwargs else inputs.args)


# ----------------------------------------------------------------------- ONNX


def _onnx(model: nn.Module, inputs: Inputs, tolerance: float) -> Made:
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(n)]
    if missing:
        raise InputError(
            f"ONNX needs {', '.join(missing)}; `pip install 'fxgrow[onnx]'` brings what is missing"
        )
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    if weights > LARGEST_ONNX:
        raise UnsupportedError(
            f"{weights:,} bytes of weights don't fit into one ONNX file; export as .pt2 instead"
        )
    program, dynamic, notes = _program(model, inputs)
    with _quiet():
        try:
            written = torch.onnx.export(program, dynamo=True, verbose=False)
        except (*FAILURES, torch.onnx.errors.OnnxExporterError) as error:
            raise UnsupportedError(
                f"torch.onnx can't write this model: {first_line(error)}; try .pt2"
            ) from error
    assert written is not None  # as dynamo=True promises
    data: bytes = written.model_proto.SerializeToString()
    run = _session(data)
    checks = tuple(
        _checked("onnxruntime", model, run, few, tolerance) for few in _batches(inputs, dynamic)
    )
    return data, dynamic, checks, notes


def _session(data: bytes) -> Callable[..., Any]:
    """Load an ONNX model; what is returned takes and gives tensors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except (RuntimeError, ValueError) as error:  # what its own errors derive from
        raise UnsupportedError(
            f"onnxruntime can't load what torch.onnx wrote: {first_line(error)}; try .pt2"
        ) from error

    def run(*args: Any, **kwargs: Any) -> Any:
        flat = list(tensors_in((args, kwargs)))
        names = [entry.name for entry in session.get_inputs()]
        feed = {name: t.detach().numpy() for name, t in zip(names, flat, strict=False)}
        return [torch.from_numpy(value) for value in session.run(None, feed)]

    return run


# --------------------------------------------------------------------- checks

FILES: Mapping[str, Callable[[Any, Inputs, float], Made]] = {
    "pt2": _pt2,
    "onnx": _onnx,
}


def _checked(
    runtime: str, model: nn.Module, again: Callable[..., Any], inputs: Inputs, tolerance: float
) -> Check:
    """Run both in eval mode on the same inputs.

    Raises
    ------
    VerificationError
        When outputs differ.
    UnsupportedError
        When what was exported does not run.
    """
    with torch.no_grad():
        before = _leaves(model(*inputs.args, **inputs.kwargs))
        try:
            after = _leaves(again(*inputs.args, **inputs.kwargs))
        except FAILURES as error:
            shapes, why = shapes_of(inputs), first_line(error)
            raise UnsupportedError(
                f"what was exported does not run on inputs of {shapes}: {why}"
            ) from error
    check = Check(runtime, shapes_of(inputs), _relative(before, after))
    passed(check, tolerance)
    return check


def _relative(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    if [a.shape for a in before] != [b.shape for b in after]:
        return float("inf")
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if not a.numel():
            continue
        scale = a.abs().max().double().item() or 1.0
        gap = (a.double() - b.double()).abs().max().item() / scale
        worst = max(worst, gap if gap == gap else float("inf"))  # NaN counts as wrong
    return worst


def _leaves(outputs: Any) -> list[torch.Tensor]:
    """Tensors and numbers of nested outputs, in order."""
    plain_outputs = dict(outputs) if isinstance(outputs, Mapping) else outputs
    kept = (v for v in tree.tree_leaves(plain_outputs) if isinstance(v, (torch.Tensor, int, float)))
    return [value if isinstance(value, torch.Tensor) else torch.tensor(value) for value in kept]


def _batches(inputs: Inputs, dynamic: bool) -> Iterator[Inputs]:
    """Yield the example inputs, and other numbers of samples where they may vary."""
    yield inputs
    if dynamic:
        count = samples(inputs.args or inputs.kwargs)
        for size in (1, count + 1):
            yield _resized(inputs, count, size)


def _resized(inputs: Inputs, count: int, size: int) -> Inputs:
    def some(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.ndim or value.shape[0] != count:
            return value
        index = torch.arange(size, device=value.device) % count
        return value.index_select(0, index)

    args, kwargs = tree.tree_map(some, (inputs.args, dict(inputs.kwargs)))
    return replace(inputs, args=args, kwargs=kwargs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from writing to stdout, and from warning of their own ways."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield
