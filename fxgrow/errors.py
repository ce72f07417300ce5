"""The error tree: everything that fxgrow raises on purpose.

::

    FxgrowError
    ├── InputError          the caller's arguments, data or files
    │   ├── BudgetError     a budget that is zero, negative or buys nothing
    │   ├── DataError       empty or malformed data, a NaN loss
    │   └── FileError       missing, unreadable, unwritable or untrusted files
    ├── TraceError          no graph of the model could be had
    ├── UnsupportedError    an unknown operation (strict mode), an impossible growth
    │   └── NothingToGrow   no growable group is left
    ├── RankError           one of many processes failed, or they disagree
    └── VerificationError   the widened model is not the model it should be

Messages name what, where and what to do next. They may quote names from files: characters
that move a terminal's cursor, or hide, are spelt out.
"""

from .printable import printable


class FxgrowError(Exception):
    """Base of all errors that fxgrow raises on purpose."""

    def __str__(self) -> str:
        return printable(super().__str__())


class InputError(FxgrowError):
    """The caller's arguments are off."""


class BudgetError(InputError):
    """A budget is zero, negative, or too small for anything."""


class DataError(InputError):
    """Data are empty or malformed, or the loss is not finite."""


class FileError(InputError):
    """A file is missing, unreadable, unwritable, or not trusted."""


class TraceError(FxgrowError):
    """No graph of the model could be had."""


class UnsupportedError(FxgrowError):
    """The model holds an operation, or asks for a growth, that is not supported."""


class NothingToGrow(UnsupportedError):
    """No growable group is left."""


class RankError(FxgrowError):
    """One of many processes failed or is gone, or they disagree; raised on all of them."""


class VerificationError(FxgrowError):
    """The widened model is not the model it should be."""
