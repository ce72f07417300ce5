"""What two ranks do for test_distributed.py: ``python ranks.py RANK FOLDER SCENARIOS``."""

import contextlib
import datetime
import inspect
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ranks_models import SIZE, batches, halves, net, normed, rootless_twice, sharded, share
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

import fxgrow
from fxgrow import stages
from fxgrow.distributed import find_team
from fxgrow.sharding import whole
from fxgrow.wrapping import parameters_of


def outcome(growth):
    return {
        "state": growth.module.state_dict(),
        "plan": dict(growth.plan.additions),
        "votes": {k: torch.from_numpy(v) for k, v in growth.votes.values.items()},
        "noise": dict(growth.votes.noise),
        "losses": [g["losses"] for g in (growth.report["adjusting"] or {"groups": ()})["groups"]],
    }


def train(model, optimizer, data):
    for inputs, targets in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


# ------------------------------------------------------------------ scenarios


def ddp(rank):
    return {
        coupling: outcome(fxgrow.expand(DDP(net()), share(rank), budget=9, coupling=coupling))
        for coupling in ("laplacian", "pairwise", "dense")
    }


def plain(rank):
    growth = fxgrow.expand(net(), share(rank), budget=9, process_group=dist.group.WORLD)
    return outcome(growth)


def fsdp(rank):
    return outcome(fxgrow.expand(sharded(), share(rank), budget=9))


def norms(rank):
    """The ranks' own running statistics differ when growth begins."""
    model = DDP(normed())
    for inputs, _ in share(rank):
        model(inputs)
    apart = model.module[1].running_mean.clone()
    growth = fxgrow.expand(model, share(rank), budget=4)
    kept = model.module[1].running_mean
    return {**outcome(growth), "apart": apart, "kept": torch.equal(apart, kept)}


def calibration(rank):
    growth = fxgrow.expand(
        DDP(normed()), share(rank), budget=4, distributor="uniform", extender="zero"
    )
    return growth.module.state_dict()


def dying(wrap, data):
    """One unit is dead everywhere, one but for a sample that only one of the ranks sees."""
    plain = net()
    with torch.no_grad():
        plain[3].bias[1] = -1e3
        seen = [plain[:4](x)[:, 2] for x, _ in batches()]
        plain[3].bias[2] -= torch.cat(seen).topk(2).values.mean()  # above only the highest sample
    found = fxgrow.revive(wrap(plain), data)
    return {"revived": dict(found.revived), "state": plain.state_dict()}


def revived(rank):
    return dying(DDP, share(rank))


def means(rank):
    team = find_team(net(), dist.group.WORLD)
    like = [torch.zeros(2), torch.zeros(3, dtype=torch.float64), torch.zeros(1), torch.zeros(())]
    own = [torch.full((2,), 1.0 + rank), None, None, torch.tensor(4.0)]
    if rank:
        own[1] = torch.arange(3.0, dtype=torch.float64)
    return team.mean(own, 1.0 + 2 * rank, "a test", like)


def wrapped_again(rank):
    model = DDP(net(), bucket_cap_mb=7, gradient_as_bucket_view=True, find_unused_parameters=True)
    old = torch.compile(model, backend="eager", dynamic=False)
    growth = fxgrow.expand(old, share(rank), budget=4, adjust_epochs=0)
    new = fxgrow.rewrap(growth.module, like=old)
    inner = new._orig_mod
    inputs = share(rank)[0][0]
    return {
        "classes": [type(new).__name__, type(inner).__name__, inner.module is growth.module],
        "arguments": [
            inner.bucket_bytes_cap / 2**20,
            inner.gradient_as_bucket_view,
            inner.find_unused_parameters,
            inner.process_group is model.process_group,
        ],
        "error": float((new(inputs) - model(inputs)).abs().max()),
    }


def sharded_again(rank):
    """With a graph, which does not call the container that was sharded, and without one."""
    result = {}
    for emit in ("graph", "module"):
        old = sharded()
        growth = fxgrow.widen(old, share(rank)[0][0], {"0": 2, "3": 3}, emit=emit)
        new = fxgrow.rewrap(growth.module, like=old)
        optimizer = torch.optim.SGD(new.parameters(), lr=0.1)
        train(new, optimizer, share(rank))
        result[emit] = {
            "sharded": [n for n, m in new.named_modules() if type(m).__name__.startswith("FSDP")],
            "local": [tuple(p.to_local().shape) for p in new.parameters()],
            "reshard": new[3]._get_fsdp_state()._auto_reshard_after_forward
            if emit == "module"
            else None,
        }
    return result


def repeated(rank):
    """A sharded grown model grows once more."""
    old = sharded()
    growth = fxgrow.widen(old, share(rank)[0][0], {"0": 2})
    again = fxgrow.expand(fxgrow.rewrap(growth.module, like=old), share(rank), budget=6)
    return outcome(again)


def refused(rank):
    """What can't be wrapped again, asked for before anything is grown."""
    hooked = DDP(net())
    hooked.register_comm_hook(Lock(), lambda state, bucket: None)
    in_place = net()
    in_place[0].compile(backend="eager")
    compiled_inside = net()
    compiled_inside[3] = torch.compile(compiled_inside[3], backend="eager")
    fully_shard(compiled_inside[3])
    rootless = net()
    fully_shard(rootless[2])
    inputs = share(rank)[0][0]
    graph = fxgrow.widen(rootless, inputs, {"0": 2}).module
    twice = rootless_twice()
    twin = fxgrow.widen(twice, inputs, {"first": 2}).module
    return {
        "hook": raised(lambda: fxgrow.Grower(hooked, data=share(rank), budget=2)),
        "in place": raised(lambda: fxgrow.Grower(in_place, data=share(rank), budget=2)),
        "compiled inside": raised(lambda: fxgrow.unwrap(compiled_inside)),
        "layers of a container": raised(lambda: fxgrow.rewrap(graph, like=rootless)),
        "called twice": raised(lambda: fxgrow.rewrap(twin, like=twice)),
        "own wrap": type(fxgrow.rewrap(net(), like=hooked, wrap=DDP)).__name__,
    }


