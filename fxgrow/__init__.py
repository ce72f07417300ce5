"""fxgrow: make trained PyTorch networks wider without starting again."""

from .api import expand, inspect, plan_for, transfer, vote, widen
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

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "DataError",
    "FileError",
    "FxgrowError",
    "Group",
    "Growth",
    "IndexMap",
    "InputError",
    "Inspection",
    "NothingToGrow",
    "Plan",
    "TraceError",
    "UnsupportedError",
    "Verification",
    "VerificationError",
    "Votes",
    "expand",
    "inspect",
    "load",
    "plan_for",
    "save",
    "transfer",
    "vote",
    "widen",
]
