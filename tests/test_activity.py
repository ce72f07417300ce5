"""Which units are active, and new units against old ones."""

import copy
import itertools

import numpy as np
import pytest
import torch
from conftest import Small
from networks import NETWORKS
from torch import nn

import fxgrow
from fxgrow.errors import DataError, InputError


def mlp(*widths, activation=nn.ReLU):
    torch.manual_seed(0)
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def loader(*shape, classes=3, batches=3, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, *shape, generator=generator),
            torch.randint(classes, (size,), generator=generator),
        )
        for _ in range(batches)
    ]


def test_counts_are_those_of_the_definition():
    net, data = mlp(6, 40, 3), loader(6, batches=5, size=33)
    with torch.no_grad():
        net[0].bias[:5] = -99.0
        net[0].bias[5] = -2.2
    hidden = torch.cat([torch.relu(net[0](x)) for x, _ in data])
    expected = (hidden > 0).float().mean(0)
    seen = fxgrow.activity(net, data).group("0")
    assert np.allclose(seen.active, expected.numpy(), atol=1e-9)
    assert np.allclose(seen.magnitude, hidden.mean(0).detach().numpy(), rtol=1e-5)
    assert seen.inactive[:5].all()
    assert seen.inactive.sum() == int((expected == 0).sum())
    assert seen.nearly_inactive.sum() == int((expected < 0.01).sum())


def test_a_channel_is_active_where_one_of_its_positions_is(small):
    data = loader(1, 8, 8, classes=10)
    with torch.no_grad():
        small.norm.bias[1] = -99.0
    small.eval()
    maps = torch.cat([torch.relu(small.norm(small.conv(x))) for x, _ in data])
    seen = fxgrow.activity(small, data).group("conv")
    assert np.allclose(seen.active, (maps.amax((2, 3)) > 1e-9).float().mean(0).numpy())
    assert seen.inactive.tolist() == [False, True, False, False]


def test_smooth_activations_are_judged_by_size():
    net, data = mlp(6, 8, 3, activation=nn.GELU), loader(6)
    with torch.no_grad():
        net[0].bias[2] = -5.0
        net[0].weight[2] = 0
    assert fxgrow.activity(net, data).group("0").inactive.tolist() == [i == 2 for i in range(8)]
    assert not fxgrow.activity(net, data, threshold=0).group("0").inactive.any()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_group_of_every_network_is_observed(name):
    factory, inputs = NETWORKS[name][:2]
    module = factory()
    inputs = inputs() if callable(inputs) else inputs
    groups = fxgrow.inspect(module, inputs).groups
    seen = fxgrow.activity(module, [(inputs, 0)], example_inputs=inputs)
    assert {g.name for g in seen.groups} | set(seen.unobserved) == {g.name for g in groups}
    for group in seen.groups:
        assert np.isfinite(group.magnitude).all()
        assert group.active.max() > 0


def test_the_model_is_left_as_it_is(small):
    before = copy.deepcopy(small.state_dict())
    state = torch.random.get_rng_state()
    small.train()
    growth = fxgrow.widen(small, torch.zeros(2, 1, 8, 8), {"conv": 3})
    fxgrow.activity(growth, loader(1, 8, 8, classes=10))
    fxgrow.activity(small, loader(1, 8, 8, classes=10))
    assert small.training
    assert all(p.grad is None for p in [*small.parameters(), *growth.module.parameters()])
    assert all(torch.equal(before[k], v) for k, v in small.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_new_units_are_told_from_old_ones():
    net, data = mlp(6, 8, 5, 3), loader(6)
    growth = fxgrow.widen(net, torch.zeros(2, 6), {"0": 4, "2": 1})
    with torch.no_grad():
        growth.module.get_submodule("0").bias[-1] = -99.0
        growth.module.get_submodule("2").weight[:, -4:] = 0.5
    seen = fxgrow.activity(growth, data)
    first = seen.group("0")
    assert first.new.tolist() == [False] * 8 + [True] * 4
    assert first.inactive[-1]
    assert first.activation_parity == pytest.approx(
        first.magnitude[8:].mean() / first.magnitude[:8].mean()
    )
    row = first.to_dict()
    assert (row["new"], row["new_inactive"]) == (4, int(first.inactive[8:].sum()))


def test_gradients_are_those_of_the_loss():
    net, data = mlp(6, 8, 3), loader(6, batches=2)
    growth = fxgrow.widen(net, torch.zeros(2, 6), {"0": 4})
    with torch.no_grad():
        growth.module.get_submodule("2").weight[:, -4:] = 0.3
    seen = fxgrow.activity(growth, data).group("0")
    norms = []
    for x, y in data:
        twin = copy.deepcopy(growth.module)
        torch.autograd.backward(nn.functional.cross_entropy(twin(x), y))
        layer = twin.get_submodule("0")
        rows = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)
        norms.append(rows.norm(dim=1))
    assert np.allclose(seen.gradient, torch.stack(norms).mean(0).numpy(), rtol=1e-4)
    assert seen.gradient_parity == pytest.approx(
        seen.gradient[8:].mean() / seen.gradient[:8].mean()
    )


def test_without_growth_there_is_no_parity():
    row = fxgrow.activity(mlp(6, 8, 3), loader(6)).groups[0]
    assert row.gradient is None
    assert row.activation_parity is None
    assert row.gradient_parity is None


def test_dict_and_plot():
    growth = fxgrow.widen(mlp(6, 8, 5, 3), torch.zeros(2, 6), {"0": 4})
    seen = fxgrow.activity(growth, loader(6))
    data = seen.to_dict()
    assert data["schema"] == "fxgrow.activity/1"
    assert data["samples"] == 48
    assert data["units"] == 17
    figure = seen.plot()
    titles = [axis.get_title().partition("\n")[0] for axis in figure.axes]
    assert titles == ["0", "2"]
    colours = {patch.get_facecolor() for patch in figure.axes[0].patches}
    assert len(colours) == 2  # old and new


def test_many_groups_fit_into_one_picture():
    widths = [6] * 40
    figure = fxgrow.activity(mlp(*widths), loader(6, classes=6)).plot()
    assert len(figure.axes) == 24
    assert "14 groups" in figure.get_suptitle()


@pytest.mark.parametrize(
    ("data", "options", "error", "words"),
    [
        ([], {"example_inputs": torch.zeros(2, 6)}, DataError, "no batch"),
        (loader(6), {"threshold": -1.0}, InputError, "threshold"),
        (loader(5), {"example_inputs": torch.zeros(2, 6)}, DataError, "batch 0"),
        ([(torch.zeros(2, 6),)], {}, DataError, "not a pair"),
    ],
)
def test_refusals(data, options, error, words):
    with pytest.raises(error, match=words):
        fxgrow.activity(mlp(6, 8, 3), data, **options)


def test_unknown_groups_are_refused(small):
    seen = fxgrow.activity(small, loader(1, 8, 8, classes=10))
    with pytest.raises(InputError, match="no growable group"):
        seen.group("fc")


def test_units_serving_in_training_only_are_named():
    class Aux(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.head = (
                Small(),
                nn.Sequential(nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 10)),
            )

        def forward(self, x):
            y = self.trunk(x)
            return (y, self.head(x.flatten(1))) if self.training else y

    seen = fxgrow.activity(Aux(), loader(1, 8, 8, classes=10))
    assert [group.name for group in seen.groups] == ["trunk.conv"]
    assert "training only" in seen.unobserved["head.0"]
