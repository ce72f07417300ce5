"""Write ``docs/benchmarks.md`` and its plots from the runs of ``growth.py``."""

from __future__ import annotations

import argparse
import json
import sys
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev

from growth import AGAIN, ARMS, CROSSED, NORMED, RESULTS, ROOT, SHARES, WHOLE, read
from growth_memory import RESULTS as MEMORY
from growth_tasks import TASKS
from scipy.stats import spearmanr
from scipy.stats import t as student

TRIED = ROOT / "benchmarks" / "results" / "explore.jsonl"
PAGE = """# Benchmarks of growth

Written by `benchmarks/growth_page.py` from the runs in `benchmarks/results/growth.jsonl` and
`explore.jsonl`, which `python benchmarks/growth.py` and `python benchmarks/explore.py` make
(resumable; every line of these files is one run). Do not edit.

Every arm has the same data, budgets (neurons), epochs and optimizer (AdamW, anew after each
growth), and the decay of its task. Arms with an adjusting phase (`swe`) see the data once more
for each group that grew; `gradmax` rows take five steps on 1,024 samples; `to svod` and `to gain`
see the data once more for their votes. Extender arms share the budget evenly; arms `to ...`
insert active rows and differ in the distributor. `scratch` is the network of the final size for
as many epochs as the grown one had in all; `equal FLOPs` for as much computing. `default` is what
`fxgrow.expand` does if nothing is asked for: rows searched where no norm keeps units alive
(`auto`), laplacian coupling, SVoD. `swe paper, to svod paper` is the published method as a whole.

All is scaled down, so that everything runs in a few hours on one core: MNIST is its 10,000
test images, CIFAR-10 is 6,000 of its images (3,000 to train on) at 16 x 16, networks are narrow,
epochs few. Accuracies compare arms; they are not those of these architectures.

`cifar-paper` is the published protocol, scaled down: eight rounds with the published increments
(36 to 174 neurons), early stopping in every round, Adam with an L2 penalty of 1e-4. The trunk has a
third of the published width (11-11-21-21 for 32-32-64-64) and, as published, does not grow; the
three hidden layers start with 62 neurons each, as published. Data are the 3,000 images at 16 x 16,
not 50,000 at 32 x 32. The rule is the same for every arm: of the epochs of a round the one with the
lowest validation loss stays; five without a lower one end the round; test accuracy is that of what
stayed after the last round. `small` and `scratch` have one round, of as many epochs as the run of
the default with the same seed; `round 1` is the small network stopped early. `cifar-paper-decay` is
the same with AdamW, its decay chosen as in the other tasks.

- **accuracy**: test data, after the last round, mean over the seeds.
- **against `default`**: paired difference over the seeds, in points, with its 95 % interval.
- **trajectory**: mean test accuracy over the ends of all rounds.
- **at growth**: change of test accuracy and loss by the growth itself, mean over rounds.
- **inactive**: share of new units that are active on no (on fewer than 1 %) of 24 training
  batches, at the end of their round (`fxgrow.activity`).
- **parity**: mean activation, and gradient norm of the rows, of new units over those of old ones.
- **MB**: most memory that one growth and an epoch take above what the process held before
  (`python benchmarks/growth_memory.py`).

## What these runs say

{says}

{tasks}

## Extenders and distributors, crossed

Test accuracy after the last round in %, mean over the seeds with its 95 % interval. The last
column has the paired difference with `swe laplacian, gradmax` (the default's rows on these tasks,
which have no norms) as the mean over the distributors, the last row that with uniform shares as
the mean over the extenders that have all distributors, in points.

{says_crossed}

{crossed}

## Choices made on validation data

Seeds of these runs are others than those above, and test data were not looked at.

### Decay

AdamW's decay of a task is the one with which `scratch` has the lowest validation loss; of those
within 0.02 of it, the one with the highest validation accuracy. Accuracy and loss on validation
data, mean over two seeds, one for `cifar-paper-decay` (`python benchmarks/explore.py --decays`):

{decays}

### What was tried

`python benchmarks/explore.py`, {seeds} seeds at most: accuracy and loss on validation data at the
end, their change at growth, and inactive new units at the ends of the rounds. With so few seeds
differences of accuracy below a point mean nothing; those of inactive units mean much.

{lost}

{tried}
"""
SAYS = """Written by hand for the runs below; intervals are 95 %.

- **The default** leaves no new unit inactive on three of the seven tasks without a norm in
  between (`digits-narrow`, both on MNIST), 0.4 % on `digits-mlp`, 1.3 to 3.5 % on the
  convolutional network, and none behind norms. On every task the growth step gains accuracy and
  loss, on average: the adjusting phase is training.
- **Against the published method as a whole** it is better on the convolutional network (3.4 ± 2.3
  points; 6.1 ± 4.7 when it grows early, where 28 % of the published method's new units die),
  within the interval on the others (between 0.9 ± 1.3 below, on the residual network grown early,
  fifteen seeds, and 0.8 ± 1.9 above), and *behind* on `mnist-lopsided`, by 0.6 ± 0.5 points
  (fifteen seeds): the decay of frozen rows acts as a regulariser there. That method leaves 14 to
  41 % of new units inactive where no norm comes in between, and loses 1.4 to 3.5 points at the
  growth step on four tasks.
- **Against the final size from scratch** for as many epochs: above on `mnist-mlp` (0.5 ± 0.5),
  level on `mnist-lopsided` (0.0 ± 0.5, fifteen seeds), within the interval on digits (0.7 ± 1.6
  and, far too narrow, 1.2 ± 2.0 below), and below on CIFAR-10 where networks grow late: 3.6 ± 3.1
  (convolutions), 2.5 ± 1.5 (residual), 1.5 ± 1.0 (transformer). They are far from trained when
  they grow, and see 4 of 20 and 3 of 13 epochs at their final size.
- **When to grow**: the tasks named `-early` have as many epochs in all as those without, but grow
  as soon as the network has seen the data twice, an epoch a round (a schedule that was tried
  alone, not chosen among others). The default is then level with scratch on the convolutional
  network (0.3 ± 2.9 above) and the transformer (0.1 ± 1.5 above), and 1.4 ± 1.0 below on the
  residual one (fifteen seeds). So what it lacks against scratch is mostly the time that new units
  have to learn: where epochs are few, grow early.
- **Rows behind norms** need no search: drawn ones are 0.9 ± 1.1 points above GradMax's on the
  residual network grown early (fifteen seeds; `swe laplacian, gradmax, to svod`), and level on
  `cifar-resnet` (0.1 ± 2.3 below) and the transformer. So the default searches where no norm is.
- **Units that die all the same** are revived by `Grower` after every epoch (`revive`). The arm
  `default, revived` does so after every epoch but the last of a round, where activity is
  measured. At the end of every round no unit is inactive on five tasks, and on `cifar-conv-early`
  none at the end of the training (11 of 315 at the ends of its rounds of one epoch, in which they
  had just died). Accuracy is that without it, within the interval: 0.3 ± 0.6 points above on
  digits, 0.4 ± 0.8 on `digits-narrow`, 0.2 ± 0.4 on `mnist-mlp`, 0.3 ± 1.4 on `cifar-conv`, 0.6 ±
  1.1 on `cifar-conv-early`, and 0.2 ± 0.7 below on `mnist-lopsided`.
- **A long training** (`cifar-long`, 72 epochs, high rate, no norms): one of five networks of the
  default is dead at the end (10 %, guessing), so the mean is 7.3 ± 16.7 points below scratch; the
  other four have 40.0 %, scratch 41.3 %. With revival (`default, revived`) none dies, and it is 1.7
  ± 3.1 points below. Uniform shares and `gain` lost no network there: chance, or the vote's doing.
- **The published protocol, scaled** (`cifar-paper`): no arm is outside of the interval of the
  default as a whole. It is 1.3 ± 1.9 points above the published method and 0.4 ± 1.6 above the
  final size from scratch, and level with the small network trained for as many epochs (0.1 ± 2.0
  below): on 3,000 images eight rounds of growth gain 2 points over the small network stopped early
  (42.3 %), and so do more epochs. Shares by SVoD and uniform ones are level (0.3 ± 1.0 below).
  Accuracy is level from the fourth round on while validation loss rises: early stopping works
  within a round, not over rounds, and layers of that width overfit. The default does so most (test
  loss 2.0 at the end), the published method less (1.7), single runs least (1.5). So if the round,
  too, is chosen by validation loss ("best round"), the published method is *ahead* of the default,
  by 1.4 ± 1.6 points. It loses 3.0 points at the growth step, where the default gains 0.3, and has
  6.6 % of its new units inactive (the default 3.0 %).
- With AdamW and a decay chosen on validation data (`cifar-paper-decay`, three seeds) the same:
  after the last round the default is above the published method by 2.1 ± 3.3 and above scratch by
  2.6 ± 6.1 points; at the best round by validation loss the published method is above the default,
  by 1.8 ± 1.2. So more decay is not what the default lacks; its loss under a long protocol is an
  open question.
- **Rows decide whether units live**, where no norm precedes the activation: Kaiming rows die in
  8 to 27 % of cases, active ones in 0 to 6 %, GradMax's in 0 to 1.7 %. Behind batch norms, and
  behind layer norms in the transformer, none die whatever the rows.
- GradMax's rows alone (`extender="gradmax"`: nothing is trained, the function is kept, no pass
  over all data) come within about a point of the default on every task: the cheap choice. Active
  and GradMax rows with laplacian coupling tie in accuracy; the default is the one with fewer dead
  units. That choice was made on validation data, and inactivity, of the first seeds of these runs.
- What the first version of this page said did not hold everywhere: with a decay chosen on
  validation data the published program is no longer ahead on `mnist-mlp`, and it is behind on
  CIFAR-10. On the lopsided network it still has the best mean: its decay of frozen rows acts as a
  regulariser there, and as damage elsewhere.
- Laplacian coupling itself adds 0 to 3 points on CIFAR-10 over the same rows without it (it sees
  the data once more for each group), and half a point or nothing on the MLPs. Pairwise and dense
  couplings cost 1 to 2 points at the growth step on MNIST, and end no better.
- **Distributors**, against uniform allocation (`active`): SVoD, with as many candidates in every
  group, is better outside of the interval on three tasks (`digits-narrow` 2.6 ± 1.6, `mnist-mlp`
  0.4 ± 0.3, `digits-mlp` 0.3 ± 0.1) and worse on one (`cifar-conv` 1.1 ± 1.0). Gain is worse
  nowhere, better on `digits-narrow` (2.5 ± 1.1), and with the default extender on
  `mnist-lopsided` (0.5 ± 0.4). Shares in proportion to width lose 3 and 13 points where a layer
  is too narrow. Random shares are better than uniform ones outside of the interval on two tasks,
  where widths are alike (`mnist-mlp` 0.6 ± 0.5, `cifar-resnet` 2.8 ± 2.5): differences of that
  size say little of a distributor. [The oracle](oracle.md) compares what distributors go by.
- **The default against the same units shared evenly**: within the interval everywhere (in the mean
  2.0 ± 2.7 above on `digits-narrow`, 1.3 ± 1.7 below on `cifar-resnet`, with the default's rows).
- Copies (Net2Wider) have the activations of old units, and learn least.
- Seconds of growth were taken on a busy machine: compare them with care. `cifar-long`,
  the early tasks and the published protocol have a few arms only."""
