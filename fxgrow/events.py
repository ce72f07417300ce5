"""What happens to planes and can only be judged once all labels are united."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .flows import Flow
    from .planes import Axis, Labels

__all__ = [
    "Closing",
    "Frozen",
    "Meeting",
    "Mixing",
    "Reshape",
    "Seam",
    "Shared",
    "Statistic",
    "Unlabelled",
    "Where",
]


class Where(NamedTuple):
    """Where an event happened: the operation's name and the index of its node."""

    op: str
    site: object


class Frozen(NamedTuple):
    """These labels can't grow, because of ``code``."""

    labels: Labels
    code: str
    where: Where


class Meeting(NamedTuple):
    """Two planes that share some, but not all, of their dimensions."""

    a: Labels
    b: Labels
    where: Where


class Unlabelled(NamedTuple):
    """A plane lies along ``dims`` on something that carries no label."""

    labels: Labels
    dims: tuple[int, ...]
    where: Where


class Closing(NamedTuple):
    """A plane is summed away; one of ``partners`` (labels, axis) must close it."""

    labels: Labels
    partners: tuple[tuple[Labels, Axis], ...]
    where: Where


class Shared(NamedTuple):
    """A plane is summed away and closed by ``axis``.

    Not where one of the ``finer`` planes, which are closed, turns out to be of the same
    units: zeros in two factors would have no slope.
    """

    labels: Labels
    finer: tuple[Labels, ...]
    axis: Axis
    flow: Flow | None
    where: Where


class Mixing(NamedTuple):
    """A plane is reduced away by an operation that mixes its units.

    ``gains`` are the axes of the weights that its result is multiplied with.
    """

    labels: Labels
    code: str
    where: Where
    flow: Flow | None = None
    gains: tuple[Axis, ...] = ()


class Statistic(NamedTuple):
    """Weights are reduced over ``axes``: a mean, a variance, or both (standardisation).

    ``entries`` make one result; ``correction`` is what a variance divides by less,
    ``scalable`` says that the result (or an eps) can be scaled where it is computed.
    Whether new entries leave it as it is is known when all is: they do at the mean.
    """

    mixings: tuple[Mixing, ...]
    axes: tuple[Axis, ...]
    kind: str
    where: Where
    entries: int
    correction: float
    scalable: bool


class Reshape(NamedTuple):
    """One reshaped block of dimensions: the labels before and after."""

    before: Labels
    after: Labels
    where: Where


class Seam(NamedTuple):
    """A plane is put together, or cut, along ``dim`` before the positions ``cuts``."""

    labels: Labels
    dim: int
    cuts: tuple[int, ...]
    where: Where
