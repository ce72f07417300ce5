"""Options from files; forms of MODEL; bad input to every command."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import Small
from fxgrow_cli.main import app
from safetensors.torch import save_file
from typer.testing import CliRunner


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def sentence(result):
    """Return the text of an error, without borders and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).split())


EXPAND = ["expand", "parts.py:Small", "--dry-run", "--json"]


def planned(*arguments):
    return json.loads(run(*EXPAND, *arguments).stdout)["plan"]


# ------------------------------------------------------------------- settings


def test_config_file(folder):
    Path("run.toml").write_text(
        'distributor = "uniform"\nbudget = 2\n\n[expand]\nbudget = "+75%"\nround-to = 1\n'
        '[widen]\nmodel = "parts.py:Small"\nadditions = ["+50%", "conv=+3"]\ndry_run = true\n'
    )
    assert planned("--config", "run.toml")["spent"] == 3  # the command's own table wins
    assert planned("--config", "run.toml", "--budget", "1")["spent"] == 1  # and this over both
    data = json.loads(run("widen", "--config", "run.toml", "--json").stdout)
    assert data["plan"]["additions"] == {"conv": 3}
    assert data["output"] is None


def test_pyproject_of_this_folder(folder):
    Path("pyproject.toml").write_text('[tool.fxgrow]\ndistributor = "uniform"\nbudget = "2"\n')
    assert planned()["spent"] == 2
    Path("run.toml").write_text('distributor = "uniform"\n')
    assert planned("--config", "run.toml", "--budget", "3")["spent"] == 3
    Path("pyproject.toml").write_text("[tool.other]\nx = 1\n")
    run("doctor", "--quiet")
    Path("pyproject.toml").write_text("[tool.other\n")  # another tool's trouble
    run("doctor", "--quiet")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bugdet = 3", r"no option bugdet; did you mean budget\?"),
        ("[expand]\nunti = 'x'", r"no option expand.unti; did you mean unit\?"),
        ("[expnd]\nseed = 1", "no option expnd; did you mean expand"),
        ("trust-pickle = true", "on the command line only"),
        ("config = 'x.toml'", "names no other"),
        ("seed = true", "seed is True; it takes a text or number"),
        ("seed = [1]", "seed is .1.; it takes"),
        ("seed = 'x'", "--seed"),
        ("dry-run = 'yes'", "takes true or false"),
        ("include = [true]", "takes a text, number, or list"),
        ("unit = 'neuron'", r"did you mean neurons\?"),
        ("budget = 'lots'", "not understood"),
        ("x = ", "is no TOML"),
        ("[expand.more]\nx = 1", "no option expand.more"),
    ],
)
def test_bad_settings(folder, text, words):
    Path("run.toml").write_text(text)
    assert re.search(words, sentence(run(*EXPAND, "--config", "run.toml", code=2)))


def test_missing_and_strange_config_files(folder):
    assert "No such file" in sentence(run("doctor", "--config", "none.toml", code=2))
    Path("a.toml").write_bytes(b"\xff\xfe\x00")
    assert "is no text" in sentence(run("doctor", "--config", "a.toml", code=2))


def test_a_folder_cannot_make_us_run_its_code(folder):
    Path("evil.py").write_text("open('ran', 'w').close()\n\ndef data():\n    return []\n")
    Path("pyproject.toml").write_text("[tool.fxgrow.expand]\ndata = 'evil.py:data'\n")
    assert "would run code" in sentence(run(*EXPAND, code=2))
    assert not Path("ran").exists()
    run(*EXPAND, "--config", "pyproject.toml", code=1)  # named: the user's own decision
    assert Path("ran").exists()


# --------------------------------------------------------------------- models


def groups(*arguments):
    return json.loads(run("inspect", *arguments, "--json").stdout)["groups"]


def test_model_kwargs(folder):
    Path("net.py").write_text(
        "from conftest import Small\n\ndef make(width, name='x'):\n"
        "    assert name == 'x=y', name\n    return Small(width)\n"
    )
    options = ["--model-kwargs", "width=6", "--model-kwargs", "name=x=y"]
    assert groups("net.py:make", *options)[0]["width"] == 6
    torch.save(Small(6).state_dict(), "a.pt")
    assert groups("a.pt", "--arch", "net.py:make", *options)[0]["width"] == 6
    assert groups("torchvision:squeezenet1_1", "--model-kwargs", "num_classes=7")


