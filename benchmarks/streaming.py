"""What it costs to widen a checkpoint tensor by tensor: memory, seconds, and whether it is right.

A Llama with random weights is written shard by shard. It is widened in a process of its own,
whose largest memory is read at the end; another one widens it in memory, and compares.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

import fxgrow

SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "head_dim": 128,
}
MARGIN = 2.5
"""Largest tensors that may be held besides what the analysis has taken."""


def written(old, new, layers, shard):
    """Write a checkpoint as transformers does, one shard at a time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZES, num_hidden_layers=layers, dtype="bfloat16")
    folder = Path(old)
    folder.mkdir()
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        state = LlamaForCausalLM(config).state_dict()
    parts, size = [{}], 0
    for name, tensor in state.items():
        nbytes = 2 * tensor.numel()
        if parts[-1] and size + nbytes > shard:
            parts, size = [*parts, {}], 0
        parts[-1][name] = tensor.shape
        size += nbytes
    places = {}
    generator = torch.Generator().manual_seed(0)
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        tensors = {
            name: 0.02 * torch.randn(shape, generator=generator) + float(len(shape) == 1)
            for name, shape in part.items()
        }
        save_file({k: v.bfloat16() for k, v in tensors.items()}, folder / file, {"format": "pt"})
        places.update(dict.fromkeys(part, file))
    total = sum(2 * tensor.numel() for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)
    return {"layers": layers}


def additions_of(layers):
    """An eighth more in each MLP, twice the heads."""
    names = [f"model.layers.{n}" for n in range(layers)]
    mlps = {f"{name}.mlp.gate_proj": SIZES["intermediate_size"] // 8 for name in names}
    heads = {f"{name}.self_attn.q_proj": SIZES["num_key_value_heads"] for name in names}
    return {**mlps, **heads}


def peak():
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def streamed(old, new, layers, shard):
    """Widen tensor by tensor."""
    before = []

    def told(*where):
        if not before:
            before.append((time.perf_counter(), peak()))

    start = time.perf_counter()
    wide = fxgrow.widen_checkpoint(old, new, additions_of(layers), progress=told)
    end = time.perf_counter()
    (first, memory), files = before[0], list(Path(old).glob("*.safetensors"))
    largest = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            slices = (opened.get_slice(name).get_shape() for name in opened.keys())  # noqa: SIM118 -- no mapping
            largest = max(largest, *(2 * torch.Size(shape).numel() for shape in slices))
    return {
        "gb_read": round(sum(file.stat().st_size for file in files) / 1e9, 2),
        "gb_written": round(wide.nbytes / 1e9, 2),
        "tensors": wide.tensors,
        "tensors_grown": wide.grown,
        "largest_shard_mb": round(max(file.stat().st_size for file in files) / 1e6),
        "largest_tensor_mb": round(largest / 1e6),
        "seconds_before_writing": round(first - start, 1),
        "seconds_writing": round(end - first, 1),
        "peak_mb_before_writing": round(memory),
        "peak_mb": round(peak()),
    }


def compared(old, new, layers, shard):
    """Widen in memory, and compare every tensor, and the outputs."""
    from transformers import LlamaForCausalLM

    from fxgrow.rewrite import rewrite

    tokens = {"input_ids": torch.arange(8)[None] * 997, "use_cache": False}
    start = time.perf_counter()
    model = LlamaForCausalLM.from_pretrained(old, dtype="auto").eval()
    inspection = fxgrow.inspect(model, tokens)
    # without the checks of fxgrow.widen, which hold everything in float32
    module = rewrite(model, inspection, additions_of(layers), emit="module").module
    seconds, memory = time.perf_counter() - start, peak()
    state, alike = module.state_dict(), 0
    for file in sorted(Path(new).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 -- no mapping
                alike += torch.equal(opened.get_tensor(name), state.pop(name))
    with torch.no_grad():
        before = model(**tokens).logits.float()
        del model, module, state
        after = LlamaForCausalLM.from_pretrained(new, dtype="auto").eval()(**tokens).logits.float()
    return {
        "in_memory_seconds": round(seconds, 1),
        "in_memory_peak_mb": round(memory),
        "tensors_alike": alike,
        "outputs_differ_by": float((before - after).abs().max() / before.abs().max()),
    }


PARTS = {"written": written, "streamed": streamed, "compared": compared}
"""Each in a process of its own: the memory of this one would count as a child's."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20, help="20 make 2 GB")
    parser.add_argument("--shard-mb", type=int, default=200)
    parser.add_argument("--folder", help="where there is room; a temporary one by default")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        places = (f"{options.folder}/{name}" for name in ("old", "new"))
        shard = options.shard_mb * 10**6
        print(json.dumps(PARTS[options.part](*places, options.layers, shard)))
        return 0
    results = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for part in PARTS:
            command = [sys.executable, __file__, "--part", part, "--folder", folder]
            command += ["--layers", str(options.layers), "--shard-mb", str(options.shard_mb)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.update(json.loads(done.stdout.splitlines()[-1]))
    print(json.dumps(results, indent=1))
    more = results["peak_mb"] - results["peak_mb_before_writing"]
    fine = more < results["largest_shard_mb"] + MARGIN * results["largest_tensor_mb"]
    return 0 if fine and results["tensors_alike"] == results["tensors"] else 1


if __name__ == "__main__":
    sys.exit(main())
