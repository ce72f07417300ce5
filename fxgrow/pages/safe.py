"""Text of other people, made safe to stand in HTML, SVG, XML, scripts and Markdown."""

from __future__ import annotations

import json
import re
from html import escape
from typing import Any

__all__ = ["attribute", "clean", "code", "for_script", "shortened"]

# XML 1.0 allows no other control characters, and no lone surrogates
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# bidirectional overrides turn around how the text that follows is shown
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Replace what can't stand in XML, or would turn text around, by U+FFFD.

    Examples
    --------
    >>> clean("conv" + chr(0))
    'conv�'
    """
    return _TURNING.sub("\ufffd", _FORBIDDEN.sub("\ufffd", text))


def attribute(text: Any) -> str:
    """Escape for HTML and XML, elements and quoted attributes alike."""
    return escape(clean(str(text)))


def for_script(data: Any) -> str:
    r"""Write JSON that no HTML parser takes for the end of its element.

    Examples
    --------
    >>> for_script("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(data, separators=(",", ":"))  # all but ASCII is escaped already
    return re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)


def code(text: Any) -> str:
    r"""Write a code span for a cell of a Markdown table.

    Examples
    --------
    >>> code("a|b"), code("tick`")
    ('`a\\|b`', '`` tick` ``')
    """
    flat = " ".join(clean(str(text)).split()).replace("|", "\\|")
    if not flat:
        return ""
    longest = max((len(run) for run in re.findall("`+", flat)), default=0)
    return f"`{flat}`" if not longest else f"{'`' * (longest + 1)} {flat} {'`' * (longest + 1)}"


def shortened(text: str, most: int) -> str:
    """Keep the end of a name, which tells most.

    Examples
    --------
    >>> shortened("features.denseblock4.conv2", 12)
    '…lock4.conv2'
    """
    return text if len(text) <= most else "…" + text[len(text) - most + 1 :]
