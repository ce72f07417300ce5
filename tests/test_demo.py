"""The demo runs, and its networks have the couplings that it promises."""

import demo
import digits_cnn
import torch

import fxgrow


def test_demo_in_small(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "SEEDS", (0, 1))
    monkeypatch.setattr(demo, "EPOCHS", 2)
    monkeypatch.setattr(demo, "BUDGET", 8)
    threads = torch.get_num_threads()
    try:
        demo.main()
    finally:
        torch.set_num_threads(threads)
    text = capfd.readouterr().out
    assert "Insertion left every accuracy as it was" in text
    assert "Widths before and after" in text
    assert "inactive among the new units" in text
    assert (tmp_path / "demo-out" / "model-grown.safetensors").is_file()


def test_network_has_the_couplings():
    model = digits_cnn.DigitsCNN()
    groups = {group.name: group for group in fxgrow.inspect(model, demo.EXAMPLE).groups}
    assert set(groups) == {"stem.0", "inner.0", "point.0", "hidden"}
    # the residual stream holds the depthwise branch of the concatenation too
    tensors = {slot.tensor for slot in groups["stem.0"].slots}
    assert {"outer.weight", "depthwise.0.weight", "depthwise.1.running_mean"} <= tensors
    # one channel is 4 × 4 columns of the Linear behind the flattening
    (flattened,) = (s for s in groups["point.0"].slots if s.tensor == "hidden.weight")
    assert flattened.positions.shape == (4, 16)


def test_inactive_units_are_counted():
    model = digits_cnn.DigitsCNN()
    growth = fxgrow.widen(model, demo.EXAMPLE, {"hidden": 4})
    assert demo.inactive_share(growth) == 1.0  # nothing reads them yet
    with torch.no_grad():
        growth.module.get_parameter("classify.weight").fill_(0.5)
        growth.module.get_parameter("hidden.bias").fill_(1.0)
    assert demo.inactive_share(growth) == 0.0
