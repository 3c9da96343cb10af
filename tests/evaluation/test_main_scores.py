"""Which score stands for a benchmark, and how rounds and documents make one number."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("nltk")

from dynllava.tasks import text_metrics
from dynllava.tasks.registry import BENCHMARKS, GENERATION, PAPER12, SUITES, get

#: benchmark -> (lmms-eval task, split, metric that the paper prints, its full score)
PRINTED = {
    "vqav2": ("vqav2_val", "validation", "exact_match", 1),
    "gqa": ("gqa", "testdev", "exact_match", 1),
    "vizwiz": ("vizwiz_vqa_val", "val", "exact_match", 1),
    "sciqa": ("scienceqa_img", "test", "exact_match", 1),
    "textvqa": ("textvqa_val", "validation", "exact_match", 1),
    "pope": ("pope", "test", "pope_f1_category_mean", 1),
    "mme": ("mme", "test", "mme_perception_score", 2000),
    "mmbench": ("mmbench_en_dev_static", "dev", "gpt_eval_score", 100),
    "seed": ("seedbench", "test", "seed_image", 1),
    "mm_vet": ("mmvet", "test", "gpt_eval_score", 100),
    "mmvp": ("mmvp", "train", "mmvp_pair_accuracy", 1),
    "realworldqa": ("realworldqa", "test", "exact_match", 1),
    "cvbench_2d": ("cv_bench_2d", "test", "cv_bench_acc", 1),
}


def test_the_main_score_of_each_benchmark_is_the_one_that_the_paper_prints():
    found = {
        name: (item.task, item.split, item.metric, item.scale) for name, item in BENCHMARKS.items()
    }
    assert found == PRINTED
    assert set(PAPER12) | {"mme"} == set(PRINTED)
    for name, (task, *_) in PRINTED.items():
        assert get(name) is get(task) is BENCHMARKS[name]


@pytest.mark.parametrize("name", list(PRINTED))
def test_published_scores_lie_on_the_scale_of_the_main_score(name):
    """MME's perception is above 1000 of 2000; percentages are shares times 100."""
    item = BENCHMARKS[name]
    published = item.expected("llava-1.5-7b")
    assert published is not None
    full = item.to_paper_scale(item.scale)
    assert full == (2000 if name == "mme" else 100)
    assert 0.2 * full < published < full
    assert item.higher_is_better
    assert item.expected("no such model") is None


def test_generation_suites_hold_both_metrics_of_every_benchmark():
    assert SUITES["generation"] == tuple(
        f"{name}_{kind}" for name in GENERATION for kind in ("ppl", "meteor")
    )


def one(reference, answer):
    return text_metrics.meteor(reference, answer)[text_metrics.METEOR]


def test_every_round_counts_whether_it_was_answered_or_not():
    references = ["a red circle is here.", "two blue squares.", "a star above the ring."]
    answers = ["a red circle is there.", "two squares."]
    each = [one(r, a) for r, a in zip(references, answers, strict=False)]
    assert min(each) > 0
    stopped = text_metrics.mean_meteor(references, answers)[text_metrics.METEOR]
    assert stopped == pytest.approx(sum(each) / 3)
    empty = text_metrics.mean_meteor(references, [*answers, ""])[text_metrics.METEOR]
    assert stopped == empty
    assert text_metrics.mean_meteor(references, [])[text_metrics.METEOR] == 0
    first = text_metrics.mean_meteor(references, answers[:1])[text_metrics.METEOR]
    assert first == pytest.approx(each[0] / 3)


def test_an_answer_is_scored_against_its_own_reference_in_whatever_case():
    references, answers = ["one red ring.", "two blue stars."], ["ONE red ring.", "two blue stars."]
    straight = text_metrics.mean_meteor(references, answers)[text_metrics.METEOR]
    crossed = text_metrics.mean_meteor(references, answers[::-1])[text_metrics.METEOR]
    assert straight > 0.9 > 0.5 > crossed
    assert one("A B c d.", "a b C D.") == one("a b c d.", "a b c d.")


def test_perplexity_is_per_token_and_a_corpus_weighs_documents_by_their_tokens():
    assert text_metrics.perplexity(-6.0, 3) == pytest.approx(math.exp(2))
    assert text_metrics.perplexity(0.0, 5) == 1
    items = [(-1.0, 1), (-20.0, 40)]
    assert text_metrics.corpus_perplexity(items) == pytest.approx(math.exp(21 / 41))


def test_a_documents_perplexity_is_the_mean_over_its_rounds():
    pytest.importorskip("lmms_eval")
    from dynllava.tasks.lmms_tasks import perplexity_results

    found = perplexity_results({}, [(-2.0, 1), (-3.0, 6)])
    assert found["ppl"] == pytest.approx((math.exp(2) + math.exp(0.5)) / 2)
    assert found["ppl_corpus"] == [-5.0, 7]
