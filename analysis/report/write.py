"""Writing the report's two files."""

from __future__ import annotations

import os
from pathlib import Path

from dynllava.errors import UserError
from dynllava.output.files import write_text

from .data import gather
from .html import page
from .markdown import markdown


def write_report(out: str | os.PathLike[str], results: str | os.PathLike[str]) -> list[Path]:
    """Write ``out`` (HTML) and the same name with ``.md`` beside it; return both paths.

    Raises
    ------
    UserError
        If ``out`` is a folder or not named ``.html``, or ``results`` cannot be read.
    """
    target = Path(out)
    if target.is_dir() or target.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{target}: a file name that ends in .html is expected")
    data = gather(results)
    # Both texts exist before either file is written.
    html, text = page(data), markdown(data)
    return [write_text(target, html), write_text(target.with_suffix(".md"), text)]
