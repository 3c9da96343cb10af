"""Prompts of the LLaVA-1.5 evaluation protocol where lmms-eval's default departs from them.

The functions are named in overlays (:mod:`dynllava.tasks.overlays`) and called by lmms-eval.
"""

from __future__ import annotations

from typing import Any

SHORT_ANSWER = "Answer the question using a single word or phrase."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
LETTER = "Answer with the option's letter from the given choices directly."

Doc = dict[str, Any]


def vizwiz_text(doc: Doc, lmms_eval_specific_kwargs: Doc | None = None) -> str:
    """Return the question with its capitals untouched, and the instruction."""
    return f"{doc['question']}\n{UNANSWERABLE}\n{SHORT_ANSWER}"


def textvqa_text(doc: Doc, lmms_eval_specific_kwargs: Doc | None = None) -> str:
    """Return the question with its capitals untouched, the OCR tokens, and the instruction."""
    tokens = ", ".join(doc["ocr_tokens"])
    return f"{doc['question']}\nReference OCR token: {tokens}\n{SHORT_ANSWER}"


def mmbench_text(doc: Doc, lmms_eval_specific_kwargs: Doc | None = None) -> str:
    """Return hint, question and options on lines of their own, and the instruction."""
    lines = [doc["hint"]] if _present(doc["hint"]) else []
    lines.append(doc["question"])
    lines += [f"{letter}. {doc[letter]}" for letter in "ABCDE" if _present(doc.get(letter))]
    return "\n".join([*lines, LETTER])


def cvbench_text(doc: Doc, lmms_eval_specific_kwargs: Doc | None = None) -> str:
    """Return the benchmark's own prompt (it lists the choices) and the instruction."""
    return f"{doc['prompt']}\n{LETTER}"


def seed_image_questions(dataset: Any) -> Any:
    """Return the questions about one image: the paper's score leaves the videos out."""
    kinds = dataset["data_type"]
    return dataset.select([row for row, kind in enumerate(kinds) if kind == "image"])


def _present(text: Any) -> bool:
    # Missing cells of the published TSV arrive as None, "", "nan" or a float NaN.
    return isinstance(text, str) and text not in ("", "nan")
