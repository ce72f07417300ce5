"""The commands that look: inspect, activity, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as use
from .session import session

INSPECT_EXAMPLES = use.examples(
    "fxgrow inspect torchvision:resnet18",
    "fxgrow inspect model.pt --arch net.py:Net --model-kwargs width=64 --input 1x3x64x64",
    "fxgrow inspect torchvision:resnet18 --html report.html",
    "fxgrow inspect torchvision:resnet18 --json | jq -r '.groups[].name'",
)


def inspect(
    model: use.Model,
    input: use.Shape = None,
    include: use.Include = None,
    exclude: use.Exclude = None,
    inner: use.Inner = None,
    arch: use.Arch = None,
    model_kwargs: use.ModelKwargs = None,
    trust_pickle: use.TrustPickle = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on operations without a rule.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Also count inactive units on these data.", metavar="DATA"),
    ] = None,
    seed: use.Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Also write .html, .md, .json, .graphml or .dot.",
            metavar="FILE",
        ),
    ] = None,
    html: use.Html = None,
    force: use.Force = False,
    as_json: use.Json = False,
    quiet: use.Quiet = False,
    verbose: use.Verbose = False,
    config: use.Config = None,
) -> None:
    """Show what can grow, what cannot, and why."""
    del config
    with session(as_json, quiet, verbose) as screen:
        from fxgrow import pages

        from . import ranks, render, watching, work
        from .discover import Source
        from .references import keywords

        if not ranks.is_first():
            return
        wanted = work.check_reports(output, html, force=force)
        source = Source(model, arch, trust_pickle, keywords(model_kwargs or ()), seed)
        found = work.open_model(source, input or (), needed=data is None)
        screen.note(f"{model}: {found.summary}")
        if found.inputs is None:
            found = watching.with_inputs_of(found, str(data), seed)
        result = work.inspect(found, include or (), exclude or (), inner or (), strict=strict)
        shown = result.to_dict()
        given = {}
        if data is not None:
            given["activity"] = watching.activity(found, data, None, None, seed)
            shown["activity"] = given["activity"].to_dict()
        for path in wanted:
            pages.write(result, path, **given)
        screen.show(shown, lambda table: render.inspection(table, found.shape))
        for path in wanted:
            screen.line(f"Written to {path}.")


ACTIVITY_EXAMPLES = use.examples(
    "fxgrow activity torchvision:resnet18@DEFAULT --data photos/",
    "fxgrow activity grown.safetensors --arch net.py:Net --data train.npz --plot activity.png",
)


def activity(
    model: use.Model,
    data: use.Data = None,
    loss: use.Loss = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Also write a picture: .png, .svg or .pdf.", metavar="FILE"),
    ] = None,
    batch_size: use.BatchSize = None,
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
    """Count units that are never, or hardly ever, active; compare new units with old ones."""
    del config
    with session(as_json, quiet, verbose) as screen:
        from . import render, watching, work
        from .discover import Source
        from .references import keywords

        if plot is not None:
            work.check_output(plot, {".png", ".svg", ".pdf"}, force=force)
            watching.check_plot()
        source = Source(model, arch, trust_pickle, keywords(model_kwargs or ()), seed)
        found = work.open_model(source, input or (), needed=data is None)
        screen.note(f"{model}: {found.summary}")
        function = work.find_loss(loss)
        with screen.progress() as show:
            seen = watching.activity(found, data, function, batch_size, seed, show)
        if plot is not None:
            watching.write_plot(seen, plot)
        report = {**seen.to_dict(), "random_data": data is None, "plot": plot and str(plot)}
        screen.show(report, render.activity)
        if data is None:
            screen.line("On random inputs: --data shows the units on yours.")
        if plot is not None:
            screen.line(f"Written to {plot}.")


DOCTOR_EXAMPLES = use.examples(
    "fxgrow doctor",
    "fxgrow doctor timm:vit_tiny_patch16_224 --json",
)


def doctor(
    model: Annotated[
        str | None, use.model_argument("[MODEL]", "Also say what this model would need.")
    ] = None,
    input: use.Shape = None,
    arch: use.Arch = None,
    model_kwargs: use.ModelKwargs = None,
    trust_pickle: use.TrustPickle = False,
    seed: use.Seed = 0,
    as_json: use.Json = False,
    quiet: use.Quiet = False,
    verbose: use.Verbose = False,
    config: use.Config = None,
) -> None:
    """Say what is installed and what computes here, and what a model would need."""
    del config
    with session(as_json, quiet, verbose) as screen:
        from . import health, render
        from .discover import Source
        from .references import keywords

        report = health.here()
        if model is not None:
            source = Source(model, arch, trust_pickle, keywords(model_kwargs or ()), seed)
            report["model"] = health.needs(source, input or ())
        screen.show(report, render.health)
