"""fxgrow: make trained PyTorch networks wider without starting again."""

from .activity import Activity, GroupActivity, activity
from .api import expand, inspect, plan_for, transfer, vote, widen
from .budgets import geometric
from .errors import (
    BudgetError,
    DataError,
    FileError,
    FxgrowError,
    InputError,
    NothingToGrow,
    RankError,
    TraceError,
    UnsupportedError,
    VerificationError,
)
from .grower import Grower
from .history import History
from .inspection import Inspection
from .io import load, save
from .ir import Group, Growth, IndexMap, Plan, Verification, Votes
from .large import WideCheckpoint, widen_checkpoint
from .planes import Plane
from .propagate import Call, Propagation
from .recipes import apply
from .revival import Revival, revive
from .rules.own import Declaration, resizable, rule
from .schedules import Moment, at, every, plateau
from .wrapping import rewrap, unwrap

__version__ = "0.1.0"

__all__ = [
    "Activity",
    "BudgetError",
    "Call",
    "DataError",
    "Declaration",
    "FileError",
    "FxgrowError",
    "Group",
    "GroupActivity",
    "Grower",
    "Growth",
    "History",
    "IndexMap",
    "InputError",
    "Inspection",
    "Moment",
    "NothingToGrow",
    "Plan",
    "Plane",
    "Propagation",
    "RankError",
    "Revival",
    "TraceError",
    "UnsupportedError",
    "Verification",
    "VerificationError",
    "Votes",
    "WideCheckpoint",
    "activity",
    "apply",
    "at",
    "every",
    "expand",
    "geometric",
    "inspect",
    "load",
    "plan_for",
    "plateau",
    "resizable",
    "revive",
    "rewrap",
    "rule",
    "save",
    "transfer",
    "unwrap",
    "vote",
    "widen",
    "widen_checkpoint",
]
