"""Round trips are bit-exact; bases that do not fit, and changed files, are refused."""

import json
import os
import struct
import warnings

import pytest
import torch
from conftest import Small
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import fxgrow
from fxgrow import io
from fxgrow.errors import BudgetError, FileError, InputError
from fxgrow.files.header import read_header
from fxgrow.files.shards import bytes_of
from fxgrow.files.tensors import collect, logical, restored

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
ROWS = torch.linspace(-1, 1, 12).reshape(3, 4)
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def same(one, other):
    """Bit by bit, so that NaN equals NaN and -0 differs from 0."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(*map(bits, (one, other)))
    )


class Buffers(nn.Module):
    """Everything a state dict may hold, and what it may not."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.up = nn.Linear(4, 6)
        self.down = nn.Linear(6, 2)
        for dtype in DTYPES:
            raw = torch.randint(2 if dtype == torch.bool else 256, (2, 48), generator=generator)
            value = raw.to(torch.uint8).view(dtype)
            self.register_buffer(f"of_{str(dtype).partition(chr(46))[2]}", value)
        self.register_buffer("empty", torch.empty(0, 7))
        self.register_buffer("scalar", torch.tensor(seed + 0.5))
        self.register_buffer("strided", torch.randn(5, 6, generator=generator).t()[::2])
        self.register_buffer("hidden", torch.randn(3, generator=generator), persistent=False)
        self.register_buffer("hidden_flags", torch.ones(2, dtype=torch.bool), persistent=False)
        self.register_buffer("view", self.strided[0])  # shares a storage with it

    def forward(self, x):
        return self.down(torch.relu(self.up(x))) * self.scalar + self.hidden.sum()


def everything(module):
    return {
        **module.state_dict(),
        **dict(module.named_buffers()),
        **dict(module.named_parameters()),
    }


@pytest.mark.parametrize("emit", ["graph", "module"])
@pytest.mark.parametrize("name", ["a.safetensors", "a.safetensors.index.json"])
def test_every_kind_of_tensor_survives(tmp_path, emit, name):
    torch.manual_seed(0)
    growth = fxgrow.widen(Buffers(), ROWS, {"up": 3}, emit=emit)
    with torch.no_grad():
        growth.module.up.weight[0, 0] = float("nan")
        growth.module.up.weight[0, 1] = -0.0
    io.save(growth, tmp_path / name, max_shard_size=300)
    back = fxgrow.load(tmp_path / name, base=Buffers(seed=1))
    wanted, found = everything(growth.module), everything(back.module)
    assert wanted.keys() == found.keys()
    assert [key for key in wanted if not same(wanted[key], found[key])] == []
    assert "hidden" not in back.module.state_dict()


@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=4),
    st.integers(0, 2**31),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_tensors_of_any_shape_survive(tmp_path_factory, dtype, shape, seed, turned):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(
        2 if dtype == torch.bool else 256, (*shape, dtype.itemsize), generator=generator
    )
    value = raw.to(torch.uint8).view(dtype).reshape(shape)
    value = value.permute(tuple(reversed(range(value.ndim)))) if turned else value
    module = nn.Module()
    module.register_buffer("x", value)
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    found = collect(module, path)
    save_file(found.tensors, path)
    entry = logical(read_header(path).tensors["x"], "x", found.as_bytes)
    assert same(restored(load_file(path)["x"], entry), value)


def test_tensors_at_odd_places_are_read(tmp_path):
    """Other writers need not align what they write."""
    first, second = bytes([7]), torch.arange(33.0, dtype=torch.float64)
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F64", "shape": [33], "data_offsets": [1, 265]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + first + second.numpy().tobytes())
    entry = read_header(path).tensors["b"]
    with safe_open(path, "pt") as file:
        back = restored(file.get_tensor("b"), entry)
    assert back.data_ptr() % 8 == 0 and torch.equal(back, second)


def test_lazily_conjugated_tensors_are_written_as_they_read(tmp_path):
    module = nn.Module()
    module.register_buffer("x", torch.complex(torch.arange(3.0), torch.arange(3.0)).conj())
    module.register_buffer("y", torch.complex(torch.arange(3.0), torch.arange(3.0)).conj().imag)
    found = collect(module, tmp_path / "x")
    x = restored(found.tensors["x"], logical(read_entry(found, "x", tmp_path), "x", found.as_bytes))
    assert torch.equal(x, module.x.resolve_conj())
    assert torch.equal(found.tensors["y"], module.y.resolve_neg())


def read_entry(found, name, folder):
    save_file(found.tensors, folder / "x.safetensors")
    return read_header(folder / "x.safetensors").tensors[name]


