"""Recorded runs, and runs of an independent program of explicit gates and couplings."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

HERE = Path(__file__).parent
SCRIPT = HERE / "reference" / "replay.py"
CASES = sorted((HERE / "data").glob("digits_*.npz"))


def load_script():
    spec = importlib.util.spec_from_file_location("replay", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["replay"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


replay = load_script()


def run(path, capsys):
    status = replay.main([str(path)])
    return status, capsys.readouterr()


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_recorded_cases(path, capsys):
    status, output = run(path, capsys)
    report = json.loads(output.out)
    assert status == 0 and report["passed"] and report["allocation_equal"]
    assert report["gate_gradient"]["max"] <= 1e-12
    assert report["swe"]["weights"]["max"] <= 1e-12
    assert report["swe"]["couplings"]["max"] <= 1e-12
    assert report["swe"]["logits"] <= 1e-12
    assert report["swe"]["mode"] == ("paper" if "1e-4" in path.stem else "dense")


def test_there_are_recorded_cases():
    assert len(CASES) == 3


class Program:
    """Writes a case by the definition: a gate per candidate, a D per pair, autograd."""

    def __init__(self, widths, budget, activation, decay, biases, samples=50, batch=16):
        torch.manual_seed(len(widths))
        self.widths, self.budget, self.decay = widths, budget, decay
        self.act = getattr(functional, activation, None) or getattr(torch, activation)
        self.x = torch.randn(samples, 2, 3, dtype=torch.float64)
        self.y = torch.randint(4, (samples,))
        self.batches = [slice(i, i + batch) for i in range(0, samples, batch)]
        sizes = [6, *widths, 4]
        self.base = [
            [torch.randn(b, a, dtype=torch.float64) / a**0.5, torch.randn(b, dtype=torch.float64)]
            for a, b in itertools.pairwise(sizes)
        ]
        for layer, has_bias in zip(self.base, biases, strict=True):
            layer[1] = layer[1] if has_bias else None
        self.out = {
            "x": self.x,
            "y": self.y,
            "batch_size": batch,
            "K": budget,
            "widths": widths,
            "activation": activation,
            "adam_weight_decay": decay,
            "base/logits": self.forward(self.base, self.x),
        }
        self.note("base/{}/", self.base)

    def note(self, prefix, layers):
        for i, layer in enumerate(layers):
            self.note_one(prefix.format(i), *layer)

    def note_one(self, prefix, weight, bias, suffixes=("weight", "bias")):
        for leaf, value in zip(suffixes, (weight, bias), strict=True):
            if value is not None:
                self.out[prefix + leaf] = value.detach().clone()

    def forward(self, layers, x, gates=None):
        x = x.flatten(1)
        for i, (weight, bias) in enumerate(layers):
            x = functional.linear(x, weight, bias)
            if i + 1 < len(layers):
                x = self.act(x * (1 + gates[i]) if gates else x)
        return x

    def loss(self, layers, part, gates=None):
        return functional.cross_entropy(self.forward(layers, self.x[part], gates), self.y[part])

    def svod(self):
        more = 2 * self.budget
        sizes = [6, *(w + more for w in self.widths), 4]
        layers = []
        for i, (weight, bias) in enumerate(self.base):
            wide = torch.empty(sizes[i + 1], sizes[i], dtype=torch.float64).uniform_(-0.01, 0.01)
            wide[: len(weight), : weight.shape[1]] = weight
            shift = torch.empty(sizes[i + 1], dtype=torch.float64).uniform_(-0.01, 0.01)
            if bias is not None:
                shift[: len(bias)] = bias
            layers.append([wide, None if bias is None else shift])
        self.note("svod/candidate_init/{}/", layers)
        weights = [t.requires_grad_() for layer in layers for t in layer if t is not None]
        optimizer = torch.optim.RMSprop(weights, lr=1e-3, alpha=0.9, momentum=0.1)
        for part in self.batches:
            optimizer.zero_grad()
            self.loss(layers, part).backward()
            optimizer.step()
        gates = [torch.zeros(size, dtype=torch.float64).requires_grad_() for size in sizes[1:-1]]
        for part in self.batches:
            self.loss(layers, part, gates).backward()
        slopes = [g.grad[w:] / len(self.batches) for g, w in zip(gates, self.widths, strict=True)]
        self.out.update({f"svod/gate_gradient/{i}": slope for i, slope in enumerate(slopes)})
        best = torch.cat(slopes).argsort()[: self.budget]
        assert (torch.cat(slopes)[best] < 0).all(), "ties of counts are not what is tested here"
        counts = torch.bincount(best // more, minlength=len(self.widths))
        self.out["svod/allocation"] = counts
        return counts.tolist()

    def swe(self, counts):
        layers = [list(layer) for layer in self.base]
        for i in reversed(range(len(self.widths))):
            if counts[i]:
                self.grow(layers, i, counts[i])
        self.out["swe/logits"] = self.forward(layers, self.x)

    def grow(self, layers, i, k):
        weight, bias = layers[i]
        n, fan = weight.shape
        new = torch.randn(k, fan, dtype=torch.float64) / fan**0.5
        weight = torch.cat([weight, new])
        bias = None if bias is None else torch.cat([bias, new[:, 0]])
        after = functional.pad(layers[i + 1][0], (0, k))
        layers[i], layers[i + 1][0] = [weight, bias], after
        self.note_one(f"swe/{i}/before/", weight, bias)
        for j, layer in enumerate(layers):
            if j != i:
                self.note_one(f"swe/{i}/before/other/{j}/", *layer)
        d = 1e-4 * torch.randn(k, n, fan, dtype=torch.float64)
        shift = None if bias is None else 1e-4 * torch.randn(k, n, dtype=torch.float64)
        self.note_one(f"swe/{i}/before/", d, shift, ("coupling", "coupling_bias"))
        ours, reader = [weight, bias], layers[i + 1]
        own = [t.clone().requires_grad_() for t in ours if t is not None]
        reading = [t.clone().requires_grad_() for t in reader if t is not None]
        coupled = [t.requires_grad_() for t in (d, shift) if t is not None]
        trained = coupled + reading + (own if self.decay else [])
        optimizer = torch.optim.Adam(trained, lr=1e-3, weight_decay=self.decay)

        def effective():
            pairs = zip(own, coupled, strict=True)
            rows = [torch.cat([r[:n] - c.sum(0), r[n:] + c.sum(1)]) for r, c in pairs]
            return rows if len(rows) == 2 else [*rows, None]

        for part in self.batches:
            optimizer.zero_grad()
            now = list(layers)
            now[i] = effective()
            now[i + 1] = reading if len(reading) == 2 else [*reading, None]
            self.loss(now, part).backward()
            for row in own:
                row.grad = torch.zeros_like(row) if self.decay else None
            optimizer.step()
        layers[i] = [None if t is None else t.detach() for t in effective()]
        layers[i + 1] = [t.detach() for t in reading] + [None] * (2 - len(reading))
        after = f"swe/{i}/after/"
        self.note_one(after, d, shift, ("coupling", "coupling_bias"))
        self.note_one(after, *layers[i])
        self.note_one(after, *layers[i + 1], ("next_weight", "next_bias"))

    def write(self, path):
        self.swe(self.svod())
        np.savez(path, **{key: np.asarray(value) for key, value in self.out.items()})
        return path


@pytest.mark.parametrize(
    ("widths", "budget", "activation", "decay", "biases"),
    [
        ((7,), 3, "tanh", 0.0, (False, True)),
        ((5, 9), 6, "gelu", 1e-3, (True, True, True)),
        ((6, 5, 8, 4), 9, "leaky_relu", 1e-4, (True, False, True, True, False)),
        ((4, 4, 4, 4, 4), 12, "silu", 0.0, (True, True, True, True, True, False)),
    ],
)
def test_an_independent_program(widths, budget, activation, decay, biases, tmp_path, capsys):
    path = Program(widths, budget, activation, decay, biases).write(tmp_path / "case.npz")
    status, output = run(path, capsys)
    assert status == 0, output
    report = json.loads(output.out)
    assert sum(report["allocation"]) == budget


def test_a_wrong_record_is_found(tmp_path, capsys):
    arrays = dict(np.load(CASES[0]))
    arrays["swe/0/after/weight"] = arrays["swe/0/after/weight"] + 1e-9
    np.savez(tmp_path / "off.npz", **arrays)
    status, output = run(tmp_path / "off.npz", capsys)
    assert status == 1 and json.loads(output.out)["passed"] is False


def damaged(tmp_path):
    arrays = dict(np.load(CASES[0]))
    del arrays["svod/gate_gradient/0"]
    np.savez(tmp_path / "key.npz", **arrays)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    arrays = dict(np.load(CASES[0]))
    arrays["base/1/weight"] = arrays["base/1/weight"][:, 1:]
    np.savez(tmp_path / "shape.npz", **arrays)
    arrays = {**dict(np.load(CASES[0])), "activation": np.array("nonesuch")}
    np.savez(tmp_path / "activation.npz", **arrays)
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "cut.npz").write_bytes(CASES[0].read_bytes()[:5000])
    (tmp_path / "empty.npz").write_bytes(b"")
    return [*sorted(tmp_path.iterdir()), tmp_path / "missing.npz"]


def test_bad_files_get_one_line(tmp_path, capsys):
    for path in damaged(tmp_path):
        status, output = run(path, capsys)
        assert status == 2 and output.out == "", path
        assert output.err.count("\n") == 1 and path.name in output.err


def test_as_a_program():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage")
