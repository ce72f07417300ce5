"""The options that commands share; nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .settings import use_settings
from .suggest import hint

if TYPE_CHECKING:
    from collections.abc import Callable

UNITS = ("neurons", "params", "flops")
DISTRIBUTORS = ("svod", "gain", "uniform", "proportional", "random")
NEED_DATA = ("svod", "gain")
EXTENDERS = ("swe", "zero", "active", "net2wider", "paired", "gradmax")
ROWS = ("auto", "gradmax", "active", "kaiming")
EMITS = ("graph", "module")
COUPLINGS = ("laplacian", "pairwise", "dense")
FORMATS = ("pt2", "onnx", "python")

_ZOOS = ("torchvision:", "timm:", "hf-hub:", "local-dir:")
_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".py")


def choice(names: tuple[str, ...]) -> Callable[[str], str]:
    """Make a parser that takes one of ``names`` and answers typos with a suggestion."""

    def parse(text: str) -> str:
        if text in names:
            return text
        msg = f"{text!r} is not one of {', '.join(names)}"
        close = hint(text, names)
        raise typer.BadParameter(f"{msg}; {close}" if close.startswith("did") else msg)

    return parse


def chosen(names: tuple[str, ...], text: str) -> Any:
    """Make an option that takes one of ``names`` and completes them in the shell."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return typer.Option(
        parser=choice(names), metavar="|".join(names), autocompletion=complete, help=text
    )


def complete_model(incomplete: str) -> list[str]:
    """Offer zoos and files for MODEL."""
    folder, _, _ = incomplete.rpartition("/")
    here = sorted(Path(folder or ".").iterdir()) if Path(folder or ".").is_dir() else []
    files = [
        f"{path}/" if path.is_dir() else str(path) for path in here if path.suffix in ("", *_FILES)
    ]
    return [name for name in (*_ZOOS, *files) if name.startswith(incomplete)]


def amount(text: str) -> str:
    """Check that a budget can be read; whether it is positive is said later."""
    from fxgrow.budgets import parse_budget
    from fxgrow.errors import BudgetError

    try:
        parse_budget(text)
    except BudgetError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def examples(*lines: str) -> str:
    """Write the end of a command's help: examples and exit codes."""
    return "\n\n".join(["Examples:", *lines, f"Exit codes: {EXIT_CODES}."])


EXIT_CODES = (
    "0 done, 1 an error (one sentence on stderr), 2 wrong usage, 3 verify: the models differ, "
    "4 an unexpected error, 130 interrupted"
)
MODEL_HELP = (
    "torchvision:NAME, timm:NAME (with @WEIGHTS: trained), hf-hub:ORG/NAME, local-dir:FOLDER, "
    "package.module:factory, file.py:factory, or a .pt or .safetensors file."
)


def model_argument(metavar: str, text: str) -> Any:
    """Make an argument that names a model."""
    return typer.Argument(
        metavar=metavar, help=text, show_default=False, autocompletion=complete_model
    )


Model = Annotated[str, model_argument("MODEL", MODEL_HELP)]
Arch = Annotated[
    str | None,
    typer.Option(
        help="What builds the model, when MODEL is a file of weights.",
        metavar="MODEL",
        autocompletion=complete_model,
    ),
]
ModelKwargs = Annotated[
    list[str] | None,
    typer.Option(help="Argument of what builds the model; may be repeated.", metavar="KEY=VALUE"),
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
    list[str] | None,
    typer.Option(help="Only groups that match; may be repeated.", metavar="PATTERN"),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="No group that matches; may be repeated.", metavar="PATTERN"),
]
Inner = Annotated[
    list[str] | None,
    typer.Option(
        help="Heads and convolution groups that match become larger, not more; may be repeated.",
        metavar="PATTERN",
    ),
]
DATA_FORMS = (
    "sklearn:digits, a folder of images, an .npz or .safetensors with inputs and targets, or "
    "module:factory returning a DataLoader"
)
Data = Annotated[str | None, typer.Option(help=f"{DATA_FORMS}.", metavar="DATA")]
Loss = Annotated[
    str | None,
    typer.Option(help="A name such as cross_entropy or mse, or module:function.", metavar="NAME"),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples a batch.", metavar="N")]
Device = Annotated[str | None, typer.Option(help="Where to compute, e.g. cuda.", metavar="DEVICE")]
Seed = Annotated[int, typer.Option(help="Of everything random.", metavar="N")]
Force = Annotated[bool, typer.Option("--force", help="Let the output replace a file.")]
Json = Annotated[
    bool, typer.Option("--json", help="Write JSON to stdout, and nothing else (docs/json.md).")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Write nothing but errors.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also write what is done, and where errors arise.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        is_eager=True,
        callback=use_settings,
        help="Options from a TOML file; else from tool.fxgrow in this folder's pyproject.toml.",
        metavar="FILE",
        dir_okay=False,
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html", help="Also write a page for the browser, with a picture.", metavar="FILE"
    ),
]
WeightsOutput = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        help="A .safetensors file, to be opened with --arch MODEL; .pt pickles the whole module. "
        "By default MODEL-grown.safetensors, in this folder.",
        metavar="FILE",
    ),
]
