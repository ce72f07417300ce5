"""Replay a recorded run of the published program through the library's own code.

``python replay.py CASE.npz`` prints JSON with the largest absolute differences of gate
gradients, allocation, adjusted weights, couplings and outputs. Exit status: 0 when all
are within 1e-12, 1 when not, 2 (with one line) when the file can't be replayed.
"""

from __future__ import annotations

import itertools
import json
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fxgrow.data import call_model
from fxgrow.errors import FxgrowError
from fxgrow.ir import Group, GrownGroup, GrownSlot, Slot
from fxgrow.plan import CostModel, make_plan
from fxgrow.swe import adjust
from fxgrow.vote import Votes, count_votes, gate_gradients, train_candidates

TOLERANCE = 1e-12

Layer = tuple[np.ndarray, np.ndarray | None]


class ReplayError(Exception):
    """The file is not a recorded case."""


@dataclass(frozen=True)
class Case:
    """A recorded case: its arrays and what they say about the network."""

    arrays: dict[str, np.ndarray]
    depth: int
    activation: type[torch.nn.Module]
    batches: list[tuple[torch.Tensor, torch.Tensor]]

    def layer(self, prefix: str) -> Layer:
        return self.arrays[f"{prefix}weight"], self.arrays.get(f"{prefix}bias")

    @property
    def grown(self) -> list[int]:
        """Indices of the layers that grew, deepest first."""
        layers = reversed(range(self.depth))
        return [i for i in layers if f"swe/{i}/before/weight" in self.arrays]

    @property
    def widths(self) -> list[int]:
        return [len(self.arrays[f"base/{i}/weight"]) for i in range(self.depth)]


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: replay.py CASE.npz", file=sys.stderr)
        return 2
    try:
        case = read(Path(argv[0]))
        report = replay(case)
    except (ReplayError, FxgrowError, OSError) as error:
        return refuse(argv[0], str(error))
    except KeyError as error:
        return refuse(argv[0], f"not a recorded case: no key {error}")
    print(json.dumps(report, indent=2))
    return 0 if report["passed"] else 1


def refuse(path: str, why: str) -> int:
    print(f"{path}: {' '.join(why.split())}", file=sys.stderr)
    return 2


def load(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ReplayError("not an npz archive")
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ReplayError("not an npz archive of plain arrays, or a damaged one") from error


def read(path: Path) -> Case:
    arrays = load(path)
    needed = ["x", "y", "batch_size", "K", "activation", "adam_weight_decay", "base/0/weight"]
    missing = [name for name in [*needed, "svod/allocation"] if name not in arrays]
    if missing:
        raise ReplayError(f"not a recorded case: no key {missing[0]!r}")
    depth = sum(1 for i in range(len(arrays)) if f"base/{i}/weight" in arrays) - 1
    if depth < 1:
        raise ReplayError("not a recorded case: no hidden layer")
    check_shapes(arrays, depth)
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    size = int(arrays["batch_size"])
    if size < 1 or len(x) != len(y):
        raise ReplayError("not a recorded case: batch_size, x and y do not go together")
    batches = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
    return Case(arrays, depth, activation(str(arrays["activation"])), batches)


def check_shapes(arrays: dict[str, np.ndarray], depth: int) -> None:
    scalars = [arrays[key] for key in ("batch_size", "K", "adam_weight_decay", "activation")]
    if any(array.size != 1 for array in scalars):
        raise ReplayError("not a recorded case: batch_size, K, ... must be single values")
    prefixes = ["base/{}/", "svod/candidate_init/{}/"]
    for prefix in prefixes:
        layers = [arrays[f"{prefix.format(i)}weight"] for i in range(depth + 1)]
        if any(layer.ndim != 2 for layer in layers):
            raise ReplayError(f"not a recorded case: {prefix} weights must be matrices")
        for i, (before, after) in enumerate(itertools.pairwise(layers)):
            if len(before) != after.shape[1]:
                raise ReplayError(
                    f"not a recorded case: {prefix.format(i)}weight has {len(before)} rows, "
                    f"the next layer {after.shape[1]} columns"
                )


def activation(name: str) -> type[torch.nn.Module]:
    """Find a function or module of torch by name, in whatever spelling."""
    plain = name.lower().replace("_", "")
    for key in dir(torch.nn):
        kind = getattr(torch.nn, key)
        if key.lower() == plain and isinstance(kind, type) and issubclass(kind, torch.nn.Module):
            return kind
    for space in (torch.nn.functional, torch):
        function = getattr(space, name, None)
        if callable(function):
            return type(
                name,
                (torch.nn.Module,),
                {"forward": lambda self, value, call=function: call(value)},
            )
    if plain in ("none", "linear"):
        return torch.nn.Identity
    raise ReplayError(f"torch has no activation {name!r}")


def network(case: Case, layers: list[Layer]) -> torch.nn.Sequential:
    """Flatten, hidden layers with activation, output layer: ``layer{i}`` by name."""
    module = torch.nn.Sequential()
    module.add_module("flatten", torch.nn.Flatten())
    for i, (weight, bias) in enumerate(layers):
        linear = torch.nn.Linear(
            weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64
        )
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight))
            if bias is not None:
                linear.bias.copy_(torch.from_numpy(bias))
        module.add_module(f"layer{i}", linear)
        if i < case.depth:
            module.add_module(f"act{i}", case.activation())
    return module


