"""Standard errors by estimator, against formulas and simulation."""

from __future__ import annotations

import math
import random
import statistics as standard

import pytest

pytest.importorskip("lmms_eval")

from dynllava.evaluation import statistics
from dynllava.evaluation.statistics import Sample, read_sample, standard_error


def _logged(doc_id, value, **doc):
    return {"doc_id": doc_id, "doc": doc, "metric": value}


def test_without_clusters_it_is_the_usual_formula():
    values = [0.0, 1.0, 1.0, 0.5, 0.25]
    samples = [Sample(number, value) for number, value in enumerate(values)]
    expected = standard.stdev(values) / math.sqrt(5)
    assert standard_error(samples, "mean") == pytest.approx(expected)


def test_copies_of_a_question_add_no_information():
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    once = standard_error([Sample(n, v, cluster=n) for n, v in enumerate(values)], "mean")
    five = [Sample(5 * n + k, v, cluster=n) for n, v in enumerate(values) for k in range(5)]
    naive = standard_error([Sample(s.doc_id, s.score) for s in five], "mean")
    clustered = standard_error(five, "mean")
    assert clustered == pytest.approx(once, rel=0.12)
    assert naive < 0.6 * clustered


def test_too_few_samples_have_no_error():
    assert standard_error([Sample(0, 1.0)], "mean") is None
    assert standard_error([Sample(0, 1.0, "a"), Sample(1, 0.0, "a")], "mean") is None
    assert standard_error([], "f1") is None


def test_pairs_count_only_when_both_are_right():
    samples = [
        read_sample(_logged(n, {"is_correct": right, "pair_index": n // 2}), "metric", "pairs")
        for n, right in enumerate([True, True, True, False, True, True, False, False])
    ]
    wins = [1, 0, 1, 0]
    assert standard_error(samples, "pairs") == pytest.approx(standard.stdev(wins) / 2)


def test_rotations_of_a_question_form_one_unit():
    options = {letter: letter for letter in "ABCD"}
    logged = [
        _logged(n, {"prediction": said, "answer": "A", **options}, index=index)
        for n, (index, said) in enumerate(
            [(1, "A"), (1_000_001, "(A)"), (2, "A"), (1_000_002, "B"), (3, "A")]
        )
    ]
    samples = [read_sample(item, "metric", "circular", "index") for item in logged]
    assert [sample.score for sample in samples] == [1, 1, 1, 0, 1]
    assert standard_error(samples, "circular", 100) == pytest.approx(
        100 * standard.stdev([1, 0, 1]) / math.sqrt(3)
    )


def test_mme_adds_the_variances_of_its_categories():
    rights = {"color": [(1, 1), (1, 0), (0, 0)], "count": [(1, 1), (1, 1), (0, 1)]}
    logged = [
        _logged(n, {"score": right, "category": category}, question_id=f"{category}{pair}")
        for n, (category, pair, right) in enumerate(
            (category, pair, right)
            for category, pairs in rights.items()
            for pair, both in enumerate(pairs)
            for right in both
        )
    ]
    samples = [read_sample(item, "metric", "mme", "question_id") for item in logged]
    variance = standard.variance([200, 50, 0]) / 3 + standard.variance([200, 200, 50]) / 3
    assert standard_error(samples, "mme") == pytest.approx(math.sqrt(variance))


def test_f1_error_agrees_with_repeated_draws():
    generator = random.Random(3)

    def draw(count):
        samples = []
        for number in range(count):
            truth = generator.choice(["yes", "no"])
            wrong = generator.random() < 0.2
            said = {"yes": "no", "no": "yes"}[truth] if wrong else truth
            samples.append(Sample(number, float(not wrong), None, "", truth, said))
        return samples

    repeated = standard.stdev([statistics.f1(draw(200)) for _ in range(400)])
    assert standard_error(draw(200), "f1") == pytest.approx(repeated, rel=0.25)


def test_f1_equals_upstreams():
    truth, said = ["yes", "yes", "yes", "no", "no"], ["yes", "yes", "no", "yes", "no"]
    samples = [
        Sample(n, 0, None, "", t, p) for n, (t, p) in enumerate(zip(truth, said, strict=True))
    ]
    assert statistics.f1(samples) == pytest.approx(2 / 3)
    assert statistics.f1([Sample(0, 0, None, "", "yes", "no")]) == 0


def test_documents_outside_the_metric_do_not_count():
    assert read_sample({"doc_id": 0, "doc": {}, "seed_all": {}}, "seed_image") is None
    assert read_sample(_logged(0, None), "metric") is None
    letter = _logged(0, {"pred": "b", "answer": "B", "question_id": "1"})
    assert read_sample(letter, "metric").score == 1
