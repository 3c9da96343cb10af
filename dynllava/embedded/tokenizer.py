"""The closed vocabulary of the embedded model and its word-level tokenizer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .scenes import COLOURS, COLUMNS, ROWS, SHAPES, SIZES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
DIGITS = tuple("0123456789")
LETTERS = ("A", "B", "C", "D")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{% elif message['role'] == 'user' %}USER: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %} "
    "{% else %}ASSISTANT: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{{ eos_token }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_OTHER_WORDS = (
    "USER ASSISTANT : , . ? a the is are there in of or and "
    "what which where how many colour shape digit object objects image row column "
    "yes no none left right above below describe shows shown short background"
)


def vocabulary() -> list[str]:
    """All tokens in id order, special tokens first."""
    words = [PAD, BOS, EOS, UNKNOWN, IMAGE, *LETTERS, *COLOURS, *SHAPES]
    words += [plural(shape) for shape in SHAPES]
    words += [*SIZES, *DIGITS, *NUMBERS, *ROWS, *COLUMNS, *_OTHER_WORDS.split()]
    return list(dict.fromkeys(words))


def plural(shape: str) -> str:
    """``"circle"`` -> ``"circles"``, ``"cross"`` -> ``"crosses"``."""
    return shape + ("es" if shape.endswith("s") else "s")


def split_words(text: str) -> list[str]:
    """Words and punctuation marks of a text, exactly as the tokenizer splits them."""
    return re.findall(r"\w+|[^\w\s]+", text)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a fast word-level tokenizer over :func:`vocabulary` that puts BOS first.

    Returns
    -------
    transformers.PreTrainedTokenizerFast
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(vocabulary())}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=1024,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
