"""Checkpoints widened tensor by tensor hold what models widened in memory hold."""

import json
import os
import subprocess
import sys

import pytest
import torch
from networks_language import TOKENS, transformers
from networks_standard import Net as Standardised
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import fxgrow
from fxgrow.configure import follow_config
from fxgrow.large import open_checkpoint
from fxgrow.pieces import Pieces
from fxgrow.rewrite import rewrite

CONFIG = {
    "vocab_size": 60,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "use_cache": False,
}


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))


def grouped():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4),
        nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 16, 4),
    )  # fmt: skip


def resnet():
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)


class Scaled(nn.Module):
    """A stream that layer norms read, with a scale on one of its writers."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(5, 8)
        self.norm, self.inner, self.outer = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8))
        self.last, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.into(x)
        x = x + self.scale * self.outer(torch.relu(self.inner(self.norm(x))))
        return self.head(self.last(x))


def llama(**changed):
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**{**CONFIG, **sizes, **heads, **changed})
    return transformers.LlamaForCausalLM(config)


def gpt2():
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**CONFIG, **sizes))


IMAGE = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
PLAIN = {
    "mlp": (mlp, torch.randn(2, 6), torch.float32),
    "grouped": (grouped, IMAGE[..., :8, :8], torch.float32),
    "resnet": (resnet, IMAGE, torch.float64),
    "resnet, half": (resnet, IMAGE.bfloat16(), torch.bfloat16),
    "standardised": (Standardised, IMAGE[..., :7, :7], torch.float32),
    "scaled": (Scaled, torch.randn(2, 5), torch.float32),
}
FOLDERS = {
    "llama": (llama, torch.float32, {"embed": 16, "q_proj": 1, "gate": 4}),
    "llama, double": (llama, torch.float64, {"embed": 16, "q_proj": 1, "gate": 4}),
    "llama, tied": (
        lambda: llama(tie_word_embeddings=True), torch.float32,
        {"0.self_attn.o_proj": 16, "q_proj": 1},
    ),
    "llama, half": (llama, torch.bfloat16, {"q_proj": 2, "gate": 3}),
    "llama, half, copies": (llama, torch.bfloat16, {"embed": 32, "q_proj": 2}),
    "gpt2, tied": (gpt2, torch.float32, {"wpe": 4, "c_attn": 1, "c_fc": 3}),
    "gpt2, half": (gpt2, torch.float16, {"c_fc": 3}),
}  # fmt: skip


def filled(build, dtype=torch.float32):
    torch.manual_seed(0)
    model = build().to(dtype).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    return model


def on_meta(build):
    with torch.device("meta"):
        return build()


def in_memory(model, inputs, additions, seed):
    """Widen without the numeric check, which half precision may fail by rounding."""
    module = rewrite(model, fxgrow.inspect(model, inputs), additions, seed=seed, emit="module")
    follow_config(model, module.module)
    return module.module


def wanted(inspection, asked):
    return {g.name: n for g in inspection.groups for end, n in asked.items() if end in g.name}


def same(old, new):
    assert old.keys() == new.keys()
    assert {n: v.dtype for n, v in old.items()} == {n: v.dtype for n, v in new.items()}
    assert [name for name in old if not torch.equal(old[name], new[name])] == []


def untouched(folder, names):
    """Nothing but what was there before, hidden leftovers included."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("shard_size", [None, 700])
