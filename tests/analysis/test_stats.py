import numpy as np
import pytest
from dynllava.analysis import stats


def test_binary_scores_use_mcnemar_and_others_do_not():
    binary = stats.compare_paired([1, 1, 0, 1], [1, 0, 0, 1])
    assert binary.test == "McNemar exact"
    assert binary.difference == -0.25
    few = stats.compare_paired([0.2, 0.4, 0.9], [0.1, 0.4, 0.8])
    assert few.test == "paired bootstrap"
    generator = np.random.default_rng(0)
    many = stats.compare_paired(generator.random(50), generator.random(50))
    assert many.test == "paired t"


@pytest.mark.parametrize(
    ("base", "candidate"), [([1, 0], [1]), ([], []), ([1, float("nan")], [1, 0])]
)
def test_unusable_scores_are_refused(base, candidate):
    with pytest.raises(ValueError, match="scores"):
        stats.compare_paired(base, candidate)


def test_large_and_exact_mcnemar_agree():
    base = np.array([1] * 120 + [0] * 85 + [1] * 400)
    candidate = np.array([0] * 120 + [1] * 85 + [1] * 400)
    large = stats.mcnemar(base, candidate)
    assert large.test == "McNemar"
    smaller = stats.mcnemar(base[:200], candidate[:200])
    assert smaller.test == "McNemar exact"
    assert large.p_worse == pytest.approx(0.0072, abs=5e-4)


def test_constant_differences_are_decided_by_the_sign_test():
    drop = stats.compare_paired([0.5] * 3, [0.4] * 3)
    assert drop.p_worse == pytest.approx(0.125)
    same = stats.compare_paired([0.5] * 40, [0.5] * 40)
    assert same.p_worse == 1


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([]) == []


def test_bootstrap_keeps_its_size():
    generator = np.random.default_rng(1)
    rejected = sum(
        stats.paired_bootstrap(
            generator.normal(size=15), generator.normal(size=15), resamples=300, seed=i
        ).p_worse
        <= 0.05
        for i in range(300)
    )
    # 300 draws at 5 %: more than 26 has probability below 0.5 %.
    assert rejected <= 26


def test_same_numbers_as_lmms_eval():
    metrics = pytest.importorskip("lmms_eval.api.metrics", reason="lmms-eval is not installed")
    generator = np.random.default_rng(2)
    base, candidate = generator.random(60), generator.random(60)
    theirs = metrics.paired_ttest(candidate.tolist(), base.tolist())
    ours = stats.paired_t(base, candidate)
    assert ours.difference == pytest.approx(theirs["mean_diff"])
    assert ours.stderr == pytest.approx(theirs["se_diff"])
    assert ours.p_two_sided == pytest.approx(theirs["p_value"])
    power = metrics.power_analysis(0.1, 0.3, 0.3, correlation=0.5, current_n=60)
    stderr = 0.3 / 60**0.5
    effect = stats.minimum_detectable_effect(stderr, two_sided=True)
    assert effect == pytest.approx(power["min_detectable_effect"], abs=1e-4)