SAYS_CROSSED = """Written by hand for the runs below. Shares in proportion to width are uniform ones
on `digits-mlp`, `mnist-mlp`, `cifar-conv` and `cifar-resnet`, where widths are alike.

- **The ranking of extenders is about the same for each distributor.** No extender is above the
  default outside of the interval with any distributor on any of these tasks, and copies are last
  with all of them. On `mnist-mlp`, over all distributors, seven of ten extenders are below the
  default outside of the interval; `gradmax`, `active` and `small random` are not. What swaps ranks
  lies within the intervals: most extenders are within a point of each other. The order changes
  most with shares in proportion on `digits-narrow`, where next to nothing is added where it is
  needed: pairwise, dense and published couplings lead there by 2 points in the mean (intervals of
  5 to 6).
- **Distributors matter where widths are lopsided, whatever the extender.** SVoD is above uniform
  shares by 2.1 ± 0.9 points on `digits-narrow`, as the mean of eleven extenders; every one of them
  but copies gains 1.9 to 2.9 points, seven outside of the interval, the default not (2.1 ± 2.7).
  On `digits-mlp` and `mnist-mlp` it is 0.1 ± 0.2. Shares in proportion to width lose 10.5 ± 8.4
  points on `digits-narrow` and 2.8 ± 1.2 on `mnist-lopsided`. Random shares are, in the mean, as
  good as uniform ones (0.0 ± 0.3, 0.1 ± 2.2, 0.1 ± 0.5 below): what the tables above show for
  active rows on `mnist-mlp` (0.6 ± 0.5) does not hold for other extenders.
- Which units die depends on the rows, not on where they go: GradMax's 0 to 2 % (5 % in one cell),
  active ones 0 to 2 %, Kaiming's 0 to 30 %, most with the published program.
- Some runs with GradMax's rows in the tables above are older than a change in how that search
  takes its batches, so here they were made again with uniform shares: the default is 0.2 ± 0.9
  points lower on `digits-mlp`, 0.2 ± 0.3 higher on `mnist-mlp`, the same on `digits-narrow`."""