def test_plain_models(name, shard_size, tmp_path):
    build, inputs, dtype = PLAIN[name]
    model = filled(build, dtype)
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    groups = fxgrow.inspect(model, inputs).groups
    additions = {g.name: 2 * g.multiple_of for g in groups}
    told = []
    wide = fxgrow.widen_checkpoint(
        tmp_path / "net.safetensors",
        tmp_path / "wide",
        additions,
        model=on_meta(build),
        example_inputs=inputs,
        seed=5,
        shard_size=shard_size,
        progress=lambda *where: told.append(where),
    )
    new = {}
    files = sorted((tmp_path / "wide").glob("*.safetensors"))
    for file in files:
        new |= load_file(file)
    same(in_memory(model, inputs, additions, 5).state_dict(), new)
    assert wide.files == tuple(sorted(path.name for path in (tmp_path / "wide").iterdir()))
    assert (len(files) == 1) == (shard_size is None)
    assert told[-1][1:] == (wide.tensors, wide.tensors) == (len(new), len(new))
    assert wide.nbytes == sum(tensor.nbytes for tensor in new.values())
    for own in map(load_file, files if shard_size else ()):
        assert len(own) == 1 or sum(tensor.nbytes for tensor in own.values()) <= shard_size


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_transformers(name, tmp_path):
    build, dtype, asked = FOLDERS[name]
    model = filled(build, dtype)
    model.save_pretrained(tmp_path / "old", max_shard_size="8KB")
    (tmp_path / "old" / "tokenizer.json").write_text("{}")
    (tmp_path / "old" / "pytorch_model.bin").write_text("stale")
    assert len(list((tmp_path / "old").glob("*.safetensors"))) > 2
    additions = wanted(fxgrow.inspect(model, TOKENS), asked)
    wide = fxgrow.widen_checkpoint(tmp_path / "old", tmp_path / "wide", additions, seed=5)
    assert (wide.left_out, "tokenizer.json" in wide.files) == (("pytorch_model.bin",), True)
    again = type(model).from_pretrained(tmp_path / "wide").eval()
    same(in_memory(model, TOKENS, additions, 5).state_dict(), again.state_dict())
    assert wide.report["config"]["obstacle"] == ""
    with torch.no_grad():
        old, new = (m.double()(**TOKENS).logits for m in (model, again))
    loose = 1e-2 if dtype.itemsize == 2 else 1e-5  # shares of copies are rounded in half precision
    assert (old - new).abs().max() <= loose * old.abs().max()
    before = json.loads((tmp_path / "old" / "config.json").read_text())
    after = json.loads((tmp_path / "wide" / "config.json").read_text())
    changes = wide.report["config"]["changes"]
    assert {key: after[key] for key in changes} == {k: new for k, (_, new) in changes.items()}
    assert {**before, **{key: after[key] for key in changes}} == after


def test_shards_keep_their_names_and_index(tmp_path):
    filled(llama).save_pretrained(tmp_path / "old", max_shard_size="8KB")
    fxgrow.widen_checkpoint(tmp_path / "old", tmp_path / "wide", LAYERS)
    old, new = (
        json.loads((tmp_path / at / "model.safetensors.index.json").read_text())
        for at in ("old", "wide")
    )
    assert old["weight_map"] == new["weight_map"]
    assert new["metadata"]["total_size"] > old["metadata"]["total_size"]


@pytest.mark.parametrize("name", ["resnet", "scaled"])
def test_what_is_written_loads_onto_the_base(name, tmp_path):
    """As any growth file, also after a second round."""
    build, inputs, _ = PLAIN[name]
    inputs = inputs.float()
    model = filled(build)
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    first, again, module = tmp_path / "net.safetensors", {}, model
    for turn in ("one", "two"):
        group = fxgrow.inspect(module, inputs).groups[0]
        again = {group.name: 2 * group.multiple_of}
        grown = on_meta(build) if turn == "one" else module
        fxgrow.widen_checkpoint(
            first, tmp_path / turn, again, model=grown, example_inputs=inputs, seed=1
        )
        first = tmp_path / turn / "net.safetensors"
        module = fxgrow.widen(module, inputs, again, emit="module", seed=1).module
        loaded = fxgrow.load(first, model).module
        same(module.state_dict(), loaded.state_dict())
        with torch.no_grad():
            difference = (loaded.eval()(inputs) - model(inputs)).abs().max()
        assert difference <= 1e-5