@pytest.mark.parametrize("kind", ["sparse", "meta", "quantized"])
def test_tensors_without_plain_data_are_refused(small, tmp_path, kind):
    growth = fxgrow.widen(small, X, {"conv": 1})
    made = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "meta": lambda: torch.empty(3, device="meta"),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about quantisation, in new releases
        growth.module.register_buffer("odd", made[kind]())
        with pytest.raises(FileError, match="'odd' is a Tensor without plain data"):
            growth.save(tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")  # it is deprecated, and the case is made by it
def test_torchscript_is_refused(small, tmp_path):
    growth = fxgrow.widen(small, X, {"conv": 1})
    growth.module.add_module("scripted", torch.jit.script(nn.Linear(2, 2)))
    with pytest.raises(FileError, match="TorchScript"):
        growth.save(tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------- shards


@pytest.fixture
def grown(small):
    return fxgrow.widen(small, X, {"conv": 3}, seed=5)


def test_shards_are_of_the_format_of_hugging_face(small, grown, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    io.save(grown, index, max_shard_size="1KB")
    content = json.loads(index.read_text())
    state = grown.module.state_dict()
    assert set(content["weight_map"]) == set(state)
    assert content["metadata"]["total_size"] == sum(t.nbytes for t in state.values())
    shards = {path.name: load_file(path) for path in tmp_path.glob("*.safetensors")}
    assert set(shards) == set(content["weight_map"].values()) and len(shards) > 2
    for name, shard in content["weight_map"].items():
        assert torch.equal(shards[shard][name], state[name])
    assert all(len(s) == 1 or sum(t.nbytes for t in s.values()) <= 1000 for s in shards.values())


def test_shards_are_read_by_hugging_face(small, grown, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="comes with transformers (extra: test)")
    io.save(grown, tmp_path / "model.safetensors.index.json", max_shard_size="1KB")
    plain = fxgrow.widen(Small(), X, {"conv": 3}, emit="module").module
    hub.load_torch_model(plain, tmp_path)
    assert torch.equal(plain.eval()(X), grown.module.eval()(X))


def test_a_new_run_replaces_the_shards_of_the_old_one(small, grown, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    save_file({"x": torch.zeros(1)}, tmp_path / "model-neighbour.safetensors")
    for most in ("1KB", "1MB"):
        io.save(grown, index, max_shard_size=most)
        named = set(json.loads(index.read_text())["weight_map"].values())
        assert set(os.listdir(tmp_path)) == {*named, index.name, "model-neighbour.safetensors"}
    assert torch.equal(fxgrow.load(index, small).module.eval()(X), grown.module.eval()(X))


def test_a_failed_run_leaves_index_and_shards_of_the_old_one(small, grown, tmp_path, monkeypatch):
    index = tmp_path / "model.safetensors.index.json"
    io.save(grown, index, max_shard_size="1KB")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr("fxgrow.files.shards.save_file", full)
    with pytest.raises(FileError, match="No space left"):
        io.save(grown, index, max_shard_size="1KB")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("size", [0, -1, "0GB", "5 bananas", "", None, 1.5, True, "1e3", "5XB"])
def test_sizes_that_are_none(grown, tmp_path, size):
    with pytest.raises(InputError, match="max_shard_size"):
        io.save(grown, tmp_path / "a.safetensors.index.json", max_shard_size=size)


def test_sizes():
    assert [bytes_of(s) for s in (7, "7", "2KB", "3 mb", "5GB")] == [
        7,
        7,
        2000,
        3 * 10**6,
        5 * 10**9,
    ]


# ------------------------------------------------------------------- apply


@pytest.mark.parametrize("name", ["p.json", "p.safetensors", "p.safetensors.index.json"])
def test_a_plan_applied_again_gives_the_same_bits(small, grown, tmp_path, name):
    grown.save(tmp_path / name)
    before = {key: value.clone() for key, value in small.state_dict().items()}
    again = fxgrow.apply(tmp_path / name, small)
    assert all(same(v, again.module.state_dict()[k]) for k, v in grown.module.state_dict().items())
    assert all(same(v, small.state_dict()[k]) for k, v in before.items())
    assert again.plan.additions == grown.plan.additions
    assert again.verification.passed
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    again.migrate(optimizer)  # it knows the caller's parameters


def test_a_plan_for_other_weights_is_refused_saying_which(small, grown, tmp_path):
    grown.save(tmp_path / "p.json")
    with torch.no_grad():
        small.fc.weight[0, 0] += 1
    with pytest.raises(FileError, match=r"other weights: 'fc.weight' and 0 more.*any_weights=True"):
        fxgrow.apply(tmp_path / "p.json", small)
    again = fxgrow.apply(tmp_path / "p.json", small, any_weights=True)
    assert torch.allclose(again.module.eval()(X), small.eval()(X), atol=1e-5)


@pytest.mark.parametrize("use", ["apply", "load"])
@pytest.mark.parametrize(
    ("base", "words"),
    [
        (lambda: Small(width=5), r"its 'conv.bias' is float32\[5\], not float32\[4\] \(and 6 more"),
        (lambda: Small().double(), r"'conv.bias' is float64\[4\], not float32\[4\]"),
        (lambda: nn.Linear(2, 2), "it has no 'conv.bias'"),
        (lambda: nn.Sequential(Small()), "it has no 'conv.bias'"),
    ],
)
def test_a_wrong_base_is_refused_saying_what_differs(grown, tmp_path, use, base, words):
    path = tmp_path / "p.safetensors"
    grown.save(path)
    with pytest.raises(FileError, match=f"does not belong to this base model: .*{words}"):
        getattr(fxgrow, use)(path, base())


def test_several_growths_are_applied_in_turn(small, grown, tmp_path):
    grown.save(tmp_path / "1.safetensors")
    first = fxgrow.load(tmp_path / "1.safetensors", small)
    again = fxgrow.widen(first.module, X, {"conv": 2}, seed=9)
    fxgrow.save(again, tmp_path / "2.json", history=first.report["steps"])
    growth = fxgrow.apply(tmp_path / "2.json", small)
    assert growth.module.conv.out_channels == 9
    assert torch.allclose(growth.module.eval()(X), small.eval()(X), atol=1e-5)


def test_transfers_are_not_applied(tmp_path):
    wide = fxgrow.transfer(Small(4), Small(6), X)
    wide.save(tmp_path / "t.safetensors")
    with pytest.raises(FileError, match=r"transfer.*fxgrow\.load"):
        fxgrow.apply(tmp_path / "t.safetensors", Small(6))


def test_plans_are_not_loaded(small, grown, tmp_path):
    grown.save(tmp_path / "p.json")
    with pytest.raises(FileError, match=r"no weights; fxgrow\.apply"):
        fxgrow.load(tmp_path / "p.json", small)


def test_nested_inputs_are_recorded(tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, pair, *, extra):
            return self.two(torch.relu(self.one(pair[0] + pair[1] + extra["x"])))

    torch.manual_seed(0)
    model = Pair()
    growth = fxgrow.widen(model, {"pair": (ROWS, ROWS), "extra": {"x": ROWS}}, {"one": 2})
    growth.save(tmp_path / "n.safetensors")
    back = fxgrow.load(tmp_path / "n.safetensors", model)
    wanted = growth.module((ROWS, ROWS), extra={"x": ROWS})
    assert torch.equal(back.module((ROWS, ROWS), extra={"x": ROWS}), wanted)


# ------------------------------------------------------------------- checksums


def test_every_flipped_bit_is_noticed(small, grown, tmp_path):
    path = tmp_path / "a.safetensors"
    grown.save(path)
    whole = path.read_bytes()
    for place in range(8, len(whole), max(len(whole) // 60, 1)):
        broken = bytearray(whole)
        broken[place] ^= 1 << (place % 8)
        path.write_bytes(broken)
        with pytest.raises(FileError, match="damaged"):
            fxgrow.load(path, small)


def test_a_changed_plan_is_noticed(small, grown, tmp_path):
    path = tmp_path / "p.json"
    grown.save(path)
    content = json.loads(path.read_text())
    content["steps"][0]["plan"]["additions"]["conv"] = 4
    path.write_text(json.dumps(content))
    with pytest.raises(FileError, match="it was changed"):
        fxgrow.apply(path, small)
    del content["sha256"]  # on purpose
    path.write_text(json.dumps(content))
    assert fxgrow.apply(path, small).module.conv.out_channels == 8


def test_swapped_shards_are_noticed(small, grown, tmp_path):
    index = tmp_path / "m.safetensors.index.json"
    io.save(grown, index, max_shard_size=1)
    content = json.loads(index.read_text())
    bias, mean = (tmp_path / content["weight_map"][n] for n in ("norm.bias", "norm.running_mean"))
    tensors = load_file(mean)
    save_file({"norm.bias": tensors["norm.running_mean"] + 1}, bias)
    with pytest.raises(FileError, match=r"checksum of .norm\.bias."):
        fxgrow.load(index, small)


def test_more_units_than_any_machine_holds():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(BudgetError, match="more than the limit"):
        fxgrow.widen(net, ROWS, {"0": 10**13})


def test_files_name_their_format(grown, tmp_path):
    grown.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"  # other libraries ask for it
    length = struct.unpack("<Q", (tmp_path / "a.safetensors").read_bytes()[:8])[0]
    assert length < 10_000
