"""What each of the paper's tables consists of: text, costs to compute, scores to compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dynllava.costs.conventions import TABLE10_MISMATCHES, parse_segments
from dynllava.plan.names import FULL
from dynllava.published import labels

from ..points import costs
from . import eq13_gaps

Row = dict[str, Any]
Formula = Callable[[Row], float | str]


@dataclass(frozen=True)
class Spec:
    """How one table is built.

    Attributes
    ----------
    text : tuple of str
        Columns shown as they are (names and settings).
    formulas : dict
        Cost column to the function that computes it from a row.
    exploded : tuple of str
        Cost columns shown as computed, printed and ratio.
    group : tuple of str
        Rows equal in these columns compare with one dense row.
    dense : callable
        Whether a row is a dense one.
    reasons : callable
        (row, column, computed / printed) to why a computed cost differs.
    notes : tuple of str
    scores : bool
        Whether the remaining number columns are scores (compared and ranked).
    """

    text: tuple[str, ...]
    formulas: dict[str, Formula] = field(default_factory=dict)
    exploded: tuple[str, ...] = ()
    group: Callable[[Row], object] = lambda row: None
    dense: Callable[[Row], bool] = lambda row: labels.is_dense(row.get("method", ""))
    reasons: Callable[[Row, str, float], str] = lambda row, column, ratio: ""
    notes: tuple[str, ...] = ()
    scores: bool = True


def _label(row: Row) -> str:
    return " ".join(str(row[key]) for key in ("method", "variant") if row.get(key))


def _size(row: Row) -> costs.Size:
    return costs.size_of(row.get("model") or row["method"])


def _prefill(row: Row, base: int = 576) -> float | str:
    if row["image_tokens"] is None:
        return "the number of image tokens is not reported"
    size = _size(row)
    tokens = int(row["image_tokens"].value)
    return costs.prefill_tflops(size, costs.image_segments(_label(row), size, tokens, base))


def _prefill_projector(row: Row) -> float | str:
    return _prefill(row, 144 if row["projector"] == "tokenpacker" else 576)


def _prefill_generation(row: Row) -> float:
    method = row["method"]
    tokenpacker = "tokenpacker" in method
    base = 144 if tokenpacker else 576
    size = _size(row)
    kept = labels.kept_image_tokens(method, base, keep=0.4 if tokenpacker else 0.2)
    return costs.prefill_tflops(size, costs.image_segments(method, size, kept, base))


def _generation(run: str, quantity: str) -> Formula:
    def formula(row: Row) -> float | str:
        found = eq13_gaps.generation(row, run)
        if found is None:
            return "token counts are not reported"
        if quantity == "decode":
            return found.tflops()
        # What the cache holds: for H2O fewer tokens than are computed.
        held = row[f"computing_tokens_{run}"].value
        return costs.output_kv_bytes(found.method, found.size, found.total, held) / 1e6

    return formula


_GENERATION = {
    "decode_tflops_ppl": _generation("ppl", "decode"),
    "decode_tflops_meteor": _generation("meteor", "decode"),
    "kv_mem_mb_ppl": _generation("ppl", "kv"),
    "kv_mem_mb_meteor": _generation("meteor", "kv"),
}


def _generation_reason(row: Row, column: str, ratio: float) -> str:
    quantity, _, run = column.rpartition("_")
    if quantity == "kv_mem_mb":
        return eq13_gaps.kv_reason(row, run)
    if quantity == "decode_tflops":
        return eq13_gaps.decode_reason(row, run)
    return TABLE10_MISMATCHES.get(row["method"], "")


_GENERATION_NOTES = (
    "PPL: teacher-forced run; METEOR: generating run; token counts, decode TFLOPs and KV memory "
    "exist for both.",
    "Decode TFLOPs: Eq. 13 over output tokens; Dynamic-LLaVA's first two layers compute all of "
    "them. Nothing is fitted.",
    "H2O: every output token is computed (Eq. 13 over all of them); its cache holds the tokens "
    "listed as computing.",
    f"KV memory, {eq13_gaps.MEASURED_KV} (MB = 10^6 bytes).",
)


def _image_tokens(row: Row) -> float:
    keep = row["keep_rate"].value if row["context"] == "vision" else 0.2
    return 576 if labels.is_dense(row["context"]) else int(576 * keep)


def _segments(row: Row) -> float:
    return costs.prefill_tflops(
        costs.Size(int(row["hidden_size"].value), int(row["layers"].value)),
        parse_segments(row["segments"]),
    )


def _table10_reason(row: Row, column: str, ratio: float) -> str:
    return TABLE10_MISMATCHES.get(row["model"], "")


def _table12_reason(row: Row, column: str, ratio: float) -> str:
    size = _size(row)

    def tflops(tokens: float) -> float:
        dense = eq13_gaps.Generation(FULL, costs.Size(size.hidden, labels.SPARSE_LAYER), 576, 576)
        rest = costs.Size(size.hidden, size.layers - labels.SPARSE_LAYER)
        return dense.tflops() + eq13_gaps.Generation(FULL, rest, tokens, tokens).tflops()

    needed = eq13_gaps.tokens_for(row[column].value, tflops, 576)
    return (
        f"printed would take {needed:.1f} image tokens in the sparse layers, not the "
        f"{row['image_tokens'].text} printed beside it: the cause is not known"
    )


def _projector_group(row: Row) -> object:
    size = "13b" if "13b" in row["method"] else "7b"
    return size, row["projector"] == "tokenpacker"


def _projector_reason(row: Row, column: str, ratio: float) -> str:
    if row["method"] == "llava-tokenpacker-13b-144":
        return TABLE10_MISMATCHES["tokenpacker-13b-144"]
    if column == "average":
        return "mean of the printed, already rounded scores"
    return ""


def _average(row: Row) -> float | str:
    names = ("mmbench", "mm_vet", "vqav2", "gqa", "pope", "vizwiz")
    if any(row[name] is None for name in names):
        return "one of the six scores is not reported"
    return sum(row[name].value for name in names) / len(names)


_MEASURED = "Times and memory were measured by the authors on the named hardware, not counted."
_TOKENPACKER_DENSE = (
    "tokenpacker-7b-144", "tokenpacker-13b-144", "llava-tokenpacker-7b-144",
    "llava-tokenpacker-13b-144", "llava-1.5-7b",
)  # fmt: skip

SPECS: dict[int, Spec] = {
    1: Spec(("model", "method", "variant", "training_free", "image_tokens"),
            {"prefill_tflops": _prefill}, group=lambda row: row["model"]),
    2: Spec(("method", "projector", "resolution", "image_tokens"),
            {"prefill_tflops": _prefill_projector, "average": _average}, group=_projector_group,
            dense=lambda row: row["method"] in _TOKENPACKER_DENSE, reasons=_projector_reason,
            notes=("Differences are to the unpruned model with the same projector (MLP for the "
                   "other projectors).",)),
    3: Spec(("benchmark", "model", "method", "total_tokens_ppl", "total_tokens_meteor",
             "computing_tokens_ppl", "computing_tokens_meteor"),
            {"prefill_tflops": _prefill_generation, **_GENERATION}, tuple(_GENERATION),
            lambda row: (row["benchmark"], row["model"]), reasons=_generation_reason,
            notes=_GENERATION_NOTES),
    4: Spec(("model", "method", "batch_size"), scores=False, notes=(_MEASURED,)),
    5: Spec(("context", "keep_rate", "language_tokens_ppl", "language_tokens_meteor"),
            {"image_tokens": _image_tokens}, dense=lambda row: labels.is_dense(row["context"]),
            reasons=lambda *_: "int(576 x 0.8) truncates 460.8, as the official code does; the "
            "table rounds",
            notes=("Language tokens are what the trained predictor kept: data, not computed.",)),
    6: Spec(("hyperparameter", "value"), group=lambda row: row["hyperparameter"],
            dense=lambda row: False),
    7: Spec(("method",), dense=lambda row: row["method"] == "llava-1.5-7b"),
    9: Spec(("method",), dense=lambda row: row["method"] == "llava-1.5-7b"),
    10: Spec(("model", "hidden_size", "layers", "segments"), {"tflops": _segments}, ("tflops",),
             reasons=_table10_reason, scores=False),
    11: Spec(("model", "method", "training_free", "image_tokens"), {"prefill_tflops": _prefill},
             notes=("The paper prints no TFLOPs for TRIM and SparseVLM: computed only. The dense "
                    "row is in table 1.",)),
    12: Spec(("model", "method", "image_tokens"), {"prefill_tflops": _prefill},
             group=lambda row: row["model"], reasons=_table12_reason),
    13: Spec(("benchmark", "method", "total_tokens_ppl", "total_tokens_meteor",
              "computing_tokens_ppl", "computing_tokens_meteor"),
             {"prefill_tflops": _prefill_generation, **_GENERATION}, tuple(_GENERATION),
             lambda row: (row["benchmark"], "13b" in row["method"]),
             lambda row: row["method"] in _TOKENPACKER_DENSE, _generation_reason,
             _GENERATION_NOTES),
    14: Spec(("model", "method", "batch_size", "generated_tokens"), scores=False,
             notes=(_MEASURED,)),
    15: Spec(("method", "hardware"), scores=False, notes=(_MEASURED,)),
    16: Spec(("context", "keep_rate"), dense=lambda row: labels.is_dense(row["context"])),
    17: Spec(("context", "keep_rate", "benchmark", "total_tokens_ppl", "total_tokens_meteor",
              "computing_tokens_ppl", "computing_tokens_meteor"), dict(_GENERATION),
             tuple(_GENERATION), lambda row: row["benchmark"],
             lambda row: labels.is_dense(row["context"]), _generation_reason, _GENERATION_NOTES),
}  # fmt: skip
"""All tables but table 8, whose rows are computed from one another (see ``tables``)."""
