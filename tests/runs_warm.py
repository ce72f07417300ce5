"""Imported once by the fork server: what torch and fxgrow load late is there in all forks."""

import tempfile
from pathlib import Path

import runs
import torch

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    for name in runs.OPTIONS:
        runs.train(Path(folder) / name, name, epochs=2)
