"""SWE: couplings, adjusting, folding, calibration."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from handmade import IMAGES, convnet, data, mlp, slot, zero_outgoing
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxgrow import coupling as coupling_module
from fxgrow.coupling import AdamSettings, CouplingSetup, PairwiseCoupling, Rows, fold, laplacian
from fxgrow.errors import DataError, InputError
from fxgrow.ir import GrownGroup, GrownSlot
from fxgrow.swe import adjust

MODES = ["laplacian", "pairwise", "dense"]
SGD = partial(torch.optim.SGD, lr=1e-2)
LINEAR = {
    "plain": SGD,
    "momentum": partial(SGD, momentum=0.9),
    "nesterov": partial(SGD, momentum=0.9, nesterov=True),
    "decay": partial(SGD, momentum=0.5, weight_decay=0.1),
}


def adjusted(make, batches, **options):
    module, grown = make()
    report = adjust(module, grown, batches, **options)
    return module.state_dict(), report


def no_coupling(make):
    """Initial D of zero for every coupled tensor."""
    module, grown = make()
    params = dict(module.named_parameters())
    return {
        g.name: {
            s.tensor: torch.zeros(
                g.added,
                g.width,
                params[s.tensor].numel() // (g.width + g.added),
                dtype=torch.float64,
            )
            for s in g.slots
            if s.role == "producer"
        }
        for g in grown
    }


def residual():
    """A stream whose writer reads it too: rows and columns of one tensor in one group."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.mix, self.head = nn.Linear(5, 9), nn.Linear(9, 9), nn.Linear(9, 4)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + torch.tanh(self.mix(x)))

    torch.manual_seed(3)
    module = Net().double()
    spans = [("stem.weight", 0, "producer"), ("stem.bias", 0, "producer")]
    spans += [("mix.weight", 0, "producer"), ("mix.bias", 0, "producer")]
    spans += [("mix.weight", 1, "consumer"), ("head.weight", 1, "consumer")]
    grown = [GrownGroup("stream", 6, 3, tuple(slot(*s, 6, 3) for s in spans))]
    zero_outgoing(module, grown)
    return module, grown


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("make", [mlp, convnet, residual], ids=["mlp", "conv", "residual"])
def test_laplacian_is_explicit_couplings_under_linear_optimizers(make, name):
    batches = data(**IMAGES) if make is convnet else data()
    options = {"optimizer": LINEAR[name], "epochs": 5}
    short, _ = adjusted(make, batches, coupling="laplacian", **options)
    full, _ = adjusted(make, batches, coupling="dense", couplings=no_coupling(make), **options)
    start = make()[0].state_dict()
    for key, value in full.items():
        torch.testing.assert_close(short[key], value, rtol=0, atol=1e-12)
    assert any(not torch.equal(start[key], full[key]) for key in full)


def test_laplacian_matrix():
    n, k = 4, 3
    matrix = laplacian(torch.eye(n + k, dtype=torch.float64), n)
    found = torch.linalg.eigvalsh(matrix).round(decimals=9).tolist()
    assert sorted(set(found)) == [0, k, n, n + k]
    grad = torch.randn(n + k, 5, dtype=torch.float64)
    steps = grad[n:, None] - grad[None, :n]
    torch.testing.assert_close(fold(steps), laplacian(grad, n))


@pytest.mark.parametrize(
    ("mode", "options"),
    [("dense", {}), ("pairwise", {}), ("laplacian", {"optimizer": LINEAR["momentum"]})],
)
def test_sum_of_rows_is_invariant(mode, options):
    """Whatever D is, folding it only moves weight between rows."""
    module, grown = mlp()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    adjust(module, grown[:1], data(), coupling=mode, epochs=2, **options)
    after = module.state_dict()
    for key in ("0.weight", "0.bias"):
        assert not torch.equal(after[key], before[key])
        torch.testing.assert_close(after[key].sum(0), before[key].sum(0), rtol=0, atol=1e-13)


def test_first_pairwise_step_is_adam_on_couplings():
    """At the first step the second moments are exact, so only later steps may differ."""
    one = data(batches=1)
    short, _ = adjusted(mlp, one, coupling="pairwise")
    full, _ = adjusted(mlp, one, coupling="dense", couplings=no_coupling(mlp))
    for key, value in full.items():
        torch.testing.assert_close(short[key], value, rtol=0, atol=1e-9)


