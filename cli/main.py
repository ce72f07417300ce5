"""The commands: thin, with every heavy import inside."""

from __future__ import annotations

import contextlib
import warnings
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(
    name="fxgrow",
    help="Make trained PyTorch networks wider.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Unit(str, Enum):
    """What a budget counts."""

    neurons = "neurons"
    params = "params"
    flops = "flops"


class Distributor(str, Enum):
    """Who decides which groups get the budget."""

    svod = "svod"
    uniform = "uniform"
    proportional = "proportional"
    random = "random"


class Extender(str, Enum):
    """How new units settle in."""

    swe = "swe"
    zero = "zero"


class Coupling(str, Enum):
    """How SWE couples new and old units."""

    laplacian = "laplacian"
    pairwise = "pairwise"
    dense = "dense"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A .pt or .safetensors file, torchvision:NAME, timm:NAME, package.module:factory "
        "or file.py:factory.",
        show_default=False,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(help="What builds the model, when MODEL is a file of weights.", metavar="MODEL"),
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Open a pickled module: runs the code in it.")
]
Shape = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Input shape, e.g. 1x3x224x224, 1x128:int64 or mask=1x128:bool; once per input.",
        metavar="SHAPE",
    ),
]
Include = Annotated[
    list[str] | None, typer.Option(help="Only groups that match.", metavar="PATTERN")
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="No group that matches.", metavar="PATTERN")
]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout, and nothing else.")]
Html = Annotated[
    Path | None,
    typer.Option("--html", help="Also write a page for the browser, with a picture."),
]
Force = Annotated[bool, typer.Option("--force", help="Let the output replace a file.")]


@app.command()
def inspect(
    model: Model,
    input: Shape = None,
    include: Include = None,
    exclude: Exclude = None,
    arch: Arch = None,
    trust_pickle: TrustPickle = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on operations without a rule.")
    ] = False,
    seed: Seed = 0,
    as_json: Json = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Also write .html, .md, .json, .graphml or .dot."),
    ] = None,
    html: Html = None,
    force: Force = False,
) -> None:
    """Show what can grow, what cannot, and why."""
    with _errors():
        from fxgrow import pages

        from . import ranks, render, work

        if not ranks.is_first():
            return
        wanted = work.check_reports(output, html, force=force)
        found = work.open_model(model, arch, trust_pickle, input or (), seed)
        result = work.inspect(found, include or (), exclude or (), strict=strict)
        for path in wanted:
            pages.write(result, path)
        if as_json:
            render.as_json(result.to_dict())
        else:
            render.inspection(result.to_dict(), found.shape)
            for path in wanted:
                render.line(f"Written to {path}.")


