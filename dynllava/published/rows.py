"""Rows of the published tables by name: what each one ran, on which weights, what it printed.

A row that cannot be run here says why (:attr:`Row.refused`): its system is not in this package, its
weights were never published, or it states a time of the authors' machine.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dynllava.errors import UserError

from . import tables
from .implementations import NOT_PUBLISHED, TRAINED_HERE, implementation
from .tables import Printed

HUB = {
    "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "tokenpacker-7b": "sunshine-lwt/TokenPacker-7b-144token",
    "tokenpacker-13b": "sunshine-lwt/TokenPacker-13b-144token",
}
"""Published weights that rows begin with."""
TOWER = "openai/clip-vit-large-patch14-336"
"""Vision tower of weights in LLaVA's original format, which leave it out."""
NOT_HERE = "its system is not part of this package: the row is quoted only"
TIMED = (
    "it states times or memory of the authors' machine, which no run of yours repeats: measure "
    "your own with dynllava bench"
)
ALIASES = {"table2:tokenpacker": "table2:llava-tokenpacker-7b-144"}
_UNDERSTANDING = (
    "vqav2", "gqa", "vizwiz", "sciqa", "textvqa", "pope", "mme", "mmbench", "seed", "mm_vet",
    "mmvp", "realworldqa", "cvbench_2d",
)  # fmt: skip
_QUOTED = {
    4: TIMED,
    8: "it counts tokens of prompts and answers: dynllava table 8 computes what follows from them",
    10: "it is a formula, not a run: dynllava table 10 computes it",
    14: TIMED,
    15: TIMED,
}
_BUDGET_SOURCE = ("mme", "seed")
"""Columns of the budget study whose metric is another one than the paper's."""


@dataclass(frozen=True)
class Row:
    """One row of a published table.

    Attributes
    ----------
    name : str
        ``table1:dynamic_llava-7b-I``.
    label : str
        As printed.
    source : str
        Publication and table.
    base : str
        Key of :data:`HUB`: the weights it runs on, or was trained from.
    values : dict
        Benchmark (or generation task) to what is printed.
    method : str
        As ``--methods`` takes it.
    budget : float or None
        Mean image tokens a layer, where the table prints no parameters.
    training : tuple of str or None
        Changes of the shipped training configuration that make its weights; None: published ones.
    refused : str
        Why it cannot be run here; empty: it can.
    """

    name: str
    label: str
    source: str
    base: str = ""
    values: dict[str, Printed] = field(default_factory=dict)
    method: str = ""
    budget: float | None = None
    training: tuple[str, ...] | None = None
    refused: str = ""


def find(name: str) -> Row:
    """Return the row called ``name``.

    Raises
    ------
    UserError
        If there is none: with the nearest one.
    """
    known = rows()
    if name in ALIASES:
        return known[ALIASES[name]]
    if name not in known:
        names = [*known, *ALIASES]
        near = difflib.get_close_matches(name, names, 1, 0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"no published row {name!r}: {hint}(dynllava reproduce --list names them)")
    return known[name]


@functools.cache
def rows() -> dict[str, Row]:
    """Return all rows by name, in the order of the tables."""
    found = [row for number in tables.TABLES for row in _table(number)]
    found += list(_budgets())
    return {row.name: row for row in found}


def _table(number: int) -> Iterator[Row]:
    data = tables.table(number)
    for row in data:
        name, label = _names(number, row)
        source, name = data.source, f"table{number}:{name}"
        if number in _QUOTED:
            yield Row(name, label, source, refused=_QUOTED[number])
            continue
        values = _values(row)
        made = _made(number, row, label)
        refused = made.pop("refused", "")
        if not refused and not values:
            refused = "none of its numbers is a score of a benchmark that runs here"
        yield Row(name, label, source, values=values, refused=refused, **made)


def _names(number: int, row: dict[str, Any]) -> tuple[str, str]:
    """Return a row's name inside its table, and its label as printed."""
    parts = [row[key] for key in ("method", "context", "hyperparameter", "quantity") if key in row]
    if number == 10:
        parts = [row["model"]]
    given = (row.get(key) for key in ("variant", "keep_rate", "value"))
    more = [item.text if isinstance(item, Printed) else item for item in given if item]
    label = " ".join([*parts[:1], *more])
    first, _, rest = label.partition(" ")
    size = "" if number == 10 else str(row.get("model") or "").rpartition("-")[2]
    words = [row.get("benchmark") or "", first, size, rest]
    if number in (1, 5, 6, 16, 17) and row.get("context") in ("vision", "language", "full"):
        label = f"{row['context']} keep rate {row['keep_rate'].text}"
    return "-".join(filter(None, map(_slug, words))), label


def _slug(text: str) -> str:
    text = text.replace("I|T", "IT").replace("trained one epoch", "trained").replace(" + ", "+")
    return re.sub(r"[ ,]+", "-", text.replace("=", "").replace("%", "")).strip("-")


def _values(row: dict[str, Any]) -> dict[str, Printed]:
    found = {name: row[name] for name in _UNDERSTANDING if row.get(name) is not None}
    for kind in ("ppl", "meteor"):
        if row.get("benchmark") and row.get(kind) is not None:
            found[f"{row['benchmark']}_{kind}"] = row[kind]
        if row.get(f"lvis_single_{kind}") is not None:
            found[f"lvis_vqa_single_{kind}"] = row[f"lvis_single_{kind}"]
    return found


