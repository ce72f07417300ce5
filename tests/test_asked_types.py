"""Code that asks what type a value has takes the same path traced as it takes when it runs."""

from __future__ import annotations

import pytest
import torch
from checks import doubled, randomised
from exactly import grows_exactly
from torch import nn

import fxgrow
from fxgrow.errors import DataError

WIDTH = 12


class Timed(nn.Module):
    """Diffusion models take a number or a tensor of time steps; ``asks`` which."""

    def __init__(self, asks):
        super().__init__()
        self.asks = asks
        self.stem, self.time = nn.Linear(6, WIDTH), nn.Linear(1, WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x, steps):
        if not self.asks(steps):
            steps = torch.tensor([steps], dtype=x.dtype)
        hidden = self.stem(x) + self.time(steps.expand(x.shape[0])[:, None])
        return self.head(hidden.tanh())


class Joined(nn.Module):
    """Either one tensor or a list of them goes on to the head."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(6, WIDTH) for _ in range(2))
        self.head = nn.Linear(2 * WIDTH, 4)

    def join(self, x):
        return x if isinstance(x, torch.Tensor) else torch.cat(x, dim=1)

    def forward(self, x):
        both = torch.stack([part(x) for part in self.parts]).relu().unbind()
        return self.head(self.join(self.join(both if isinstance(both, tuple) else None)))


def is_exactly_a_tensor(value):
    return type(value) is torch.Tensor  # nobody can answer for a traced value here


@pytest.mark.parametrize(
    "asks",
    [
        lambda value: torch.is_tensor(value),  # looked up as it runs
        lambda value: isinstance(value, torch.Tensor),
        lambda value: torch.jit.isinstance(value, torch.Tensor),
    ],
    ids=["is_tensor", "isinstance", "jit"],
)
def test_a_traced_tensor_is_a_tensor(asks):
    model = randomised(Timed(asks))
    example = doubled((torch.randn(3, 6), torch.tensor([0.5, 0.1, 0.7])))
    assert not fxgrow.inspect(model, example).analysis.traced.obstacle
    grows_exactly(model, example)


def test_tuples_and_lists_of_traced_tensors_are_tuples_and_lists():
    model, example = randomised(Joined()), doubled(torch.randn(3, 6))
    inspection = fxgrow.inspect(model, example)
    assert not inspection.analysis.traced.obstacle
    assert [g.layers for g in inspection.groups] == [("parts.0", "parts.1", "head")]
    grows_exactly(model, example)


def test_questions_are_answered_as_before_when_tracing_is_over():
    asked = isinstance, torch.is_tensor, torch.jit.isinstance
    fxgrow.inspect(Joined(), torch.randn(3, 6))
    assert asked == (isinstance, torch.is_tensor, torch.jit.isinstance)
    assert "isinstance" not in globals()


def test_where_the_graph_took_another_path_the_class_is_grown():
    """The graph does not run where the model does: it is at fault, not the inputs."""
    model = randomised(Timed(is_exactly_a_tensor))
    example = doubled((torch.randn(3, 6), torch.tensor([0.5, 0.1, 0.7])))
    inspection = fxgrow.inspect(model, example)
    assert inspection.analysis.traced.obstacle
    assert [g.width for g in inspection.groups] == [WIDTH]
    growth = fxgrow.widen(model, example, {inspection.groups[0].name: 3}, emit="module")
    assert type(growth.module).__name__ == "Timed"
    assert torch.allclose(growth.module(*example), model(*example), rtol=1e-12)


def test_inputs_that_fit_neither_are_refused_with_the_graphs_place():
    with pytest.raises(DataError, match=r"node stem.*test_asked_types.py:\d+"):
        fxgrow.inspect(Timed(is_exactly_a_tensor), (torch.randn(3, 5), torch.tensor([0.5])))
