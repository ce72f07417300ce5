"""A training that grows, to be killed and resumed in processes of its own."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

import fxgrow
from fxgrow.ir import Growth


class Noisy(Dataset):
    """Images whose augmentation draws from the global generators of torch and NumPy."""

    def __init__(self, count=60):
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randn(count, 1, 6, 6, generator=generator)
        self.labels = torch.randint(4, (count,), generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        noise = 0.1 * torch.randn(1, 6, 6) + 0.1 * float(np.random.rand())
        return self.images[index] + noise, self.labels[index]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(4 * 9, 8)
        self.dropout = nn.Dropout(0.1)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.out(self.dropout(torch.relu(self.hidden(x.flatten(1)))))


OPTIONS = {
    "graph": {"schedule": {"epochs": 1}, "distributor": "uniform"},
    "module": {"schedule": {"steps": 7}, "distributor": "uniform", "emit": "module"},
    "voted": {"schedule": {"epochs": 2}, "adjust_epochs": 1},
}
"""Variants of the run."""


def build(variant, progress=None):
    """Everything as at the start of a script."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    own = torch.Generator().manual_seed(5) if variant == "voted" else None
    loader = DataLoader(Noisy(), batch_size=12, shuffle=True, generator=own)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    options = dict(OPTIONS[variant])
    grower = fxgrow.Grower(
        model,
        optimizer,
        data=loader,
        schedule=fxgrow.every(**options.pop("schedule")),
        budget=[4, 5, 6],
        ema=ema,
        track={"scheduler": scheduler},
        progress=progress,
        **options,
    )
    return grower, optimizer, scheduler


def train(path, variant, *, epochs=4, every=2, progress=None, tell=None):
    """Train to the end, from wherever the checkpoint is; return a digest of all state."""
    grower, optimizer, scheduler = build(variant, progress)
    model = grower.resume(path)
    for _ in range(grower.epoch, epochs):
        model.train()
        for images, labels in grower.batches():
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            grower.ema.update_parameters(grower.module)
            model = grower.step_end(metric=loss.item())
            if grower.step % every == 0:
                grower.save(path)
            if tell:
                tell(grower.step)
        model = grower.epoch_end(metric=validate(model))
    return digest(grower.state_dict())


@torch.no_grad()
def validate(model):
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(16, 1, 6, 6, generator=generator)
    return float(model.eval()(images).square().mean())


def digest(state):
    """Hash of every number in a state, the times that growths took aside."""
    code = hashlib.sha256()

    def walk(value):
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                if key != "seconds":
                    code.update(str(key).encode())
                    walk(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)
        elif isinstance(value, torch.Tensor):
            code.update(str((value.dtype, value.shape)).encode())
            code.update(value.detach().contiguous().numpy().tobytes())
        else:
            code.update(repr(value).encode())

    walk(state)
    return code.hexdigest()


def suicidal(function, at):
    """``function``, but its ``at``-th call is the process's last moment."""
    calls = 0

    def call(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return call


def child(path, variant, result, where="", at=0, pipe=None):
    """Body of a process: train, and write the digest; die at a chosen place."""
    torch.set_num_threads(1)
    progress = suicidal(lambda *_: None, at) if where == "growth" else None
    if where == "migration":  # the optimizer has the grown parameters, the average has not
        Growth.migrate_ema = suicidal(Growth.migrate_ema, at)
    if where == "write":  # the temporary file is there, not yet safe on the disk
        os.fsync = suicidal(os.fsync, at)
    if where == "rename":
        Path.replace = suicidal(Path.replace, at)
    if where == "torch.save":
        torch.save = half(torch.save, at)
    tell = pipe.send if pipe else None
    outcome = train(path, variant, progress=progress, tell=tell)
    Path(result).write_text(outcome, encoding="utf-8")


def half(function, at):
    """``torch.save``, but its ``at``-th file is cut off in the middle by a kill."""
    calls = 0

    def call(state, file):
        nonlocal calls
        calls += 1
        function(state, file)
        if calls == at:
            file.flush()
            os.ftruncate(file.fileno(), file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    return call
