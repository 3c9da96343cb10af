"""Which method of this package a published row ran, as text; no method is loaded here."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from . import tables

TRAINED_HERE = "predictors trained at these rates (official training, or dynllava train)"
NOT_PUBLISHED = "weights of the row's own training"


@dataclass(frozen=True)
class Implementation:
    """A published row as a method of the registry, if it has the method.

    Attributes
    ----------
    name : str
        Registry name that the row would have.
    text : str
        The method as :func:`dynllava.methods.parameters.parse` reads it; empty where only a budget
        is printed, which is then solved for.
    tokens : float or None
        Mean image tokens a layer that the row states.
    weights : str
        What is needed beside the stock checkpoint; empty: nothing.
    prompt : str
        What the prompt must hold beside text and image; empty: nothing.
    """

    name: str
    text: str = ""
    tokens: float | None = None
    weights: str = ""
    prompt: str = ""


def implementation(label: str, model: str, tokens: float | None) -> Implementation:
    """Return what a published row ran.

    Parameters
    ----------
    label : str
        Method with its parameters as a table prints them.
    model : str
        As printed.
    tokens : float or None
        Mean image tokens a layer.
    """
    name, _, rest = label.partition(" ")
    if name in _READERS:
        return _READERS[name](rest, model, tokens)
    known = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return Implementation(known, tokens=tokens, weights=_weights(label, model))


def _dynamic(rest: str, model: str, tokens: float | None) -> Implementation:
    vision, output = "0.2", "0.5" if rest.startswith("I|T") else "1.0"
    changed = re.search(r"(vision|language) keep rate ([0-9.]+)", rest)
    if changed and changed[1] == "vision":
        vision = changed[2]
    elif changed:
        output = changed[2]
    text = f"dynamic_llava:vision_keep_rate={vision},output_keep_rate={output}"
    return Implementation("dynamic_llava", text, tokens, TRAINED_HERE)


def _fastv(rest: str, model: str, tokens: float | None) -> Implementation:
    found = re.search(r"k=(\d+),r=([0-9.]+)", rest)
    weights = NOT_PUBLISHED if "trained" in rest else ""
    if found is None:
        return Implementation("fastv", tokens=tokens, weights=weights)
    text = f"fastv:k={found[1]},keep_ratio={1 - float(found[2]):g}"
    return Implementation("fastv", text, tokens, weights)


def _h2o(rest: str, model: str, tokens: float | None) -> Implementation:
    given = dict(re.findall(r"(\w+)=([0-9.]+)", rest))
    half = float(given.get("r", 0.5)) / 2
    text = f"h2o:heavy={half:g},recent={half:g}"
    if "k" in given:
        text += f",first_full_layers={given['k']}"
    return Implementation("h2o", text, tokens)


def _sparsevlm(rest: str, model: str, tokens: float | None) -> Implementation:
    # Its published settings carry the names 192, 128 and 64; what they process is more.
    if tokens in (192, 128, 96, 64):
        return Implementation("sparsevlm", f"sparsevlm:retain={tokens:g}", tokens)
    return Implementation("sparsevlm", tokens=tokens)


def _prumerge(rest: str, model: str, tokens: float | None) -> Implementation:
    return Implementation("prumerge", "prumerge:plus=true", tokens, _weights("prumerge+", model))


def _voco(rest: str, model: str, tokens: float | None) -> Implementation:
    needed = f"{tokens:g} learned tokens" if tokens else "learned tokens"
    return Implementation("voco_llama", "voco_llama", tokens, NOT_PUBLISHED, needed)


_READERS = {
    "dynamic_llava": _dynamic,
    "fastv": _fastv,
    "h2o": _h2o,
    "sparsevlm": _sparsevlm,
    "prumerge+": _prumerge,
    "voco-llama": _voco,
}


def _weights(label: str, model: str) -> str:
    return "" if _training_free().get((model, label), "yes") == "yes" else NOT_PUBLISHED


@functools.cache
def _training_free() -> dict[tuple[str, str], str]:
    found = {}
    for number in (1, 11):
        for row in tables.table(number):
            label = f"{row['method']} {row.get('variant') or ''}".strip()
            found[row["model"], label] = row["training_free"] or "yes"
    return found