def test_pairwise_does_not_depend_on_the_chunk():
    rows, setup = Rows(0, 6, 5, None), CouplingSetup(AdamSettings(), torch.Generator())
    results = []
    for chunk in (1, 50, 2**20):
        part = PairwiseCoupling.start(rows, torch.zeros(11, 7, dtype=torch.float64), setup)
        part.chunk = chunk
        generator = torch.Generator().manual_seed(0)
        for _ in range(4):
            part.pull(torch.randn(11, 7, generator=generator, dtype=torch.float64))
        results.append(part.displacement())
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


@pytest.mark.parametrize("mode", MODES)
def test_only_couplings_and_the_next_layer_move(mode):
    module, grown = convnet()
    module.train()
    module[1].eval()
    module[0].bias.requires_grad_(False)
    before = copy.deepcopy(module)
    report = adjust(module, grown[:1], data(**IMAGES), coupling=mode)
    moved = {
        key
        for key, value in module.state_dict().items()
        if not torch.equal(value, before.state_dict()[key])
    }
    # rows of conv and depthwise conv; their reader with its bias; no norm, no statistics
    assert moved == {"0.weight", "3.weight", "3.bias", "6.weight", "6.bias"}
    assert report.groups[0].coupled == ("0.weight", "3.weight", "3.bias")
    assert report.groups[0].trained == ("6.weight", "6.bias")
    assert len(report.groups[0].losses) == 1
    for part, old in zip(module.modules(), before.modules(), strict=True):
        assert part.training == old.training
    for param, old in zip(module.parameters(), before.parameters(), strict=True):
        assert param.requires_grad == old.requires_grad and param.grad is None


@pytest.mark.parametrize("mode", ["laplacian", "pairwise"])
def test_placement_of_units_does_not_matter(mode):
    """Interleaved units give what appended ones give, permuted; heads of two rows too."""
    module, grown = mlp((4,), (2,))
    order = np.array([5, 0, 1, 4, 2, 3])  # new position of every unit
    other = copy.deepcopy(module)
    where = torch.from_numpy(np.argsort(order))
    with torch.no_grad():
        other[0].weight.copy_(module[0].weight[where])
        other[0].bias.copy_(module[0].bias[where])
        other[2].weight.copy_(module[2].weight[:, where])
    slots = tuple(
        GrownSlot(s.tensor, s.dim, s.role, order[s.old], order[s.new]) for s in grown[0].slots
    )
    adjust(module, grown, data(), coupling=mode)
    adjust(other, [GrownGroup("h0", 4, 2, slots)], data(), coupling=mode)
    torch.testing.assert_close(other[0].weight, module[0].weight[where])
    torch.testing.assert_close(other[0].bias, module[0].bias[where])
    torch.testing.assert_close(other[2].weight, module[2].weight[:, where])


@pytest.mark.parametrize("dim", [0, 1])
def test_rows_of_several_slices(dim):
    positions = np.array([[0, 3], [1, 4], [2, 5]])
    tensor = torch.randn(6, 6, 2)
    rows = Rows.of(GrownSlot("t", dim, "producer", positions[:2], positions[2:]), tensor)
    matrix = rows.gather(tensor)
    assert matrix.shape == (3, 2 * 6 * 2)
    expected = tensor.movedim(dim, 0)[[2, 5]].reshape(-1)
    torch.testing.assert_close(matrix[2], expected)
    doubled = tensor.clone()
    rows.add_(doubled, matrix)
    torch.testing.assert_close(doubled, 2 * tensor)


