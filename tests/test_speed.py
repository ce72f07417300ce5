"""Nothing is out of proportion. Generous: twice the bounds that `make bench` shows.

Both sides of a ratio take turns, and another attempt is made when one was disturbed.
"""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # at the end: tests have a zoo of their own

import analysis
import speed

import fxgrow

ATTEMPTS = 3
CALLS = 520  # of functions, Python's and others, for each operation of a residual network


def best_ratio(figure, bound):
    """Least ratio of up to three attempts; the first that is good enough ends them."""
    ratios = []
    for _ in range(ATTEMPTS):
        ratios.append(figure().ratio)
        if ratios[-1] <= bound:
            break
    return min(ratios)


@pytest.mark.parametrize("name", ["resnet50", "densenet121"])
def test_analysis_takes_a_few_forward_passes(name):
    bound = 2 * analysis.BOUNDS["inspect"]
    assert best_ratio(lambda: analysis.inspecting(name, repeats=3), bound) <= bound


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_widening_takes_a_few_copies(name):
    bound = 2 * analysis.BOUNDS["rewrite"]
    assert best_ratio(lambda: analysis.widening(name, 3, whole=False)[0], bound) <= bound


def test_an_adjusting_step_is_a_training_step():
    bound = 2 * analysis.BOUNDS["laplacian step"]
    assert best_ratio(lambda: analysis.adjusting(*analysis.linear_case()), bound) <= bound


def counted(depth):
    """Operations of a residual network, and the calls of functions that analysing it takes."""
    model, example = speed.build(f"depth:{depth}", 8)
    operations = len(fxgrow.inspect(model, example).analysis.traced.graphs["eval"].nodes)
    count = 0

    def seen(frame, event, argument):
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        fxgrow.inspect(model, example)
    finally:
        sys.setprofile(before)
    return operations, count


def test_calls_are_linear_in_operations():
    small, middle, large = map(counted, (20, 56, 164))
    first = (middle[1] - small[1]) / (middle[0] - small[0])
    second = (large[1] - middle[1]) / (large[0] - middle[0])
    assert second <= 1.03 * first, (first, second)
    assert second <= CALLS, second
