"""Prompts and scoring of the embedded tasks; lmms-eval loads this file by path."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

_NUMBERS = {"0": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six"}
_MENTION = re.compile(r"\ba (?:(?:large|small) )?(\w+) (\w+)")
_SENTENCE = re.compile(r"in the (\w+) row, (\w+) column, there is a (large|small) (\w+) (\w+)")


def doc_to_visual(doc: dict[str, Any]) -> list:
    """Return the image of a row as a list of one RGB image."""
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict | None = None) -> str:
    """Return the question with the task's prefix and suffix."""
    extra = lmms_eval_specific_kwargs or {}
    return f"{extra.get('pre_prompt', '')}{doc['question']}{extra.get('post_prompt', '')}"


def doc_to_messages(doc: dict[str, Any], lmms_eval_specific_kwargs: dict | None = None) -> list:
    """Return the question as one user turn for chat models."""
    content = [{"type": "image", "url": image} for image in doc_to_visual(doc)]
    content.append({"type": "text", "text": doc_to_text(doc, lmms_eval_specific_kwargs)})
    return [{"role": "user", "content": content}]


def normalise(text: str) -> str:
    """Lower case, single spaces, no article in front and no punctuation around."""
    text = re.sub(r"\s+", " ", text.lower()).strip(" .,:;!?\"'()")
    return re.sub(r"^(a|an|the) ", "", text)


def exact_match(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 for the right short answer, else 0; for choices the letter or the option's text counts."""
    family, answer = doc["family"], doc["answer"]
    said = results[0].strip()
    if family == "multiple_choice":
        letter = re.match(r"\(?([A-D])\b", said)
        if letter:
            return {"exact_match": float(letter.group(1) == answer)}
        return {"exact_match": float(normalise(said) == doc["options"]["ABCD".index(answer)])}
    said = normalise(said)
    if family == "counting":
        said = _NUMBERS.get(said, said)
    return {"exact_match": float(said == normalise(answer))}


def caption_scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """F1 of named objects and of whole sentences about them.

    ``mention_f1`` compares the set of (colour, shape) pairs anywhere in the text with the scene;
    ``sentence_f1`` the (row, column, size, colour, shape) of each "in the ... there is" sentence.
    """
    text = re.sub(r"\s+([,.:?])", r"\1", re.sub(r"\s+", " ", results[0].lower()))
    reference = doc["answer"].lower()
    pairs = {(item["colour"], item["shape"]) for item in json.loads(doc["scene"])["objects"]}
    return {
        "mention_f1": _f1(set(_MENTION.findall(text)), pairs),
        "sentence_f1": _f1(_SENTENCE.findall(text), _SENTENCE.findall(reference)),
    }


def _f1(said: Any, true: Any) -> float:
    said, true = Counter(said), Counter(true)
    if not said or not true:
        return 0.0
    shared = (said & true).total()
    return 2 * shared / (said.total() + true.total())
