"""What the pages of the history are about: families of metrics, titles, units."""

from __future__ import annotations

import re

FAMILIES = {
    "accuracy": "Accuracy",
    "perplexity": "Perplexity (lower is better)",
    "scores": "Further scores",
    "compute": "Counted compute",
    "memory": "Memory",
    "tokens": "Tokens and cache entries",
    "times": "Measured times",
    "rates": "Measured rates",
    "shares": "Shares",
}
"""Page name -> its heading, in the order of the pages."""

_BY_UNIT = {
    "FLOP": "compute", "MAC": "compute", "byte": "memory", "token": "tokens", "entry": "tokens",
    "s": "times", "ms": "times", "1": "shares",
}  # fmt: skip

_DERIVED = re.compile(r"(^time_ratio|^realised_share|^cost_ratio|_cpu$)")

_WORDS = {
    "ttft": "time to first token", "tpot": "time per output token", "kv": "KV", "flops": "compute",
    "macs": "multiply-adds", "nocache": "without cache", "late": "(late steps)",
}  # fmt: skip

_SETTING = re.compile(r"^[a-z]+-b(\d+)-t(\d+)-i(\d+)-o(\d+)$")
_UNITS = {"FLOP": "FLOP", "MAC": "MAC", "byte": "B", "token": "tokens", "entry": "entries"}


def family(unit: str) -> str:
    """Return the page of a counted or measured quantity."""
    return _BY_UNIT.get(unit, "rates" if unit.endswith("/s") else "shares")


def derived(name: str) -> bool:
    """Return whether a quantity is computed from others that have panels of their own."""
    return _DERIVED.search(name) is not None


def words(name: str) -> str:
    """Return a metric's name for people: ``prefill_flops`` is "Prefill compute"."""
    text = " ".join(_WORDS.get(word, word) for word in name.replace(",", " ").split("_"))
    return text[:1].upper() + text[1:]


def setting(task: str) -> str:
    """Return a speed record's setting in words, any other task's name as it is."""
    found = _SETTING.match(task)
    if not found:
        return words(task.removeprefix("embedded_").replace("-", " "))
    batch, text, image, output = found.groups()
    return f"batch {batch}, {text} text + {image} image, {output} out"


def scaled(largest: float, unit: str) -> tuple[float, str]:
    """Return (factor, unit) that show values up to ``largest`` with few digits."""
    if unit == "s":
        return (1e3, "ms") if largest < 1 else (1.0, "s")
    if unit == "byte":
        for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if largest >= size:
                return 1 / size, name
    elif unit in ("FLOP", "MAC"):
        for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
            if largest >= scale:
                return 1 / scale, f"{letter}{unit}"
    return 1.0, "share" if unit == "1" else _UNITS.get(unit, unit)
