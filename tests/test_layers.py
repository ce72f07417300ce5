"""The ATen calls told for plain layers are those that the layers make."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from fxgrow.rules.layers import aten_call


class Recording(TorchDispatchMode):
    """Keeps the calls that produce floats, but views."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def recorded(layer, x):
    """Calls that a layer makes; without those that only count batches."""
    mode = Recording()
    with torch.no_grad(), mode:
        layer(x)
    return [(f, args) for f, args in mode.calls if args[0] is x]


def alike(a, b):
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return a is b
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b


@st.composite
def convolutions(draw):
    dims = draw(st.sampled_from([1, 2, 3]))
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    groups = draw(st.sampled_from([1, 2]))
    several = draw(st.booleans())

    def size(low, high):
        one = st.integers(low, high)
        return draw(st.tuples(*[one] * dims)) if several else draw(one)

    options = {name: size(*bounds) for name, bounds in SIZES.items()}
    layer = kind(2, 4, groups=groups, bias=draw(st.booleans()), **options)
    return layer, torch.randn(2, 2, *[9] * dims)


SIZES = {"kernel_size": (1, 3), "stride": (1, 2), "padding": (0, 2), "dilation": (1, 2)}


@given(convolutions())
@settings(max_examples=60, deadline=None)
def test_convolutions(case):
    layer, x = case
    op, args = aten_call(layer, (x,))
    [(func, given_args)] = recorded(layer, x)
    assert func is op
    assert alike(tuple(given_args), args) or _same_sizes(given_args, args)


def _same_sizes(ours, theirs):
    """Sizes may be repeated for each dimension."""
    pairs = zip(ours, theirs, strict=True)
    return all(
        list(a) == list(b) if isinstance(a, (list, tuple)) else a is b or a == b for a, b in pairs
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("tracking", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_batch_norms(training, affine, tracking, dims):
    kind = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
    layer = kind(3, affine=affine, track_running_stats=tracking, eps=1e-3).train(training)
    x = torch.randn(2, 3, *[4] * dims)
    op, args = aten_call(layer, (x,))
    [(func, given_args)] = recorded(layer, x)
    # The momentum does not matter to labels.
    assert func is op
    assert alike((*given_args[:6], *given_args[7:]), (*args[:6], *args[7:]))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", [nn.ReLU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid])
def test_activations(kind, in_place):
    layer, x = kind(inplace=in_place), torch.randn(2, 3)
    op, args = aten_call(layer, (x,))
    assert [(op, args[0] is x)] == [(func, a[0] is x) for func, a in recorded(layer, x)]


class Louder(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(handle):
    layer = nn.Conv2d(2, 2, 1)
    getattr(layer, handle)(lambda *given: None)
    return layer


def overridden():
    layer = nn.Conv2d(2, 2, 1)
    layer.forward = lambda x: x
    return layer


CHANGED = {
    "a subclass": Louder(2, 2, 1),
    "hook": hooked("register_forward_hook"),
    "pre-hook": hooked("register_forward_pre_hook"),
    "own forward": overridden(),
    "parametrized": parametrizations.weight_norm(nn.Conv2d(2, 2, 1)),
    "padding by copies": nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
    "padding by name": nn.Conv2d(2, 2, 3, padding="same"),
    "another dtype": nn.Conv2d(2, 2, 1).double(),
    "one value a channel": nn.BatchNorm2d(2).train(),
}


@pytest.mark.parametrize("what", CHANGED)
def test_other_layers_have_to_run(what):
    x = torch.randn(1, 2, 1, 1) if what == "one value a channel" else torch.randn(1, 2, 4, 4)
    assert aten_call(CHANGED[what], (x,)) is None


def test_no_batch_or_more_arguments():
    layer = nn.Conv2d(2, 2, 1)
    assert aten_call(layer, (torch.randn(2, 4, 4),)) is None
    assert aten_call(layer, (torch.randn(1, 2, 4, 4), 1)) is None
    assert aten_call(layer, (1,)) is None