LOST = """Lost, or not worth it:

- *Norm of new rows* x 0.5: more of them die. x 2: fewer die, with and without coupling; accuracy
  is that of the norm as it is, or lower. GradMax's rows do it without a factor.
- *On for 80 % of the samples*, *small outgoing entries*, *warm-up of the learning rate*: no fewer
  dead units and no gain beyond the noise.
- *Revival* (dead new units get a new bias and outgoing entries of zero after every epoch): no
  dead units in the end, no better accuracy on one task. Measured on more tasks since, see above:
  it is offered, and is the default of `Grower`.
- *Shrinking old weights* by 0.8, with or without noise ("shrink and perturb"): the best validation
  losses on MNIST, at a loss of 0.3 at growth; an adjusting phase repairs that, but then units
  die unless their rows are made larger, and on CIFAR-10 (one seed) it is worse than nothing.
- *Pairwise coupling first, laplacian later*: no better than laplacian throughout.
- *The published program from active rows*: as many units die as from Kaiming's, so its decay of
  the frozen rows kills them. Its validation loss on the lopsided network is the lowest of all.
- *The optimizer kept through growth*, its moments for new entries zero: no gain over AdamW begun
  anew; with the mean of the old second moments, new units hardly learn (2 to 4 points below).
- *Steps of the coupling scaled by 1/(n + k)* (n old and k new units; five seeds each on
  `digits-mlp` and `mnist-mlp`, paired with `5 of 1024`, which is the default of today): nothing.
  Gradients scaled: the same under Adam, whose steps do not depend on their scale, but for
  rounding. The learning rate scaled, to 1/(n + k) or 16/(n + k) of itself, or plain gradient
  descent with 0.1/(n + k) in place of Adam: 0 to 0.6 points of accuracy below, loss between 0.004
  below and 0.011 above, all within the intervals. With 1/(n + k) of the rate rows hardly move, and
  the gain at the growth step is no smaller: there it comes from the next layer, not from the
  coupling.
- *GradMax's rows from fewer steps or samples* (`2 of 256`: two steps, 256 samples; five seeds,
  paired as above): all five settings have a higher validation loss on `digits-mlp`, outside of the
  interval (by 0.018 ± 0.010 for `5 of 256`, 0.025 ± 0.022 for `2 of 1024`, 0.048 ± 0.016 for `1 of
  256`), and one step loses 1.4 ± 0.9 (of 1,024) or 1.8 ± 1.5 points (of 256). On `mnist-mlp` three
  settings are 0.003 to 0.013 higher, within the interval. Next to no unit dies in any of them. So
  five steps on 1,024 samples stay, whatever [they cost](cost.md#gradmaxs-rows)."""