def names(layers: list[Layer], i: int) -> list[tuple[str, int, str]]:
    """(tensor, dim, role) of the slots of hidden layer ``i``."""
    slots = [(f"layer{i}.weight", 0, "producer"), (f"layer{i + 1}.weight", 1, "consumer")]
    if layers[i][1] is not None:
        slots.insert(1, (f"layer{i}.bias", 0, "producer"))
    return slots


def grown_group(layers: list[Layer], i: int, width: int) -> GrownGroup:
    """Group of hidden layer ``i``; rows past ``width`` are new."""
    rows = np.arange(len(layers[i][0]))[:, None]
    slots = tuple(
        GrownSlot(tensor, dim, role, rows[:width], rows[width:])
        for tensor, dim, role in names(layers, i)
    )
    return GrownGroup(f"layer{i}", width, len(rows) - width, slots)


def replay(case: Case) -> dict[str, object]:
    svod = replay_svod(case)
    swe, couplings = {}, {}
    for i in case.grown:
        swe[str(i)], couplings[str(i)] = replay_swe(case, i)
    logits = replay_outputs(case)
    largest = max([*svod["gate_gradient"].values(), logits, *swe.values(), *couplings.values()])
    report = {
        "gate_gradient": {**svod["gate_gradient"], "max": max(svod["gate_gradient"].values())},
        "allocation": svod["allocation"],
        "allocation_equal": svod["allocation_equal"],
        "swe": {
            "mode": "paper" if is_paper(case) else "dense",
            "weights": {**swe, "max": max(swe.values(), default=0.0)},
            "couplings": {**couplings, "max": max(couplings.values(), default=0.0)},
            "logits": logits,
        },
        "tolerance": TOLERANCE,
    }
    return {**report, "passed": bool(svod["allocation_equal"] and largest <= TOLERANCE)}


def replay_svod(case: Case) -> dict[str, object]:
    """Train the recorded candidates, judge them, count and plan."""
    layers = [case.layer(f"svod/candidate_init/{i}/") for i in range(case.depth + 1)]
    widths = case.widths
    module = network(case, layers)
    grown = [grown_group(layers, i, widths[i]) for i in range(case.depth)]
    train_candidates(module, case.batches)
    values = gate_gradients(module, grown, case.batches)
    differences = {
        str(i): difference(values[f"layer{i}"], case.arrays[f"svod/gate_gradient/{i}"])
        for i in range(case.depth)
    }
    budget = int(case.arrays["K"])
    votes = Votes(values, count_votes(values, budget), budget=budget)
    hidden, costs = groups(case)
    plan = make_plan(hidden, votes, costs, budget=budget)
    found = [plan.additions.get(f"layer{i}", 0) for i in range(case.depth)]
    equal = found == case.arrays["svod/allocation"].astype(int).tolist()
    return {"gate_gradient": differences, "allocation": found, "allocation_equal": equal}