def test_plain_safetensors(folder, small):
    save_file(small.state_dict(), "a.safetensors")
    assert groups("a.safetensors", "--arch", "parts.py:Small")


def test_timm_models_by_name_and_folder(folder):
    timm = pytest.importorskip("timm", reason="the test extra brings it where it installs")
    from timm.models import save_for_hf

    assert groups("timm:test_resnet", "--input", "2x3x64x64")
    model = timm.create_model("test_resnet", num_classes=5)
    save_for_hf(model, "saved", safe_serialization=True)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch.save(state, "a.pt")
    options = ["--arch", "timm:test_resnet", "--model-kwargs", "num_classes=5"]
    same = ["verify", "local-dir:saved", "a.pt", *options, "--input", "2x3x64x64"]
    run(
        *same[:3], "--other-arch", "timm:test_resnet", "--other-kwargs", "num_classes=5", *same[-2:]
    )


def test_folders_of_transformers(folder):
    transformers = pytest.importorskip("transformers", reason="the test extra brings it")
    config = transformers.BertConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        vocab_size=20,
    )
    transformers.BertForSequenceClassification(config).save_pretrained("saved")
    data = json.loads(run("doctor", "local-dir:saved", "--json").stdout)["model"]
    assert data["class"] == "BertForSequenceClassification"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["torchvison:resnet18"], r"did you mean torchvision:\?"),
        (["tim:resnet18.a1"], "MODEL is|can't be found"),
        (["torchvision:resnet18x"], "did you mean resnet18"),
        (["torchvision:resnet18@IMAGENET"], "did you mean IMAGENET1K_V1"),
        (["torchvision:resnet18", "--model-kwargs", "widht=3"], "widht.*check --model-kwargs"),
        (["timm:resnet18x"], "did you mean resnet18"),
        (["timm:resnet18@nonsense"], "has no weights 'nonsense'; it is one of"),
        (["local-dir:nowhere"], "no such folder"),
        (["local-dir:."], "has no config.json"),
        (["local-dir:strange"], "names no model that timm or transformers has"),
        (["local-dir:broken"], "config.json can't be read"),
        (["parts.py:small"], r"did you mean Small\?"),
        (["parts.py:Small", "--model-kwargs", "width"], "write KEY=VALUE"),
        (["parts.py:Small", "--model-kwargs", "1x=2"], "write KEY=VALUE"),
        (["parts.py:Small", "--model-kwargs", "a=1", "--model-kwargs", "a=2"], "given twice"),
        (["parts.py:Small", "--model-kwargs", "width=3"], "calling it with width=3 failed"),
        (["parts.py:number", "--model-kwargs", "x=3"], "calling it with x=3 failed"),
        (["plain.safetensors"], "not written by fxgrow; name what builds"),
    ],
)
def test_bad_models(folder, small, arguments, words):
    for name, text in (("strange", '{"architectures": ["Nothing"]}'), ("broken", "{")):
        Path(name).mkdir()
        Path(name, "config.json").write_text(text)
    save_file(small.state_dict(), "plain.safetensors")
    if "timm" in arguments[0]:
        pytest.importorskip("timm", reason="the test extra brings it where it installs")
    assert re.search(words, sentence(run("inspect", *arguments, code=1)))