HEAD = (
    "arm", "seeds", "accuracy", "against `{}`", "trajectory",
    "at growth: accuracy", "loss",
    "inactive", "nearly", "activation parity", "gradient parity", "s of growth", "MB",
)  # fmt: skip


def interval(values):
    """Mean and half of its 95 % confidence interval."""
    if len(values) < 2:
        return values[0], float("nan")
    half = student.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return mean(values), half


def final(run, key="test"):
    return run["rounds"][-1]["after"][key]


def against(runs, reference):
    """Paired differences with the reference, in points."""
    pairs = [(final(r), final(reference[s])) for s, r in runs.items() if s in reference]
    if not pairs or runs is reference:
        return ""
    centre, half = interval([100 * (a - b) for a, b in pairs])
    return f"{centre:+.1f} ± {half:.1f}" if len(pairs) > 1 else f"{centre:+.1f}"


def average(runs, value, show):
    """Mean of something over all rounds that have it."""
    found = [value(r) for run in runs.values() for r in run["rounds"] if "alive" in r]
    found = [v for v in found if v is not None]
    return show(mean(found)) if found else ""


def share(key):
    return lambda r: r["alive"][key] / r["alive"]["new"] if r["alive"]["new"] else None


def row(arm, runs, reference, megabytes):
    def change(key):
        return lambda r: r["at_growth"][key] - r["before"][key]

    trajectory = mean(mean(r["after"]["test"] for r in run["rounds"]) for run in runs.values())
    return (
        f"{arm}",
        len(runs),
        f"{mean(map(final, runs.values())):.1%}",
        against(runs, reference),
        f"{trajectory:.1%}" if ARMS[arm] is not None else "",
        average(runs, change("test"), lambda v: f"{100 * v:+.2f}"),
        average(runs, change("test_loss"), lambda v: f"{v:+.3f}"),
        average(runs, share("new_inactive"), lambda v: f"{v:.1%}"),
        average(runs, share("new_nearly"), lambda v: f"{v:.1%}"),
        average(runs, lambda r: r["alive"]["activation_parity"], lambda v: f"{v:.2f}"),
        average(runs, lambda r: r["alive"]["gradient_parity"], lambda v: f"{v:.2f}"),
        average(runs, lambda r: r["growth_seconds"], lambda v: f"{v:.1f}"),
        megabytes.get(arm, ""),
    )


