"""Check one model of a zoo end to end; used by the tests and by the zoo benchmark."""

from __future__ import annotations

import gc
import random
import time
from dataclasses import asdict, dataclass, field

import torch
from checks import calibrated, difference, doubled, outputs, randomised, step, untrained

import fxgrow
from fxgrow.errors import FxgrowError
from fxgrow.rewrite import rewrite

TOLERANCE = 1e-10
SMALLEST = {"vit_b": 64, "vit_l": 64, "vit_h": 56}  # built for so few pixels: they know how many
LARGE = 400e6  # parameters: in float32, gradients of the grown model fit in 16 GB, too
SIZES = {"inception_v3": 299, "maxvit_t": 224}  # an auxiliary head, windows of seven


@dataclass
class Outcome:
    """What came out for one model (errors are relative; wrong: what must not happen)."""

    name: str
    params: int = 0
    size: int = 0
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
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self):
        return asdict(self)


def size_of(name):
    """Pixels at which a torchvision classifier is checked: few."""
    return SMALLEST.get(name[:5]) or SIZES.get(name, 64)


def build(name):
    """A torchvision classifier with random weights, float64, dropout off, and an input."""
    import torchvision

    options = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    if name[:5] in SMALLEST:
        options["image_size"] = size_of(name)
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **options)
    return prepared(model, size_of(name))


def prepared(model, size):
    """Model and example as they are checked: random weights, fitting statistics, float64."""
    example = doubled(torch.randn(2, 3, size, size))
    return calibrated(randomised(model), example), example


def check_model(name, *, singles=None, train=True, built=None):
    """Inspect, grow all groups at once and ``singles`` of them alone (None: all), compare."""
    start = time.perf_counter()
    model, example = built or build(name)
    outcome = Outcome(name, size=example.shape[-1])
    try:
        inspection = fxgrow.inspect(model, example)
        _describe(outcome, inspection)
        before = [outputs(model, example, training=mode) for mode in (False, True)]
        if not all(telling(out) for mode in before for out in mode):
            outcome.wrong.append("outputs are not finite, or the same for all inputs: no test")
        _together(outcome, model, inspection, example, before)
        _alone(outcome, model, inspection, example, before, singles)
        if train:
            _trained(outcome, model, example)
    except FxgrowError as error:
        outcome.wrong.append(f"{type(error).__name__}: {error}")
    outcome.seconds = round(time.perf_counter() - start, 1)
    return outcome


def telling(out):
    """Whether outputs of two different samples are finite and differ well."""
    spread = (out[0] - out[1]).abs().max()
    return bool(out.isfinite().all()) and bool(spread > 1e-6 * out.abs().max())


def _describe(outcome, inspection):
    outcome.params = inspection.params
    outcome.groups, outcome.frozen = len(inspection.groups), len(inspection.frozen)
    outcome.coverage = inspection.coverage
    outcome.unsupported = [u.op for u in inspection.unsupported]
    for group in inspection.frozen:
        outcome.reasons[group.reason.code] = outcome.reasons.get(group.reason.code, 0) + 1


def _gaps(grown, example, before):
    return [
        difference(old, outputs(grown, example, training=mode))
        for old, mode in zip(before, (False, True), strict=True)
    ]


def _all(inspection):
    # Eight units: few enough, and seldom all dead behind a ReLU.
    return {g.name: step(g, 8) for g in inspection.groups}


def _together(outcome, model, inspection, example, before):
    grown = rewrite(model, inspection, _all(inspection))
    outcome.all_eval, outcome.all_train = _gaps(grown.module, example, before)
    del grown
    gc.collect()  # graphs are cycles: the largest models fit in memory only twice
    if max(outcome.all_eval, outcome.all_train) > TOLERANCE:
        outcome.wrong.append(f"all: eval {outcome.all_eval:.1e}, train {outcome.all_train:.1e}")


def _alone(outcome, model, inspection, example, before, singles):
    groups = list(inspection.groups)
    if singles is not None:
        groups = random.Random(0).sample(groups, min(singles, len(groups)))
    for group in groups:
        try:
            grown = rewrite(model, inspection, {group.name: step(group, 1)})
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


def _trained(outcome, model, example):
    """See whether all groups train; the last check, for ``model`` may change its type."""
    if outcome.params > LARGE:
        model, example = model.float(), example.float()
    inspection = fxgrow.inspect(model, example)
    # Eight rows are all dead by chance now and then (two samples look alike to a deep network
    # without norms); a mistake shows with other rows, too.
    problems = _untrained(model, inspection, example, seed=0)
    if problems:
        gc.collect()
        again = _untrained(model, inspection, example, seed=1)
        problems = [problem for problem in problems if problem in again]
    outcome.trained = True
    outcome.wrong += problems


def _untrained(model, inspection, example, seed):
    grown = rewrite(model, inspection, _all(inspection), seed=seed)
    # A small step: without norms, a large one turns whole layers off.
    return untrained(grown.module, grown.groups, example, lr=1e-4, inplace=True)
