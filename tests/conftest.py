"""Fixtures that several test files share."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

# torch 2.6's exporter fails on batch norms with onnxscripts that are younger
WRITES_ONNX = not torch.__version__.startswith("2.6.")

FACTORIES = '''
import time
import torch
from torch import nn


class Small(nn.Module):
    """Takes 8×8 images only."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 64, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


def linear():
    return nn.Linear(8, 3)


def with_inputs():
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)), torch.zeros(4, 5)


def tokens():
    return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 2))


class Puzzling(nn.Module):
    """No single input."""

    def forward(self, pairs):
        return sum(a * b for a, b in pairs)


class Counting(nn.Module):
    """Data-dependent Python around its only layers."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))
        self.v = nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        while float((x * x).sum()) > 1:
            x = x / 2
        return torch.relu(x @ self.w.t()) @ self.v.t()


def number():
    return 3


def broken():
    raise RuntimeError("no such luck")


def batches():
    return [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,))) for _ in range(3)]


def nan_batches():
    return [(torch.full((8, 1, 8, 8), float("nan")), torch.randint(10, (8,)))]


def wrong_batches():
    return [(torch.randn(8, 3, 5, 5), torch.randint(10, (8,)))]


def no_batches():
    return []


class Slow:
    def __iter__(self):
        print("READY", flush=True)
        for batch in batches():
            time.sleep(30)
            yield batch


def slow_batches():
    return Slow()


def squared(outputs, targets):
    return (outputs ** 2).mean()
'''


class Small(nn.Module):
    """The same as in FACTORIES, importable by pickles of these tests."""

    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width * 64, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder with ``parts.py`` (see FACTORIES) in it."""
    (tmp_path / "parts.py").write_text(FACTORIES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("parts", None)


@pytest.fixture(autouse=True)
def forget_modules(tmp_path_factory):
    """Forget modules that a test wrote and imported: others have the same names."""
    before = set(sys.modules)
    yield
    base = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(base):
            del sys.modules[name]
