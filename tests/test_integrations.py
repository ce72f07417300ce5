"""Lightning, transformers and Accelerate: growth, resume, refusals (see also test_examples)."""

import warnings

import pytest
import torch
from torch import nn

import fxgrow
from fxgrow.errors import FileError, InputError, UnsupportedError
from fxgrow.integrations.inside import Inside, Pairs, as_pair

# all of them are in the test extra: they are missing only where somebody left them out
pl = pytest.importorskip("lightning.pytorch", reason="pip install 'fxgrow[lightning]'")
pytest.importorskip("transformers", reason="pip install 'fxgrow[transformers]'")
pytest.importorskip("accelerate", reason="pip install 'fxgrow[accelerate]'")

import with_accelerate  # noqa: E402  needs accelerate
import with_lightning  # noqa: E402  needs lightning
import with_transformers  # noqa: E402  needs transformers
from accelerate.state import AcceleratorState  # noqa: E402  needs accelerate

from fxgrow.integrations import lightning as on_lightning  # noqa: E402  needs lightning
from fxgrow.integrations import transformers as on_transformers  # noqa: E402  needs transformers

OPTIONS = {
    "budget": "+50%",
    "rounds": 2,
    "schedule": fxgrow.every(epochs=1),
    "distributor": "uniform",
}


@pytest.fixture(autouse=True)
def quiet():
    """The frameworks' own warnings (versions, few workers, no GPU) are not ours to mend."""
    with warnings.catch_warnings():
        for package in ("lightning", "transformers", "accelerate", "torch.utils.data"):
            warnings.filterwarnings("ignore", module=package.replace(".", r"\."))
        warnings.filterwarnings(
            "ignore", message=".*(LeafSpec|num_workers|pin_memory|lr_scheduler).*"
        )
        yield


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[key]) for key, value in ours.items())


def assert_held(optimizer, model):
    """The optimizer trains the model as it is now, nothing else."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


# ------------------------------------------------------------------- Lightning


def lightning_run(epochs, folder=None, ckpt=None, emit="graph"):
    growth = on_lightning.GrowthCallback("model", monitor="val_loss", emit=emit, **OPTIONS)
    callbacks = [growth]
    if folder is not None:
        callbacks.append(
            pl.callbacks.ModelCheckpoint(
                folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True
            )
        )
    module, trainer = with_lightning.fit(epochs, callbacks, ckpt)
    return growth, module, trainer


@pytest.mark.parametrize("emit", ["graph", "module"])
def test_lightning_grows_and_resumes(emit, tmp_path):
    growth, whole, trainer = lightning_run(3, tmp_path, emit=emit)
    assert growth.grower.round == 2
    assert whole.model is growth.grower.model
    assert isinstance(whole.model, torch.fx.GraphModule) == (emit == "graph")
    assert_held(trainer.optimizers[0], whole)
    (checkpoint,) = tmp_path.glob("epoch=0*.ckpt")  # after the first growth
    again, resumed, _ = lightning_run(3, ckpt=checkpoint, emit=emit)
    assert [row.widths for row in again.grower.history.growths] == [
        row.widths for row in growth.grower.history.growths
    ]
    assert same(resumed.model, whole.model)


def test_lightning_names_the_metrics_there_are():
    growth = on_lightning.GrowthCallback("model", monitor="loss", **OPTIONS)
    with pytest.raises(InputError, match=r"no metric is called 'loss'.*val_loss"):
        with_lightning.fit(1, [growth])


# ------------------------------------------------------------------- transformers


def trainer_run(folder, epochs, checkpoint=None, emit="graph"):
    growth = on_transformers.GrowthCallback("net", emit=emit, **OPTIONS)
    trainer = with_transformers.trainer_of(str(folder), epochs, [growth], save_strategy="epoch")
    if checkpoint is not None:
        growth.regrow(trainer.model, checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return growth, trainer


@pytest.mark.parametrize("emit", ["graph", "module"])
def test_trainer_grows_and_resumes(emit, tmp_path):
    growth, trainer = trainer_run(tmp_path / "a", 3, emit=emit)
    assert growth.grower.round == 2
    assert trainer.model.net is growth.grower.model
    assert_held(trainer.optimizer, trainer.model)
    first = min((tmp_path / "a").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    _, resumed = trainer_run(tmp_path / "b", 3, checkpoint=first, emit=emit)
    assert same(resumed.model, trainer.model)


def test_trainer_without_a_record(tmp_path):
    growth = on_transformers.GrowthCallback("net", **OPTIONS)
    with pytest.raises(FileError, match=r"fxgrow\.json"):
        growth.regrow(with_transformers.Classifier(), tmp_path)


# ------------------------------------------------------------------- Accelerate


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision, capsys):
    AcceleratorState._reset_state(reset_partial_state=True)  # it is one for the whole process
    grower, accelerator = with_accelerate.main(3, precision)
    assert grower.round == 2
    assert accelerator._models == [grower.model]
    assert_held(accelerator._optimizers[0], grower.model)
    # mixed precision has its own forward in the model that trains, and in no other
    assert ("_original_forward" in grower.model.__dict__) == (precision == "bf16")
    for row in grower.history.growths:
        assert row.loss_after == pytest.approx(row.loss_before, rel=1e-5)


# ------------------------------------------------------------------- what they share


def test_pairs():
    x, y = torch.zeros(2, 3), torch.zeros(2)
    assert as_pair((x, y)) == (x, y)
    assert as_pair({"x": x, "labels": y}) == (x, y)
    assert as_pair({"a": x, "b": x, "labels": y}) == ({"a": x, "b": x}, y)
    for other in ({"x": x}, x, (x, y, y)):
        with pytest.raises(InputError, match="pass pair="):
            as_pair(other)
    pairs = Pairs([(x, y)] * 2, as_pair)
    assert len(pairs) == 2 == len(list(pairs)) == len(list(pairs))


def test_wrong_parts_and_several_processes_are_refused():
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(InputError, match="no part 'net' to grow; it has: 0"):
        Inside("net", None, as_pair, {}).start(model, [], [], 1)
    with pytest.raises(UnsupportedError, match="2 processes"):
        Inside("0", None, as_pair, {}).start(model, [], [], 2)
