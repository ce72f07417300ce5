"""Tables that modules hold as plain attributes grow as buffers do, and stay with the weights."""

import copy

import pytest
import torch
from checks import difference, errors, outputs, randomised, untrained
from safetensors.torch import save_file
from torch import nn

import fxgrow
from fxgrow.errors import UnsupportedError

TOKENS = 5


class Sines(nn.Module):
    """Holds its table of positions as vit-pytorch's simple_vit does: a plain attribute."""

    def __init__(self, width):
        super().__init__()
        self.table = torch.randn(TOKENS, width, dtype=torch.float64)

    def forward(self, x):
        return x + self.table[: x.shape[1]].to(x.device, dtype=x.dtype)


class Net(nn.Module):
    """A stream with fixed positions, of the outermost module or of a part."""

    def __init__(self, own=True, width=8):
        super().__init__()
        self.into, self.own = nn.Linear(3, width), own
        self.positions = nn.Identity() if own else Sines(width)
        if own:
            self.table = torch.randn(TOKENS, width, dtype=torch.float64)
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 12), nn.Linear(12, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.positions(self.into(x))
        if self.own:
            x += self.table
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.head(self.last(x).mean(1))


@pytest.fixture(params=[True, False], ids=["outermost", "part"])
def made(request):
    torch.manual_seed(0)
    return randomised(Net(request.param)), torch.randn(2, TOKENS, 3, dtype=torch.float64)


def stream(inspection):
    (group,) = [group for group in inspection.groups if group.width == 8]
    return group


@pytest.mark.parametrize("emit", ["graph", "module"])
def test_grows(made, emit):
    model, x = made
    before = copy.deepcopy(model.state_dict())
    inspection = fxgrow.inspect(model, x)
    assert inspection.coverage > 0.9
    growth = fxgrow.widen(model, x, {g.name: 3 for g in inspection.groups}, emit=emit)
    assert max(errors(model, growth.module, x)) < 1e-12
    assert not untrained(growth.module, growth.groups, x)
    name = next(n for n in growth.module.state_dict() if n.endswith("table"))
    assert growth.module.state_dict()[name].shape == (TOKENS, 11)
    assert name not in dict(growth.module.named_parameters())
    assert before.keys() == model.state_dict().keys()
    assert model.get_submodule(name.rpartition(".")[0]).table.shape == (TOKENS, 8)


def test_other_groups_leave_it(made):
    """A table that doesn't grow stays what it was: a plain attribute."""
    model, x = made
    (group,) = [g for g in fxgrow.inspect(model, x).groups if g.width == 12]
    growth = fxgrow.widen(model, x, {group.name: 3}, emit="module")
    assert growth.module.state_dict().keys() == model.state_dict().keys()


def test_is_saved(made, tmp_path):
    model, x = made
    growth = fxgrow.widen(model, x, {stream(fxgrow.inspect(model, x)).name: 3})
    fxgrow.save(growth, tmp_path / "grown.safetensors")
    again = fxgrow.load(tmp_path / "grown.safetensors", base=model)
    assert difference(outputs(growth.module, x), outputs(again.module, x)) == 0


def test_checkpoints_lack_it(made, tmp_path):
    """A file of weights has no place for the table: nothing is written."""
    model, x = made
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    name = stream(fxgrow.inspect(model, x)).name
    with pytest.raises(UnsupportedError, match="table"):
        fxgrow.widen_checkpoint(
            tmp_path / "weights.safetensors",
            tmp_path / "wide",
            {name: 3},
            model=model,
            example_inputs=x,
        )
    assert not (tmp_path / "wide").exists()
