"""The commands that grow: expand, widen, transfer, apply."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as use
from .session import session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .render import Screen

GROWN = {".safetensors", ".pt", ".pth"}

EXPAND_EXAMPLES = use.examples(
    "fxgrow expand torchvision:resnet18@DEFAULT --data photos/ --budget 512",
    "fxgrow expand model.pt --arch net.py:Net --data train.npz --budget +25%",
    "fxgrow expand timm:vit_tiny_patch16_224 --budget 2Mparams --round-to 8 --dry-run --json",
)


def expand(
    model: use.Model,
    budget: Annotated[
        str,
        typer.Option(
            help="Most that the new units may cost: 512, 2Mparams, 1.5GFLOPs, +25% or 1.5x.",
            parser=use.amount,
            metavar="AMOUNT",
        ),
    ] = "512",
    unit: Annotated[
        str | None, use.chosen(use.UNITS, "What the budget counts; neurons by default.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help=f"{use.DATA_FORMS}. Without it, votes on random inputs and no adjusting.",
            metavar="DATA",
        ),
    ] = None,
    loss: use.Loss = None,
    distributor: Annotated[
        str, use.chosen(use.DISTRIBUTORS, "Who decides where the budget goes.")
    ] = "svod",
    extender: Annotated[str, use.chosen(use.EXTENDERS, "How new units settle in.")] = "swe",
    coupling: Annotated[
        str, use.chosen(use.COUPLINGS, "How SWE couples new and old units.")
    ] = "laplacian",
    rows: Annotated[str, use.chosen(use.ROWS, "Of new units before SWE couples them.")] = "auto",
    epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of adjusting; 1 with --data. 0 keeps the function exactly.",
            metavar="N",
        ),
    ] = None,
    round_to: Annotated[
        int, typer.Option(min=1, help="New widths are multiples of this.", metavar="N")
    ] = 1,
    candidates: Annotated[
        str, typer.Option(help="Candidates per group: auto, paper or a number.", metavar="N")
    ] = "auto",
    include: use.Include = None,
    exclude: use.Exclude = None,
    inner: use.Inner = None,
    seed: use.Seed = 0,
    device: use.Device = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Samples a batch; 32 with --data, else 8.", metavar="N"),
    ] = None,
    input: use.Shape = None,
    arch: use.Arch = None,
    model_kwargs: use.ModelKwargs = None,
    trust_pickle: use.TrustPickle = False,
    emit: Annotated[
        str, use.chosen(use.EMITS, "A graph, or the model's own class (where it is no graph).")
    ] = "graph",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Vote and plan; grow and write nothing.")
    ] = False,
    output: use.WeightsOutput = None,
    html: use.Html = None,
    force: use.Force = False,
    as_json: use.Json = False,
    quiet: use.Quiet = False,
    verbose: use.Verbose = False,
    config: use.Config = None,
) -> None:
    """Make a model wider: vote, plan, insert, adjust, check, write."""
    del config
    if epochs and data is None:
        msg = "adjusting needs data: name it with --data, or leave --epochs out"
        raise typer.BadParameter(msg, param_hint="--epochs")
    chosen: dict[str, Any] = {
        "budget": budget,
        "distributor": distributor,
        "candidates": _candidates(candidates),
        "round_to": round_to,
        "include": include or (),
        "exclude": exclude or (),
        "inner": inner or (),
        "seed": seed,
    }
    growing: dict[str, Any] = {
        "extender": extender,
        "coupling": coupling,
        "rows": rows,
        "emit": emit,
        "adjust_epochs": (1 if data else 0) if epochs is None else epochs,
    }
    from fxgrow.budgets import parse_budget

    from . import ranks, work
    from .discover import Source
    from .references import keywords

    with (
        ranks.joined(device, seed) as here,
        session(as_json, quiet, verbose) as screen,
        here.team.together(),
    ):
        amount = parse_budget(budget)
        amount.of(1)  # says now if that is no positive number
        chosen["unit"] = amount.in_unit(unit)
        target = work.output_for(model, output)
        if not dry_run:
            work.check_output(target, GROWN, force=force, source=model)
        work.check_reports(None, html, force=force)
        work.check_device(here.device)
        chosen["loss"] = work.find_loss(loss)
        source = Source(model, arch, trust_pickle, keywords(model_kwargs or ()), seed)
        found = work.open_model(source, input or (), needed=data is None)
        if here.first:
            screen.note(f"{model}: {found.summary}")
        with screen.progress(here.first) as show:
            chosen["progress"] = show
            task = work.prepare(found, data, batch_size, chosen, here)
            report = task.plan(html) if dry_run else task.grow(growing, target, html)
        if here.first:
            report["random_votes"] = data is None and distributor in use.NEED_DATA
            _show(screen, report)


WIDEN_EXAMPLES = use.examples(
    "fxgrow widen torchvision:resnet18@DEFAULT layer1.0.conv1=+16 layer2.0.conv1=+12.5%",
    "fxgrow widen model.pt +12.5% --arch net.py:Net --exclude 'head*' -o wider.safetensors",
    "fxgrow widen model.pt 'layer3.*=+32' --arch torchvision:resnet18 --dry-run",
    "fxgrow widen llama/ '*mlp*=+1024' -o wider/",
)


def widen(
    model: use.Model,
    additions: Annotated[
        list[str],
        typer.Argument(
            metavar="ADDITION...",
            help="GROUP=+16 units, GROUP=+12.5%, or +12.5% for every group. GROUP may be a "
            "shell pattern; a later addition replaces an earlier one.",
            show_default=False,
        ),
    ],
    include: use.Include = None,
    exclude: use.Exclude = None,
    inner: use.Inner = None,
    input: use.Shape = None,
    arch: use.Arch = None,
    model_kwargs: use.ModelKwargs = None,
    trust_pickle: use.TrustPickle = False,
    seed: use.Seed = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would be; write nothing.")
    ] = False,
    shard_size: Annotated[
        str | None,
        typer.Option(
            help="Of a folder: most bytes of a file, e.g. 5GB; by default as it was.",
            metavar="SIZE",
        ),
    ] = None,
    output: use.WeightsOutput = None,
    force: use.Force = False,
    as_json: use.Json = False,
    quiet: use.Quiet = False,
    verbose: use.Verbose = False,
    config: use.Config = None,
) -> None:
    """Insert units by hand; the function is kept, no data are needed.

    A MODEL that is a folder with config.json and .safetensors files is widened tensor by
    tensor, in little memory, into another folder; a file of weights too, if -o is a folder.
    """
    del config
    with session(as_json, quiet, verbose) as screen:
        from . import large, work
        from .discover import Source
        from .references import keywords

        work.check_additions(additions)
        source = Source(model, arch, trust_pickle, keywords(model_kwargs or ()), seed)
        chosen = {"include": include or (), "exclude": exclude or (), "inner": inner or ()}
        path = large.checkpoint(model, output)
        if path is not None:
            with screen.progress() as show:
                writing: dict[str, Any] = {
                    "target": large.target_for(path, output),
                    "dry_run": dry_run,
                    "force": force,
                    "shard_size": shard_size,
                    "progress": show,
                }
                report = large.widen(
                    path, source, input or (), additions, chosen, writing, screen.note
                )
            _show(screen, report)
            return
        if shard_size is not None:
            msg = "it goes with a folder: name one as MODEL, or with -o"
            raise typer.BadParameter(msg, param_hint="--shard-size")
        target = work.output_for(model, output)
        if not dry_run:
            work.check_output(target, GROWN, force=force, source=model)
        found = work.open_model(source, input or ())
        screen.note(f"{model}: {found.summary}")
        report = work.widen(found, additions, chosen, seed=seed, path=target, dry_run=dry_run)
        _show(screen, report)


TRANSFER_EXAMPLES = use.examples(
    "fxgrow transfer model.pt net.py:wide --arch net.py:narrow -o wide.safetensors",
    "fxgrow transfer torchvision:resnet50@DEFAULT torchvision:wide_resnet50_2",
)


def transfer(
    source: Annotated[str, use.model_argument("SOURCE", "The trained model: as MODEL elsewhere.")],
    target: Annotated[
        str,
        use.model_argument(
            "TARGET", "A wider model of the same architecture: the same forms, e.g. file.py:wide."
        ),
    ],
    input: use.Shape = None,
    arch: Annotated[
        str | None,
        typer.Option(help="What builds SOURCE, when it is a file of weights.", metavar="MODEL"),
    ] = None,
    target_arch: Annotated[
        str | None,
        typer.Option(help="What builds TARGET, when it is a file of weights.", metavar="MODEL"),
    ] = None,
    model_kwargs: use.ModelKwargs = None,
    target_kwargs: Annotated[
        list[str] | None,
        typer.Option(help="As --model-kwargs, for TARGET.", metavar="KEY=VALUE"),
    ] = None,
    trust_pickle: use.TrustPickle = False,
    seed: use.Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="A .safetensors file, to be opened with --arch TARGET; .pt pickles the whole "
            "module. By default SOURCE-grown.safetensors, in this folder.",
            metavar="FILE",
        ),
    ] = None,
    force: use.Force = False,
    as_json: use.Json = False,
    quiet: use.Quiet = False,
    verbose: use.Verbose = False,
    config: use.Config = None,
) -> None:
    """Load a trained model into a wider one that you built: match, copy, check, write."""
    del config
    with session(as_json, quiet, verbose) as screen:
        from . import work
        from .discover import Source, find_model
        from .references import keywords

        path = work.output_for(source, output)
        for given in (source, target):
            work.check_output(path, GROWN, force=force, source=given)
        own = keywords(model_kwargs or ())
        narrow = work.open_model(Source(source, arch, trust_pickle, own, seed), input or ())
        screen.note(f"{source}: {narrow.summary}")
        theirs = keywords(target_kwargs or (), "--target-kwargs")
        wide = find_model(Source(target, target_arch, trust_pickle, theirs, seed))
        _show(screen, work.transfer(narrow, wide, seed, path))


APPLY_EXAMPLES = use.examples(
    "fxgrow expand model.pt --arch net.py:Net --dry-run --json > plan.json",
    "fxgrow apply plan.json model.pt --arch net.py:Net -o wider.safetensors",
    "fxgrow apply grown.safetensors other.pt --arch net.py:Net --any-weights -o again.safetensors",
    "fxgrow apply grown.safetensors net.py:Net --weights -o grown.pt",
)


def apply(
    plan: Annotated[
        str,
        typer.Argument(
            metavar="PLAN",
            help="A grown .safetensors file, or a .json file: what --json wrote, or "
            '{"additions": {group: units}}.',
            show_default=False,
        ),
    ],
    base: Annotated[str, use.model_argument("BASE", "The model to grow: as MODEL elsewhere.")],
    weights: Annotated[
        bool,
        typer.Option("--weights", help="Take the grown file's weights over, too."),
    ] = False,
    any_weights: Annotated[
        bool,
        typer.Option(
            "--any-weights", help="Take a base of other weights than the plan was made for."
        ),
    ] = False,
    input: use.Shape = None,
    arch: Annotated[
        str | None,
        typer.Option(help="What builds BASE, when it is a file of weights.", metavar="MODEL"),
    ] = None,
    model_kwargs: use.ModelKwargs = None,
    trust_pickle: use.TrustPickle = False,
    seed: use.Seed = 0,
    output: use.WeightsOutput = None,
    force: use.Force = False,
    as_json: use.Json = False,
    quiet: use.Quiet = False,
    verbose: use.Verbose = False,
    config: use.Config = None,
) -> None:
    """Replay a plan, or a grown file's growth, on a base model; its function is kept."""
    del config
    with session(as_json, quiet, verbose) as screen:
        from fxgrow.recipes import read_recipe

        from . import work
        from .discover import Source
        from .references import keywords

        recipe = read_recipe(plan)
        path = work.output_for(base, output)
        for given in (plan, base):
            work.check_output(path, GROWN, force=force, source=given)
        source = Source(base, arch, trust_pickle, keywords(model_kwargs or ()), seed)
        found = work.open_model(source, input or (), needed=recipe.inputs is None)
        screen.note(f"{base}: {found.summary}")
        inputs = found.inputs if found.given or recipe.inputs is None else None
        report = work.apply(
            recipe, found.found, inputs, weights=weights, any_weights=any_weights, path=path
        )
        _show(screen, {**report, "weights": weights})


def _show(screen: Screen, report: Mapping[str, Any]) -> None:
    from . import render, work

    screen.show(report, render.growth)
    for text in work.remarks(report):
        screen.line(text)
    for edit in report.get("edits", ()):
        screen.note(f"edited: {edit}")


def _candidates(text: str) -> str | int:
    if text in {"auto", "paper"}:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter("auto, paper or a number of 1 or more", param_hint="--candidates")
    return int(text)