@pytest.mark.parametrize("stored", ["prefix", "both"])
def test_other_names_of_the_same_tensors(stored, tmp_path):
    """A checkpoint of the base model alone; and one that holds a shared tensor twice."""
    model = filled(gpt2)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    if stored == "prefix":
        state = {k.removeprefix("transformer."): v for k, v in state.items() if "lm_head" not in k}
        state["h.0.attn.bias"] = torch.ones(1)  # of old versions, which nobody reads
    save_file(state, tmp_path / "gpt2.safetensors")
    additions = {
        "transformer.wpe": 4,
        "transformer.h.0.attn.c_attn": 1,
        "transformer.h.1.attn.c_attn": 1,
    }
    arguments = {"model": on_meta(gpt2), "example_inputs": TOKENS}
    wide = fxgrow.widen_checkpoint(
        tmp_path / "gpt2.safetensors", tmp_path / "wide", additions, **arguments
    )
    new = load_file(tmp_path / "wide" / "gpt2.safetensors")
    expected = in_memory(model, TOKENS, additions, 0).state_dict()
    assert wide.left_out == (("h.0.attn.bias",) if stored == "prefix" else ())
    if stored == "prefix":
        del expected["lm_head.weight"]
        new = {f"transformer.{key}": value for key, value in new.items()}
    same(dict(expected), new)
    if stored == "both":
        state["lm_head.weight"] += 1
        save_file(state, tmp_path / "gpt2.safetensors")
        with pytest.raises(fxgrow.InputError, match="two different ones"):
            fxgrow.widen_checkpoint(
                tmp_path / "gpt2.safetensors", tmp_path / "other", additions, **arguments
            )
        untouched(tmp_path, ["gpt2.safetensors", "wide"])


def _rewritten(folder, change):
    """Change the tensors of the first shard that holds a matrix of an MLP."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.0.mlp.gate_proj.weight"
    state = load_file(folder / index[name])
    change(state, name)
    save_file(state, folder / index[name])


def _cut(folder):
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])


def _index(folder, change):
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))


def _configured(folder, **changed):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


LAYERS = {"model.layers.0.mlp.gate_proj": 4, "model.layers.1.mlp.gate_proj": 4}
BAD = {
    "no shard": (lambda f: sorted(f.glob("*.safetensors"))[0].unlink(), {}, "no such file"),
    "no weights": (
        lambda f: [p.unlink() for p in f.glob("model*")], {}, "holds no .safetensors file",
    ),
    "damaged": (_cut, {}, "damaged"),
    "damaged index": (
        lambda f: (f / "model.safetensors.index.json").write_text("{"), {}, "damaged",
    ),
    "shard lacks it": (
        lambda f: _rewritten(f, lambda s, n: s.pop(n)), {}, "lacks 'model.layers.0.mlp.gate_proj",
    ),
    "other shape": (
        lambda f: _rewritten(f, lambda s, n: s.update({n: s[n][1:].clone()})), {},
        r"is \[39, 32\], not \[40, 32\]",
    ),
    "quantised": (
        lambda f: _rewritten(f, lambda s, n: s.update({n: s[n].to(torch.int8)})), {}, "int8",
    ),
    "not in the index": (
        lambda f: _index(f, lambda m: m.pop("model.norm.weight")), {}, "lacks 'model.norm.weight'",
    ),
    "leads out": (
        lambda f: _index(f, lambda m: m.update({"model.norm.weight": "../x.safetensors"})), {},
        "no name of a shard",
    ),
    "other config": (lambda f: _configured(f, num_hidden_layers=1), {}, "besides"),
    "no config": (lambda f: (f / "config.json").unlink(), {}, "pass model="),
    "own code": (
        lambda f: _configured(f, architectures=["MyLlama"], auto_map={"AutoModel": "m.MyLlama"}),
        {}, "code that comes with a model is never run",
    ),
    "no class": (lambda f: _configured(f, architectures=["pipeline"]), {}, "does not have"),
    "impossible config": (lambda f: _configured(f, hidden_act="none"), {}, "can't be built"),
    "unknown group": (lambda f: None, {"additions": {"nothing": 1}}, "no group"),
    "one layer": (
        lambda f: None, {"additions": {"model.layers.0.mlp.gate_proj": 4}}, "grow all layers alike",
    ),
    "shard size": (lambda f: None, {"shard_size": "much"}, "max_shard_size"),
    "no place": (lambda f: None, {"target": "nowhere/wide"}, "there is no folder"),
    "taken": (lambda f: (f.parent / "wide").mkdir(), {}, "exists already"),
    "taken by others": (
        lambda f: (f.parent / "wide").mkdir(), {"force": True}, "no folder with a checkpoint",
    ),
    "itself": (lambda f: None, {"target": "old", "force": True}, "is the input itself"),
    "inside": (lambda f: None, {"target": "old/wide", "force": True}, "is the input itself"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_written(name, tmp_path):
    spoil, options, said = BAD[name]
    folder = tmp_path / "old"
    filled(llama).save_pretrained(folder, max_shard_size="8KB")
    (folder / "m.py").write_text("raise SystemExit('it was run')")
    spoil(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    there = [path.name for path in tmp_path.iterdir()]
    options = {"additions": LAYERS, **options}
    target = tmp_path / options.pop("target", "wide")
    with pytest.raises(fxgrow.FxgrowError, match=said):
        fxgrow.widen_checkpoint(folder, target, **options)
    untouched(tmp_path, there)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_force_replaces_a_checkpoint(tmp_path):
    filled(llama).save_pretrained(tmp_path / "old")
    for additions in (LAYERS, {name: 6 for name in LAYERS}):
        fxgrow.widen_checkpoint(tmp_path / "old", tmp_path / "wide", additions, force=True)
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["intermediate_size"] == 46
    untouched(tmp_path, ["old", "wide"])


KILLED = """
import os, signal, sys, fxgrow
def stop(stage, done, total):
    if done == 9:
        os.kill(os.getpid(), signal.SIGKILL)
