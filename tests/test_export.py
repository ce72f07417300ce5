"""Exports: .pt2, ONNX and Python packages compute what the model does, or nothing is written."""

import copy
import importlib
import sys

import pytest
import torch
from conftest import WRITES_ONNX, Small
from networks import NETWORKS
from torch import nn

import fxgrow
from fxgrow.compare import compare
from fxgrow.errors import FileError, InputError, UnsupportedError, VerificationError
from fxgrow.export import export, format_of
from fxgrow.package import sources
from fxgrow.templates import class_name

IMAGE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def grown(small):
    return fxgrow.widen(small, IMAGE, {"conv": 3}).module


def run_onnx(path, *inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    feed = dict(zip(names, (x.numpy() for x in inputs), strict=True))
    return torch.from_numpy(session.run(None, feed)[0])


def test_pt2_takes_any_number_of_samples(small, tmp_path):
    module = grown(small)
    made = export(module, IMAGE, tmp_path / "a.pt2")
    again = torch.export.load(tmp_path / "a.pt2").module()
    x = torch.randn(5, 1, 8, 8)
    assert torch.allclose(again(x), copy.deepcopy(module).eval()(x), atol=1e-6)
    assert made.dynamic_batch
    assert made.size == (tmp_path / "a.pt2").stat().st_size
    assert [check.inputs for check in made.checks] == ["2x1x8x8", "1x1x8x8", "3x1x8x8"]
    assert made.to_dict()["schema"] == "fxgrow.export/1"


@pytest.mark.skipif(not WRITES_ONNX, reason="torch 2.6 can't write batch norms as ONNX")
def test_onnx_runs_in_onnxruntime(small, tmp_path):
    module = grown(small)
    export(module, IMAGE[:1], tmp_path / "a.onnx")  # an example of one sample fixes nothing
    x = torch.randn(5, 1, 8, 8)
    result = run_onnx(tmp_path / "a.onnx", x)
    assert torch.allclose(result, copy.deepcopy(module).eval()(x), atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]


def test_inputs_by_name_and_integers(tmp_path):
    factory, inputs = NETWORKS["keywords"][:2]
    export(factory(), inputs, tmp_path / "a.onnx")
    tied, tokens = NETWORKS["tied"][:2]
    export(tied(), tokens, tmp_path / "b.pt2")


def test_the_model_is_left_as_it_is(small, tmp_path):
    small.train()
    before = copy.deepcopy(small.state_dict())
    export(small, IMAGE, tmp_path / "a.pt2")
    export(small, IMAGE, tmp_path / "net")
    assert small.training
    assert all(torch.equal(before[key], value) for key, value in small.state_dict().items())


# ------------------------------------------------------------------- packages


def imported(folder, name):
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)
        for key in [key for key in sys.modules if key.partition(".")[0] == name]:
            del sys.modules[key]


def test_package_is_readable_and_trains(small, tmp_path):
    module = grown(small)
    made = export(module, IMAGE, tmp_path / "grown_net")
    net = imported(tmp_path, "grown_net").load()
    assert type(net).__name__ == "GrownNet"
    assert made.notes == ()
    assert sorted(path.name for path in (tmp_path / "grown_net").iterdir()) == [
        "__init__.py",
        "model.py",
        "weights.safetensors",
    ]
    text = (tmp_path / "grown_net" / "model.py").read_text()
    assert "nn.Conv2d(1, 7, kernel_size=(3, 3)" in text
    assert "conv = self.conv(x)" in text
    assert "fxgrow." not in text.partition("import")[2]
    assert list(net.state_dict()) == list(module.state_dict())
    assert torch.equal(net.eval()(IMAGE), copy.deepcopy(module).eval()(IMAGE))
    net.train()(IMAGE).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_packages_of_all_networks(name, tmp_path):
    factory, inputs = NETWORKS[name][:2]
    module = factory().double() if name == "dense" else factory()
    example = inputs.double() if name == "dense" else inputs
    try:
        made = sources(module, example)
    except UnsupportedError as error:
        assert name in {"parametrised"}, error
        return
    assert made.files["model.py"]
    outcome = compare(module, loaded(made, tmp_path), [example], tolerance=1e-6)
    assert outcome.same_function, outcome
    assert not outcome.only_first
    assert not outcome.changed


def loaded(made, folder):
    from fxgrow.folder import _imported
    from fxgrow.package import write_sources

    write_sources(made, folder)
    return _imported(folder)


