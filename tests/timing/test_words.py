"""Names of measurements in words: mode and sizes, nothing lost where a name has another form."""

import pytest

from dynllava.timing.targets import KEEPS_ALL
from dynllava.timing.words import method_in_words, task_in_words


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("speed-b8-t56-i144-o1", "batch 8, 56 text + 144 image tokens, 1 output token"),
        ("breakdown-decode-b1-o64", "decode with a cache, batch 1, after 64 output tokens"),
        ("step-b2-t12-i36-o2000", "batch 2, 12 text + 36 image tokens, after 2,000 output tokens"),
        ("training-b1-n2048", "training, batch 1, 2,048 tokens"),
        ("evaluation-embedded_attribute-b16", "evaluation, attribute, batch 16"),
        ("generation-b4", "generation, batch 4"),
        ("something-else", "something-else"),
        ("speed-b8-x7", "speed-b8-x7"),
    ],
)  # fmt: skip
def test_a_task_in_words(name, said):
    assert task_in_words(name) == said


def test_a_prefill_does_not_name_the_outputs():
    assert task_in_words("speed-b8-t56-i144-o1", outputs=False) == (
        "batch 8, 56 text + 144 image tokens"
    )


def test_methods_in_words_show_no_sentinel_values():
    assert method_in_words(f"{KEEPS_ALL}, compiled") == "dynamic_llava that keeps all, compiled"
    assert method_in_words("fastv:k=2") == "fastv:k=2"
