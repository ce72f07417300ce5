"""What TensorBoard reads from a folder is what the history says."""

import builtins

import pytest
import torch
from torch import nn

import fxgrow
from fxgrow.errors import InputError
from fxgrow.integrations.tensorboard import GrowthLog


def grower(**options):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    data = [(torch.randn(8, 6), torch.randint(3, (8,)))]
    return fxgrow.Grower(net, data=data, budget=4, schedule=fxgrow.every(epochs=2), **options)


class Writer:
    def __init__(self):
        self.scalars, self.texts = [], []

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def add_text(self, tag, text, step):
        self.texts.append((tag, text, step))


def test_event_files_hold_the_history(tmp_path):
    pytest.importorskip("tensorboard", reason="an extra of its own")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    grow, log = grower(), GrowthLog(tmp_path / "run")
    for epoch in range(5):
        grow.epoch_end(metric=1 / (epoch + 1))
        log(grow)
    log.close()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    first, second = grow.history.growths
    sizes = [(e.step, int(e.value)) for e in events.Scalars("growth/parameters")]
    assert sizes == [
        (2, first.params_before),
        (2, first.params_after),
        (4, second.params_before),
        (4, second.params_after),
    ]
    assert [int(e.value) for e in events.Scalars("width/0")] == [8, 12, 12, 16]
    metrics = [(e.step, e.value) for e in events.Scalars("metric/epoch")]
    assert metrics == [(n, pytest.approx(1 / n)) for n in range(1, 6)]
    (text, _) = events.Tensors("growth/text_summary")[-1].tensor_proto.string_val[0], None
    assert text.decode() == grow.history.table()


def test_nothing_is_written_twice():
    grow, writer = grower(), Writer()
    log = GrowthLog(writer, prefix="mine/")
    grow.epoch_end(metric=1.0)
    grow.epoch_end(metric=0.5)
    log(grow)
    once = list(writer.scalars)
    log(grow)
    log(grow.history)
    assert writer.scalars == once
    assert len(writer.texts) == 1
    assert all(tag.startswith("mine/") for tag, _, _ in once)
    losses = [value for tag, value, _ in once if tag == "mine/growth/loss"]
    assert losses == [grow.history.growths[0].loss_before, grow.history.growths[0].loss_after]


def test_steps_are_those_of_the_loop():
    grow, writer = grower(), Writer()
    for _ in range(2):
        for _ in range(3):
            grow.step_end()
        grow.epoch_end(metric=1.0)
    GrowthLog(writer)(grow)
    assert {step for tag, _, step in writer.scalars if tag.startswith("growth")} == {6}


def test_missing_tensorboard_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'fxgrow\[tensorboard\]'"):
        GrowthLog(tmp_path)
