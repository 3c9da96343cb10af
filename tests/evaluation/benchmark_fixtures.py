"""Small data sets with the upstream columns, scripted answers, and scores worked out by hand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Fixture:
    """One benchmark: rows, what a scripted model answers to each, and the resulting metrics."""

    rows: list[dict[str, Any]]
    answers: list[str]
    scores: dict[str, float]


def picture(*key: object) -> Image.Image:
    """A 32x32 picture that depends on ``key`` only."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return Image.frombytes("RGB", (4, 2), digest[:24]).resize((32, 32), Image.Resampling.NEAREST)


def _votes(**counts: int) -> list[str]:
    return [word.replace("_", " ") for word, count in counts.items() for _ in range(count)]


def _vqav2() -> Fixture:
    votes = [_votes(yes=10), _votes(red=3, blue=7), _votes(two=10), _votes(dog=10)]
    rows = [
        {
            "question_id": 100 + number,
            "image_id": 7 + number // 2,
            "image": picture("vqav2", number // 2),
            "question": f"Question {number}?",
            "answers": [
                {"answer": word, "answer_confidence": "yes", "answer_id": place + 1}
                for place, word in enumerate(words)
            ],
            "answer": words[0],
        }
        for number, words in enumerate(votes)
    ]
    # "red": its own 3 votes see 2 others (2/3), the 7 others see 3 (1): 0.9.  "2" = "two".
    return Fixture(rows, ["yes", "Red.", "2", "cat"], {"exact_match": (1 + 0.9 + 1 + 0) / 4})


def _gqa() -> Fixture:
    answers = ["yes", "left", "table", "white", "no"]
    rows = [
        {
            "id": str(number),
            "imageId": f"n{number // 2}",
            "image": picture("gqa", number // 2),
            "question": f"Is this question {number}?",
            "answer": answer,
        }
        for number, answer in enumerate(answers)
    ]
    return Fixture(rows, ["Yes.", "left", "chair", "White", "yes"], {"exact_match": 3 / 5})


def _vizwiz() -> Fixture:
    votes = [_votes(unanswerable=10), _votes(coke=2, pepsi=8), _votes(blue=10)]
    rows = [
        {
            "question_id": f"VizWiz_val_{number}",
            "image": picture("vizwiz", number),
            "question": f"What is IT {number}?",
            "answers": words,
            "category": "other",
        }
        for number, words in enumerate(votes)
    ]
    # "coke": its own 2 votes see 1 other (1/3), the 8 others see 2 (2/3): 0.6.
    return Fixture(rows, ["Unanswerable", "coke", "green"], {"exact_match": (1 + 0.6 + 0) / 3})


def _sciqa() -> Fixture:
    rows = [
        {
            "image": picture("sciqa", number),
            "question": f"Which one is {number}?",
            "choices": ["ant", "bee", "cat", "dog"],
            "answer": answer,
            "hint": "A hint." if number % 2 else "",
            "task": "closed choice",
            "grade": "grade2",
        }
        for number, answer in enumerate([0, 2, 1, 3])
    ]
    # "(B)" names the right choice but is no accepted form.
    return Fixture(rows, ["A", "C. cat", "(B)", "d"], {"exact_match": 3 / 4})


def _textvqa() -> Fixture:
    votes = [
        _votes(nokia=10),
        _votes(coors=3, bud=7),
        _votes(seven=10),
        _votes(stop=4, stop_sign=6),
    ]
    rows = [
        {
            "question_id": 34602 + number,
            "image_id": f"i{number}",
            "image": picture("textvqa", number),
            "question": f"what brand is the ATM {number}?",
            "answers": words,
            "ocr_tokens": ["NOKIA", "24"],
        }
        for number, words in enumerate(votes)
    ]
    scores = {"exact_match": (1 + 0.9 + 0 + 1) / 4}
    return Fixture(rows, ["Nokia", "coors", "eight", "stop"], scores)


def _pope() -> Fixture:
    truth = ["yes", "yes", "yes", "no", "no", "no"]
    rows = [
        {
            "id": str(number),
            "question_id": str(number),
            "image_source": f"COCO_{number // 3}",
            "image": picture("pope", number // 3),
            "question": f"Is there a thing {number} in the image?",
            "answer": answer,
            "category": ("adversarial", "popular", "random")[number % 3],
        }
        for number, answer in enumerate(truth)
    ]
    answers = ["yes", "Yes", "no", "yes", "no", "maybe"]
    scores = {
        "pope_accuracy": 3 / 6,
        "pope_precision": 2 / 3,
        "pope_recall": 2 / 3,
        "pope_f1_score": 2 / 3,
        "pope_yes_ratio": 3 / 6,
    }
    return Fixture(rows, answers, scores)


def _mme() -> Fixture:
    categories = ["existence", "existence", "color", "code_reasoning"]
    rows = [
        {
            "question_id": f"{category}/{pair}.png",
            "category": category,
            "image": picture("mme", pair),
            "question": f"Is it {pair}? Please answer yes or no.",
            "answer": answer,
        }
        for pair, category in enumerate(categories)
        for answer in ("Yes", "No")
    ]
    answers = ["Yes", "No", "yes", "Yes, it is", "no", "yes", "Yes.", "no"]
    # Pairs: 2 right 200, 1 right 50, none 0, 2 right 200.
    scores = {"mme_perception_score": (200 + 50) / 2 + 0, "mme_cognition_score": 200}
    return Fixture(rows, answers, scores)


def _mmbench() -> Fixture:
    truth = {10: "A", 1_000_010: "B", 11: "C", 1_000_011: "D", 12: "B"}
    rows = [
        {
            "index": index,
            "question": f"What is {index % 1_000_000}?",
            "hint": "nan" if index % 2 else "A hint.",
            "answer": answer,
            "A": "ant",
            "B": "bee",
            "C": "cat" if index % 1_000_000 != 12 else "nan",
            "D": "dog" if index % 1_000_000 != 12 else "nan",
            "category": "object_localization",
            "L2-category": "finegrained_perception",
            "source": "none",
            "split": "dev",
            "image": picture("mmbench", index % 1_000_000),
        }
        for index, answer in truth.items()
    ]
    # Circular: 10 right in both rotations, 11 in one only, 12 has one rotation, right.
    return Fixture(rows, ["A", "B. bee", "C", "A", "B"], {"gpt_eval_score": 100 * 2 / 3})


def _seed() -> Fixture:
    kinds = ["image", "image", "image", "video"]
    rows = [
        {
            "question_id": str(number),
            "question": f"How many {number}?",
            "choice_a": "One",
            "choice_b": "Two",
            "choice_c": "Three",
            "choice_d": "Four",
            "answer": answer,
            "data_type": kind,
            "question_type_id": 1,
            "image": [picture("seed", number, frame) for frame in range(1 + (kind == "video"))],
        }
        for number, (kind, answer) in enumerate(zip(kinds, "ABCD", strict=True))
    ]
    scores = {"seed_image": 2 / 3, "seed_video": 1.0, "seed_all": 3 / 4}
    return Fixture(rows, ["A", "B. Two", "D", "D"], scores)


def _mm_vet() -> Fixture:
    truth = ["five dollars", "a red bus", "left"]
    rows = [
        {
            "question_id": f"v1_{number}",
            "image": picture("mmvet", number),
            "question": f"What is shown {number}?",
            "answer": answer,
            "image_source": "web",
            "capability": "ocr,math" if number else "rec",
        }
        for number, answer in enumerate(truth)
    ]
    # The stub judge: 1 for the same text, 0.5 for a common word, else 0.
    return Fixture(rows, ["five dollars", "a blue bus", "right"], {"gpt_eval_score": 50.0})


def _mmvp() -> Fixture:
    truth = ["(a)", "(b)", "(b)", "(a)"]
    rows = [
        {
            "Index": number + 1,
            "image": picture("mmvp", number),
            "Question": "Is the door open?",
            "Options": "(a) Open (b) Closed",
            "Correct Answer": answer,
        }
        for number, answer in enumerate(truth)
    ]
    scores = {"mmvp_accuracy": 3 / 4, "mmvp_pair_accuracy": 1 / 2}
    return Fixture(rows, ["A", "B. Closed", "(B)", "B"], scores)


def _realworldqa() -> Fixture:
    truth = ["A", "B", "3", "C"]
    rows = [
        {
            "image": picture("realworldqa", number),
            "question": f"Where is it {number}? Please answer directly.",
            "answer": answer,
            "image_path": f"{number}.webp",
        }
        for number, answer in enumerate(truth)
    ]
    return Fixture(rows, ["A", "(B)", "3.", "A"], {"exact_match": 3 / 4})


def _cvbench() -> Fixture:
    rows = [
        {
            "idx": number,
            "type": "2D",
            "task": "Count",
            "source": "ADE20K" if number % 2 else "COCO",
            "filename": f"img/2D/{number // 2}.png",
            "image": picture("cvbench", number // 2),
            "question": f"How many {number}?",
            "prompt": f"How many {number}? Select from the following choices.\n(A) 1\n(B) 0",
            "choices": ["1", "0"],
            "answer": answer,
        }
        for number, answer in enumerate(["(A)", "(B)", "(A)", "(B)"])
    ]
    return Fixture(rows, ["A", "(B)", "B", "none"], {"cv_bench_acc": 2 / 4})


FIXTURES: dict[str, Fixture] = {
    "vqav2": _vqav2(),
    "gqa": _gqa(),
    "vizwiz": _vizwiz(),
    "sciqa": _sciqa(),
    "textvqa": _textvqa(),
    "pope": _pope(),
    "mme": _mme(),
    "mmbench": _mmbench(),
    "seed": _seed(),
    "mm_vet": _mm_vet(),
    "mmvp": _mmvp(),
    "realworldqa": _realworldqa(),
    "cvbench_2d": _cvbench(),
}


def write_parquet(rows: list[dict[str, Any]], path: Path) -> Path:
    """Write rows as a parquet file whose pictures load as an image column."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path
