"""Near names for typos; nothing heavy is imported here."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def near(name: str, offers: Iterable[str], most: int = 3) -> list[str]:
    """Return the offers that are most like ``name``, best first, case aside."""
    by_lower = {offer.lower(): offer for offer in offers}
    found = get_close_matches(name.lower(), by_lower, n=most, cutoff=0.55)
    return [by_lower[key] for key in found]


def hint(name: str, offers: Iterable[str]) -> str:
    """Write ``did you mean a, b?``, or list a few offers where none is near."""
    offers = list(offers)
    found = near(name, offers)
    if found:
        return f"did you mean {', '.join(found)}?"
    more = f" and {len(offers) - 8} more" if len(offers) > 8 else ""
    return f"it is one of {', '.join(offers[:8])}{more}" if offers else "there is none"
