"""Growth on two ranks: the same as on one, or an error on both."""

import os
import socket
import subprocess
import sys

import pytest
import ranks
import ranks_models
import torch
from fxgrow_cli.main import app
from fxgrow_cli.ranks import Share
from safetensors.torch import load_file
from typer.testing import CliRunner

import fxgrow
from fxgrow.reduce import samples

SCENARIOS = [
    *("ddp", "plain", "fsdp", "norms", "calibration", "means", "revived"),
    *("wrapped_again", "sharded_again", "repeated"),
    *("refused", "growers", "resumed", "failures", "interrupted", "killed"),
]
if torch.__version__ < "2.7" and not torch.cuda.is_available():
    SHARDING = {"fsdp", "sharded_again", "repeated", "refused", "growers", "resumed"}
    SCENARIOS = [name for name in SCENARIOS if name not in SHARDING]


class Results(dict):
    """What a rank found out, by scenario."""

    def __missing__(self, name):
        pytest.skip(f"{name}: torch 2.6 can't run fully_shard on CPUs")


def start(folder, names, timeout=120):
    """Run scenarios on two ranks; they must end by themselves."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, ranks.__file__, str(rank), str(folder), *names],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks_models.SIZE)
    ]
    errors = finished(processes, timeout)
    return [process.returncode for process in processes], errors


def finished(processes, timeout):
    """Return the error streams; nobody may wait for ever."""
    try:
        return [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    codes, errors = start(folder, SCENARIOS)
    assert codes == [0, 9], errors  # the last scenario kills rank 1
    paths = (folder / f"rank{rank}.pt" for rank in range(2))
    return [Results(torch.load(path, weights_only=False)) for path in paths]


@pytest.fixture(scope="module")
def alone():
    return {
        coupling: ranks.outcome(
            fxgrow.expand(ranks_models.net(), ranks_models.batches(), budget=9, coupling=coupling)
        )
        for coupling in ("laplacian", "pairwise", "dense")
    }


def difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def assert_same_growth(many, one, tolerance=1e-10):
    assert many["plan"] == one["plan"]
    assert many["noise"] == pytest.approx(one["noise"], abs=tolerance)
    assert difference(many["votes"], one["votes"]) < tolerance
    assert difference(many["state"], one["state"]) < tolerance
    for mine, other in zip(many["losses"], one["losses"], strict=True):
        assert mine == pytest.approx(other, abs=tolerance)


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


# ------------------------------------------------------------ equal to a single process


@pytest.mark.parametrize("coupling", ["laplacian", "pairwise", "dense"])
def test_ddp_equals_one_process(results, alone, coupling):
    assert_same_growth(results[0]["ddp"][coupling], alone[coupling])
    assert_same_bits(*(result["ddp"][coupling]["state"] for result in results))
    assert_same_bits(*(result["ddp"][coupling]["votes"] for result in results))


@pytest.mark.parametrize("scenario", ["plain", "fsdp"])
def test_process_group_and_fsdp2_equal_one_process(results, alone, scenario):
    assert_same_growth(results[0][scenario], alone["laplacian"])
    assert_same_bits(*(result[scenario]["state"] for result in results))


def test_a_sharded_grown_model_grows_again(results):
    growth = fxgrow.widen(ranks_models.net(), ranks_models.share(0)[0][0], {"0": 2})
    one = fxgrow.expand(growth.module, ranks_models.batches(), budget=6)
    assert_same_growth(results[1]["repeated"], ranks.outcome(one))


def test_ranks_with_their_own_running_statistics_end_with_the_same_bits(results):
    first, second = (result["norms"] for result in results)
    assert not torch.equal(first["apart"], second["apart"])  # else this would test nothing
    assert first["kept"] and second["kept"]
    assert_same_bits(first["state"], second["state"])
    assert first["plan"] == second["plan"]
    mean = first["state"]["1.running_mean"]
    assert torch.isin(first["apart"], mean).all()  # those of rank 0


def test_norms_are_calibrated_on_the_data_of_all_ranks(results):
    one = fxgrow.expand(
        ranks_models.normed(),
        ranks_models.batches(),
        budget=4,
        distributor="uniform",
        extender="zero",
    )
    key = "1.running_mean"
    expected = one.module.state_dict()[key]
    assert (expected != 0).any()
    for result in results:
        assert (result["calibration"][key] - expected).abs().max() < 1e-12
    assert_same_bits(*(result["calibration"] for result in results))


def test_units_that_are_dead_on_all_ranks_are_revived_alike(results):
    first, second = (result["revived"] for result in results)
    one = ranks.dying(lambda model: model, ranks_models.batches())
    assert first["revived"] == second["revived"] == one["revived"] and one["revived"]["3"] >= 1
    assert_same_bits(first["state"], second["state"])
    assert difference(first["state"], one["state"]) < 1e-9
    columns = first["state"]["5.weight"]
    assert (columns[:, 1] == 0).all() and (columns[:, 2] != 0).all()  # one sample turns on 2


def test_means_are_weighted_and_none_counts_as_zeros(results):
    for result in results:
        first, second, third, fourth = result["means"]
        assert torch.allclose(first, torch.full((2,), (1 + 3 * 2) / 4))
        assert torch.allclose(second, torch.arange(3.0, dtype=torch.float64) * 3 / 4)
        assert third is None
        assert fourth == 4 and fourth.shape == ()


# ------------------------------------------------------------------- wrapping again


def test_ddp_and_compile_come_back_with_their_arguments(results):
    for result in results:
        again = result["wrapped_again"]
        assert again["classes"] == ["OptimizedModule", "DistributedDataParallel", True]
        assert again["arguments"] == [7, True, True, True]
        assert again["error"] < 1e-12


def test_fsdp2_comes_back_on_the_same_modules(results):
    again = [result["sharded_again"] for result in results]
    assert again[0]["module"]["sharded"] == ["", "2", "3"]
    assert again[0]["graph"]["sharded"] == ["", "2.0", "3"]
    assert again[0]["module"]["reshard"] is False
    for emit in ("graph", "module"):
        for first, second in zip(*(result[emit]["local"] for result in again), strict=True):
            assert first[1:] == second[1:]
        rows = [sum(shape[0] for shape in result[emit]["local"]) for result in again]
        assert min(rows) > 0 and sum(rows) == 7 + 7 + 6 + 6 + 10 + 10 + 4 + 4


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("hook", "DDP was made with a communication hook with state (Lock)"),
        ("in place", "a module was compiled in place"),
        ("compiled inside", "shard first, then compile"),
        ("called twice", "the root is not sharded"),
    ],
)
def test_wrappings_that_can_t_be_repeated_are_refused(results, case, reason):
    for result in results:
        kind, text = result["refused"][case]
        assert kind == "UnsupportedError" and reason in text


def test_layers_inside_a_container_are_sharded_without_their_root(results):
    for result in results:
        assert result["refused"]["layers of a container"] == ("nothing", "")
        assert result["refused"]["own wrap"] == "DistributedDataParallel"


@pytest.fixture(scope="module")
def trained():
    return ranks.grow_and_train(lambda model: model, ranks_models.batches())


@pytest.mark.parametrize("scenario", ["ddp", "fsdp", "resumed"])
def test_growers_keep_training_as_one_process_does(results, trained, scenario):
    for result in results:
        own = result["resumed"] if scenario == "resumed" else result["growers"][scenario]
        assert own["class"].startswith("Distributed" if scenario == "ddp" else "FSDP")
        assert difference(own["state"], trained["state"]) < 1e-9
        assert difference(own["moments"], trained["moments"]) < 1e-9
        assert own["losses"] == pytest.approx(trained["losses"], abs=1e-6)  # kept in float32


def test_a_resumed_run_gives_each_rank_its_own_random_numbers(results):
    drawn = [result["resumed"]["random"] for result in results]
    assert all(torch.equal(expected, got) for expected, got in drawn)
    assert not torch.equal(drawn[0][0], drawn[1][0])


# ------------------------------------------------------------------------ failures


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("data 0", "rank 1 failed with OSError: the disk is gone"),
        ("data 1", "rank 1 failed with OSError: the disk is gone"),
        ("data 5", "rank 1 failed with OSError: the disk is gone"),
        ("data 9", "rank 1 failed with OSError: the disk is gone"),
        ("nan", "rank 0 failed with DataError: the loss of batch 0 is nan"),
        ("counts", "rank 0 is at candidates' training, epoch 0, batch 2; rank 1 is at the plan"),
        ("models", "the models' parameters differ between rank 0 and rank 1: 0.weight"),
        ("shapes", "the models' parameters differ between rank 0 and rank 1"),
        ("arguments", "the arguments differ between rank 0 and rank 1: budget"),
        ("verification", "rank 1 failed with VerificationError: outputs differ"),
        ("bits", "the grown parameters differ between rank 0 and rank 1: 3.weight"),
    ],
)
def test_a_failure_of_one_rank_is_an_error_on_both(results, case, reason):
    for result in results:
        kind, text = result["failures"][case]
        assert kind == "RankError"
        assert reason in text


def test_unequal_numbers_of_batches_are_explained(results):
    assert "equally many batches" in results[0]["failures"]["counts"][1]


def test_the_same_failure_everywhere_is_no_matter_of_ranks(results):
    for result in results:
        kind, text = result["failures"]["everywhere"]
        assert kind == "DataError" and "nan" in text


def test_the_group_can_be_used_after_failures(results):
    assert [result["failures"]["afterwards"] for result in results] == [("nothing", "")] * 2


def test_ctrl_c_on_one_rank_stops_the_other(results):
    kind, text = results[0]["interrupted"]
    assert kind == "RankError" and "rank 1 failed with KeyboardInterrupt" in text
    assert results[1]["interrupted"][0] == "KeyboardInterrupt"


def test_a_killed_rank_does_not_leave_the_other_waiting(results):
    kind, text = results[0]["killed"]
    assert kind == "RankError" and "was killed" in text


# ------------------------------------------------------------------------ the command

CNN = """
import torch
from torch import nn


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 10)
    ).double()