@app.command()
def expand(
    model: Model,
    budget: Annotated[float, typer.Option(help="Most that the new units may cost.")] = 512,
    unit: Annotated[Unit, typer.Option(help="What the budget counts.")] = Unit.neurons,
    data: Annotated[
        str | None,
        typer.Option(
            help="sklearn:digits, a folder of images, an .npz or .safetensors with inputs and "
            "targets, or module:factory returning a DataLoader. Without it, votes on random "
            "inputs and no adjusting.",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="A name such as cross_entropy or mse, or module:function."),
    ] = None,
    distributor: Annotated[
        Distributor, typer.Option(help="Who decides where the budget goes.")
    ] = Distributor.svod,
    extender: Annotated[Extender, typer.Option(help="How new units settle in.")] = Extender.swe,
    coupling: Annotated[
        Coupling, typer.Option(help="How SWE couples new and old units.")
    ] = Coupling.laplacian,
    epochs: Annotated[
        int | None,
        typer.Option(min=0, help="Of adjusting; 1 with --data. 0 keeps the function exactly."),
    ] = None,
    round_to: Annotated[int, typer.Option(min=1, help="New widths are multiples of this.")] = 1,
    candidates: Annotated[
        str, typer.Option(help="Candidates per group: auto, paper or a number.")
    ] = "auto",
    include: Include = None,
    exclude: Exclude = None,
    seed: Seed = 0,
    device: Annotated[str | None, typer.Option(help="Where to compute, e.g. cuda.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples a batch. [32 with --data, else 8]")
    ] = None,
    input: Shape = None,
    arch: Arch = None,
    trust_pickle: TrustPickle = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Vote and plan; grow and write nothing.")
    ] = False,
    as_json: Json = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="A .safetensors file; .pt pickles the whole module. "
            "[default: <model>-grown.safetensors]",
        ),
    ] = None,
    html: Html = None,
    force: Force = False,
) -> None:
    """Make a model wider: vote, plan, insert, adjust, check, write."""
    if epochs and data is None:
        msg = "adjusting needs data: name it with --data, or leave --epochs out"
        raise typer.BadParameter(msg, param_hint="--epochs")
    options: dict[str, Any] = {
        "budget": budget,
        "unit": unit.value,
        "distributor": distributor.value,
        "candidates": _candidates(candidates),
        "round_to": round_to,
        "include": include or (),
        "exclude": exclude or (),
        "seed": seed,
    }
    growing: dict[str, Any] = {
        "extender": extender.value,
        "coupling": coupling.value,
        "adjust_epochs": (1 if data else 0) if epochs is None else epochs,
    }
    from . import ranks, render, work

    with ranks.joined(device, seed) as here, _errors(), here.team.together():
        target = work.output_for(model, output)
        if not dry_run:
            work.check_output(target, {".safetensors", ".pt", ".pth"}, force=force, source=model)
        work.check_reports(None, html, force=force)
        work.check_device(here.device)
        options["loss"] = work.find_loss(loss)
        found = work.open_model(model, arch, trust_pickle, input or (), seed, needed=data is None)
        with render.progress(visible=here.first and not as_json) as show:
            options["progress"] = show
            task = work.prepare(found, data, batch_size, options, here)
            report = task.plan(html) if dry_run else task.grow(growing, target, html)
        if not here.first:
            return
        report["random_votes"] = data is None and distributor is Distributor.svod
        if as_json:
            render.as_json(report)
            return
        render.growth(report)
        for text in work.remarks(report):
            render.line(text)


@app.command()
def transfer(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="The trained model: as MODEL elsewhere."),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A wider model of the same architecture: the same forms, e.g. file.py:factory.",
        ),
    ],
    input: Shape = None,
    arch: Annotated[
        str | None,
        typer.Option(help="What builds SOURCE, when it is a file of weights.", metavar="MODEL"),
    ] = None,
    target_arch: Annotated[
        str | None,
        typer.Option(help="What builds TARGET, when it is a file of weights.", metavar="MODEL"),
    ] = None,
    trust_pickle: TrustPickle = False,
    seed: Seed = 0,
    as_json: Json = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="A .safetensors file, to be opened with --arch TARGET; .pt pickles the whole "
            "module. [default: <source>-grown.safetensors]",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Load a trained model into a wider one that you built: match, copy, check, write."""
    with _errors():
        from . import render, work

        path = work.output_for(source, output)
        for given in (source, target):
            work.check_output(path, {".safetensors", ".pt", ".pth"}, force=force, source=given)
        narrow = work.open_model(source, arch, trust_pickle, input or (), seed)
        wide = work.open_target(target, target_arch, trust_pickle, seed)
        report = work.transfer(narrow, wide, seed, path)
        if as_json:
            render.as_json(report)
            return
        render.growth(report)
        for text in work.remarks(report):
            render.line(text)


def _candidates(text: str) -> str | int:
    if text in {"auto", "paper"}:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter("auto, paper or a number of 1 or more", param_hint="--candidates")
    return int(text)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turn errors of ours into one sentence and an exit code; never a traceback."""
    from fxgrow.errors import FxgrowError

    try:
        with warnings.catch_warnings():
            # announcements of third parties, of no use to our reader
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except FxgrowError as error:
        _fail(str(error), 1, error)
    except MemoryError as error:
        _fail("out of memory; try a smaller --batch-size, --input or --budget", 1, error)
    except KeyboardInterrupt as error:
        _fail("interrupted; nothing was written", 130, error)


def _fail(message: str, code: int, cause: BaseException) -> None:
    from . import ranks, render

    if ranks.is_first():
        render.error(message)
    raise typer.Exit(code) from cause


def main() -> None:
    """Run the command line."""
    try:
        app()
    except KeyboardInterrupt:  # before a command had begun
        raise SystemExit(130) from None
