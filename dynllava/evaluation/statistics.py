"""Scores of single samples and standard errors that fit how each metric is formed.

An estimator says how a benchmark's metric comes from its samples:

``mean``
    Mean over samples; clustered where several samples share an image.
``f1``, ``f1_categories``
    F1 of yes/no answers over all questions, or the mean of the categories' F1; cluster bootstrap.
``pairs``, ``circular``
    Share of pairs (MMVP) or rotated questions (MMBench) of which every sample is right.
``mme``
    Sum over categories of the mean score of a pair of questions (0, 50 or 200).
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

BOOTSTRAP_DRAWS = 500


@dataclass(frozen=True)
class Sample:
    """What statistics need of one evaluated document.

    Attributes
    ----------
    doc_id : int
        Place in the data set.
    score : float
        Score of this document alone (accuracy where the metric itself needs several).
    cluster : hashable or None
        Documents with the same value are not independent.
    stratum : str
        Category that is averaged by itself (MME, POPE).
    truth, prediction : str
        Of yes/no questions.
    """

    doc_id: int
    score: float
    cluster: Hashable = None
    stratum: str = ""
    truth: str = ""
    prediction: str = ""


def read_sample(
    logged: dict[str, Any], metric: str, estimator: str = "mean", cluster: str = ""
) -> Sample | None:
    """Return the sample that lmms-eval logged, None if it takes no part in ``metric``.

    Parameters
    ----------
    logged : dict
        One entry of lmms-eval's ``samples``.
    metric : str
        Metric key.
    estimator : str
        See the module.
    cluster : str
        Field of the document that names its cluster, or ``""``.
    """
    value = logged.get(metric)
    score = _score(value)
    if score is None:
        return None
    detail = value if isinstance(value, dict) else {}
    group = logged.get("doc", {}).get(cluster)
    if estimator == "pairs":
        group = detail["pair_index"]
    elif estimator == "circular":
        group = int(group) % 1_000_000
    return Sample(
        logged["doc_id"],
        score,
        group,
        _stratum(logged, detail, estimator),
        str(detail.get("ground_truth", "")),
        str(detail.get("prediction", "")),
    )


def _stratum(logged: dict[str, Any], detail: dict[str, Any], estimator: str) -> str:
    if estimator == "mme":
        return str(detail.get("category", ""))
    return str(logged.get("doc", {}).get("category", "")) if estimator == "f1" else ""


def _score(value: Any) -> float | None:
    if isinstance(value, bool | int | float):
        return float(value)
    if not isinstance(value, dict):
        return None
    for key in ("score", "is_correct"):
        if key in value:
            return float(value[key])
    if "pred" in value:
        return float(value["pred"].lower().strip() == value["answer"].lower().strip())
    if "prediction" in value:
        from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer

        letters = [letter for letter in "ABCDE" if value.get(letter) not in (None, "", "nan")]
        return float(extract_mcq_answer(value["prediction"], choices=letters) == value["answer"])
    return None


def standard_error(samples: Sequence[Sample], estimator: str, scale: float = 1) -> float | None:
    """Return the standard error of the metric in its own unit, None where it has none.

    Parameters
    ----------
    samples : sequence of Sample
    estimator : str
        See the module.
    scale : float
        Full score of the metric (``circular`` and ``pairs`` are shares before scaling).
    """
    if estimator == "f1":
        return _bootstrap(samples, f1)
    if estimator == "f1_categories":
        return _bootstrap(samples, category_mean_f1)
    if estimator == "mme":
        return _stratified(samples)
    if estimator in ("pairs", "circular"):
        groups = _clusters(samples)
        wins = [float(all(item.score for item in group)) for group in groups]
        error = clustered_error(wins, range(len(wins)))
        return None if error is None else scale * error
    ids = [item.doc_id if item.cluster is None else item.cluster for item in samples]
    return clustered_error([item.score for item in samples], ids)


def clustered_error(scores: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """Return the standard error of a mean with dependent samples inside clusters.

    Miller 2024 (arXiv 2411.00640), Eq. 4; with one sample per cluster it is s / sqrt(n).  None
    for fewer than two samples, or fewer than two clusters.
    """
    if len(scores) < 2 or len(set(clusters)) < 2:
        return None
    from lmms_eval.api.metrics import clustered_stderr

    return float(clustered_stderr(list(scores), list(clusters)))


def f1(samples: Sequence[Sample]) -> float:
    """Return the F1 of the answer yes."""
    hits = sum(item.truth == item.prediction == "yes" for item in samples)
    said = sum(item.prediction == "yes" for item in samples)
    # As upstream counts recall: an answer that is neither yes nor no is no miss.
    missed = sum(item.truth == "yes" and item.prediction == "no" for item in samples)
    return 2 * hits / (said + hits + missed) if hits else 0.0


def category_mean_f1(samples: Sequence[Sample]) -> float:
    """Return the mean of the categories' F1, as the paper scores POPE.

    Categories without a sample (a run with a limit) take no part.
    """
    strata: dict[str, list[Sample]] = defaultdict(list)
    for item in samples:
        strata[item.stratum].append(item)
    return math.fsum(map(f1, strata.values())) / len(strata) if strata else 0.0


def _bootstrap(
    samples: Sequence[Sample], statistic: Callable[[Sequence[Sample]], float]
) -> float | None:
    """Return the standard error of ``statistic`` over redrawn clusters."""
    groups = _clusters(samples)
    if len(groups) < 2:
        return None
    generator = random.Random(0)
    draws = [
        statistic([item for group in generator.choices(groups, k=len(groups)) for item in group])
        for _ in range(BOOTSTRAP_DRAWS)
    ]
    mean = math.fsum(draws) / len(draws)
    return math.sqrt(math.fsum((draw - mean) ** 2 for draw in draws) / (len(draws) - 1))


def _stratified(samples: Sequence[Sample]) -> float | None:
    strata: dict[str, list[Sample]] = defaultdict(list)
    for item in samples:
        strata[item.stratum].append(item)
    variance = 0.0
    for members in strata.values():
        pairs = [[item.score for item in pair] for pair in _clusters(members)]
        points = [100 * sum(pair) / len(pair) + 100 * all(pair) for pair in pairs]
        error = clustered_error(points, range(len(points)))
        if error is None:
            return None
        variance += error**2
    return math.sqrt(variance)


def _clusters(samples: Sequence[Sample]) -> list[list[Sample]]:
    groups: dict[Hashable, list[Sample]] = defaultdict(list)
    for item in samples:
        groups[("id", item.doc_id) if item.cluster is None else item.cluster].append(item)
    return list(groups.values())
