"""Models that are no graph: analysed below their code, grown as their own class."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxgrow
from fxgrow import inspection as inspections
from fxgrow.errors import DataError, NothingToGrow, TraceError
from fxgrow.trace import trace

transformers = pytest.importorskip("transformers", reason="its models are what is tested")
torchvision = pytest.importorskip("torchvision", reason="its models are what is tested")

EXACT = 1e-10
TOKENS = {"input_ids": torch.arange(14).reshape(2, 7)}


class Heads(nn.Module):
    """Attention whose sizes are attributes, one of them in a list."""

    def __init__(self, width=16, heads=4, each=8):
        super().__init__()
        self.heads, self.each, self.inner = heads, each, [heads * each]
        self.q = nn.Linear(width, heads * each)
        self.kv = nn.Linear(width, 2 * heads * each)
        self.out = nn.Linear(heads * each, width)

    def forward(self, x):
        n, length, _ = x.shape
        q = self.q(x).view(n, length, self.heads, self.each).transpose(1, 2)
        kv = self.kv(x).view(n, length, 2, self.heads, self.each).permute(2, 0, 3, 1, 4)
        scores = (q @ kv[0].transpose(-1, -2) / self.each**0.5).softmax(-1)
        return self.out((scores @ kv[1]).transpose(1, 2).reshape(n, length, self.inner[0]))


class Free(nn.Module):
    """Data decide its path; its heads are a loop, its outputs a dict."""

    def __init__(self):
        super().__init__()
        self.width = 24
        self.attention = Heads()
        self.up, self.down = nn.Linear(16, self.width), nn.Linear(self.width, 16)
        self.norm = nn.GroupNorm(4, self.width)
        self.heads = nn.ModuleList(nn.Linear(16, 3) for _ in range(2))

    def forward(self, x, scale=1):
        positive = float(x.sum()) > 0
        x = x + self.attention(x)
        h = self.up(x).relu()
        if h.shape[-1] != self.width:
            raise ValueError("another width")
        h = self.norm(h.flatten(0, 1)).unflatten(0, (len(x), -1))
        if positive:
            h = h * scale
        x = x + self.down(h[..., : self.width])
        return {"heads": [head(x) for head in self.heads], "scale": scale}


class Fixed(nn.Module):
    """Its code holds a size as a number, which can't grow."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 2)

    def forward(self, x):
        if float(x.sum()) > 1e9:
            return x
        h = self.a(x).relu().reshape(-1, 12)
        return self.c(self.b(h).relu())


class TwoRoles(nn.Module):
    """One attribute is the size of two widths; the second may be twice that size."""

    def __init__(self, times=1):
        super().__init__()
        self.size, self.twice = 8, times > 1
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8 * times), nn.Linear(8 * times, 2)

    def forward(self, x):
        if float(x.sum()) > 1e9:
            return x
        h = self.a(x).relu().view(-1, self.size)
        h = self.b(h).relu()
        return self.c(h.view(-1, 2 * self.size if self.twice else self.size))


def free():
    torch.manual_seed(0)
    return Free().double(), torch.randn(2, 5, 16, dtype=torch.float64)


def test_handwritten_net_and_its_attributes():
    model, x = free()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inspection = fxgrow.inspect(model, x)
    assert {(g.name, g.width) for g in inspection.groups} == {("attention.q", 4), ("up", 4)}
    growth = fxgrow.widen(model, x, {"attention.q": 2, "up": 1}, emit="module")
    module = growth.module
    assert max(growth.verification.eval_error, growth.verification.train_error) <= EXACT
    assert (module.attention.heads, module.attention.each, module.attention.inner) == (6, 8, [48])
    assert (module.width, module.up.out_features, module.norm.num_groups) == (30, 30, 5)
    assert "attention.heads: 4 → 6" in growth.report["edits"]
    # The model is as it was, down to the types of its attributes.
    assert (model.width, type(model.width), type(model.attention.inner[0])) == (24, int, int)
    assert type(module.width) is int
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_new_units_learn():
    model, x = free()
    growth = fxgrow.widen(model, x, {"attention.q": 1, "up": 1}, emit="module")
    optimizer = torch.optim.SGD(growth.module.parameters(), lr=0.1)
    before = {k: p.detach().clone() for k, p in growth.module.named_parameters()}
    for _ in range(2):  # new rows follow when the columns that read them have moved
        optimizer.zero_grad()
        sum(h.square().mean() for h in growth.module(x)["heads"]).backward()
        optimizer.step()
    now = dict(growth.module.named_parameters())
    assert (now["up.weight"][24:] != before["up.weight"][24:]).any()
    assert (now["down.weight"][:, 24:] != 0).any()


def test_a_number_in_the_code_freezes_with_module_and_line():
    inspection = fxgrow.inspect(Fixed(), torch.zeros(2, 6))
    assert [g.name for g in inspection.groups] == ["b"]
    reason = next(g.reason for g in inspection.frozen if g.name == "a")
    assert reason.code == "hidden_size"
    assert "the number 12 would have to become 13, not 12" in reason.message
    assert "test_untraceable.py:" in reason.source


def test_an_attribute_with_two_roles_makes_one_group_of_both():
    torch.manual_seed(0)
    model, x = TwoRoles().double(), torch.randn(3, 6, dtype=torch.float64)
    (group,) = fxgrow.inspect(model, x).groups
    assert (group.name, group.layers) == ("a", ("a", "b", "c"))
    growth = fxgrow.widen(model, x, {"a": 2}, emit="module")
    assert max(growth.verification.eval_error, growth.verification.train_error) <= EXACT
    assert (growth.module.size, growth.module.b.out_features) == (10, 10)


