"""Peak memory of the arms of ``growth.py``: one growth and an epoch, each in a process of its own.

    python benchmarks/growth_memory.py       # benchmarks/results/growth_memory.json; Linux

What the process holds at most above what it held before (data, code and small network loaded).
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

import torch
from growth import ARMS, DATA, ROOT, final_net, grow, train
from growth_tasks import LONG, TASKS

RESULTS = ROOT / "benchmarks" / "results" / "growth_memory.json"
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held(key):
    """Resident memory in MB: now (``VmRSS``), or the most since the last reset (``VmHWM``)."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[key].split()[0]) / 1024


def one(task, arm):
    """MB above the start that a growth and an epoch take at most."""
    split = DATA[task.data]()
    torch.manual_seed(0)
    net = task.net(task.widths)
    train(net, task, split.train, 1, 0)
    if arm.startswith("scratch"):
        net = final_net(task, split, 0)
    RESET.write_text("5")
    before = held("VmRSS")
    if ARMS[arm] is not None:
        net = grow(net, task, split, sum(task.budgets), dict(ARMS[arm]), 0)[0].module
    train(net, task, split.train, 1, 0)
    return held("VmHWM") - before


def main():
    torch.set_num_threads(1)
    found = {}
    for task in (task for name, task in TASKS.items() if name not in LONG):
        DATA[task.data]()  # kept for the processes to come
        for arm in ARMS:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                found.setdefault(task.name, {})[arm] = round(pool.apply(one, (task, arm)))
            print(task.name, arm, found[task.name][arm], flush=True)
    RESULTS.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