def explored(found, task):
    """Runs of the exploration of a task, by variant."""
    arms = {}
    for (name, arm, _), run in found.items():
        if name == task:
            arms.setdefault(arm, []).append(run["rounds"])
    return arms


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def decays(found):
    """Accuracy and loss by decay, and the choice."""
    names = sorted({arm for _, arm, _ in found if arm.startswith("decay")}, key=by_number)
    rows = []
    for task, spec in TASKS.items():
        arms = explored(found, task)
        cells = [ends(arms[name]) if name in arms else "" for name in names]
        if any(cells):
            rows.append((task, *cells, f"{spec.decay:g}"))
    return table(("task", *(name.split()[1] for name in names), "chosen"), rows)


def by_number(name):
    return float(name.split()[1])


def ends(runs):
    accuracy, loss = (mean(rounds[-1]["after"][i] for rounds in runs) for i in (0, 1))
    return f"{accuracy:.1%}, {loss:.3f}"


def tried(found):
    """A table for each task that was explored."""
    parts = []
    for task in TASKS:
        rows = []
        for arm, runs in explored(found, task).items():
            if arm.startswith("decay"):
                continue
            every = [r for rounds in runs for r in rounds]
            change = [mean(r["at"][i] - r["before"][i] for r in every) for i in (0, 1)]
            dead, new = (sum(r["alive"][key] for r in every) for key in ("new_inactive", "new"))
            step = f"{100 * change[0]:+.1f}, {change[1]:+.3f}"
            rows.append((arm, len(runs), ends(runs), step, f"{dead} of {new}"))
        if rows:
            head = ("variant", "seeds", "at the end", "at growth", "inactive")
            parts += [f"**{task}**", "", table(head, rows), ""]
    return "\n".join(parts).rstrip()