def test_an_attribute_with_two_roles_freezes_widths_that_differ():
    inspection = fxgrow.inspect(TwoRoles(2), torch.zeros(2, 6))
    assert not inspection.groups
    reasons = {g.name: g.reason for g in inspection.frozen}
    assert reasons["a"].code == reasons["b"].code == "hidden_size"
    assert "size would have to become" in reasons["a"].message
    with pytest.raises(NothingToGrow):
        fxgrow.widen(TwoRoles(2), torch.zeros(2, 6), 1, emit="module")


def test_where_no_graph_can_be_had_the_class_grows_and_the_report_says_why():
    model, x = free()
    growth = fxgrow.widen(model, x, {"up": 1})
    assert type(growth.module) is Free
    assert growth.report["emit"] == "module"
    assert "no graph of Free" in growth.report["obstacle"]


def test_expand_votes_and_adjusts_on_outputs_of_its_own():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config)
    data = [({**TOKENS, "labels": torch.tensor([0, 2])}, torch.tensor([0, 2]))] * 2
    growth = fxgrow.expand(
        model, data, budget=6, loss=lambda outputs, _: outputs.loss, emit="module"
    )
    assert growth.plan.spent == 6
    assert growth.verification.passed
    assert growth.report["adjusting"]["groups"]
    growth.module(**data[0][0]).loss.backward()


def test_files_bring_the_class_back(tmp_path):
    model, x = free()
    growth = fxgrow.widen(model, x, {"attention.q": 1}, emit="module")
    growth.save(tmp_path / "grown.safetensors")
    loaded = fxgrow.load(tmp_path / "grown.safetensors", base=model)
    assert loaded.module.attention.heads == 5
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.module(x)["heads"], growth.module(x)["heads"], strict=True)
    )


def partition(inspection):
    """The units, each a set of slices."""
    book, units = inspection.analysis.state.book, {}
    for axis, labels in inspection.analysis.state.axes.items():
        for position, root in enumerate(book.find(labels).tolist()):
            units.setdefault(root, set()).add((axis, position))
    units.pop(0, None)
    return {frozenset(unit) for unit in units.values()}


VISION = torchvision.models
TRACEABLE = {
    "resnet18": VISION.resnet18,
    "mobilenet_v3_small": VISION.mobilenet_v3_small,
    "shufflenet": VISION.shufflenet_v2_x0_5,
    "densenet": lambda: VISION.DenseNet(8, (2, 2), 16, num_classes=5),
    "vit": lambda: VISION.VisionTransformer(32, 16, 1, 2, 16, 24, num_classes=5),
    "swin": lambda: VISION.SwinTransformer([4, 4], 16, [2], [2], [4, 4], num_classes=5),
}


@pytest.mark.parametrize("name", TRACEABLE)
def test_both_front_ends_find_the_same_units(name, monkeypatch):
    torch.manual_seed(0)
    model, x = TRACEABLE[name](), torch.randn(2, 3, 32, 32)
    traced = fxgrow.inspect(model, x)
    monkeypatch.setattr(inspections, "trace", lambda *given: trace(*given, whole=True))
    whole = fxgrow.inspect(model, x)
    assert not traced.analysis.traced.obstacle
    assert whole.analysis.traced.obstacle
    assert partition(traced) == partition(whole)
    # What only one of them can grow is told with a reason of its own.
    known = {"hidden_size", "reshape", "opaque"}
    lost = {g.name for g in traced.groups} - {g.name for g in whole.groups}
    assert all(g.reason.code in known for g in whole.frozen if g.name in lost)


@pytest.mark.parametrize("name", ["resnet18", "densenet"])
def test_statistics_survive_growth_of_the_own_class(name, monkeypatch):
    torch.manual_seed(0)
    model, x = TRACEABLE[name]().double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    monkeypatch.setattr(inspections, "trace", lambda *given: trace(*given, whole=True))
    growth = fxgrow.widen(model, x, 1, emit="module")
    assert max(growth.verification.eval_error, growth.verification.train_error) <= EXACT
    assert all(
        int(b.sum()) == 0 for k, b in growth.module.named_buffers() if k.endswith("_tracked")
    )


class NeedsTargets(nn.Module):
    """Trains on lists of images with targets only, as detection does."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3)

    def forward(self, images, targets=None):
        if self.training and targets is None:
            raise ValueError("in training, targets are needed")
        maps = [self.b(self.a(image[None]).relu()) for image in images if float(image.sum()) < 1e9]
        return maps if targets is None else sum(m.mean() for m in maps)


def test_what_is_wrong_is_said_of_the_inputs_as_given():
    images = [torch.zeros(3, 8, 8)]
    with pytest.raises(DataError, match="targets are needed"):
        fxgrow.inspect(NeedsTargets(), (images,))
    assert [g.name for g in fxgrow.inspect(NeedsTargets(), (images, {})).groups] == ["a"]


class Fused(nn.Module):
    """Convolutions in a row that are made one before each run, as RepVGG and SPAN do it."""

    def __init__(self, write):
        super().__init__()
        self.write = write
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 8)
        self.fused, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        if self.training:
            return self.head(self.b(self.a(x)))
        self.write(self.fused.weight, (self.b.weight @ self.a.weight).detach())
        return self.head(self.fused(x))


def give_data(param, value):
    param.data = value


def copy_into(param, value):
    with torch.no_grad():
        param.copy_(value)


@pytest.mark.parametrize("write", [give_data, copy_into])
def test_code_that_writes_into_its_own_parameters_is_refused(write):
    model = Fused(write)
    before = model.fused.weight.data.clone()
    with pytest.raises(TraceError, match="writes into its own parameters"):
        fxgrow.inspect(model, torch.randn(4, 6))
    assert torch.equal(model.fused.weight, before)
