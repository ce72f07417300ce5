"""Grown tensors made one at a time, each as :func:`fxgrow.preserve.new_tensors` makes it.

Among all tensors, each draws its random numbers when it has its turn. Here the states of
the generators at these turns are known beforehand, so that any order does.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from .fills import stream_steps, take_step
from .preserve import drawn, filled, is_vector, slots_of
from .shares import scale, shares

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from .files.header import Entry
    from .ir import GrownGroup, GrownSlot
    from .layout import Layout

    Read = Callable[[str], torch.Tensor]

__all__ = ["Pieces"]

_CHUNK = 2**20  # numbers that are drawn at once to get past them
_FIRST = frozenset({"random", "scale"})  # kinds that come before rows are averaged


class Pieces:
    """The tensors that grow, each made when asked for.

    Parameters
    ----------
    layout : Layout
    entries : dict of str to Entry
        Type and shape of the old tensors that grow.
    seed : int
        See :func:`fxgrow.preserve.new_tensors`.
    factors : collection of str
        See there.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        New shapes.
    changed : set of str
        Tensors some of whose old entries change: they are scaled, or shared with copies.
    """

    def __init__(
        self,
        layout: Layout,
        entries: Mapping[str, Entry],
        seed: int,
        factors: Collection[str] = (),
    ) -> None:
        self._layout, self._factors = layout, factors
        self._slots = slots_of(layout)
        self.shapes = {
            name: tuple(axes[d].size if d in axes else s for d, s in enumerate(entries[name].shape))
            for name, axes in layout.index_map.axes.items()
        }
        self._turns = dict(self._first_turns(entries, torch.Generator().manual_seed(seed)))
        self._shares = shares(layout.groups, layout.index_map, seed)
        self._steps: dict[str, list[tuple[GrownGroup, GrownSlot, torch.Tensor]]]
        self._steps = defaultdict(list)
        generator = torch.Generator().manual_seed(seed)
        for group, slot in stream_steps(layout.groups):
            name = slot.tensor
            self._steps[name].append((group, slot, generator.get_state()))
            if slot.filling.kind == "random":
                count = slot.new.size * math.prod(self.shapes[name]) // self.shapes[name][slot.dim]
                _pass(generator, count, entries[name].dtype)
        gains = (n for n, steps in self._steps.items() if any(_is_gain(s) for _, s, _ in steps))
        self.changed = {*self._shares, *gains}

    def _first_turns(
        self, entries: Mapping[str, Entry], generator: torch.Generator
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the generator's state when each tensor is filled."""
        for name, own in self._slots.items():
            yield name, generator.get_state()
            shape = self.shapes[name]
            if not is_vector(len(shape), name, own, self._factors):
                _pass(generator, drawn(own, shape), entries[name].dtype)

    def make(self, name: str, read: Read) -> torch.Tensor:
        """Make a tensor in its new shape; dtype is kept.

        Parameters
        ----------
        name : str
            One of ``shapes``.
        read : callable
            Name → old tensor. Asked for this one; for few others, small ones, where means
            take scales into account.
        """
        tensor = self._begun(name, read)
        at_hand = _AtHand({name: tensor}, lambda other: self._scaled(other, read))
        for group, slot, state in self._steps.get(name, ()):
            take_step(at_hand, group, slot, _at(state))
        return tensor

    def _begun(self, name: str, read: Read) -> torch.Tensor:
        tensor = filled(
            read(name),
            self._layout,
            name,
            self.shapes,
            self._slots,
            _at(self._turns[name]),
            self._factors,
        )
        if name in self._shares:
            scale(tensor, self._shares[name])
        return tensor

    def _scaled(self, name: str, read: Read) -> torch.Tensor:
        """Return a tensor as it is when the means of other tensors' rows look at it."""
        if name not in self.shapes:
            return read(name)
        tensor = self._begun(name, read)
        for group, slot, state in self._steps.get(name, ()):
            if slot.filling.kind in _FIRST:
                take_step({name: tensor}, group, slot, _at(state))
        return tensor


class _AtHand(dict[str, torch.Tensor]):
    """Tensors by name; what is missing is made, and kept."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], make: Read) -> None:
        super().__init__(tensors)
        self._make = make

    def __missing__(self, name: str) -> torch.Tensor:
        self[name] = self._make(name)
        return self[name]


def _is_gain(slot: GrownSlot) -> bool:
    return slot.filling.kind == "gain"


def _at(state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator


def _pass(generator: torch.Generator, count: int, dtype: torch.dtype) -> None:
    """Bring a generator where it is after ``count`` draws for a tensor of this type."""
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    scratch = torch.empty(min(count, _CHUNK), dtype=kind)
    for start in range(0, count, _CHUNK):
        scratch[: count - start].uniform_(generator=generator)