def by_arm(found, task):
    """Runs of a task: arm to seed to run."""
    arms = {}
    for (name, arm, seed), run in found.items():
        if name == task:
            arms.setdefault(arm, {})[seed] = run
    return {arm: arms[arm] for arm in ARMS if arm in arms}


def section(task, arms, picture):
    spec = TASKS[task]
    reference = arms.get(WHOLE, {})
    megabytes = json.loads(MEMORY.read_text(encoding="utf-8")).get(task, {})
    lines = [
        f"## {task}",
        "",
        f"{spec.net.__name__} {'-'.join(map(str, spec.widths))}, {spec.data}, budgets "
        f"{', '.join(map(str, spec.budgets))} neurons; {trained(spec)}",
        "",
        f"![{task}]({picture})",
        "",
        table(
            [cell.format(WHOLE) for cell in HEAD],
            [row(arm, runs, reference, megabytes) for arm, runs in arms.items()],
        ),
    ]
    return "\n".join(lines + (["", stopped(arms)] if spec.patience else []))


def trained(spec):
    """How the networks of a task are trained, in words."""
    each = ", ".join(map(str, spec.later)) if spec.later else f"{spec.epochs[1]} a round"
    rounds = f"{spec.epochs[0]} epochs, then {each}"
    if spec.patience:
        rounds = f"rounds of at most {spec.epochs[0]} epochs, patience {spec.patience}"
    decay = f"Adam with an L2 penalty of {spec.l2:g}" if spec.l2 else f"decay {spec.decay:g}"
    return f"{rounds}; batches of {spec.batch}, lr {spec.lr:g}, {decay}."


def stopped(arms):
    """Where rounds are stopped early: what they end with, and epochs."""
    count = max(len(run["rounds"]) for runs in arms.values() for run in runs.values()) + 1
    chosen = {arm: {s: at_best(run) for s, run in runs.items()} for arm, runs in arms.items()}
    rows = []
    for arm, runs in arms.items():
        every = [states(run) for run in runs.values()]
        grown = ARMS[arm] is not None
        ends = [f"{mean(s[i]['test'] for s in every):.1%}" for i in range(count)] if grown else []
        best = f"{mean(chosen[arm].values()):.1%}"
        gaps = [100 * gap for gap in paired([(chosen[arm], chosen[WHOLE])])]
        gap = plus_minus(gaps, "{:+.1f}") if arm != WHOLE and len(gaps) > 1 else ""
        loss = f"{mean(final(run, 'test_loss') for run in runs.values()):.2f}"
        epochs = mean(map(epochs_of, runs.values()))
        seconds = mean(r["seconds"] for r in runs.values())
        blanks = [""] * (count - len(ends))
        rows.append((arm, *ends, *blanks, loss, best, gap, f"{epochs:.0f}", f"{seconds:.0f}"))
    rounds = (f"round {i + 1}" for i in range(count))
    head = ("test loss", "best round", "against the default", "epochs", "s in all")
    return table(("arm", *rounds, *head), rows)


def states(run):
    """Scores at the ends of all rounds, the first included."""
    first = [run["rounds"][0]["before"]] if "before" in run["rounds"][0] else []
    return first + [r["after"] for r in run["rounds"]]


def at_best(run):
    """Test accuracy at the end of the round with the best validation loss."""
    return min(states(run), key=lambda scores: scores["valid_loss"])["test"]


def epochs_of(run):
    return run.get("first_epochs", 0) + sum(r["epochs"] for r in run["rounds"])


def crossing(extender, share):
    """Name of the arm of an extender and a distributor."""
    if share == "uniform" and extender not in AGAIN:
        return extender
    if (extender, share) == (AGAIN[0], "svod"):  # where there are no norms
        return WHOLE
    return f"to {share}" if extender == "active" else f"{extender}, to {share}"


def crossed(found):
    """A table for each task in which one extender met every distributor."""
    parts = []
    for task in TASKS:
        runs = {}
        for (name, arm, seed), run in found.items():
            if name == task:
                runs.setdefault(arm, {})[seed] = 100 * final(run)
        if task not in NORMED and all(crossing(AGAIN[0], share) in runs for share in SHARES):
            parts += [f"**{task}**", "", one_crossed(runs), ""]
    return "\n".join(parts).rstrip()


def one_crossed(runs):
    """Extenders by distributors; how alike distributors rank extenders."""
    cells = {
        (extender, share): runs[crossing(extender, share)]
        for extender in ("active", *CROSSED)
        for share in SHARES
        if crossing(extender, share) in runs
    }
    full = [e for e in ("active", *CROSSED) if all((e, share) in cells for share in SHARES)]
    rows = []
    for extender in full:
        means = [plus_minus(cells[extender, share].values(), "{:.1f}") for share in SHARES]
        if extender == AGAIN[0]:
            rows.append((extender, *means, ""))
            continue
        gaps = paired((cells[extender, s], cells[AGAIN[0], s]) for s in SHARES)
        rows.append((extender, *means, plus_minus(gaps, "{:+.1f}")))
    last = [
        plus_minus(paired((cells[e, share], cells[e, "uniform"]) for e in full), "{:+.1f}")
        if share != "uniform"
        else ""
        for share in SHARES
    ]
    rows.append(("against uniform", *last, ""))
    text = table(("extender", *SHARES, f"against {AGAIN[0]}"), rows)
    return text + (f"\n\n{ranks(cells, full)}" if len(full) > 2 else "")


def ranks(cells, full):
    """Spearman's correlation of the columns with the one of uniform shares."""
    columns = {s: [mean(cells[e, s].values()) for e in full] for s in SHARES}
    found = ", ".join(
        f"{spearmanr(columns['uniform'], columns[s]).statistic:.2f} ({s})"
        for s in SHARES
        if s != "uniform"
    )
    return f"Rank correlation of the extenders with their order under uniform shares: {found}."


def paired(pairs):
    """By seed, the mean over pairs of what one has above the other."""
    pairs = list(pairs)
    seeds = set.intersection(*(set(a) & set(b) for a, b in pairs))
    return [mean(a[seed] - b[seed] for a, b in pairs) for seed in sorted(seeds)]


def plus_minus(values, show):
    centre, half = interval(list(values))
    return f"{show.format(centre)} ± {half:.1f}"


def plot(task, arms, path):
    """Accuracy over rounds of every arm that grows; those that do not as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    colours = dict(zip(ARMS, cycle(plt.get_cmap("tab20").colors), strict=False))
    for arm, runs in arms.items():
        colour, width = colours[arm], 3 if arm == WHOLE else 1.3
        if ARMS[arm] is None:
            value = mean(map(final, runs.values()))
            axes.axhline(100 * value, color=colour, linestyle="--", linewidth=1, label=arm)
            continue
        curves = [[r["after"]["test"] for r in run["rounds"]] for run in runs.values()]
        ys = [100 * mean(points) for points in zip(*curves, strict=True)]
        axes.plot(range(1, len(ys) + 1), ys, "o-", ms=3, lw=width, color=colour, label=arm)
    axes.set(xlabel="round", ylabel="test accuracy (%)", title=task)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    options = parser.parse_args()
    found = read(options.runs)
    sections = []
    for task in TASKS:
        arms = by_arm(found, task)
        if arms:
            picture = f"images/growth-{task}.png"
            plot(task, arms, options.page.parent / picture)
            sections.append(section(task, arms, picture))
    looked = read(TRIED)
    text = PAGE.format(
        says=SAYS,
        says_crossed=SAYS_CROSSED,
        crossed=crossed(found),
        lost=LOST,
        tasks="\n\n".join(sections),
        decays=decays(looked),
        tried=tried(looked),
        seeds=max(len(runs) for task in TASKS for runs in explored(looked, task).values()),
    )
    options.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
