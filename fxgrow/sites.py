"""What trains while SWE adjusts a group: coupled rows, and the layers that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from .coupling import COUPLINGS, Coupling, CouplingSetup, Rows, laplacian_
from .ir import GrownGroup, GrownSlot
from .precision import master


@dataclass(frozen=True, eq=False)
class Site:
    """One tensor that trains while a group is adjusted.

    Without ``views`` the optimizer steps the parameter itself. With views (coupled rows)
    the parameter holds the effective values: ``base`` plus the couplings' displacements.
    Of a parameter of half precision ``base`` is a float32 copy. ``turned`` rows have no
    displacement: the optimizer steps ``base`` itself on the Laplacian of its gradient.
    """

    name: str
    param: torch.nn.Parameter
    base: torch.Tensor
    views: tuple[tuple[Rows, Coupling], ...]
    next_layer: bool
    pending: tuple[tuple[int, torch.Tensor], ...]
    turned: Rows | None = None

    def trained(self, paper: bool) -> list[torch.Tensor]:
        """Return what the optimizer steps (``paper``: own rows decay, so they do too)."""
        own = [self.base] if self.next_layer or paper or self.turned else []
        return own + [tensor for _, coupling in self.views for tensor in coupling.trained]

    def place(self) -> None:
        """Write the effective values into the parameter and forget its gradient."""
        self.param.grad = None
        if self.base is self.param:
            return
        if self.base.dtype != self.param.dtype:
            exact = self.base.clone()
            for rows, coupling in self.views:
                rows.add_(exact, coupling.displacement())
            self.param.copy_(exact)
            return
        self.param.copy_(self.base)
        for rows, coupling in self.views:
            rows.add_(self.param, coupling.displacement())

    def reset(self) -> None:
        """Put the own values back."""
        if self.base is not self.param:
            self.param.copy_(self.base)

    def pull(self, paper: bool) -> None:
        """Hand the gradient of the effective values on to what trains."""
        grad = self.param.grad
        if grad is None:  # not used on this batch: nothing may step on old gradients
            for tensor in self.trained(paper):
                tensor.grad = None
            return
        grad = grad.to(self.base.dtype)
        for dim, index in self.pending:
            grad.index_fill_(dim, index, 0)
        for rows, coupling in self.views:
            coupling.pull(rows.gather(grad))
        if self.turned:
            matrix = self.turned.gather(grad)
            self.turned.put_(grad, laplacian_(matrix, self.turned.old))
        if self.base is not self.param and (self.next_layer or self.turned):
            self.base.grad = grad
        elif self.views and paper:
            self.base.grad = torch.zeros_like(grad)


def collect(
    module: torch.nn.Module,
    group: GrownGroup,
    later: Sequence[GrownGroup],
    coupling: str,
    setup: CouplingSetup,
    initial: Mapping[str, torch.Tensor],
) -> list[Site]:
    """Collect the tensors that train while a group is adjusted.

    Parameters
    ----------
    module : torch.nn.Module
        The widened module.
    group : GrownGroup
        The group whose turn it is.
    later : sequence of GrownGroup
        Groups whose turn is still to come: their new entries rest.
    coupling : str
        Key of :data:`fxgrow.coupling.COUPLINGS`.
    setup : CouplingSetup
        For the couplings.
    initial : dict of str to torch.Tensor
        Initial D by tensor.

    Returns
    -------
    list of Site
        Coupled tensors first.
    """
    params = dict(module.named_parameters(remove_duplicate=False))
    following = _next_layer(group, params)
    coupled: dict[str, list[GrownSlot]] = {}
    for slot in group.slots:
        param = params.get(slot.tensor)
        if slot.role == "producer" and param is not None and param.requires_grad:
            coupled.setdefault(slot.tensor, []).append(slot)
    in_place = setup.in_place and coupling == "laplacian"
    readers = {id(params[name]) for name in following}
    own_rows = {id(params[name]) for name in coupled}
    sites = []
    for name in (*coupled, *(n for n in following if id(params[n]) not in own_rows)):
        param, reads = params[name], id(params[name]) in readers
        rows = [Rows.of(slot, param) for slot in coupled.get(name, ())]
        # a tensor whose rows are read by its own columns has two kinds of steps
        turn = in_place and len(rows) == 1 and not reads and rows[0].fill(param)
        own = replace(setup, initial=initial.get(name))
        views = () if turn else tuple((r, _start(coupling, r, param, own)) for r in rows)
        base = master(param.detach().clone() if views else param)
        pending = _pending(name, param, later)
        sites.append(Site(name, param, base, views, reads, pending, rows[0] if turn else None))
    return sites


def _start(coupling: str, rows: Rows, param: torch.Tensor, setup: CouplingSetup) -> Coupling:
    return COUPLINGS[coupling](rows, rows.gather(master(param).detach()), setup)


def _next_layer(group: GrownGroup, params: Mapping[str, torch.nn.Parameter]) -> tuple[str, ...]:
    """Names of the tensors that read the group, and of the biases beside them."""
    first = {id(param): name for name, param in reversed(list(params.items()))}
    names: dict[int, str] = {}
    for slot in group.slots:
        if slot.role != "consumer":
            continue
        owner, _, leaf = slot.tensor.rpartition(".")
        bias = leaf.replace("weight", "bias")
        for name in (slot.tensor, f"{owner}.{bias}" if owner else bias):
            param = params.get(name)
            if param is not None and param.requires_grad:
                names[id(param)] = first[id(param)]
    return tuple(names.values())


def _pending(
    name: str, param: torch.Tensor, later: Sequence[GrownGroup]
) -> tuple[tuple[int, torch.Tensor], ...]:
    """Entries (dim, positions) of groups whose turn is still to come.

    Copies take part in the function from the start, so they never rest. Neither do streams:
    their norms count all units.
    """
    return tuple(
        (slot.dim, torch.from_numpy(slot.new.reshape(-1)).to(param.device))
        for group in later
        if group.recipe == "fresh"
        for slot in group.slots
        if slot.tensor == name
    )


class NormsFixed:
    """Train mode with norms in eval mode, for a while.

    Modules with running statistics are the norms; no list of layer types is needed.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.before = [(part, part.training) for part in module.modules()]

    def __enter__(self) -> None:
        self.module.train()
        for part in self.module.modules():
            if isinstance(getattr(part, "running_mean", None), torch.Tensor):
                part.eval()

    def __exit__(self, *_: object) -> None:
        for part, training in self.before:
            part.training = training


class OnlyThese:
    """Let only these parameters require gradients, for a while."""

    def __init__(self, module: torch.nn.Module, params: list[torch.nn.Parameter]) -> None:
        self.wanted = params
        self.before = [(param, param.requires_grad) for param in module.parameters()]

    def __enter__(self) -> None:
        for param, _ in self.before:
            param.requires_grad_(False)
        for param in self.wanted:
            param.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for param, required in self.before:
            param.requires_grad_(required)
            param.grad = None