def data():
    generator = torch.Generator().manual_seed(0)
    sizes = (16, 16, 13, 3)
    return [(torch.randn(n, 1, 8, 8, generator=generator).double(),
             torch.randint(10, (n,), generator=generator)) for n in sizes]


def broken():
    import os
    if os.environ.get("RANK") == "1":
        raise RuntimeError("no such luck")
    return data()
"""


@pytest.mark.parametrize("size", [2, 3])
def test_shares_of_the_ranks_make_up_the_batches(size):
    data = [
        ({"x": torch.arange(n), "scale": torch.tensor(2.0)}, (torch.arange(n) * 2, [n]))
        for n in (12, 7, 2 * size)
    ]
    shares = [list(Share(data, rank, size)) for rank in range(size)]
    assert [len(Share(data, rank, size)) for rank in range(size)] == [3] * size
    for number, (inputs, (targets, _)) in enumerate(data):
        parts = [share[number] for share in shares]
        assert torch.equal(torch.cat([x["x"] for x, _ in parts]), inputs["x"])
        assert torch.equal(torch.cat([y for _, (y, _) in parts]), targets)
        assert all(samples(x) >= 2 and x["scale"] == 2 for x, _ in parts)


def test_batches_too_small_to_share_are_whole():
    batch = (torch.arange(3), torch.arange(3))
    for rank in range(2):
        (own,) = Share([batch], rank, 2)
        assert own is batch


ARGUMENTS = ["expand", "parts.py:cnn", "--budget", "6", "--data"]


@pytest.fixture
def parts(tmp_path, monkeypatch):
    (tmp_path / "parts.py").write_text(CNN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("parts", None)


def test_the_command_under_torchrun_equals_the_command_alone(parts):
    one = [*ARGUMENTS, "parts.py:data", "-o", "one.safetensors"]
    assert CliRunner().invoke(app, one).exit_code == 0
    many = [*ARGUMENTS, "parts.py:data", "-o", "many.safetensors"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fxgrow_cli"]
    done = subprocess.run(
        [sys.executable, *torchrun, *many],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to") == 1
    assert difference(load_file("one.safetensors"), load_file("many.safetensors")) < 1e-10


def test_the_command_fails_on_all_ranks_with_the_reason(parts):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environment.update(MASTER_ADDR="localhost", MASTER_PORT=port)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "fxgrow_cli", *ARGUMENTS, "parts.py:broken"],
            env={**environment, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    first, second = finished(processes, 60)
    assert [process.returncode for process in processes] == [1, 1]
    assert "error: rank 1 failed with InputError" in first and "no such luck" in first
    assert "error:" not in second
    assert not list(parts.glob("*.safetensors"))
