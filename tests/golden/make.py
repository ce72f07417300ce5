"""Make the golden files of the version that is checked out: ``python tests/golden/make.py``.

Files of earlier schemas stay as they are: ``tests/test_golden.py`` loads all of them. Each
``<schema>-<name>.safetensors`` has beside it ``<schema>-<name>.json``: what the module
that was saved computed on ``inputs()``, and the sums of its tensors.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import nn

import fxgrow

HERE = Path(__file__).resolve().parent


class Conv(nn.Module):
    """Convolution, norm with buffers, flatten."""

    def __init__(self, width=3):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width * 16, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


class Tied(nn.Module):
    """Token embedding and head share a weight; the stream runs under a norm."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.up = nn.Linear(4, 6)
        self.down = nn.Linear(6, 4)
        self.last = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.head(self.last(x))


def mlp(width=5):
    return nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, 2))


def images():
    return torch.linspace(-1, 1, 2 * 16).reshape(2, 1, 4, 4)


def tokens():
    return torch.arange(10).reshape(2, 5) % 7


def rows():
    return torch.linspace(-1, 1, 6).reshape(2, 3)


def conv():
    return fxgrow.widen(Conv(), images(), {"conv": 2}, seed=3)


def tied():
    return fxgrow.widen(Tied(), tokens(), "+50%", seed=4)


def own_class():
    return fxgrow.widen(Conv(), images(), {"conv": 1}, emit="module")


def half():
    return fxgrow.widen(mlp().bfloat16(), rows().bfloat16(), {"0": 3})


def voted():
    data = [(images(), torch.tensor([1, 3]))]
    return fxgrow.expand(Conv(), data, budget=4)


def transferred():
    return fxgrow.transfer(mlp(5), mlp(8), rows())


# name: (growth, base to load onto, inputs)
CASES = {
    "conv": (conv, Conv, images),
    "tied": (tied, Tied, tokens),
    "own-class": (own_class, Conv, images),
    "half": (half, lambda: mlp().bfloat16(), lambda: rows().bfloat16()),
    "voted": (voted, Conv, images),
    "transferred": (transferred, lambda: mlp(8), rows),
    "twice": (None, Conv, images),
}


def digest(tensor):
    data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()


def expectation(module, inputs):
    with torch.no_grad():
        output = module.eval()(inputs)
    return {
        "output": output.double().flatten().tolist(),
        "digests": {name: digest(value) for name, value in module.state_dict().items()},
    }


def save_case(name, path):
    """Write one file and return the module in it."""
    torch.manual_seed(0)
    make, base, inputs = CASES[name]
    if make is not None:
        growth = make()
        fxgrow.save(growth, path)
        return growth.module
    fxgrow.save(fxgrow.widen(base(), inputs(), {"conv": 1}), path)  # growth on growth
    first = fxgrow.load(path, base=base())
    again = fxgrow.widen(first.module, inputs(), {"conv": 2})
    fxgrow.save(again, path, history=first.report["steps"])
    return again.module


def main():
    number = fxgrow.io.SCHEMA.rpartition("/")[2]
    for name, (_, _, inputs) in CASES.items():
        path = HERE / f"{number}-{name}.safetensors"
        module = save_case(name, path)
        text = json.dumps(expectation(module, inputs()), indent=1)
        path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(f"written: {len(CASES)} files of schema {number} in {HERE}\n")


if __name__ == "__main__":
    main()
