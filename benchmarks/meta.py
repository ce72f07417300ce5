"""What a model that fits no memory costs to inspect and to plan for: it is on the meta device.

Each model runs in a process of its own, whose largest memory is read at the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

import fxgrow

SHAPES = {
    "llama-8b": (4096, 14336, 32, 32, 8),
    "llama-70b": (8192, 28672, 80, 64, 8),
    "llama-405b": (16384, 53248, 126, 128, 8),
}
"""Hidden width, MLP width, layers, heads and KV groups."""

BOUND_SECONDS, BOUND_GIB = 60.0, 6.0


def build(name, layers=None):
    """Model of a published shape without memory, and a batch of eight tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, depth, heads, groups = SHAPES[name]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers or depth,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=128256,
        use_cache=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    return model, {"input_ids": torch.zeros(1, 8, dtype=torch.long, device="meta")}


def measure(name, layers=None):
    """Seconds and memory of inspecting a model, and of planning 2 % more parameters."""
    model, example = build(name, layers)
    start = time.perf_counter()
    inspection = fxgrow.inspect(model, example)
    inspected = time.perf_counter() - start
    start = time.perf_counter()
    plan = fxgrow.plan_for(  # inspects once more
        model, None, budget="+2%", unit="params", distributor="uniform", example_inputs=example
    )[2]
    return {
        "model": name,
        "params": inspection.params,
        "groups": len(inspection.groups),
        "coverage": inspection.coverage,
        "inspect_seconds": round(inspected, 1),
        "plan_seconds": round(time.perf_counter() - start, 1),
        "planned_params": plan.spent,
        "budget_params": plan.budget,
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["llama-70b"], help=", ".join(SHAPES))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return 0
    results = []
    for name in options.models:
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    print(json.dumps(results, indent=1))
    good = [
        r["inspect_seconds"] < BOUND_SECONDS and r["peak_gib"] < BOUND_GIB
        for r in results
        if r["model"] == "llama-70b"
    ]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
