"""What ``fxgrow verify`` does."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from fxgrow.compare import compare
from fxgrow.errors import InputError
from fxgrow.reduce import samples

from .data import RANDOM_BATCHES, find_data
from .discover import Source, find_model
from .shapes import describe, find_inputs, random_like
from .work import DATA_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .zoos import Found

Named = tuple[str, str | None, "Mapping[str, Any]"]


def sources(first: Named, second: Named, trust_pickle: bool, seed: int) -> tuple[Source, Source]:
    """Say how both models are to be had.

    A file of weights is built by its own ``arch``, else by the other one's, else by the
    other model where that is none.
    """
    (one, arch, kwargs), (two, other_arch, other_kwargs) = first, second
    plain = [name for name in (one, two) if not Source(name).is_file]
    if arch is not None and len(plain) == 2:
        raise InputError("--arch goes with a file of weights; both models are built already")
    fallback = arch or (plain[0] if plain else None)

    def source(name: str, own: str | None, given: Mapping[str, Any]) -> Source:
        is_file = Source(name).is_file
        return Source(name, (own or fallback) if is_file else None, trust_pickle, given, seed)

    return source(one, arch, kwargs), source(two, other_arch, other_kwargs)


def compare_models(
    one: Source,
    two: Source,
    data: str | None,
    shapes: Sequence[str],
    *,
    batches: int,
    batch_size: int | None,
    tolerance: float | None,
) -> dict[str, Any]:
    """Open two models and compare them on data or on random inputs."""
    first, second = _opened(one), _opened(two)
    if data is None:
        inputs = find_inputs(first, shapes, one.seed)
        several: Iterator[Any] = iter([inputs, *_redrawn(inputs, first, one.seed)])
        shown = f"random, {describe(inputs)}"
    else:
        example = find_inputs(first, shapes, one.seed) if shapes else None
        size = batch_size or DATA_BATCH
        loader = find_data(data, first.model, inputs=example, batch_size=size, seed=one.seed)
        several = islice(_inputs_of(loader, first), batches)
        shown = data
    result = compare(first.model, second.model, several, tolerance=tolerance)
    return {**result.to_dict(), "inputs": shown}


def _opened(source: Source) -> Found:
    """Open a model; a whole module needs no ``arch``, though one was found for it."""
    if source.arch is not None and source.is_file:
        from .discover import is_whole

        if is_whole(source):
            source = Source(source.reference, None, source.trust_pickle, {}, source.seed)
    return find_model(source)


def _redrawn(inputs: Any, found: Found, seed: int) -> Iterator[Any]:
    """Yield other random inputs of the same shapes."""
    generator = torch.Generator().manual_seed(seed + 1)
    size = samples(inputs)
    for _ in range(RANDOM_BATCHES - 1):
        yield random_like(inputs, found.model, size, generator)


def _inputs_of(loader: Any, found: Found) -> Iterator[Any]:
    from fxgrow.data import batches

    for inputs, _ in batches(loader, found.model):
        yield inputs
