"""What is not computed has the shape, the strides and the type of what would be."""

from __future__ import annotations

import operator

import pytest
import torch
from test_layers import Recording
from torch.nn import functional as F

import fxgrow
from fxgrow.rules.layers import aten_function
from fxgrow.rules.skip import SHORTCUTS

ATEN = torch.ops.aten
PLAIN = torch.randn(2, 3, 4, 5)
TENSORS = {
    "plain": PLAIN,
    "channels last": PLAIN.to(memory_format=torch.channels_last),
    "transposed": PLAIN.transpose(1, 3),
    "expanded": torch.randn(2, 1, 4, 1).expand(2, 3, 4, 5),
    "double": PLAIN.double(),
    "integers": torch.arange(120).reshape(2, 3, 4, 5),
}
CASES = {
    "add": (ATEN.add.Tensor, lambda x: (x, x + 1), {}),
    "a number": (ATEN.mul.Tensor, lambda x: (x, 2.0), {}),
    "broadcast": (ATEN.mul.Tensor, lambda x: (x, x[:, :, :1, :1].contiguous()), {}),
    "broadcast the other way": (ATEN.sub.Tensor, lambda x: (x[0, 0].contiguous(), x), {}),
    "both ways": (ATEN.div.Tensor, lambda x: (x[:, :1].contiguous(), x[:, :, :1].contiguous()), {}),
    "rounded": (ATEN.div.Tensor_mode, lambda x: (x, x[:, :1] + 1), {"rounding_mode": "floor"}),
    "two types": (ATEN.add.Tensor, lambda x: (x, x.half()), {}),
    "in place": (ATEN.add_.Tensor, lambda x: (x.clone(), x[:, :1]), {}),
    "in place, a number": (ATEN.mul_.Tensor, lambda x: (x.clone(), 2), {}),
    "clone": (ATEN.clone.default, lambda x: (x,), {}),
    "clone, contiguous": (
        *(ATEN.clone.default, lambda x: (x,)),
        {"memory_format": torch.contiguous_format},
    ),
    "roll": (ATEN.roll.default, lambda x: (x, [1, 2], [2, 3]), {}),
    "mean": (ATEN.mean.dim, lambda x: (x, [-1, -2], True), {}),
    "mean, dropped": (ATEN.mean.dim, lambda x: (x, [1]), {}),
    "mean of doubles": (ATEN.mean.dim, lambda x: (x, [1]), {"dtype": torch.float64}),
    "pad": (ATEN.constant_pad_nd.default, lambda x: (x, [1, 2, 0, -1], 0.5), {}),
    "cast": (ATEN._to_copy.default, lambda x: (x,), {"dtype": torch.int64}),
    "cast to floats": (ATEN._to_copy.default, lambda x: (x,), {"dtype": torch.float64}),
    "cat": (ATEN.cat.default, lambda x: ([x, x], 1), {}),
}


@pytest.mark.parametrize("layout", TENSORS)
@pytest.mark.parametrize("case", CASES)
def test_as_if_computed(case, layout):
    op, arguments, kwargs = CASES[case]
    args = arguments(TENSORS[layout])
    out = SHORTCUTS[op.overloadpacket](args, kwargs)
    if out is NotImplemented:
        return
    real = op(*args, **kwargs)
    assert (out.shape, out.dtype) == (real.shape, real.dtype)
    if not case.startswith("cat"):
        assert out.stride() == real.stride()


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"rounded", "two types", "cast to floats"}))
def test_plain_tensors_are_not_computed(case):
    op, arguments, kwargs = CASES[case]
    out = SHORTCUTS[op.overloadpacket](arguments(PLAIN), kwargs)
    assert (out is NotImplemented) == (case == "mean of doubles")


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2, 3), (3, 2, 4))])
def test_errors_are_left_to_torch(shapes):
    pair = tuple(map(torch.randn, shapes))
    for name in ("add", "mul_"):
        assert SHORTCUTS[getattr(ATEN, name)](pair, {}) is NotImplemented
        assert aten_function({"add": operator.add, "mul_": operator.imul}[name], pair, {}) is None


X, Y = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 1, 1)
RUNNING = torch.zeros(3), torch.ones(3)
FUNCTIONS = {
    "add": (operator.add, (X, Y), {}),
    "torch.add": (torch.add, (X, Y), {}),
    "mul": (operator.mul, (Y, X), {}),
    "iadd": (operator.iadd, (X.clone(), Y), {}),
    "imul": (operator.imul, (X.clone(), Y), {}),
    "cat": (torch.cat, ([X, X],), {"dim": 1}),
    "cat, by place": (torch.cat, ((X, X, X), -1), {}),
    "batch_norm": (F.batch_norm, (X, *RUNNING, None, None, False, 0.1, 1e-3), {}),
    "batch_norm, training": (F.batch_norm, (X, None, None), {"training": True}),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_make_the_calls_that_are_told(name):
    function, args, kwargs = FUNCTIONS[name]
    mode = Recording()
    with torch.no_grad(), mode:
        function(*args, **kwargs)
    op, told = aten_function(function, args, kwargs)
    [given] = [own for func, own in mode.calls if func is op]
    for a, b in zip(given, told[: len(given)], strict=True):
        one, other = ((v if isinstance(v, (list, tuple)) else [v]) for v in (a, b))
        pairs = zip(one, other, strict=True)
        momentum = "batch_norm" in name and isinstance(a, float)  # does not matter to labels
        assert momentum or all(v is w or v == w for v, w in pairs)


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (torch.add, (X, Y), {"alpha": 2}),
        (operator.add, (X, 1), {}),
        (operator.mul, (X, X.double()), {}),
        (operator.sub, (X, Y), {}),
        (torch.cat, ([X, X.double()],), {}),
        (torch.cat, ([X, X],), {"out": X}),
        (F.batch_norm, (torch.randn(1, 3, 1, 1), None, None), {"training": True}),
    ],
)
def test_other_calls_have_to_run(function, args, kwargs):
    assert aten_function(function, args, kwargs) is None


class Coded(torch.nn.Module):
    """Inputs are turned into indices."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(10, 8)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.table((x * 9).long()))


def test_indices_that_are_made_of_live_values_are_valid():
    found = fxgrow.inspect(Coded(), torch.rand(2, 5))
    assert [(g.name, g.width) for g in found.groups] == [("table", 8)]
