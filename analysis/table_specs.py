"""What each of the paper's tables consists of: text, costs to compute, scores to compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dynllava.analysis import costs

from dynllava.profiling.conventions import TABLE10_MISMATCHES, parse_segments

Row = dict[str, Any]
Formula = Callable[[Row], float | str]

ABOVE = (
    "printed above Eq. 13 on the printed mean token counts: a mean over samples of a quadratic "
    "lies above the quadratic of the mean, which the table alone cannot confirm"
)
BELOW = "printed below Eq. 13 on the printed mean token counts: the cause is not known"
MEASURED_KV = (
    "computed: bytes of the output tokens' keys and values; printed: maximum GPU memory of the "
    "cache as measured by the authors"
)
TWO_DECIMALS = "table 10 prints one decimal for the same segments; Eq. 13 gives no more"
TABLE3_ERROR = (
    "printed cell equals the 13B one and is twice what its token counts imply: probably an error "
    "at the source"
)


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
    dense: Callable[[Row], bool] = lambda row: row.get("method") == "full"
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
    kept = costs.kept_image_tokens(method, base, keep=0.4 if tokenpacker else 0.2)
    return costs.prefill_tflops(size, costs.image_segments(method, size, kept, base))


def _generation(run: str, quantity: str) -> Formula:
    def formula(row: Row) -> float | str:
        total, computing = row[f"total_tokens_{run}"], row[f"computing_tokens_{run}"]
        method = row.get("method") or ("full" if row["context"] == "full" else "dynamic_llava")
        size = costs.size_of("7b") if "context" in row else _size(row)
        if total is None or computing is None:
            return "token counts are not reported"
        if quantity == "decode":
            return costs.decode_tflops(method, size, total.value, computing.value)
        return costs.output_kv_bytes(method, size, total.value, computing.value) / 1e6

    return formula


_GENERATION = {
    "decode_tflops_ppl": _generation("ppl", "decode"),
    "decode_tflops_meteor": _generation("meteor", "decode"),
    "kv_mem_mb_ppl": _generation("ppl", "kv"),
    "kv_mem_mb_meteor": _generation("meteor", "kv"),
}


def _generation_reason(row: Row, column: str, ratio: float) -> str:
    if column.startswith("kv_mem"):
        return MEASURED_KV
    doubled = (row.get("benchmark"), row.get("model")) == ("lvis_vqa_single", "llava-1.5-7b")
    if column == "decode_tflops_ppl" and doubled and row["method"] in ("random", "structure"):
        return TABLE3_ERROR
    if not column.startswith("decode"):
        return TABLE10_MISMATCHES.get(row["method"], "")
    return ABOVE if ratio < 1 else BELOW


_GENERATION_NOTES = (
    "PPL: teacher-forced run; METEOR: generating run; token counts, decode TFLOPs and KV memory "
    "exist for both.",
    "Decode TFLOPs: Eq. 13 over output tokens; Dynamic-LLaVA's first two layers compute all of "
    "them. Nothing is fitted.",
    f"KV memory, {MEASURED_KV} (MB = 10^6 bytes).",
)


def _image_tokens(row: Row) -> float:
    keep = row["keep_rate"].value if row["context"] == "vision" else 0.2
    return 576 if row["context"] == "full" else int(576 * keep)


def _segments(row: Row) -> float:
    return costs.prefill_tflops(
        costs.Size(int(row["hidden_size"].value), int(row["layers"].value)),
        parse_segments(row["segments"]),
    )


def _table10_reason(row: Row, column: str, ratio: float) -> str:
    return TABLE10_MISMATCHES.get(row["model"], "")


def _two_decimals(row: Row, column: str, ratio: float) -> str:
    return TWO_DECIMALS if row["method"].startswith("dynamic") else ""


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
            {"image_tokens": _image_tokens}, dense=lambda row: row["context"] == "full",
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
             group=lambda row: row["model"], reasons=_two_decimals),
    13: Spec(("benchmark", "method", "total_tokens_ppl", "total_tokens_meteor",
              "computing_tokens_ppl", "computing_tokens_meteor"),
             {"prefill_tflops": _prefill_generation, **_GENERATION}, tuple(_GENERATION),
             lambda row: (row["benchmark"], "13b" in row["method"]),
             lambda row: row["method"] in _TOKENPACKER_DENSE, _generation_reason,
             _GENERATION_NOTES),
    14: Spec(("model", "method", "batch_size", "generated_tokens"), scores=False,
             notes=(_MEASURED,)),
    15: Spec(("method", "hardware"), scores=False, notes=(_MEASURED,)),
    16: Spec(("context", "keep_rate"), dense=lambda row: row["context"] == "full"),
    17: Spec(("context", "keep_rate", "benchmark", "total_tokens_ppl", "total_tokens_meteor",
              "computing_tokens_ppl", "computing_tokens_meteor"), dict(_GENERATION),
             tuple(_GENERATION), lambda row: row["benchmark"],
             lambda row: row["context"] == "full", _generation_reason, _GENERATION_NOTES),
}  # fmt: skip
"""All tables but table 8, whose rows are computed from one another (see ``tables``)."""