layers = {f"model.layers.{n}.mlp.gate_proj": 4 for n in (0, 1)}
fxgrow.widen_checkpoint("old", "wide", layers, progress=stop)
"""


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_what_is_broken_off_leaves_nothing(how, tmp_path):
    filled(llama).save_pretrained(tmp_path / "old", max_shard_size="8KB")
    if how == "killed":
        path = os.pathsep.join(sys.path)
        command = [sys.executable, "-c", KILLED]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, check=False
        )
        assert done.returncode == -9
        assert len(list(tmp_path.glob(".wide.*.tmp"))) == 1
    else:

        def stop(*where):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fxgrow.widen_checkpoint(tmp_path / "old", tmp_path / "wide", LAYERS, progress=stop)
        untouched(tmp_path, ["old"])
    assert not (tmp_path / "wide").exists()
    fxgrow.widen_checkpoint(tmp_path / "old", tmp_path / "wide", LAYERS)
    untouched(tmp_path, ["old", "wide"])


def test_old_entries_are_compared(tmp_path, monkeypatch):
    """The check at the end of the line finds a wrong entry, wherever it comes from."""
    made = Pieces.make

    def spoiled(self, name, read):
        tensor = made(self, name, read)
        tensor.view(-1)[0] += 1
        return tensor

    monkeypatch.setattr(Pieces, "make", spoiled)
    filled(llama).save_pretrained(tmp_path / "old")
    with pytest.raises(fxgrow.VerificationError, match="not what was read"):
        fxgrow.widen_checkpoint(tmp_path / "old", tmp_path / "wide", LAYERS)
    untouched(tmp_path, ["old"])


def test_models_with_values_do_as_well(tmp_path):
    """And in another type than the checkpoint's."""
    model = filled(resnet, torch.float64)
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    opened = open_checkpoint(tmp_path / "net.safetensors", resnet(), IMAGE)
    assert all(p.is_meta and p.dtype == torch.float64 for p in opened.fitted.model.parameters())
    assert (opened.inputs.device.type, opened.inputs.dtype) == ("meta", torch.float64)


class Turned(nn.Module):
    """Units that change places, by constants and by an index that is computed."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        order = x[0].argsort()
        return self.head(self.one(x).roll(1, dims=0)) + self.two(x)[:, order].sum(1, keepdim=True)


def test_what_is_moved_without_values():
    """Rolls are followed on the meta device, too; an index without values freezes."""
    found = fxgrow.inspect(on_meta(Turned), torch.zeros(2, 4))
    assert [g.name for g in found.groups] == ["one"]
    assert {g.name: g.reason.code for g in found.frozen}["two"] == "data_dependent"
