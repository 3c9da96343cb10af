"""What the records say: each seed by itself, corrected over the eight rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynllava.errors import UserError
from dynllava.records import RecordStore, RunRecord
from dynllava.records.reading import Stored
from dynllava.uncertainty import Comparison, compare_paired
from dynllava.uncertainty.families import holm_adjusted

from .names import (
    CAPTIONS,
    ELASTIC,
    FROZEN,
    LONGER,
    OF_A_VARIANT,
    OFF_RATE,
    OUTPUT_RATES,
    OWN,
    PER_IMAGE,
    SAME_MEAN,
    SHORT,
    SUITE,
    VARIANT,
    VISION_RATES,
)

MARGIN = 0.01
"""A point, of exact answers and of METEOR."""
ALPHA = 0.05
WORSE = "worse"
NOT_WORSE = "not worse by more than 1 point"
UNDECIDED = "undecided"


@dataclass(frozen=True)
class Verdict:
    """Elastic against trained for the rate, at one rate and seed.

    Attributes
    ----------
    seed : int
    task : str
    rate : float
    own, elastic : float
        Mean scores, from 0 to 1.
    comparison : Comparison
        Elastic - own; its interval is of one comparison.
    verdict : str
        Corrected over the seed's rates (Holm), each direction by itself at 5 %.
    """

    seed: int
    task: str
    rate: float
    own: float
    elastic: float
    comparison: Comparison
    verdict: str


class Study:
    """The study's records with their samples, the newest of each setting.

    Parameters
    ----------
    stored : iterable of Stored
        Others' records are left out.
    variant : str
        Elastic training that it is about; "" where records name none.

    Attributes
    ----------
    variants : list of str
        Elastic trainings that there are records of.
    """

    def __init__(self, stored: Iterable[Stored], variant: str = VARIANT) -> None:
        self.variants: list[str] = []
        self.records: dict[tuple[str, str, float, float, int], RunRecord] = {}
        self._stores: dict[str, RecordStore] = {}
        for item in stored:
            record = item.record
            if record.task is None or record.task.suite != SUITE:
                continue
            own = record.method.parameters
            if own["role"] == ELASTIC and own["trained"] not in self.variants:
                self.variants.append(own["trained"])
            if own["role"] in OF_A_VARIANT and own["trained"] != variant:
                continue
            key = (own["role"], record.task.name, own["vision"], own["output"], own["seed"])
            self.records[key] = record
            self._stores[record.record_id] = item.store
        self._samples: dict[str, list[dict[str, Any]]] = {}

    @classmethod
    def read(cls, folder: str, variant: str = VARIANT) -> Study:
        """Return what the records of a folder say.

        Raises
        ------
        UserError
            If it holds none of this study.
        """
        store = RecordStore(folder)
        found = store.read()[0] if store.path.is_file() else []
        study = cls((Stored(record, store) for record in found), variant)
        if not study.records:
            raise UserError(f"{folder}: no records of this study", 1)
        return study

    @property
    def seeds(self) -> list[int]:
        """Seeds of the records."""
        return sorted({key[4] for key in self.records})

    def find(self, role: str, task: str, rate: float, seed: int) -> RunRecord | None:
        """Return a record by its role and the rate that varies in its task."""
        for (name, kind, vision, output, number), record in self.records.items():
            varies = vision if task == SHORT else output
            if (name, kind, varies, number) == (role, task, rate, seed):
                return record
        return None

    def samples(self, record: RunRecord) -> list[dict[str, Any]]:
        """Return the sample rows of a record."""
        if record.record_id not in self._samples:
            self._samples[record.record_id] = list(self._stores[record.record_id].samples(record))
        return self._samples[record.record_id]

    def values(self, record: RunRecord) -> np.ndarray:
        """Return one score a sample, in the order of the task."""
        rows = self.samples(record)
        if record.task_name == CAPTIONS:
            return np.array(rows[0]["meteor"])
        return np.array([int(digit) for row in rows for digit in row["exact"]], float)

    def of_questions(self, record: RunRecord, name: str) -> np.ndarray:
        """Return ``family``, ``objects`` or ``kept`` of each question."""
        rows = self.samples(record)
        if name == "family":
            return np.array([row["family"] for row in rows for _ in row["exact"]])
        found: list[int] = []
        for row in rows:
            value, count = row[name], len(row["exact"])
            found += [value] * count if isinstance(value, int) else [int(item) for item in value]
        return np.array(found)


def paired(study: Study, first: RunRecord, second: RunRecord, margin: float = 0.0) -> Comparison:
    """Return ``second - first`` over the same samples.

    Raises
    ------
    UserError
        If they did not answer the same samples.
    """
    if _data(first) != _data(second):
        raise UserError(
            f"{first.method.label} and {second.method.label}: answered other samples", 1
        )
    return compare_paired(study.values(first), study.values(second), margin=margin, alpha=ALPHA)


def decided(comparisons: Sequence[Comparison]) -> list[str]:
    """Return a verdict each, corrected over all of them (Holm, each direction by itself)."""
    worse = holm_adjusted([item.p_worse for item in comparisons])
    fine = holm_adjusted([item.p_not_inferior for item in comparisons])
    return [
        WORSE if one <= ALPHA else NOT_WORSE if two <= ALPHA else UNDECIDED
        for one, two in zip(worse, fine, strict=True)
    ]


def verdicts(study: Study, seed: int) -> list[Verdict]:
    """Return the verdicts of a seed, of the rates that were scored both ways."""
    cells = [(SHORT, rate) for rate in VISION_RATES] + [(CAPTIONS, rate) for rate in OUTPUT_RATES]
    pairs = []
    for task, rate in cells:
        own, elastic = (study.find(role, task, rate, seed) for role in (OWN, ELASTIC))
        if own is not None and elastic is not None:
            pairs.append((task, rate, own, elastic, paired(study, own, elastic, MARGIN)))
    names = decided([pair[4] for pair in pairs])
    return [
        Verdict(seed, task, rate, _mean(own), _mean(elastic), found, name)
        for (task, rate, own, elastic, found), name in zip(pairs, names, strict=True)
    ]


def beside_elastic(
    study: Study, seed: int, role: str, base: str = ELASTIC
) -> list[tuple[str, float, float, float, Comparison]]:
    """Return (task, rate, mean of ``base``, mean of ``role``, its difference) where both are."""
    found = []
    for task, rates in ((SHORT, VISION_RATES), (CAPTIONS, OUTPUT_RATES)):
        for rate in rates:
            one, two = (study.find(name, task, rate, seed) for name in (base, role))
            if one is not None and two is not None:
                found.append((task, rate, _mean(one), _mean(two), paired(study, one, two)))
    return found


def predictors_only(study: Study, seed: int) -> list[tuple[str, float, float, float, Comparison]]:
    """Return what training the predictors alone reaches beside tuning all, at equal steps."""
    return beside_elastic(study, seed, FROZEN)


def longer(study: Study, seed: int) -> list[tuple[str, float, float, float, Comparison]]:
    """Return what the recipe reaches with twice the steps, beside itself."""
    return beside_elastic(study, seed, LONGER, OWN)


def off_rate(study: Study, seed: int) -> list[tuple[float, float, Comparison]]:
    """Return (rate, mean, difference from the one trained for it) of the checkpoint for 0.2."""
    found = []
    for rate in VISION_RATES:
        own, other = (study.find(role, SHORT, rate, seed) for role in (OWN, OFF_RATE))
        if own is not None and other is not None:
            found.append((rate, _mean(other), paired(study, own, other, MARGIN)))
    return found


@dataclass(frozen=True)
class PerImage:
    """Budgets by score against the same share of every picture, at one mean.

    Attributes
    ----------
    rate : float
        Asked.
    realised : float
        Mean share that the threshold kept.
    same : float
        Share that the fixed budget keeps of each picture: the mean, to the next token.
    spread : tuple of float
        10th and 90th percentile of a picture's share.
    fixed, per_image : float
        Mean scores.
    comparison : Comparison
        Per image - fixed.
    parts : dict
        (``family`` or ``objects``, value) -> the same comparison there.
    """

    rate: float
    realised: float
    same: float
    spread: tuple[float, float]
    fixed: float
    per_image: float
    comparison: Comparison
    parts: dict[tuple[str, Any], Comparison]


def per_image(study: Study, seed: int) -> list[PerImage]:
    """Return the comparisons of budgets of a seed."""
    found = []
    for rate in VISION_RATES:
        one, two = (study.find(role, SHORT, rate, seed) for role in (SAME_MEAN, PER_IMAGE))
        if one is None or two is None:
            continue
        first, second = study.values(one), study.values(two)
        kept = study.of_questions(two, "kept") / (two.model.image_tokens or 1)
        parts = {}
        for name in ("family", "objects"):
            groups = study.of_questions(one, name)
            for value in dict.fromkeys(groups.tolist()):
                inside = groups == value
                parts[name, value] = compare_paired(first[inside], second[inside])
        low, high = np.quantile(kept, (0.1, 0.9))
        found.append(
            PerImage(
                rate,
                float(kept.mean()),
                one.scores["kept_image_share"].value,
                (float(low), float(high)),
                _mean(one),
                _mean(two),
                paired(study, one, two),
                parts,
            )
        )
    return found


def realised(study: Study, seed: int) -> list[tuple[float, float, float]]:
    """Return (asked, realised while generating, realised teacher-forced) output rates."""
    found = []
    for rate in OUTPUT_RATES:
        record = study.find(ELASTIC, CAPTIONS, rate, seed)
        if record is not None:
            scores = record.scores
            free, forced = scores["kept_output_share"], scores["kept_output_share_forced"]
            found.append((rate, free.value, forced.value))
    return found


def _mean(record: RunRecord) -> float:
    metric = None if record.task is None else record.task.metric
    return record.scores[metric or ""].value


def _data(record: RunRecord) -> str | None:
    return None if record.task is None else record.task.dataset_hash
