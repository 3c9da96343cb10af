"""Text that others open: what a label must not turn into in a spreadsheet or a document."""

from __future__ import annotations

import re
from typing import Any

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?%?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def one_line(text: str) -> str:
    """Return ``text`` with every run of white space and line breaks as one space."""
    return " ".join(text.split())


def csv_cell(value: Any) -> Any:
    """Return what goes into a CSV cell: a text that a spreadsheet would run gets a quote in front.

    Numbers stay as they are, negative ones too.
    """
    if not isinstance(value, str) or not value.lstrip(" ").startswith(_FORMULA):
        return value
    return value if _NUMBER.fullmatch(value.strip()) else f"'{value}"


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is: no HTML, no links, no cell borders, one line."""
    escaped = one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("](", "]\\(")
    return escaped.replace("&", "&amp;").replace("<", "&lt;")
