"""The program: every command under its name, with every heavy import inside."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from . import check, grow, look
from . import options as use

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(
    name="fxgrow",
    help="Make trained PyTorch networks wider.",
    epilog=use.examples(
        "fxgrow inspect torchvision:resnet18",
        "fxgrow expand torchvision:resnet18@DEFAULT --data photos/ --budget +25%",
        "fxgrow COMMAND --help shows each command's options and examples",
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

COMMANDS: tuple[tuple[Callable[..., None], str], ...] = (
    (look.inspect, look.INSPECT_EXAMPLES),
    (grow.expand, grow.EXPAND_EXAMPLES),
    (grow.widen, grow.WIDEN_EXAMPLES),
    (grow.transfer, grow.TRANSFER_EXAMPLES),
    (grow.apply, grow.APPLY_EXAMPLES),
    (check.verify, check.VERIFY_EXAMPLES),
    (check.export, check.EXPORT_EXAMPLES),
    (look.activity, look.ACTIVITY_EXAMPLES),
    (look.doctor, look.DOCTOR_EXAMPLES),
)
for command, epilog in COMMANDS:
    app.command(epilog=epilog)(command)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fxgrow {version('fxgrow')}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Write the version."),
    ] = False,
) -> None:
    """Make trained PyTorch networks wider."""


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without → must not stop us
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # files of Python have it
    try:
        app()
    except KeyboardInterrupt:  # before a command had begun
        raise SystemExit(130) from None
