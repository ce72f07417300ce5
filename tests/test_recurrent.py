"""Recurrent layers: hidden widths are units, and grow exactly."""

from __future__ import annotations

import copy
import pickle

import hypothesis.strategies as st
import pytest
import torch
from checks import errors, randomised, step, untrained
from hypothesis import HealthCheck, given, settings
from torch import nn
from torch.nn.utils.rnn import (
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
)

import fxgrow

LSTM, GRU, RNN = nn.LSTM, nn.GRU, nn.RNN


def whole(outputs, state):
    return outputs


def last_state(outputs, state):
    return state[-1]


def last_cell(outputs, state):
    return state[1][-1]


class Tagger(nn.Module):
    """Linear, recurrent, linear: a width before, within and after the recurrent layer."""

    def __init__(self, kind=LSTM, *, read=whole, packed=False, width=5, **options):
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.rnn = kind(6, width, **options)
        out = options.get("proj_size", 0) or width
        both = options.get("bidirectional", False) and read is whole
        self.fc = nn.Linear(2 * out if both else out, 8)
        self.head = nn.Linear(8, 3)
        self.read, self.packed = read, packed
        self.first = options.get("batch_first", False)

    def forward(self, x, lengths=None):
        x = self.embed(x)
        if self.packed:
            x = pack_padded_sequence(x, lengths, batch_first=self.first, enforce_sorted=False)
        x, state = self.rnn(x)
        if self.packed:
            x, _ = nn.utils.rnn.pad_packed_sequence(x, batch_first=self.first)
        return self.head(torch.tanh(self.fc(self.read(x, state))))


def data(length=3, batch=2, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, batch, width, generator=generator, dtype=torch.float64)


def ready(model):
    torch.manual_seed(0)
    return randomised(model)


def lengths(example, *sizes):
    return (example, torch.tensor(sizes))


def check(model, example, *, names=("rnn",), late=(), emits=("graph", "module"), inputs=None):
    """Grow all groups at once, and return the last growth."""
    inspection = fxgrow.inspect(model, example)
    grown = {group.name for group in inspection.groups}
    assert set(names) <= grown, [(g.name, g.reason) for g in inspection.frozen]
    assert not inspection.unsupported
    additions = {group.name: step(group) for group in inspection.groups}
    for emit in emits:
        growth = fxgrow.widen(model, example, additions, emit=emit)
        assert growth.verification.passed
        for other in (example, *(inputs or ())):
            assert max(errors(model, growth.module, other)) <= 1e-10
        assert not untrained(growth.module, growth.groups, example, late=late)
        truthful(growth.module)
    return growth


def truthful(module):
    """What recurrent layers say of themselves holds, hidden lists of weights included."""
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase):
            own = dict(layer.named_parameters())
            assert [own[name] for name in layer._flat_weights_names] == layer._flat_weights
            assert all(
                ref() is own[n]
                for ref, n in zip(layer._flat_weight_refs, layer._flat_weights_names, strict=True)
            )
            kwargs = {
                key: getattr(layer, key)
                for key in ("num_layers", "bias", "batch_first", "bidirectional", "proj_size")
                if key != "proj_size" or isinstance(layer, LSTM)
            }
            twin = type(layer)(layer.input_size, layer.hidden_size, **kwargs)
        elif isinstance(layer, nn.RNNCellBase):
            twin = type(layer)(layer.input_size, layer.hidden_size, bias=layer.bias)
        else:
            continue
        assert {n: p.shape for n, p in twin.named_parameters()} == {
            n: p.shape for n, p in layer.named_parameters()
        }


