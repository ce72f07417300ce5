"""The public functions: the stages in sequence."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from .distributed import together
from .errors import InputError
from .extenders import ExtendOptions
from .extenders import extender as extender_named
from .inspection import inspect_model
from .plain import duplicate, plain
from .planning import plan_for, vote
from .stages import as_plan, grow, shared_example, to_device
from .transfer import transfer, transferred_again

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch
    from torch.distributed import ProcessGroup

    from .ballot import Candidates
    from .data import LossFn, Progress
    from .distributed import Team
    from .ir import Growth, Plan, Unit
    from .rules.own import Declaration

__all__ = ["expand", "inspect", "plan_for", "transfer", "transferred_again", "vote", "widen"]

inspect = inspect_model


def widen(
    model: torch.nn.Module,
    example_inputs: Any,
    additions: Mapping[str, int] | Plan | str | int,
    *,
    inner: Sequence[str] = (),
    seed: int = 0,
    emit: str = "graph",
    verify: bool = True,
    process_group: ProcessGroup | Team | None = None,
    rules: Iterable[Declaration] = (),
) -> Growth:
    """Insert units by hand; the function is kept and no data are needed.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed.
    example_inputs : tensor, tuple or dict
        One tensor, positional arguments, or keyword arguments of ``forward``.
    additions : dict of str to int, Plan, str or int
        Units per group name; a number (``8``) or share (``"+12.5%"``) for every group,
        rounded down to the group's ``multiple_of`` (a share to at least one step).
    inner : sequence of str
        Heads and convolution groups that become larger, not more (see :func:`inspect`).
    seed : int
        Of the new rows. The caller's random state is untouched.
    emit : {"graph", "module"}
        A graph, or the user's own class; also the latter where no graph can be had, which
        ``report["obstacle"]`` explains.
    verify : bool
        Compare outputs of old and new module on the example inputs. The exact partition
        check is made in any case.
    process_group : torch.distributed.ProcessGroup, optional
        See :func:`expand`.
    rules : sequence of Declaration
        For custom operations and opaque modules, see :func:`inspect`.

    Returns
    -------
    Growth

    Raises
    ------
    InputError
        Unknown groups or impossible additions.
    TraceError, UnsupportedError, VerificationError
        No graph, a size that can't be made to fit, or another function. Nothing is returned.

    Examples
    --------
    >>> import torch, fxgrow
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> growth = fxgrow.widen(net, torch.zeros(1, 4), {"0": 3})
    >>> growth.module.get_submodule("0")
    Linear(in_features=4, out_features=11, bias=True)
    """
    with together(model, process_group) as (team, model):
        example = shared_example(team, model, None, example_inputs)
        inspection = inspect(model, example, inner=inner, rules=rules)
        plan = team.share(as_plan(additions, inspection, model, emit), "the plan")
        growth = grow(model, inspection, plan, seed=seed, emit=emit, verify=verify)
        team.settle(growth.module, plan=plan)
        return growth


def expand(
    model: torch.nn.Module,
    data: Iterable[Any] | None,
    *,
    budget: float | str = 512,
    unit: Unit = "neurons",
    loss: LossFn | str | None = None,
    distributor: str = "svod",
    extender: str = "swe",
    coupling: str = "laplacian",
    rows: str = "auto",
    paper: bool = False,
    candidates: Candidates | None = None,
    adjust_epochs: int = 1,
    round_to: int = 1,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    inner: Sequence[str] = (),
    seed: int = 0,
    device: str | torch.device | None = None,
    emit: str = "graph",
    example_inputs: Any = None,
    progress: Progress | None = None,
    process_group: ProcessGroup | Team | None = None,
    rules: Iterable[Declaration] = (),
) -> Growth:
    """Widen a trained model where gradients ask for it (SVoD), and settle new units in (SWE).

    Parameters
    ----------
    model : torch.nn.Module
        Never changed.
    data : re-iterable of (inputs, targets), or None
        E.g. a DataLoader. ``None``: pure insertion by a distributor that needs no data.
    budget : float or str
        Most that the new units may cost, in ``unit``; or a text, as for :func:`vote`.
    unit : {"neurons", "params", "flops"}
    loss : callable, str or None
        ``None``: cross entropy for integer targets, MSE for float.
    distributor : {"svod", "gain", "uniform", "proportional", "random"}
    extender : {"swe", "zero", "active", "net2wider", "paired", "gradmax"}
    coupling : {"laplacian", "pairwise", "dense"}
    rows : {"auto", "gradmax", "active", "kaiming"}
        Of new units before SWE couples them, see :mod:`fxgrow.gradmax` and :mod:`fxgrow.rows`;
        the last as published (``paper`` means it). ``"auto"``: the second where no norm keeps
        units alive, the last where one does.
    paper : bool
        The adjusting phase as published, with its decay of the frozen rows.
    candidates : "auto", "paper" or int, optional
    adjust_epochs : int
        Epochs of the adjusting phase; 0 is pure insertion, which keeps the function.
    round_to : int
        New widths are multiples of it where possible.
    include, exclude : sequence of str
        Shell patterns over group and layer names.
    inner : sequence of str
        Heads and convolution groups that become larger, not more (see :func:`inspect`).
    seed : int
    device : str or torch.device, optional
        Where to compute (the result stays there); the model's own by default.
    emit : {"graph", "module"}
        A graph, or the user's own class; also the latter where no graph can be had, which
        ``report["obstacle"]`` explains.
    example_inputs : tensor, tuple or dict, optional
        Taken from the first batch by default.
    progress : callable, optional
        Told ``(stage, done, total)``.
    process_group : torch.distributed.ProcessGroup, optional
        Its ranks grow the model together, each on its own share of the data; all call this.
        A model in DDP or FSDP2 brings its own. The module returned is plain; see
        :func:`fxgrow.rewrap`.
    rules : sequence of Declaration
        For custom operations and opaque modules, see :func:`inspect`.

    Returns
    -------
    Growth
        ``verification`` holds the check made right after insertion, before adjusting.

    Raises
    ------
    FxgrowError
        See :mod:`fxgrow.errors`.

    References
    ----------
    arXiv 2509.18842.
    """
    if adjust_epochs < 0:
        raise InputError(f"adjust_epochs is {adjust_epochs}; it must be 0 or more")
    with together(model, process_group) as (team, model):
        extend = extender_named(extender)
        options = ExtendOptions(
            coupling=coupling,
            paper=paper,
            epochs=adjust_epochs,
            rows=rows,
            seed=seed,
            mean=team.mean,
        )
        given = {key: value for key, value in vars(options).items() if key != "mean"}
        team.agree({"extender": extender, **given}, "the arguments")
        sources = dict(model.named_parameters())  # the caller's, whatever the device
        if device is not None:
            model = duplicate(plain(model)).to(device)
            example_inputs = to_device(example_inputs, device)
        inspection, votes, plan = plan_for(
            model,
            data,
            budget=budget,
            unit=unit,
            loss=loss,
            distributor=distributor,
            candidates=candidates,
            round_to=round_to,
            include=include,
            exclude=exclude,
            inner=inner,
            seed=seed,
            example_inputs=example_inputs,
            emit=emit,
            progress=progress,
            process_group=team,
            rules=rules,
        )
        growth = grow(model, inspection, plan, seed=seed, emit=emit, verify=True, votes=votes)
        training = growth.module.training
        fresh = [g for g in growth.groups if g.recipe != "copies"]  # these are settled already
        adjusted = extend(growth.module, fresh, data, loss, options, progress)
        growth.module.train(training)
        team.settle(growth.module, plan=plan, votes=votes)
    report = dict(growth.report)
    report["adjusting"] = None if adjusted is None else asdict(adjusted)
    return replace(growth, report=report, sources=sources)
