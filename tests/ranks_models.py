"""Networks and data of the two ranks in ranks.py."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

SIZE = 2


def net(dtype=torch.float64, seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 5, 3, padding=1),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(5, 6, 3, stride=2), nn.ReLU(), nn.Flatten()),
            nn.Linear(6 * 9, 7),
            nn.ReLU(),
            nn.Linear(7, 4),
        ).to(dtype)


def normed(seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4)
        ).double()


def batches(sizes=(12, 12, 8)):
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(size, 1, 8, 8, generator=generator, dtype=torch.float64),
            torch.randint(4, (size,), generator=generator),
        )
        for size in sizes
    ]


def share(rank, data=None):
    """Two thirds of every batch for rank 0, the rest for rank 1: weights must count."""
    cut = [(len(x) * 2 // 3, x, y) for x, y in (batches() if data is None else data)]
    return [(x[:k], y[:k]) if rank == 0 else (x[k:], y[k:]) for k, x, y in cut]


def sharded(model=None):
    model = net() if model is None else model
    fully_shard(model[2])
    fully_shard(model[3], reshard_after_forward=False)
    fully_shard(model)
    return model


def halves(rank):
    """Equal shares, for training: DDP and FSDP2 do not weigh their means."""
    return [(x.chunk(SIZE)[rank], y.chunk(SIZE)[rank]) for x, y in batches()]


class Twice(nn.Module):
    """Calls the layer inside its container two times."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 5, 3)
        self.inner = nn.Sequential(nn.Conv2d(5, 5, 3, padding=1))
        self.last = nn.Linear(5, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.inner(self.inner(x))).mean((2, 3)))


def rootless_twice():
    model = Twice().double()
    for p in model.parameters():
        dist.broadcast(p.data, 0)
    fully_shard(model.inner)
    return model