OPTIONS = {
    "plain": {},
    "two ways": {"bidirectional": True},
    "layers": {"num_layers": 3},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "all": {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.4},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_hidden_widths_grow(kind, options):
    model = ready(Tagger(kind, **options))
    group = fxgrow.inspect(model, data()).group("rnn")
    assert group.width == 5
    rows = {LSTM: 4, GRU: 3, RNN: 1}[kind]
    slots = {(s.tensor, s.dim): (s.role, s.positions.shape) for s in group.slots}
    for name, p in model.rnn.named_parameters():
        kind_of = "producer"
        assert slots[f"rnn.{name}", 0] == (kind_of, (5, rows)), name
        if name.startswith("weight_hh"):
            assert slots[f"rnn.{name}", 1] == ("consumer", (5, 1))
        assert p.shape[0] == 5 * rows
    check(model, data(), inputs=[data(4, 3)])


def test_rectified_states_grow():
    check(ready(Tagger(RNN, nonlinearity="relu", width=9)), data())


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_projected_states_grow_apart_from_hidden_ones(options):
    model = ready(Tagger(LSTM, proj_size=3, **options))
    growth = check(model, data(), names=("rnn", "rnn#2"))
    assert (growth.module.rnn.hidden_size, growth.module.rnn.proj_size) == (7, 5)
    alone = fxgrow.widen(model, data(), {"rnn": 4})
    assert (alone.module.rnn.hidden_size, alone.module.rnn.proj_size) == (9, 3)


def test_a_projection_stays_narrower_than_the_state():
    with pytest.raises(fxgrow.UnsupportedError, match=r"proj_size would become 5.*hidden"):
        fxgrow.widen(ready(Tagger(LSTM, proj_size=3)), data(), {"rnn#2": 2})


@pytest.mark.parametrize("read", [last_state, last_cell])
def test_last_states_are_read(read):
    kind = LSTM if read is last_cell else GRU
    check(ready(Tagger(kind, read=read, num_layers=2, width=7)), data(4, 3))


def test_one_step_shows_all_that_has_one_width():
    """The hidden state is read only from the second step on."""
    model = ready(Tagger(LSTM, num_layers=2))
    growth = check(model, data(), emits=("graph",))
    once = fxgrow.widen(model, data(1), {"rnn": 2})
    assert growth.module.rnn.weight_hh_l1.shape == once.module.rnn.weight_hh_l1.shape
    assert max(errors(model, once.module, data(5))) <= 1e-10


@pytest.mark.parametrize("options", [{}, OPTIONS["all"]], ids=["plain", "all"])
@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_packed_sequences(kind, options):
    model = ready(Tagger(kind, packed=True, **options))
    x = data(4, 3)
    x = x.transpose(0, 1) if options else x
    check(model, lengths(x, 2, 4, 3), inputs=[lengths(x, 4, 1, 1)])


class Ragged(nn.Module):
    """A list of sequences of different lengths."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.rnn = nn.GRU(6, 5)
        self.fc, self.other = nn.Linear(5, 3), nn.Linear(6, 3)

    def forward(self, a, b):
        a, b = self.embed(a), self.embed(b)
        out, _ = self.rnn(pack_sequence([a, b], enforce_sorted=False))
        padded, _ = pad_packed_sequence(out, batch_first=True)
        return self.fc(padded) + self.other(pad_sequence([a, b], batch_first=True))


def test_lists_of_sequences_pack():
    a, b = data(2)[:, 0], data(4)[:, 0]
    check(ready(Ragged()), (a, b), names=("embed", "rnn"), inputs=[(b, a)])


class Given(nn.Module):
    """An initial state that comes from outside, from a parameter, or from other layers."""

    def __init__(self, source, layers=2):
        super().__init__()
        self.embed, self.rnn = nn.Linear(4, 6), nn.GRU(6, 5, layers)
        self.fc, self.source = nn.Linear(5, 3), source
        if source == "parameter":
            self.start = nn.Parameter(torch.randn(layers, 1, 5))
        if source == "layers":
            self.starts = nn.ModuleList(nn.Linear(4, 5) for _ in range(layers))

    def forward(self, x, state=None):
        if self.source == "parameter":
            state = self.start.expand(-1, x.shape[1], -1).contiguous()
        if self.source == "layers":
            state = torch.stack([layer(x[0]) for layer in self.starts])
        return self.fc(self.rnn(self.embed(x), state)[0])


@pytest.mark.parametrize("source", ["parameter", "layers"])
def test_computed_initial_states_grow_with_the_layer(source):
    model = ready(Given(source))
    inspection = fxgrow.inspect(model, data())
    (group,) = [
        g for g in inspection.groups if any("rnn." in s.tensor for s in g.slots) and g.width == 5
    ]
    check(model, data(), names=(group.name,))
    tensors = {slot.tensor for slot in group.slots}
    assert {"start"} <= tensors or {"starts.0.weight", "starts.1.bias"} <= tensors


def test_an_initial_state_that_is_the_users_freezes_the_width():
    model = ready(Given("input"))
    example = (data(), torch.zeros(2, 2, 5, dtype=torch.float64))
    inspection = fxgrow.inspect(model, example)
    (frozen,) = [g for g in inspection.frozen if any("weight_hh" in s.tensor for s in g.slots)]
    assert frozen.reason.code == "unlabelled"
    assert frozen.reason.node == "rnn"
    growth = fxgrow.widen(model, example, 2)  # what is left: the width before it
    assert growth.module.rnn.input_size == 8
    assert max(errors(model, growth.module, example)) <= 1e-10


class Loop(nn.Module):
    """A cell, called step by step."""

    def __init__(self, kind, start):
        super().__init__()
        self.embed, self.cell = nn.Linear(4, 6), kind(6, 5)
        self.fc, self.start = nn.Linear(5, 3), start

    def forward(self, x):
        x, state = self.embed(x), None
        if self.start == "new_zeros":
            state = x.new_zeros(x.size(1), 5)
        if self.start == "zeros":
            state = torch.zeros(x.size(1), 5, dtype=x.dtype, device=x.device)
        pair = isinstance(self.cell, nn.LSTMCell)
        state = (state, state) if pair and state is not None else state
        outputs = []
        for part in x.unbind(0):
            state = self.cell(part, state)
            outputs.append(state[0] if pair else state)
        return self.fc(torch.stack(outputs))


@pytest.mark.parametrize("start", [None, "new_zeros", "zeros"])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind, start):
    emits = ("graph", "module") if start is None else ("graph",)
    growth = check(ready(Loop(kind, start)), data(), names=("cell",), emits=emits)
    assert growth.module.cell.hidden_size == 7


def test_sizes_in_the_users_code_need_a_graph():
    model = ready(Loop(nn.GRUCell, "new_zeros"))
    with pytest.raises(fxgrow.UnsupportedError, match=r"own class.*emit=.graph."):
        fxgrow.widen(model, data(), {"cell": 2}, emit="module")


class Matcher(nn.Module):
    """A bilinear layer over two encoders."""

    def __init__(self, *, same=False):
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 5 if same else 6)
        self.both, self.fc, self.same = nn.Bilinear(5, 5 if same else 6, 7), nn.Linear(7, 3), same

    def forward(self, x):
        left = torch.tanh(self.left(x))
        right = left if self.same else torch.tanh(self.right(x))
        return self.fc(torch.tanh(self.both(left, right)))


@pytest.mark.parametrize("same", [False, True])
def test_bilinear(same):
    names = ("left", "both") if same else ("left", "right", "both")
    growth = check(ready(Matcher(same=same)), data(5, 4), names=names)
    sizes = growth.module.both
    assert (sizes.in1_features, sizes.out_features) == (7, 9)
    assert sizes.in2_features == (7 if same else 8)


class Normed(nn.Module):
    """Layer norm over the hidden width: every unit is copied."""

    def __init__(self):
        super().__init__()
        self.rnn, self.norm, self.fc = nn.LSTM(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(self.norm(self.rnn(x)[0]))


def test_under_layer_norm():
    check(ready(Normed()), data())


def test_weights_that_are_computed_freeze_the_layer():
    model = Tagger(LSTM)
    nn.utils.parametrizations.weight_norm(model.rnn, "weight_hh_l0")
    inspection = fxgrow.inspect(model.double(), data())
    reasons = {g.reason.code for g in inspection.frozen if any("rnn" in s for s in g.layers)}
    assert "opaque" in reasons
    assert "rnn" not in {g.name for g in inspection.groups}


def test_twice_and_copies_and_files(tmp_path):
    model = ready(Tagger(LSTM, num_layers=2, bidirectional=True))
    first = fxgrow.widen(model, data(), {"rnn": 2})
    second = fxgrow.widen(first.module, data(), {"rnn": 1, "fc": 2})
    assert second.module.rnn.hidden_size == 8
    assert max(errors(model, second.module, data())) <= 1e-10
    assert first.module.state_dict().keys() == model.state_dict().keys()
    for twin in (copy.deepcopy(second.module), pickle.loads(pickle.dumps(second.module))):
        assert max(errors(model, twin, data())) <= 1e-10
        truthful(twin)
    first.save(tmp_path / "rnn.safetensors")
    loaded = fxgrow.load(
        tmp_path / "rnn.safetensors", base=Tagger(LSTM, num_layers=2, bidirectional=True).double()
    )
    assert max(errors(first.module, loaded.module, data())) == 0
    truthful(loaded.module)


def test_packed_graphs_survive_copies(tmp_path):
    model = ready(Tagger(GRU, packed=True))
    example = lengths(data(4, 3), 2, 4, 3)
    growth = fxgrow.widen(model, example, {"rnn": 2})
    again = fxgrow.widen(growth.module, example, {"rnn": 2})
    for twin in (copy.deepcopy(again.module), pickle.loads(pickle.dumps(again.module))):
        assert max(errors(model, twin, example)) <= 1e-10
    assert fxgrow.inspect(model, example).groups  # tracing leaves nothing behind


def test_optimizers_follow():
    model = ready(Tagger(LSTM))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model(data()).square().mean().backward()
    optimizer.step()
    old = optimizer.state[model.rnn.weight_hh_l0]["exp_avg"].clone()
    growth = fxgrow.widen(model, data(), {"rnn": 2})
    growth.migrate(optimizer)
    weight = growth.module.rnn.weight_hh_l0
    region = growth.index_map.region("rnn.weight_hh_l0", old)
    assert torch.equal(optimizer.state[weight]["exp_avg"][region], old)
    optimizer.zero_grad()
    growth.module(data()).square().mean().backward()
    optimizer.step()
    assert weight[:, 5:].any()  # columns that read the new units have moved


def batches(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(3, 8, 4, generator=generator).to(dtype),
            torch.randn(3, 8, 3, generator=generator).to(dtype),
        )
        for _ in range(3)
    ]


@pytest.mark.parametrize("coupling", ["laplacian", "pairwise", "dense"])
def test_votes_and_couplings(coupling):
    model = ready(Tagger(LSTM, num_layers=2))
    growth = fxgrow.expand(model, batches(), budget=8, coupling=coupling)
    assert set(growth.votes.counts) == {"embed", "rnn", "fc"}
    assert growth.plan.spent == 8
    only = fxgrow.expand(model, batches(), budget=4, include=["rnn"], coupling=coupling)
    # what rnn reads, and what it makes: its own group and that of its input
    assert "rnn" in only.plan.additions
    assert only.plan.additions.keys() <= {"embed", "rnn"}
    assert only.plan.spent == 4
    assert only.verification.eval_error <= 1e-10
    (adjusted,) = (g for g in only.report["adjusting"]["groups"] if g["name"] == "rnn")
    assert "rnn.weight_hh_l0" in adjusted["coupled"]
    assert only.module.rnn.weight_hh_l0[:, 5:].abs().max() > 0


@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_half_precision(kind):
    torch.manual_seed(0)
    model = Tagger(kind, num_layers=2).bfloat16()
    growth = fxgrow.widen(model, data().bfloat16(), 2)
    assert growth.verification.passed
    assert growth.verification.dtype == "float32"
    assert growth.module.rnn.weight_hh_l0.dtype == torch.bfloat16
    assert growth.module(data().bfloat16()).dtype == torch.bfloat16


def test_single_precision_and_settings_of_the_process():
    torch.manual_seed(0)
    model = Tagger(LSTM)
    before = torch._C._get_mkldnn_enabled(), torch.backends.cudnn.enabled
    assert fxgrow.widen(model, data().float(), 2).verification.passed
    assert (torch._C._get_mkldnn_enabled(), torch.backends.cudnn.enabled) == before


def test_couplings_name_real_axes_only():
    inspection = fxgrow.inspect(ready(Tagger(GRU)), data())
    parameters = dict(Tagger(GRU).named_parameters())
    axes = [n for n, kind in inspection.graph.nodes(data="kind") if kind == "axis"]
    assert {name for name, _ in axes} <= set(parameters)
    edges = inspection.graph.edges(data="kind")
    coupled = [{a, b} for a, b, kind in edges if kind == "coupling"]
    assert {("rnn.weight_ih_l0", 0), ("fc.weight", 1)} not in [
        pair for pair in coupled if ("embed.weight", 0) in pair
    ]


class Named(nn.Module):
    """Arguments by name."""

    def __init__(self):
        super().__init__()
        self.embed, self.start = nn.Linear(4, 6), nn.Linear(4, 5)
        self.rnn, self.fc = nn.GRU(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = self.embed(input=x)
        return self.fc(self.rnn(hx=self.start(x[:1, :, :4]), input=x)[0])


def test_arguments_by_name():
    model = ready(Named())
    growth = fxgrow.widen(model, data(), {"start": 2})
    assert (growth.module.start.out_features, growth.module.rnn.hidden_size) == (7, 7)
    assert max(errors(model, growth.module, data(4))) <= 1e-10


def test_long_sequences_are_not_walked():
    """Two steps show it all, and cost as much each as every other."""
    model = ready(Tagger(LSTM, num_layers=2, bidirectional=True))
    short, long = (fxgrow.inspect(model, data(length)) for length in (2, 400))
    assert long.flops == 200 * short.flops
    for a, b in zip(short.groups, long.groups, strict=True):
        assert (a.name, a.layers, 200 * a.flops_per_unit) == (b.name, b.layers, b.flops_per_unit)
    calls = len(long.analysis.state.book.couplings)
    assert calls == len(short.analysis.state.book.couplings)


class Placed(nn.Module):
    """Every step has a label of its own: a table of positions."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Linear(4, 6), nn.Parameter(torch.randn(5, 1, 6))
        self.rnn, self.fc = nn.GRU(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(self.rnn(self.embed(x) + self.place)[0])


def test_steps_with_labels_are_walked():
    growth = check(ready(Placed()), data(5), names=("embed", "rnn"))
    assert growth.module.place.shape == (5, 1, 8)


@st.composite
def networks(draw):
    kind = draw(st.sampled_from([LSTM, GRU, RNN]))
    options = {
        "width": draw(st.integers(2, 7)),
        "num_layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bias": draw(st.booleans()),
    }
    if kind is LSTM and options["width"] > 2 and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(2, options["width"] - 1))
    packed = draw(st.booleans())
    batch, length = draw(st.integers(2, 4)), draw(st.integers(2, 4))
    shape = (batch, length) if options["batch_first"] else (length, batch)
    sizes = [draw(st.integers(1, length)) for _ in range(batch)]
    sizes[0] = length
    example = lengths(data(*shape), *sizes) if packed else data(*shape)
    return kind, options, packed, example


@given(networks(), st.integers(1, 4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_generated_networks(network, units):
    kind, options, packed, example = network
    model = ready(Tagger(kind, packed=packed, **options))
    inspection = fxgrow.inspect(model, example)
    assert {"embed", "rnn", "fc"} <= {group.name for group in inspection.groups}
    additions = {g.name: units for g in inspection.groups}
    growth = fxgrow.widen(model, example, additions)
    assert growth.module.rnn.hidden_size == options["width"] + units
    assert max(errors(model, growth.module, example)) <= 1e-10
    truthful(growth.module)
