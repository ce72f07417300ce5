"""What people do with networks works with grown ones: checks of ``usage.py`` on small networks.

``benchmarks/downstream.py`` makes them on many more; docs/downstream.md is its page.
"""

from __future__ import annotations

import functools

import pytest
import torch
import torchvision
import usage
import usage_models
from conftest import WRITES_ONNX
from torch import nn

import fxgrow
from fxgrow.errors import UnsupportedError
from fxgrow.ownclass import followed

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CHECKS = sorted(set(usage.CHECKS) - {"inductor", "onnx", "compile"})
FORMS = ("graph", "module")


def densenet():
    torch.manual_seed(0)
    return "torchvision", torchvision.models.DenseNet(4, (2, 2), 8, num_classes=10), IMAGES


SMALL = {
    "densenet": densenet,
    "timm_vit": functools.partial(usage_models.build, "timm_vit"),
    "hf_llama": functools.partial(usage_models.build, "hf_llama"),
}


@functools.cache
def subject(name, form):
    """Grow a small network."""
    library, model, example = SMALL[name]()
    inspection = fxgrow.inspect(model, example)
    growth = fxgrow.widen(model, example, usage.everything(inspection, 2), emit=form)

    def again():
        return fxgrow.widen(SMALL[name]()[1], example, growth.plan, emit=form, seed=3).module

    return usage.Subject(growth.module, example, library, model, growth, again)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("name", "form"), [(n, f) for n in SMALL for f in FORMS if (n, f) != ("hf_llama", "graph")]
)
def test_grown_networks_do_what_the_original_does(name, form, check):
    found = usage.attempt(check, subject(name, form))
    assert found["state"] != "fails", found["note"]


@pytest.mark.skipif(not WRITES_ONNX, reason="torch 2.6 can't write batch norms as ONNX")
@pytest.mark.parametrize(("check", "form"), [("compile", "graph"), ("onnx", "module")])
def test_compiled_and_written(check, form):
    found = usage.attempt(check, subject("timm_vit", form))
    assert found["state"] == "works", found["note"]


class Lying(nn.Module):
    """Two attributes that are no longer true."""

    def __init__(self, told=8):
        super().__init__()
        self.fc, self.num_features = nn.Linear(4, 8), told
        self.fc.out_features = told

    def forward(self, x):
        return self.fc(x)


def test_checks_can_fail():
    """They notice wrong sizes, losses that don't fall, and outputs that change."""
    assert usage.layers_untrue(Lying(9)) == ["fc.out_features is 9, not 8"]
    wide = Lying()
    wide.fc = nn.Linear(4, 10)
    assert usage.attributes_stale(Lying(), wide) == [".num_features is 8; once 8, now [10]"]

    class Random(nn.Module):
        def forward(self, x):
            return self.w * x + float("nan")

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

    for check in ("trains", "deepcopy", "bf16"):
        found = usage.attempt(check, usage.Subject(Random(), torch.ones(2, 3)))
        assert found["state"] == "fails", check


# ------------------------------------------------------- sizes in the user's own class


@pytest.mark.parametrize("name", ["timm_vit", "timm_swin"])
def test_own_classes_hold_their_heads(name):
    """Their code has numbers of heads as attributes: these grow with the tensors."""
    _, model, example = usage_models.build(name)
    heads = next(g for g in fxgrow.inspect(model, example).groups if g.name.endswith("qkv"))
    growth = fxgrow.widen(model, example, {heads.name: 2}, emit="module")
    attention = growth.module.get_submodule(heads.name.removesuffix(".qkv"))
    assert type(growth.module) is type(model)
    assert attention.num_heads == heads.width + 2
    assert growth.verification.passed


def test_what_own_code_ties_is_refused_with_the_reason():
    _, model, example = usage_models.build("swin")
    stream = "features.0.0"
    with pytest.raises(UnsupportedError, match=r"own class.*// features\.1\.0\.attn\.num_heads"):
        fxgrow.widen(model, example, {stream: 24}, emit="module")
    assert fxgrow.widen(model, example, {stream: 24}).verification.passed


def test_every_group_means_those_that_the_class_can_take():
    _, model, example = usage_models.build("vit")
    inspection = fxgrow.inspect(model, example)
    offered = followed(model, inspection)
    lost = {g.name for g in inspection.groups} - {g.name for g in offered.groups}
    reasons = {g.name: g.reason.code for g in offered.frozen if g.name in lost}
    assert set(reasons.values()) == {"opaque"}
    growth = fxgrow.widen(model, example, 2, emit="module")
    assert set(growth.plan.additions) == {g.name for g in offered.groups}
    data = [(example, torch.zeros(2, dtype=torch.long))]
    plan = fxgrow.expand(model, data, budget=8, emit="module", adjust_epochs=0).plan
    assert not lost & set(plan.additions)


class Masked(nn.Module):
    """A constant of the code, as large along one axis as nothing that grows."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)
        self.mask = torch.linspace(0, 1, 5)[None, :, None]

    def forward(self, x):
        return self.down(torch.relu(self.up(x) + self.mask))


@pytest.mark.parametrize("form", FORMS)
def test_constants_of_the_code_have_no_units(form):
    """They become buffers of a graph, which are not the model's."""
    growth = fxgrow.widen(Masked(), torch.randn(3, 5, 4), {"up": 2}, emit=form)
    assert growth.verification.passed


class Told(nn.Module):
    """Tells widths, in a list, in dicts that name modules, and of other things."""

    def __init__(self):
        super().__init__()
        self.stem, self.mid = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 2)
        self.num_features, self.embed_dims, self.patch_size = 8, (8, 8), 8
        self.feature_info = [{"module": "stem", "num_chs": 8}, {"module": "mid", "num_chs": 8}]

    def forward(self, x):
        return self.head(self.mid(self.stem(x).relu()).mean((2, 3)))


def test_widths_that_are_told_follow():
    model = Told()
    growth = fxgrow.widen(model, torch.randn(2, 3, 9, 9), {"mid": 3}, emit="module")
    module = growth.module
    assert (module.num_features, module.patch_size, module.embed_dims) == (11, 8, (11, 11))
    assert [entry["num_chs"] for entry in module.feature_info] == [8, 11]
    assert [entry["num_chs"] for entry in model.feature_info] == [8, 8]
    assert any("num_features: 8 → 11" in edit for edit in growth.report["edits"])


class Doubled(nn.Conv2d):
    """A layer of the user's, derived from torch's."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("form", FORMS)
def test_layers_derived_from_those_of_torch_say_their_sizes(form):
    net = nn.Sequential(Doubled(3, 6, 3), nn.ReLU(), Doubled(6, 6, 3, groups=6), Doubled(6, 4, 1))
    growth = fxgrow.widen(net, IMAGES, 3, emit=form)
    assert growth.plan.additions
    assert not usage.layers_untrue(growth.module)


class Versioned(nn.Module):
    """Asks a state dict for its version, as classes do that have changed."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        assert metadata.get("version") == 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)

    def forward(self, x):
        return self.down(self.up(x).relu())


def test_files_know_versions_of_classes(tmp_path):
    x = torch.randn(2, 4)
    growth = fxgrow.widen(Versioned(), x, {"up": 1}, emit="module")
    growth.save(tmp_path / "a.safetensors")
    again = fxgrow.load(tmp_path / "a.safetensors", base=Versioned()).module
    assert torch.equal(again(x), growth.module(x))