def _made(number: int, row: dict[str, Any], label: str) -> dict[str, Any]:
    """Return base, method, budget and training of a row, or why it is refused."""
    if number in (5, 16, 17):
        return _keep_rates(row)
    if number == 6:
        key = {"len_ot": "sparsity.min_answer_length", "lambda": "sparsity.mask_loss_weight"}
        value = row["value"].text
        key = key.get(row["hyperparameter"], row["hyperparameter"])
        layer = f",sparse_layer={value}" if key == "sparse_layer" else ""
        method = f"{_learned(0.2, 0.5)}{layer}"
        return {"base": "llava-1.5-7b", "method": method, "training": (f"{key}={value}",)}
    if number in (2, 13):
        return _projector(row, label)
    if number in (7, 9):
        return _ablation(label)
    tokens = row["image_tokens"].value if row.get("image_tokens") else None
    return _method(label, row["model"], tokens)


def _method(label: str, model: str, tokens: float | None) -> dict[str, Any]:
    first, _, second = label.partition(" + ")
    ran = implementation(first, model, tokens)
    if ran.prompt or (ran.weights == NOT_PUBLISHED and "trained" not in label):
        return {"refused": f"{ran.weights} are not published: the row is quoted only"}
    if ran.name in _OUTPUT_BASELINES:
        return {"base": model, "method": _OUTPUT_BASELINES[ran.name]}
    if ran.name not in _IMPLEMENTED:
        return {"refused": NOT_HERE}
    found: dict[str, Any] = {"base": model, "method": ran.text or ran.name}
    if second:
        found["method"] = f"{ran.text}+{implementation(second, model, None).text}"
    elif not ran.text and ran.name != "full":
        found["budget"] = tokens
    if ran.weights == TRAINED_HERE:
        found["training"] = _rates(label)
    elif ran.weights:
        name, _, parameters = ran.text.partition(":")
        values = parameters.replace("=", ": ").replace(",", ", ")
        found["training"] = (f"method={name}", f"method_args={{{values}}}")
    return found


_IMPLEMENTED = (
    "full", "fastv", "dynamic_llava", "h2o", "hired", "sparsevlm", "pyramiddrop", "divprune",
    "visionzip", "fastervlm", "vispruner", "cdpruner",
)  # fmt: skip
#: Table 3: half of the output tokens, from the first layer on.
_OUTPUT_BASELINES = {"random": "random:output_keep_rate=0.5,layer=0", "structure": "structure"}


def _learned(vision: float, output: float) -> str:
    return f"dynamic_llava:vision_keep_rate={vision:g},output_keep_rate={output:g}"


def _rates(label: str) -> tuple[str, ...]:
    return () if "I|T" in label else ("sparsity.output_keep_rate=1.0",)


def _keep_rates(row: dict[str, Any]) -> dict[str, Any]:
    base, rate = "llava-1.5-7b", row["keep_rate"].value
    if row["context"] == "full":
        return {"base": base, "method": "full"}
    vision, output = (rate, 0.5) if row["context"] == "vision" else (0.2, rate)
    changes = (f"sparsity.vision_keep_rate={vision:g}", f"sparsity.output_keep_rate={output:g}")
    return {"base": base, "method": _learned(vision, output), "training": changes}


def _projector(row: dict[str, Any], label: str) -> dict[str, Any]:
    first, _, rest = label.partition(" ")
    size = "13b" if "13b" in first else "7b"
    if "tokenpacker" not in first:
        if first == "llava-1.5-7b":
            return _method("full", first, None)
        if first.startswith("dynamic-llava"):
            return _method(f"dynamic_llava {rest}", f"llava-1.5-{size}", None)
        return {"refused": NOT_HERE}
    base = f"tokenpacker-{size}"
    if first.startswith("dynamic-llava"):
        output = 0.5 if "I|T" in rest else 1.0
        changes = ("sparsity.vision_keep_rate=0.4", f"sparsity.output_keep_rate={output:g}")
        return {"base": base, "method": _learned(0.4, output), "training": changes}
    if "fastv" in first:
        return {"base": base, "method": implementation(f"fastv {rest}", base, None).text}
    if first.endswith("-64"):
        return {"refused": f"{NOT_PUBLISHED} at 64 tokens were not found: the row is quoted only"}
    return {"base": base, "method": "full"}


def _ablation(label: str) -> dict[str, Any]:
    base = "llava-1.5-7b"
    if label == base:
        return {"base": base, "method": "full"}
    if "text sparsification" in label:
        return {"refused": NOT_HERE}
    changes = ("sparsity.masking=zero",) if "without masked softmax" in label else ()
    return {"base": base, "method": _learned(0.2, 0.5), "training": changes}


def _budgets() -> Iterator[Row]:
    data = tables.restore_budgets()
    for row in data:
        tokens = row["image_tokens"]
        dense = row["method"] == "full"
        name = _slug(row["method"]) if dense else f"{_slug(row['method'])}-{tokens.text}"
        values = {key: row[key] for key in _UNDERSTANDING if row.get(key) is not None}
        values = {key: value for key, value in values.items() if key not in _BUDGET_SOURCE}
        label = row["method"] if dense else f"{row['method']} at {tokens.text} image tokens"
        made: dict[str, Any] = {"refused": NOT_HERE}
        if row["method"] in _IMPLEMENTED:
            made = _method(row["method"], "llava-1.5-7b", tokens.value)
        yield Row(f"budgets:{name}", label, data.source, values=values, **made)
