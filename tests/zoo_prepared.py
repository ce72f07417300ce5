"""A model of a zoo as it is checked."""

from __future__ import annotations

from itertools import product

import torch
from checks import calibrated, difference, doubled, outputs, randomised, run

PIXELS = (64, 96, 128, 160, 224)  # tried in turn


def prepared(model, example, scale=1.0):
    """Model and example as they are checked: random weights, fitting statistics, float64."""
    if isinstance(example, int):
        example = torch.randn(2, 3, example, example)
    example = doubled(example)
    return calibrated(randomised(model, scale=scale), example), example


def smallest(make, sizes, channels=3):
    """A prepared model that ``make(size)`` builds, at the fewest pixels that it takes.

    Attention without norms of its queries is chaotic for large weights: where no size is steady,
    weights of half the scale are taken.
    """
    problem = None
    for scale, size in product((1.0, 0.5), sizes):
        try:
            model = make(size)
            with torch.no_grad():
                run(model.train(), torch.randn(2, channels, size, size))
            built = prepared(model, torch.randn(2, channels, size, size), scale)
            if steady(*built):
                return built
            problem = ValueError("not steady at any size")
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            problem = error
    raise problem


def steady(model, example):
    """Whether rounding stays small: norms over two values in training blow it up."""
    moved = example + 1e-9 * torch.randn(example.shape, dtype=example.dtype)
    before, after = (outputs(model, e, training=True) for e in (example, moved))
    return difference(before, after) < 1e-5
