"""METEOR and perplexity of long answers.

METEOR is nltk's, tokenised as the paper's script does (Treebank words).  WordNet is a download,
so the base variant matches exact words and stems only; its name, ``meteor_exact_stem``, says so.
Where the WordNet corpus is installed ``meteor_exact_stem_synonym``, the paper's variant, is
reported as well.  The two must not be compared with each other.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

METEOR = "meteor_exact_stem"
METEOR_SYNONYM = "meteor_exact_stem_synonym"

# nltk's sentence splitter needs a download too; Treebank rules only split off a full stop at the
# end of what they are given, so sentences are cut here.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class _NoWordNet:
    """A WordNet without synonyms: METEOR's third matching stage then finds nothing."""

    def synsets(self, word: str) -> list[Any]:
        return []


@functools.cache
def _wordnet() -> Any:
    """Return the installed WordNet corpus, or None."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    return wordnet


def words(text: str) -> list[str]:
    """Return the Treebank words of ``text``."""
    from nltk.tokenize import NLTKWordTokenizer

    tokenizer = NLTKWordTokenizer()
    sentences = _SENTENCE_END.split(text.strip())
    return [word for sentence in sentences for word in tokenizer.tokenize(sentence)]


def meteor(reference: str, answer: str) -> dict[str, float]:
    """Return METEOR of ``answer`` in each variant that this machine can compute.

    Notes
    -----
    Both texts are lower-cased; alpha, beta and gamma are nltk's defaults (0.9, 3, 0.5).
    """
    from nltk.translate.meteor_score import single_meteor_score

    expected, given = words(reference.lower()), words(answer.lower())
    scores = {METEOR: float(single_meteor_score(expected, given, wordnet=_NoWordNet()))}
    if _wordnet() is not None:
        scores[METEOR_SYNONYM] = float(single_meteor_score(expected, given, wordnet=_wordnet()))
    return scores


def mean_meteor(references: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Return METEOR averaged over the rounds of one conversation.

    A round without an answer counts as 0.
    """
    given = [*answers, *[""] * (len(references) - len(answers))]
    rounds = [meteor(expected, text) for expected, text in zip(references, given, strict=True)]
    return {name: sum(item[name] for item in rounds) / len(rounds) for name in rounds[0]}


def perplexity(log_likelihood: float, tokens: int) -> float:
    """Return exp(-log_likelihood / tokens)."""
    return math.exp(-log_likelihood / tokens)


def corpus_perplexity(items: Sequence[Sequence[float]]) -> float:
    """Return the perplexity over all tokens from (log-likelihood, tokens) of each document."""
    return perplexity(sum(item[0] for item in items), int(sum(item[1] for item in items)))
