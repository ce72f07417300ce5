"""Every example runs, and does what it promises (the demo has its own test)."""

import json
import shutil
import sys

import paper_protocol
import plain_loop
import pytest
import torch
from conftest import ROOT
from PIL import Image

import fxgrow

sys.path.append(str(ROOT / "benchmarks"))
import through_growth


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_plain_loop(capsys):
    grower = plain_loop.main(5)
    text = capsys.readouterr().out
    assert text.count("test loss") == 5
    assert grower.history.table() in text
    assert grower.round == 2
    assert grower.finished == ""  # no third growth was due


def test_plain_loop_goes_on(monkeypatch, capsys):
    whole = plain_loop.main(4)
    save = fxgrow.Grower.save

    def interrupted(grower, path):
        save(grower, path)
        if grower.epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fxgrow.Grower, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plain_loop.main(4, "run.pt")
    resumed = plain_loop.main(4, "run.pt")
    assert resumed.history.growths == whole.history.growths
    theirs = whole.module.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in resumed.module.state_dict().items())


def test_paper_protocol_in_small(folder, capsys):
    grower = paper_protocol.main(["--smoke"])
    text = capsys.readouterr().out
    assert text.count("validation loss") == 8
    budgets = paper_protocol.SMOKE.budgets
    widths = [("fc1", "fc2", "fc3")] * len(budgets)
    for row, budget, names in zip(grower.history.growths, budgets, widths, strict=True):
        assert row.budget == budget
        assert set(row.widths) <= set(names)  # the trunk stays
        assert sum(new - old for old, new in row.widths.values()) == budget
    assert grower.finished == "the budgets are used up"
    assert {"run.pt", "history.md", "history.json"} <= {
        p.name for p in (folder / "paper-out").iterdir()
    }
    again = paper_protocol.main(["--smoke"])  # nothing is left to do
    assert again.history == grower.history


def test_paper_protocol_is_the_papers():
    protocol = paper_protocol.Protocol()
    assert protocol.trunk == (32, 32, 64, 64)
    assert protocol.budgets == (36, 47, 60, 80, 102, 134, 174)
    model = paper_protocol.Net(protocol, 3, 32, 10)
    groups = {g.name: g.width for g in fxgrow.inspect(model, torch.zeros(2, 3, 32, 32)).groups}
    assert groups == {
        "conv1": 32,
        "conv2": 32,
        "conv3": 64,
        "conv4": 64,
        "fc1": 62,
        "fc2": 62,
        "fc3": 62,
    }


@pytest.mark.parametrize("zipped", [False, True])
def test_pictures(folder, zipped):
    for part, count in (("train", 3), ("test", 1)):
        for level, name in enumerate(("cat", "dog")):
            place = folder / "set" / "cifar10" / part / name
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (100 * level,) * 3).save(place / f"{number}.png")
    path = folder / "set"
    if zipped:
        path = folder / "set.zip"
        shutil.make_archive(str(folder / "set"), "zip", folder / "set")
    train, test = paper_protocol.pictures(path)
    images, labels = train.tensors
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(test) == 2
    assert images.shape == (6, 3, 8, 8)
    assert torch.equal(images[labels == 0], torch.full((3, 3, 8, 8), -1.0))


def test_loss_through_growth_in_small(folder, capsys):
    """The figures of docs/in-training.md come from here, with more seeds and epochs."""
    threads = torch.get_num_threads()
    try:
        rows = through_growth.main(["--seeds", "1", "--epochs", "1", "--out", str(folder)])
    finally:
        torch.set_num_threads(threads)
    assert json.loads((folder / "through-growth.json").read_text()) == rows
    assert (folder / "through-growth.png").read_bytes().startswith(b"\x89PNG")
    (row,) = rows
    assert set(row["arms"]) == {"not grown", "zero", "mean", "reset"}
    for arm in row["arms"].values():
        assert abs(arm["jump"]) <= 1e-5 * row["loss at growth"]


def test_published_figures_show_no_jump():
    rows = json.loads((ROOT / "docs" / "through-growth.json").read_text())
    assert len(rows) == 3
    for row in rows:
        for arm in row["arms"].values():
            assert abs(arm["jump"]) <= 1e-5 * row["loss at growth"]
