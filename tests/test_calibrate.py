"""Calibration of new norm entries, and the extenders that begin with it."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from handmade import IMAGES, convnet, data, mlp
from torch import nn

from fxgrow.errors import InputError
from fxgrow.extenders import ExtendOptions, extender
from fxgrow.swe import calibrate_norms


class Functional(nn.Module):
    """A batch norm written with functions and a baked flag."""

    def __init__(self, size):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.register_buffer("running_mean", torch.zeros(size))
        self.register_buffer("running_var", torch.ones(size))

    def forward(self, x):
        return torch.batch_norm(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            False,
            0.1,
            1e-5,
            False,
        )


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, Functional])
def test_calibration_measures_new_entries_only(norm):
    module, grown = convnet(norm=norm)
    with torch.no_grad():
        for part in (module[1], module[4]):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
    before = copy.deepcopy(module)
    batches = data(**IMAGES)
    names = calibrate_norms(module, grown, batches)
    assert set(names) == {f"{i}.running_{what}" for i in (1, 4) for what in ("mean", "var")}
    for key, value in module.state_dict().items():
        old = before.state_dict()[key]
        if key in names:
            assert torch.equal(value[:4], old[:4]) and not torch.equal(value[4:], old[4:])
        else:
            assert torch.equal(value, old)
    outputs = [module[0](x) for x, _ in batches]
    mean = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    var = torch.stack([o.var((0, 2, 3)) for o in outputs]).mean(0)
    torch.testing.assert_close(module[1].running_mean[4:], mean[4:])
    torch.testing.assert_close(module[1].running_var[4:], var[4:])
    assert module.training


def test_calibration_of_instance_norm():
    module, grown = convnet(norm=partial(nn.InstanceNorm2d, affine=True, track_running_stats=True))
    names = calibrate_norms(module, grown, data(**IMAGES))
    assert len(names) == 4
    plain, _ = mlp()
    assert calibrate_norms(plain, [], data()) == ()


def test_extenders():
    module, grown = convnet()
    inputs = data(**IMAGES)[0][0]
    module.eval()
    before = module(inputs)
    options = ExtendOptions()
    assert extender("zero")(module, grown, data(**IMAGES), None, options, None) is None
    torch.testing.assert_close(module(inputs), before, rtol=0, atol=0)
    assert extender("swe")(module, grown, None, None, options, None) is None
    report = extender("swe")(module, grown, data(**IMAGES), None, options, None)
    assert [group.name for group in report.groups] == ["up", "conv"]
    assert not torch.equal(module(inputs), before)
    with pytest.raises(InputError, match="swe, zero"):
        extender("magic")