def test_no_network_is_one_sentence(folder, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="comes with transformers")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    text = sentence(run("inspect", "hf-hub:nobody/nothing", code=1))
    assert re.search("could not be had .*check the name and the network", text)
    from torch import hub as downloads

    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(downloads, "download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(folder))
    text = sentence(run("inspect", "torchvision:squeezenet1_1@DEFAULT", code=1))
    assert re.search("could not be had .no route to host.*network", text)


def test_a_checkpoint_makes_us_download_nothing(folder, small):
    torch.save({"arch": "torchvision:resnet18@DEFAULT", "state_dict": small.state_dict()}, "a.pt")
    assert "name what builds the model" in sentence(run("inspect", "a.pt", code=1))


# ------------------------------------------------------------------ bad input

SMALL = "parts.py:Small"
USAGE = {
    "unit": ["expand", SMALL, "--unit", "nerons"],
    "budget": ["expand", SMALL, "--budget", "2Mparam5"],
    "no addition": ["widen", SMALL],
    "no base": ["apply", "plan.json"],
    "one model": ["verify", SMALL],
    "negative tolerance": ["verify", SMALL, SMALL, "--tolerance", "-1"],
    "no output": ["export", SMALL],
    "format": ["export", SMALL, "-o", "a", "--format", "tflite"],
    "quiet and verbose": ["inspect", SMALL, "-q", "-v"],
    "no batches": ["verify", SMALL, SMALL, "--batches", "0"],
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage(folder, name):
    result = run(*USAGE[name], code=2)
    assert result.stdout == ""
    assert "Usage: " in result.stderr


ERRORS = {
    "two units": (["expand", SMALL, "--budget", "9params", "--unit", "flops"], "leave one of"),
    "budget factor": (["expand", SMALL, "--budget", "0.5x"], "must be a positive number"),
    "pattern": (["expand", SMALL, "--include", "konv"], r"matches no group; did you mean conv\?"),
    "no amount": (["widen", SMALL, "conv"], "how many units"),
    "no plus": (["widen", SMALL, "conv=4"], r"to add 4 write conv=\+4"),
    "minus": (["widen", SMALL, "conv=-4"], "not understood"),
    "no name": (["widen", SMALL, "=+4"], "not understood"),
    "nothing": (["widen", SMALL, "conv=+0"], "adds nothing"),
    "typo": (["widen", SMALL, "konv=+4"], r"did you mean conv\?"),
    "typo in a share": (["widen", SMALL, "konv=+4%"], r"did you mean conv\?"),
    "frozen": (["widen", SMALL, "fc=+4"], "can't grow"),
    "no match": (["widen", SMALL, "x*=+4"], "matches no growable group"),
    "too many": (["widen", SMALL, "conv=+99999999999999"], "more than the limit"),
    "nothing to grow": (["widen", "parts.py:linear", "+4"], "no group can grow"),
    "output taken": (["widen", SMALL, "+1", "-o", "taken.pt"], "exists already"),
    "no plan": (["apply", "none.json", SMALL], "no such file"),
    "no JSON": (["apply", "parts.py", SMALL], "a plan is"),
    "weights of a plan": (["apply", "plan.json", SMALL, "--weights"], "holds no weights"),
    "plan in place": (["apply", "plan.json", SMALL, "-o", "plan.json"], "an output ends in"),
    "other widths": (["apply", "other.json", SMALL], "has 5 units there and 4 here"),
    "two built ones": (["verify", SMALL, SMALL, "--arch", SMALL], "both models are built"),
    "two files": (["verify", "a.pt", "a.pt"], "name what builds the model"),
    "other inputs": (["verify", SMALL, "parts.py:with_inputs"], "second model does not run"),
    "suffix": (["export", SMALL, "-o", "a.tflite"], "no format ends in"),
    "package name": (["export", SMALL, "-o", "3d"], "letters, digits"),
    "export taken": (["export", SMALL, "-o", "taken.pt2"], "exists already"),
    "folder taken": (["export", SMALL, "-o", "full"], "exists already"),
    "not ours": (["export", SMALL, "-o", "full", "--force"], "no package of ours"),
    "no folder": (["export", SMALL, "-o", "none/a.pt2"], "no folder none"),
    "no folder for a package": (["export", SMALL, "-o", "none/net"], "no folder none"),
    "picture": (["activity", SMALL, "--plot", "a.gif"], "an output ends in"),
    "no data": (["activity", SMALL, "--data", "none.npz"], "no such file"),
    "wrong data": (["activity", SMALL, "--data", "parts.py:wrong_batches"], "inspect|batch|shape"),
    "data of inspect": (["inspect", SMALL, "--data", "nonsense"], "--data takes"),
    "target kwargs": (["transfer", SMALL, SMALL, "--target-kwargs", "x"], "--target-kwargs x"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(folder, small, name):
    arguments, words = ERRORS[name]
    torch.save(small.state_dict(), "a.pt")
    Path("full").mkdir()
    Path("full", "notes.txt").write_text("precious")
    plan = {"additions": {"conv": 1}}
    other = {"schema": "fxgrow.growth/1", "plan": plan, "groups": [{"name": "conv", "width": 5}]}
    Path("plan.json").write_text(json.dumps(plan))
    Path("other.json").write_text(json.dumps(other))
    for taken in ("taken.pt", "taken.pt2"):
        Path(taken).write_text("precious")
    before = contents(folder)
    result = run(*arguments, code=1)
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert re.search(words, result.stderr), result.stderr
    assert contents(folder) == before


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }
