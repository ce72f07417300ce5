"""Batches, calls, losses and their errors."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from fxgrow.data import batch_loss, batches, call_model, main_output, resolve_loss
from fxgrow.errors import DataError, InputError

LABELS = torch.tensor([0, 2])


class Two(nn.Module):
    """Takes two arguments by position or name."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, a, b):
        return self.scale * a + b


def test_inputs_are_moved_and_cast():
    net = nn.Linear(3, 2).double()
    raw = [
        (torch.ones(2, 3), LABELS),
        [np.ones((2, 3), np.float32), np.ones((2, 2), np.float32)],
        ({"input": torch.ones(2, 3)}, {"a": torch.ones(1), "b": LABELS}),
        ([torch.ones(2, 3, dtype=torch.float16), "text"], None),
    ]
    found = list(batches(raw, net))
    assert found[0][0].dtype == torch.float64 and found[0][1].dtype == torch.int64
    assert found[1][0].dtype == found[1][1].dtype == torch.float64
    assert found[2][0]["input"].dtype == torch.float64 and found[2][1]["b"].dtype == torch.int64
    assert isinstance(found[3][0], tuple) and found[3][0][1] == "text"
    assert raw[0][0].dtype == torch.float32


def test_calls():
    a, b = torch.ones(2), torch.full((2,), 2.0)
    for inputs in ((a, b), [a, b], {"b": b, "a": a}):
        assert torch.equal(call_model(Two(), inputs), a + b)
    with pytest.raises(DataError, match=r"shape \(2, 5\).*batches' shapes"):
        call_model(nn.Linear(3, 2), torch.zeros(2, 5))
    with pytest.raises(DataError, match="missing"):
        call_model(Two(), a)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no batch"),
        ((pair for pair in [(1, 2)]), "one-shot"),
        ([torch.zeros(2, 3)], "batch 0.*pair"),
        ([(1, 2, 3)], "pair"),
        (7, "iterated"),
    ],
)
def test_malformed_data(data, words):
    with pytest.raises(DataError, match=words):
        list(batches(data, nn.Linear(3, 2)))


def test_main_output():
    tensor = torch.ones(2, 3)
    pair = namedtuple("GoogLeNetOutputs", "logits aux")(tensor, None)
    holder = type("Output", (), {"logits": tensor})()
    for outputs in (tensor, pair, holder, {"out": tensor}, {"x": 1, "logits": tensor}, (1, tensor)):
        assert main_output(outputs) is tensor
    with pytest.raises(DataError, match="pass loss"):
        main_output("nothing")


def test_losses():
    logits, labels = torch.randn(2, 3), LABELS
    cross = nn.functional.cross_entropy(logits, labels)
    assert resolve_loss(None, labels)((logits, None), labels) == cross
    assert resolve_loss(None, labels)(logits, labels.int()) == cross
    wanted = torch.randn(2)
    column = torch.randn(2, 1)
    expected = ((column[:, 0] - wanted) ** 2).mean()
    torch.testing.assert_close(resolve_loss(None, wanted)(column, wanted), expected)
    assert resolve_loss("bce_with_logits", labels)(wanted, torch.tensor([0, 1])) > 0
    assert resolve_loss("nll")(logits.log_softmax(1), labels) == cross
    tokens = torch.randn(2, 5, 7)
    ids = torch.randint(7, (2, 5))
    expected = nn.functional.cross_entropy(tokens.reshape(10, 7), ids.reshape(10))
    torch.testing.assert_close(resolve_loss(None, ids)(tokens, ids), expected)
    soft = torch.softmax(logits, 1)
    torch.testing.assert_close(
        resolve_loss("cross_entropy")(logits, soft), nn.functional.cross_entropy(logits, soft)
    )
    own = resolve_loss(lambda outputs, targets: outputs["x"], None)
    assert own({"x": 3}, None) == 3


def test_loss_errors():
    net, x = nn.Linear(3, 2), torch.ones(2, 3)
    with pytest.raises(InputError, match="cross_entropy"):
        resolve_loss("hinge", LABELS)
    with pytest.raises(InputError, match="callable"):
        resolve_loss(None, {"labels": LABELS})
    with pytest.raises(DataError, match=r"batch 4.*shape \(2, 2\)"):
        batch_loss(net, x, torch.tensor([0, 9]), None, 4)
    with pytest.raises(DataError, match="batch 3 is nan"):
        batch_loss(net, x * float("nan"), LABELS.clamp(max=1), None, 3)
    with pytest.raises(DataError, match="not one number"):
        batch_loss(net, x, LABELS, lambda outputs, targets: outputs, 0)