def groups(case: Case) -> tuple[list[Group], CostModel]:
    """Hidden layers of the recorded network as groups, and their prices."""
    layers = [case.layer(f"base/{i}/") for i in range(case.depth + 1)]
    module = network(case, layers)
    shapes = {name: tuple(param.shape) for name, param in module.named_parameters()}
    flops = {f"layer{i}.weight": 2 * layers[i][0].size for i in range(case.depth + 1)}
    found = []
    for i in range(case.depth):
        positions = np.arange(len(layers[i][0]))[:, None]
        slots = tuple(Slot(t, dim, role, positions) for t, dim, role in names(layers, i))
        price = sum(int(np.prod(shapes[s.tensor])) // len(positions) for s in slots)
        found.append(
            Group(f"layer{i}", len(positions), 1, 1, price, 2 * price, (f"layer{i}",), slots)
        )
    return found, CostModel(shapes, flops)


def is_paper(case: Case) -> bool:
    return float(case.arrays["adam_weight_decay"]) != 0


def replay_swe(case: Case, i: int) -> tuple[float, float]:
    """Adjust layer ``i`` from its recorded start: differences of weights, of couplings."""
    arrays = case.arrays
    layers = [at_turn(case, i, j) for j in range(case.depth + 1)]
    module = network(case, layers)
    given = {f"layer{i}.weight": arrays[f"swe/{i}/before/coupling"]}
    if layers[i][1] is not None:
        given[f"layer{i}.bias"] = arrays[f"swe/{i}/before/coupling_bias"]
    report = adjust(
        module,
        [grown_group(layers, i, case.widths[i])],
        case.batches,
        coupling="dense",
        paper=is_paper(case),
        weight_decay=float(arrays["adam_weight_decay"]),
        keep_couplings=True,
        couplings={f"layer{i}": {key: torch.from_numpy(d) for key, d in given.items()}},
    )
    after = f"swe/{i}/after/"
    weights = [
        compared(module, f"layer{j}.{leaf}", arrays.get(f"{after}{prefix}{leaf}"))
        for j, prefix in ((i, ""), (i + 1, "next_"))
        for leaf in ("weight", "bias")
    ]
    final = report.groups[0].couplings
    recorded = (("weight", "coupling"), ("bias", "coupling_bias"))
    couplings = [
        difference(final[f"layer{i}.{leaf}"].numpy(), as_rows(arrays[after + key]))
        for leaf, key in recorded
        if f"layer{i}.{leaf}" in final and after + key in arrays
    ]
    return max(weights), max(couplings, default=0.0)


def as_rows(couplings: np.ndarray) -> np.ndarray:
    """Recorded D as (new, old, entries)."""
    return couplings.reshape(*couplings.shape[:2], -1)


def at_turn(case: Case, i: int, j: int) -> Layer:
    """Layer ``j`` when the turn of layer ``i`` comes."""
    prefix = f"swe/{i}/before/" + ("" if j == i else f"other/{j}/")
    weight, bias = case.layer(prefix)
    return weight, newest(case, i, j) if bias is None else bias


def newest(case: Case, turn: int, j: int) -> np.ndarray | None:
    """Last recorded bias of layer ``j`` before the turn of layer ``turn``."""
    bias = case.arrays.get(f"base/{j}/bias")
    for i in case.grown:
        if i <= turn:
            break
        for key in (f"swe/{i}/after/bias",) if i == j else (f"swe/{i}/after/next_bias",):
            if j in (i, i + 1):
                bias = case.arrays.get(key, bias)
    return bias


def replay_outputs(case: Case) -> float:
    """Adjust all grown layers in one call, as a user would: difference of the outputs.

    All layers are grown from the start, which must not matter: entries of layers whose
    turn is still to come rest.
    """
    layers, given = assembled(case)
    module = network(case, layers)
    adjust(
        module,
        [grown_group(layers, i, case.widths[i]) for i in sorted(case.grown)],
        case.batches,
        coupling="dense",
        paper=is_paper(case),
        weight_decay=float(case.arrays["adam_weight_decay"]),
        couplings=given,
    )
    with torch.no_grad():
        outputs = call_model(module, torch.from_numpy(case.arrays["x"]))
    return difference(outputs.numpy(), case.arrays["swe/logits"])


def assembled(case: Case) -> tuple[list[Layer], dict[str, dict[str, torch.Tensor]]]:
    """Base network with all recorded new rows appended at once, and the recorded D.

    Couplings of rows know nothing of columns that came later: those get zeros.
    """
    layers = [case.layer(f"base/{i}/") for i in range(case.depth + 1)]
    couplings: dict[str, dict[str, torch.Tensor]] = {}
    for i in case.grown:
        weight, bias = case.layer(f"swe/{i}/before/")
        width = case.widths[i]
        own, own_bias = layers[i]
        layers[i] = (
            np.concatenate([own, weight[width:]]),
            None if own_bias is None else np.concatenate([own_bias, bias[width:]]),
        )
        after, after_bias = layers[i + 1]
        layers[i + 1] = (columns(after, len(weight)), after_bias)
        coupling = case.arrays[f"swe/{i}/before/coupling"]
        couplings[f"layer{i}"] = {f"layer{i}.weight": torch.from_numpy(coupling)}
        if own_bias is not None:
            start = case.arrays[f"swe/{i}/before/coupling_bias"]
            couplings[f"layer{i}"][f"layer{i}.bias"] = torch.from_numpy(start)
    for i in case.grown:
        key = f"layer{i}.weight"
        start = couplings[f"layer{i}"][key].numpy()
        wide = columns(start, layers[i][0].shape[1])
        couplings[f"layer{i}"][key] = torch.from_numpy(wide)
    return layers, couplings


def columns(array: np.ndarray, size: int) -> np.ndarray:
    """Append zeros along the last axis up to ``size``."""
    more = np.zeros((*array.shape[:-1], size - array.shape[-1]))
    return np.concatenate([array, more], axis=-1)


def compared(module: torch.nn.Module, name: str, recorded: np.ndarray | None) -> float:
    params = dict(module.named_parameters())
    if recorded is None or name not in params:
        return 0.0
    return difference(params[name].detach().numpy(), recorded)


def difference(found: np.ndarray, recorded: np.ndarray) -> float:
    if found.shape != recorded.shape:
        raise ReplayError(f"recorded shape {recorded.shape} where {found.shape} is expected")
    worst = float(np.abs(found - recorded).max(initial=0.0))
    return worst if np.isfinite(worst) else float("inf")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