class Resting(nn.Module):
    """Tied, resting and constant tensors, odd names, a layer whose repr is no call."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.pad = nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular")
        self.add_module("it's", nn.PReLU(6))
        self.register_buffer("scale", torch.full((6,), 2.0), persistent=False)
        self.pad.bias.requires_grad_(False)

    def forward(self, x):
        y = self.get_submodule("it's")(self.b(self.a(x)) * self.scale)
        return self.pad(y.unsqueeze(1)).sum(1) + torch.tensor([1.0, 2, 3, 4, 5, 6])


def test_ties_constants_and_resting_parameters(tmp_path):
    torch.manual_seed(0)
    module, x = Resting(), torch.randn(3, 6)
    net = loaded(sources(module, x), tmp_path)
    assert torch.equal(net(x), module(x))
    assert net.a.weight is net.b.weight
    assert not net.pad.bias.requires_grad
    assert set(net.state_dict()) == set(module.state_dict())


def test_modes_that_differ():
    module, x = NETWORKS["auxiliary"][0](), NETWORKS["auxiliary"][1]
    text = sources(module, x).files["model.py"]
    assert "def forward_train(" in text
    assert "def forward_eval(" in text


@pytest.mark.parametrize(
    ("text", "name"), [("grown_net", "GrownNet"), ("a", "A"), ("_", "Net"), ("none", "NoneNet")]
)
def test_class_names(text, name):
    assert class_name(text) == name


# ------------------------------------------------------------------- refusals


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["a.pt2", "net"])
def test_wrong_outputs_leave_nothing_behind(small, tmp_path, name):
    with pytest.raises(VerificationError, match="nothing was written"):
        export(small, IMAGE, tmp_path / name, tolerance=-1.0)
    assert contents(tmp_path) == []


def test_an_older_file_stays(small, tmp_path):
    (tmp_path / "a.pt2").write_text("precious")
    with pytest.raises(VerificationError):
        export(small, IMAGE, tmp_path / "a.pt2", tolerance=-1.0)
    assert (tmp_path / "a.pt2").read_text() == "precious"


def test_only_packages_of_ours_are_replaced(small, tmp_path):
    export(small, IMAGE, tmp_path / "net")
    with pytest.raises(FileError, match="exists already"):
        export(small, IMAGE, tmp_path / "net")
    export(grown(small), IMAGE, tmp_path / "net", replace_folder=True)
    assert imported(tmp_path, "net").load().conv.out_channels == 7
    (tmp_path / "net" / "notes.txt").write_text("precious")
    with pytest.raises(FileError, match="no package of ours"):
        export(small, IMAGE, tmp_path / "net", replace_folder=True)
    assert (tmp_path / "net" / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("a.txt", {}, InputError, "no format ends in '.txt'"),
        ("a.pt2", {"format": "tflite"}, InputError, "take pt2, onnx or python"),
        ("3d", {}, FileError, "letters, digits"),
        ("none/a.pt2", {}, FileError, "could not be written"),
        ("none/net", {}, FileError, "could not be written"),
    ],
)
def test_refusals(small, tmp_path, name, options, error, words):
    with pytest.raises(error, match=words):
        export(small, IMAGE, tmp_path / name, **options)
    assert contents(tmp_path) == []


def test_models_that_torch_cannot_export(tmp_path):
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) if x.sum().item() > 0 else x

    with pytest.raises(UnsupportedError, match=r"torch.export can't write"):
        export(Looking(), torch.randn(2, 4), tmp_path / "a.pt2")
    assert contents(tmp_path) == []


def test_onnx_without_its_packages(small, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else real(name, *a)
    )
    with pytest.raises(InputError, match="ONNX needs onnx; `pip install"):
        export(small, IMAGE, tmp_path / "a.onnx")


def test_formats_by_suffix(tmp_path):
    assert [format_of(tmp_path / name) for name in ("a.pt2", "a.onnx", "a")] == [
        "pt2",
        "onnx",
        "python",
    ]


# -------------------------------------------------------------------- compare


def test_comparison_of_a_widened_model(small):
    outcome = compare(small, grown(small), [IMAGE, IMAGE + 1])
    assert outcome.same_function
    assert outcome.samples == 4
    assert {row.name for row in outcome.changed} == {
        "conv.weight",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "fc.weight",
    }
    assert outcome.tensors_alike == 2


def test_comparison_of_other_weights(small):
    other = copy.deepcopy(small)
    with torch.no_grad():
        other.fc.bias[3] += 1.0
    outcome = compare(small, other, [IMAGE])
    assert not outcome.same_function
    assert outcome.eval.largest == pytest.approx(1.0, abs=1e-5)
    assert outcome.eval.mean == pytest.approx(0.1, abs=1e-5)
    assert compare(small, other, [IMAGE], tolerance=1e3).same_function


def test_comparison_of_other_outputs(small):
    head = nn.Sequential(Small(), nn.Linear(10, 3))
    outcome = compare(small, head, [IMAGE])
    assert outcome.eval.relative == float("inf")
    assert not outcome.same_function
    assert set(outcome.only_second) >= {"1.weight"}


def test_comparison_needs_inputs_that_fit(small):
    with pytest.raises(fxgrow.DataError, match="no inputs"):
        compare(small, small, [])
    with pytest.raises(fxgrow.DataError, match="first model does not run"):
        compare(small, small, [torch.zeros(2, 3, 8, 8)])
    with pytest.raises(InputError, match="second model does not run"):
        compare(small, nn.Linear(3, 3), [IMAGE])
