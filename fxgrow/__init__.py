"""fxgrow: make trained PyTorch networks wider without starting again."""

from .api import expand, inspect, plan_for, vote, widen
from .errors import (
    BudgetError,
    DataError,
    FileError,
    FxgrowError,
    InputError,
    NothingToGrow,
    TraceError,
    UnsupportedError,
    VerificationError,
)
from .inspection import Inspection
from .io import load, save
from .ir import Group, Growth, IndexMap, Plan, Verification, Votes
from .planes import Plane
from .propagate import Call, Propagation
from .rules.own import Declaration, resizable, rule

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "Call",
    "DataError",
    "Declaration",
    "FileError",
    "FxgrowError",
    "Group",
    "Growth",
    "IndexMap",
    "InputError",
    "Inspection",
    "NothingToGrow",
    "Plan",
    "Plane",
    "Propagation",
    "TraceError",
    "UnsupportedError",
    "Verification",
    "VerificationError",
    "Votes",
    "expand",
    "inspect",
    "load",
    "plan_for",
    "resizable",
    "rule",
    "save",
    "vote",
    "widen",
]
