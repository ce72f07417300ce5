"""Check one model of a zoo end to end; used by the tests and by the zoo benchmark."""

from __future__ import annotations

import gc
import random
import time
from dataclasses import asdict, dataclass, field

import torch
from checks import backward, difference, outputs, outputs_of, step, tensors, untrained
from zoo_models import build

import fxgrow
from fxgrow.errors import FxgrowError
from fxgrow.rewrite import rewrite
from fxgrow.walks import named_modules
from fxgrow.whole import opaque_leaves

TOLERANCE = 1e-10
LARGE = 400e6  # parameters: in float32, gradients of the grown model fit in 16 GB, too
STEPS = 5  # of training, for the loss to fall


@dataclass
class Outcome:
    """What came out for one model (errors are relative; wrong: what must not happen)."""

    name: str
    params: int = 0
    size: str = ""
    front_end: str = ""
    leaves: int = 0
    forward_seconds: float = 0.0
    inspect_seconds: float = 0.0
    groups: int = 0
    frozen: int = 0
    coverage: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    unsupported: list[str] = field(default_factory=list)
    all_eval: float = 0.0
    all_train: float = 0.0
    singles_checked: int = 0
    singles_worst: float = 0.0
    trained: bool = False
    loss: tuple[float, float] = (0.0, 0.0)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self):
        return asdict(self)


def check_model(name, *, singles=None, train=True, built=None):
    """Inspect, grow all groups at once and ``singles`` of them alone (None: all), compare."""
    start = time.perf_counter()
    model, example = built or build(name)
    outcome = Outcome(name, size=_size(example))
    try:
        outcome.forward_seconds = _seconds(lambda: outputs(model, example))[0]
        outcome.inspect_seconds, inspection = _seconds(lambda: fxgrow.inspect(model, example))
        _describe(outcome, inspection)
        before = [outputs(model, example, training=mode) for mode in (False, True)]
        if not all(map(telling, before)):
            outcome.wrong.append("outputs are not finite, or the same for all inputs: no test")
        _together(outcome, model, inspection, example, before)
        _alone(outcome, model, inspection, example, before, singles)
        if train:
            _trained(outcome, model, example)
    except FxgrowError as error:
        outcome.wrong.append(f"{type(error).__name__}: {error}")
    outcome.seconds = round(time.perf_counter() - start, 1)
    return outcome


def _seconds(action):
    start = time.perf_counter()
    result = action()
    return round(time.perf_counter() - start, 3), result


def _size(example):
    """Size of the first input, without its batch: what a check was made with."""
    first = next(tensors(example))
    shape = first.shape if isinstance(example, tuple) and len(example) == 2 else first.shape[1:]
    return "x".join(map(str, shape[1:] if len(shape) > 2 else shape))


def telling(outs):
    """Whether outputs are finite, and some differ well between samples (losses: are there)."""
    differ = [
        bool((out[0] - out[1]).abs().max() > 1e-6 * out.abs().max())
        for out in outs
        if out.ndim and len(out) > 1
    ]
    differ += [bool(out.max() > out.min()) for out in outs if out.ndim and len(out) == 1]
    losses = [bool(out.any()) for out in outs if not out.ndim]
    return all(bool(out.isfinite().all()) for out in outs) and any(differ + losses)


def _describe(outcome, inspection):
    outcome.params = inspection.params
    outcome.groups, outcome.frozen = len(inspection.groups), len(inspection.frozen)
    outcome.coverage = inspection.coverage
    traced = inspection.analysis.traced
    outcome.front_end = "own class" if traced.obstacle else "graph"
    if not traced.obstacle:
        named = named_modules(traced.root, repeated=True)
        outcome.leaves = len(opaque_leaves(named, traced.graphs["eval"], lambda _: True))
    outcome.unsupported = [u.op for u in inspection.unsupported]
    for group in inspection.frozen:
        outcome.reasons[group.reason.code] = outcome.reasons.get(group.reason.code, 0) + 1


def _gaps(grown, example, before):
    """Differences in eval and train mode; ``grown`` itself runs, for a copy takes as long."""
    return [
        difference(old, outputs_of(grown, example, training=mode))
        for old, mode in zip(before, (False, True), strict=True)
    ]


def _emit(inspection):
    return "module" if inspection.analysis.traced.obstacle else "graph"


def _all(inspection):
    # Eight units: few enough, and seldom all dead behind a ReLU.
    return {g.name: step(g, 8) for g in inspection.groups}


def _together(outcome, model, inspection, example, before):
    grown = rewrite(model, inspection, _all(inspection), emit=_emit(inspection))
    outcome.all_eval, outcome.all_train = _gaps(grown.module, example, before)
    del grown
    gc.collect()  # graphs are cycles: the largest models fit in memory only twice
    if max(outcome.all_eval, outcome.all_train) > TOLERANCE:
        outcome.wrong.append(f"all: eval {outcome.all_eval:.1e}, train {outcome.all_train:.1e}")


def _alone(outcome, model, inspection, example, before, singles):
    groups = list(inspection.groups)
    if singles is not None:
        groups = random.Random(0).sample(groups, min(singles, len(groups)))
    gc.freeze()  # what lies here stays: collecting after every group then costs nothing
    for group in groups:
        try:
            addition = {group.name: step(group, 1)}
            grown = rewrite(model, inspection, addition, emit=_emit(inspection))
        except FxgrowError as error:
            outcome.wrong.append(f"{group.name}: {type(error).__name__}: {error}")
            continue
        gap = max(_gaps(grown.module, example, before))
        del grown
        gc.collect()
        outcome.singles_checked += 1
        outcome.singles_worst = max(outcome.singles_worst, gap)
        if gap > TOLERANCE:
            outcome.wrong.append(f"{group.name}: {gap:.1e}")
    gc.unfreeze()


def _trained(outcome, model, example):
    """See whether all groups train; the last check, for ``model`` may change its type."""
    if outcome.params > LARGE:
        model, example = model.float(), example.float()
    inspection = fxgrow.inspect(model, example)
    # Eight rows are all dead by chance now and then (two samples look alike to a deep network
    # without norms); a mistake shows with other rows, too.
    problems = _untrained(outcome, model, inspection, example, seed=0)
    if problems:
        gc.collect()
        again = _untrained(outcome, model, inspection, example, seed=1)
        problems = [problem for problem in problems if problem in again]
    if problems:
        gc.collect()
        without = idle(model, example)
        problems = [p for p in problems if not any(f": {name}[" in p for name in without)]
    outcome.trained = True
    outcome.wrong += problems


def _untrained(outcome, model, inspection, example, seed):
    grown = rewrite(model, inspection, _all(inspection), seed=seed, emit=_emit(inspection))
    # A small step: without norms, a large one turns whole layers off.
    problems = untrained(grown.module, grown.groups, example, lr=1e-4, inplace=True)
    outcome.loss = falling(grown.module, example)
    if not outcome.loss[1] < outcome.loss[0]:
        problems.append(f"the loss does not fall: {outcome.loss[0]:.4g}, {outcome.loss[1]:.4g}")
    return problems


def idle(model, example):
    """Parameters without any gradient before growth: here, none of a detector's boxes fit them."""
    backward(model, example)
    named = model.named_parameters(remove_duplicate=False)
    found = {name for name, p in named if p.grad is None or not p.grad.any()}
    model.zero_grad()
    return found


def falling(module, example):
    """Loss before and after some steps of Adam on one batch."""
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-4)
    losses = []
    for _ in range(STEPS):
        losses.append(backward(module, example))
        optimizer.step()
    losses.append(backward(module, example))
    return losses[0], losses[-1]
