"""Text from files made fit for a terminal: what moves the cursor or hides is spelt out."""

from __future__ import annotations

import unicodedata

__all__ = ["printable", "quoted"]

# control, format (zero-width, bidirectional), surrogate, private use, line and paragraph
# separators: none of them shows as itself
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_LAYOUT = "\n\t"


def hidden(character: str) -> bool:
    """Whether a character does not show as itself."""
    return unicodedata.category(character) in _HIDDEN


def printable(text: str) -> str:
    r"""Spell out characters that don't show as themselves; line breaks and tabs stay.

    Parameters
    ----------
    text : str
        E.g. a message that quotes a name from a file.

    Returns
    -------
    str

    Examples
    --------
    >>> print(printable("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelt(each) if each not in _LAYOUT and hidden(each) else each for each in text)


def quoted(name: str, longest: int = 80) -> str:
    r"""Quote a name from a file: cut to ``longest`` characters, in ASCII.

    Letters that only look like others (a Cyrillic ``с``) so become visible.

    Examples
    --------
    >>> print(quoted("conv"), quoted("сonv"))
    'conv' '\u0441onv'
    """
    return ascii(name if len(name) <= longest else name[: longest - 1] + "…")


def _spelt(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
