"""Names of measurements as a reader says them: ``speed-b8-t56-i144-o64`` and the like."""

from __future__ import annotations

import re

from .targets import KEEPS_ALL

_PART = re.compile(r"([a-z])(\d+)")
_MODES = {
    "prefill": "prefill",
    "decode": "decode with a cache",
    "decode_nocache": "decode without a cache",
}


def task_in_words(name: str, *, outputs: bool = True) -> str:
    """Return what was measured and at which sizes.

    Parameters
    ----------
    name : str
        A record's task name; one of another form is returned as it is.
    outputs : bool
        Say the number of generated tokens; not of interest for a prefill.
    """
    kind, *parts = name.split("-")
    sizes = {}
    words = []
    for part in parts:
        found = _PART.fullmatch(part)
        if found:
            sizes[found[1]] = int(found[2])
        else:
            words.append(_MODES.get(part, part.removeprefix("embedded_").replace("_", " ")))
    if "b" not in sizes or set(sizes) - set("btionq"):
        return name
    if kind not in ("speed", "step", "breakdown"):
        words.insert(0, kind)
    words.append(f"batch {sizes['b']}")
    prompt = [
        f"{sizes[key]} {what}" for key, what in (("t", "text"), ("i", "image")) if key in sizes
    ]
    if prompt:
        words.append(" + ".join(prompt) + " tokens")
    if "q" in sizes:
        words.append(f"{sizes['q']} questions each")
    if "n" in sizes:
        words.append(f"{sizes['n']:,} tokens")
    if outputs and "o" in sizes:
        at = "after " if kind in ("breakdown", "step") else ""
        words.append(f"{at}{sizes['o']:,} output token" + ("s" if sizes["o"] != 1 else ""))
    return ", ".join(words)


def mode_in_words(mode: str) -> str:
    """Return ``prefill``, ``decode`` or ``decode_nocache`` in words."""
    return _MODES.get(mode, mode)


def method_in_words(shown: str) -> str:
    """Return a record's method as a reader says it."""
    found = shown.replace(KEEPS_ALL, f"{KEEPS_ALL.partition(':')[0]} that keeps all")
    return found.replace("dense, stock", "dense (stock transformers)")
