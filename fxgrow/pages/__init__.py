"""Reports to look at: HTML with a picture, Markdown, JSON, GraphML, DOT, notebooks."""

from .show import FORMATS, Shown, write

__all__ = ["FORMATS", "Shown", "write"]