class Lock:
    """Any state of a hook."""


# ---------------------------------------------------------------------- growers


def grow_and_train(wrap, data, epochs=3, path=None):
    """Three epochs of Adam with a growth after the first and the second."""
    model = wrap(net())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    grower = fxgrow.Grower(
        model,
        optimizer,
        data=data,
        budget=[4, 6],
        schedule=fxgrow.every(epochs=1),
        adjust_epochs=1,
        track={"scheduler": scheduler},
        revive=0,  # not done under FSDP2
    )
    if path is not None:
        model = grower.resume(path)
    while grower.epoch < epochs:
        train(model, optimizer, data)
        scheduler.step()
        model = grower.epoch_end(metric=float(grower.epoch))
        if path is not None:
            grower.save(path)
    params = parameters_of(model)
    return {
        "state": grower.module.state_dict(),
        "moments": {name: whole(optimizer.state[p]["exp_avg"]) for name, p in params.items()},
        "class": type(model).__name__,
        "losses": [row.loss_after for row in grower.history.growths],
    }


def growers(rank):
    return {
        "ddp": grow_and_train(DDP, halves(rank)),
        "fsdp": grow_and_train(sharded, halves(rank)),
    }


def resumed(rank, folder):
    """Two epochs, then another run goes on from the file."""
    path = folder / "run.pt"
    torch.manual_seed(100 + rank)
    grow_and_train(sharded, halves(rank), 2, path)
    expected = torch.rand(1)
    torch.manual_seed(0)
    again = grow_and_train(sharded, halves(rank), 3, path)
    return {**again, "random": (expected, torch.rand(1))}


def interrupted(rank):
    """Ctrl-C on rank 1 only."""

    class Interrupting:
        def __iter__(self):
            yield from share(rank)[:1]
            raise KeyboardInterrupt

    try:
        data = Interrupting() if rank else share(rank)
        fxgrow.expand(net(), data, budget=6, process_group=dist.group.WORLD)
    except (KeyboardInterrupt, fxgrow.RankError) as error:
        return type(error).__name__, str(error)


# ------------------------------------------------------------------- failures


def raised(function):
    try:
        function()
    except fxgrow.FxgrowError as error:
        return type(error).__name__, str(error)
    return "nothing", ""


class Broken:
    """Batches that end in an exception."""

    def __init__(self, data, after):
        self.data, self.after, self.seen = data, after, 0

    def __iter__(self):
        for batch in self.data:
            self.seen += 1
            if self.seen > self.after:
                raise OSError("the disk is gone")
            yield batch


def failures(rank):
    own = share(rank)
    nan = [(x.clone().fill_(torch.nan), y) for x, y in own]
    world = dist.group.WORLD

    def expand(data, model=None, **options):
        options = {"budget": 6, "process_group": world, **options}
        return raised(lambda: fxgrow.expand(net() if model is None else model, data, **options))

    result = {
        f"data {after}": expand(Broken(own, after) if rank == 1 else own) for after in (0, 1, 5, 9)
    }
    result["nan"] = expand(nan if rank == 0 else own)
    result["everywhere"] = expand(nan)
    result["counts"] = expand(own if rank == 0 else own[:-1])
    result["models"] = expand(own, net(seed=rank))
    result["shapes"] = expand(own, net() if rank == 0 else normed())
    result["arguments"] = expand(own, budget=6 + rank)
    result["verification"] = _failed_verification(rank, lambda: expand(own))
    result["bits"] = raised(lambda: _differing_bits(rank))
    result["afterwards"] = expand(own)
    return result


def _failed_verification(rank, run):
    original = stages.verify_models

    def fails(*_):
        raise fxgrow.VerificationError("outputs differ")

    stages.verify_models = fails if rank == 1 else original
    try:
        return run()
    finally:
        stages.verify_models = original


def _differing_bits(rank):
    model = net()
    with torch.no_grad():
        model[3].weight[0, 0] += rank * 1e-15
    find_team(model, dist.group.WORLD).settle(model)


def killed(rank):
    """Rank 1 dies in the middle of an epoch."""

    class Deadly:
        def __iter__(self):
            yield from share(rank)[:2]
            os._exit(9)

    return raised(
        lambda: fxgrow.expand(
            net(), Deadly() if rank else share(rank), budget=6, process_group=dist.group.WORLD
        )
    )


def main(rank, folder, names):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=SIZE,
        timeout=datetime.timedelta(seconds=60),
    )
    results = {}
    for name in names:
        torch.save(results, folder / f"rank{rank}.pt")  # before a rank is killed, too
        function = globals()[name]
        more = (folder,) if "folder" in inspect.signature(function).parameters else ()
        results[name] = function(rank, *more)
    torch.save(results, folder / f"rank{rank}.pt")
    with contextlib.suppress(RuntimeError):  # the other one may be dead, on purpose
        dist.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)  # device meshes still hold the group, and gloo may abort at a regular end


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
