"""The commands that check and hand on: verify, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as use
from .session import DIFFERS, session

VERIFY_EXAMPLES = use.examples(
    "fxgrow verify model.pt grown.safetensors --arch net.py:Net",
    "fxgrow verify torchvision:resnet18@DEFAULT wider.pt --trust-pickle --data photos/ --json",
)


def verify(
    first: Annotated[str, use.model_argument("FIRST", "A model: as MODEL elsewhere.")],
    second: Annotated[str, use.model_argument("SECOND", "The model to compare it with.")],
    data: use.Data = None,
    batches: Annotated[
        int, typer.Option(min=1, help="Most batches that are compared.", metavar="N")
    ] = 8,
    batch_size: use.BatchSize = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Largest relative difference; by default 1e-10 in float64, 1e-3 in float32.",
            metavar="T",
        ),
    ] = None,
    input: use.Shape = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="What builds the models that are files of weights; by default the other model, "
            "if it is none.",
            metavar="MODEL",
        ),
    ] = None,
    other_arch: Annotated[
        str | None, typer.Option(help="What builds SECOND, if not --arch.", metavar="MODEL")
    ] = None,
    model_kwargs: use.ModelKwargs = None,
    other_kwargs: Annotated[
        list[str] | None,
        typer.Option(
            help="As --model-kwargs, for SECOND; the same by default.", metavar="KEY=VALUE"
        ),
    ] = None,
    trust_pickle: use.TrustPickle = False,
    seed: use.Seed = 0,
    as_json: use.Json = False,
    quiet: use.Quiet = False,
    verbose: use.Verbose = False,
    config: use.Config = None,
) -> None:
    """Compare two models: outputs, shapes; exit code 0 if the function is the same, 3 if not."""
    del config
    with session(as_json, quiet, verbose) as screen:
        from . import comparing, render
        from .references import keywords

        own = keywords(model_kwargs or ())
        theirs = own if other_kwargs is None else keywords(other_kwargs, "--other-kwargs")
        one, two = comparing.sources(
            (first, arch, own), (second, other_arch, theirs), trust_pickle, seed
        )
        report = comparing.compare_models(
            one,
            two,
            data,
            input or (),
            batches=batches,
            batch_size=batch_size,
            tolerance=tolerance,
        )
        screen.show(report, render.verification)
        if not report["same_function"]:
            raise typer.Exit(DIFFERS)


EXPORT_EXAMPLES = use.examples(
    "fxgrow export grown.safetensors --arch net.py:Net -o grown.onnx",
    "fxgrow export torchvision:resnet18@DEFAULT -o resnet18.pt2",
    "fxgrow export grown.safetensors --arch net.py:Net --format python -o grown_net",
)


def export(
    model: use.Model,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="A .pt2 or .onnx file, or a new folder: a Python package.",
            metavar="PATH",
        ),
    ],
    format: Annotated[
        str | None, use.chosen(use.FORMATS, "By default what the output's suffix says.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Largest relative difference of what was written; 1e-4 by default.",
            metavar="T",
        ),
    ] = None,
    input: use.Shape = None,
    arch: use.Arch = None,
    model_kwargs: use.ModelKwargs = None,
    trust_pickle: use.TrustPickle = False,
    seed: use.Seed = 0,
    force: use.Force = False,
    as_json: use.Json = False,
    quiet: use.Quiet = False,
    verbose: use.Verbose = False,
    config: use.Config = None,
) -> None:
    """Write a model for other programs: .pt2, ONNX, Python; each is run and checked."""
    del config
    with session(as_json, quiet, verbose) as screen:
        from . import exporting, render, work
        from .discover import Source
        from .references import keywords

        kind = exporting.kind_of(output, format)
        exporting.check(output, kind, force=force, source=model)
        source = Source(model, arch, trust_pickle, keywords(model_kwargs or ()), seed)
        found = work.open_model(source, input or ())
        screen.note(f"{model}: {found.summary}")
        report = exporting.write(found, output, kind, tolerance=tolerance, force=force)
        screen.show(report, render.exported)