def test_groups_to_come_rest():
    """The deeper group is adjusted as if the shallower one had not grown yet."""

    def narrow():
        module, grown = mlp((8, 6), (0, 2), seed=5)
        return module, grown[1:]

    def wide():
        module, grown = mlp((8, 6), (3, 2), seed=6)
        source, _ = narrow()
        with torch.no_grad():
            module[0].weight[:8], module[0].bias[:8] = source[0].weight, source[0].bias
            module[2].weight[:, :8], module[2].bias[:] = source[2].weight, source[2].bias
            module[4].load_state_dict(source[4].state_dict())
        return module, grown

    expected, _ = adjusted(narrow, data())
    module, grown = wide()
    states = []

    def loss(outputs, targets):
        states.append({key: value.clone() for key, value in module.state_dict().items()})
        return nn.functional.cross_entropy(outputs, targets)

    adjust(module, grown, data(batches=4), loss)
    folded = states[4]  # as the first batch of the second turn sees it
    assert not folded["2.weight"][:, 8:].any()
    torch.testing.assert_close(folded["2.weight"][:, :8], expected["2.weight"])
    torch.testing.assert_close(folded["4.weight"], expected["4.weight"])
    assert torch.equal(folded["0.weight"], states[0]["0.weight"])
    assert module[2].weight[:, 8:].all()


def test_zero_epochs_is_pure_insertion():
    start, _ = mlp()
    found, report = adjusted(mlp, data(), epochs=0)
    assert not report.groups
    for key, value in start.state_dict().items():
        assert torch.equal(value, found[key])


def test_paper_mode_shrinks_the_rows_by_lr_per_step():
    module, grown = mlp((8,), (3,))
    before = module[0].weight.detach().clone()
    zeros = no_coupling(lambda: (module, grown))
    batches = [(x * 0, y) for x, y in data()]  # no gradient reaches the weights
    adjust(module, grown, batches, paper=True, couplings=zeros)
    shrunk = (before.abs() - module[0].weight.detach().abs()).flatten()
    assert shrunk.median().item() == pytest.approx(4e-3, rel=0.05)
    still, _ = mlp((8,), (3,))
    adjust(still, grown, batches, coupling="dense", couplings=zeros)
    assert torch.equal(still[0].weight, before)


@pytest.mark.parametrize("mode", ["laplacian", "pairwise"])
def test_no_memory_of_new_times_old_times_entries(mode, monkeypatch):
    monkeypatch.setattr(coupling_module, "CHUNK", 2**13)
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    module, grown = mlp((96,), (64,), inputs=32)
    with Largest():
        adjust(module, grown, data((32,), batches=2), coupling=mode)
    assert largest <= max(160 * 32, 2**13 if mode == "pairwise" else 0)
    assert largest * 10 < 96 * 64 * 32


def test_same_seed_same_result_and_random_state_untouched():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, _ = adjusted(lambda: convnet(), data(**IMAGES), coupling="dense", seed=3)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    module, grown = mlp()
    torch.set_rng_state(state)
    adjust(module, grown, data(), coupling="dense")
    assert torch.equal(torch.rand(3), expected)
    again, _ = adjusted(lambda: convnet(), data(**IMAGES), coupling="dense", seed=3)
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_float32_and_progress():
    told = []
    module, grown = mlp(dtype=torch.float32)
    adjust(module, grown, data(), epochs=2, progress=lambda *step: told.append(step))
    assert told[0] == ("adjust: h1 (1 of 2)", 1, 8) and told[-1] == ("adjust: h0 (2 of 2)", 8, 8)


def test_group_that_the_loss_ignores_is_skipped():
    module, grown = mlp()
    before = copy.deepcopy(module.state_dict())
    report = adjust(module, grown, data(), loss=lambda out, y: out.detach().sum(), coupling="dense")
    assert [bool(g.skipped) for g in report.groups] == [True, True]
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    for param in module.parameters():
        param.requires_grad_(False)
    report = adjust(module, grown, data())
    assert "requires gradients" in report.groups[0].skipped


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coupling": "sparse"}, "dense, laplacian, pairwise"),
        ({"epochs": -1}, "epochs"),
        ({"lr": 0.0}, "lr"),
        ({"coupling": "pairwise", "weight_decay": 0.1}, "pairwise"),
        ({"couplings": {"h0": {}}}, "dense"),
        ({"order": ["h9"]}, "h9"),
        ({"coupling": "dense", "couplings": {"h0": {"0.weight": torch.zeros(2)}}}, "shape"),
    ],
)
def test_bad_arguments(options, words):
    module, grown = mlp()
    with pytest.raises(InputError, match=words):
        adjust(module, grown, data(), **options)


def test_nan_loss_names_the_batch():
    module, grown = mlp()
    batches = data()
    batches[2][0][0, 0] = float("nan")
    with pytest.raises(DataError, match="batch 2"):
        adjust(module, grown, batches)
