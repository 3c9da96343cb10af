"""compare_paired: exact values by hand and by scipy, mirrored data, margins, refusals."""

import itertools

import numpy as np
import pytest
import simulation
from scipy import stats

from dynllava.uncertainty import NOT_WORSE, UNDECIDED, WORSE, compare_paired, exact_bounds, skewness
from dynllava.uncertainty.clustered import design_effect, sums_of
from dynllava.uncertainty.sign_flips import flip_tails


def lost(count, of, won=0):
    """Return base and candidate of ``of`` samples, so many lost and won."""
    base = np.array([1.0] * (of - won) + [0.0] * won)
    candidate = base.copy()
    candidate[:count] = 0.0
    candidate[of - won :] = 1.0
    return base, candidate


@pytest.mark.parametrize(("down", "up"), [(7, 0), (6, 0), (12, 5), (3, 3), (0, 4), (140, 100)])
def test_independent_answers_get_mcnemars_mid_p(down, up):
    found = compare_paired(*lost(down, 400, up))
    n = down + up
    expected = stats.binom.sf(down, n, 0.5) + stats.binom.pmf(down, n, 0.5) / 2
    assert found.p_worse == pytest.approx(expected, rel=1e-6)
    assert found.p_not_inferior == pytest.approx(1 - expected, rel=1e-6)
    assert found.difference == pytest.approx((up - down) / 400)
    assert found.discordance == pytest.approx(n / 400)
    assert found.test == "McNemar mid-p"


def test_sign_flips_equal_the_enumeration():
    generator = np.random.default_rng(0)
    for sums in (generator.integers(-6, 7, 12).astype(float), generator.normal(size=11)):
        patterns = np.array(list(itertools.product((-1, 1), repeat=len(sums))))
        totals = patterns @ np.abs(sums)
        below, at, above = flip_tails(sums)
        # Real numbers are rounded to a grid of 4,000 steps: exact for the rounded ones.
        assert below + at == pytest.approx((totals <= sums.sum() + 1e-9).mean(), abs=5e-3)
        assert below + at + above == pytest.approx(1)


def test_two_changed_of_twenty_are_no_evidence():
    """The bootstrap that stood here said p = 0.045; two of two signs have 1/4."""
    base = np.full(20, 0.5)
    candidate = base.copy()
    candidate[:2] -= 0.1
    found = compare_paired(base, candidate)
    assert found.p_worse == pytest.approx(0.25)
    assert found.verdict == UNDECIDED


@pytest.mark.parametrize("margin", [0.0, 0.02])
@pytest.mark.parametrize("kind", ["binary", "continuous"])
@pytest.mark.parametrize("n", [12, 300])
def test_mirrored_data_give_the_mirrored_answer(kind, n, margin):
    generator = np.random.default_rng(n)
    base, candidate = generator.random(n), generator.random(n)
    if kind == "binary":
        base, candidate = (base < 0.8).astype(float), (candidate < 0.7).astype(float)
    images = [i // 2 for i in range(n)]
    one = compare_paired(base, candidate, images, margin)
    other = compare_paired(candidate, base, images, margin)
    assert other.difference == pytest.approx(-one.difference)
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]), abs=2e-5)
    if margin == 0:
        assert other.p_worse == pytest.approx(one.p_not_inferior, abs=1e-9)


def test_one_sample_a_cluster_is_no_clustering():
    base, candidate = lost(9, 200, 2)
    assert compare_paired(base, candidate, range(200)) == compare_paired(base, candidate)


def test_order_and_names_of_clusters_do_not_matter():
    generator = np.random.default_rng(3)
    base, candidate = generator.random(90) < 0.8, generator.random(90) < 0.6
    images = generator.integers(0, 12, 90)
    order = generator.permutation(90)
    one = compare_paired(base, candidate, images.tolist(), margin=0.01)
    other = compare_paired(
        base[order], candidate[order], [f"image:{i}" for i in images[order]], margin=0.01
    )
    assert other.p_worse == pytest.approx(one.p_worse)
    assert other.interval == pytest.approx(one.interval)


@pytest.mark.parametrize("clusters", [1, 5])
def test_under_six_clusters_nothing_is_decided(clusters):
    base, candidate = lost(60, 60)
    found = compare_paired(base, candidate, [i % clusters for i in range(60)])
    assert (found.verdict, found.interval) == (UNDECIDED, None)
    assert found.reason == f"{clusters} independent clusters, 6 are needed"
    assert compare_paired(base, candidate, [i % 6 for i in range(60)]).verdict == WORSE


def test_the_three_answers():
    assert compare_paired(*lost(60, 1000)).verdict == WORSE
    assert compare_paired(*lost(0, 1000), margin=0.01).verdict == NOT_WORSE
    assert compare_paired(*lost(0, 100), margin=0.01).verdict == UNDECIDED
    # Worse, but not by more than the margin.
    found = compare_paired(*lost(60, 6000, 20), margin=0.02)
    assert compare_paired(*lost(60, 6000, 20)).verdict == WORSE
    assert found.verdict == NOT_WORSE


def test_no_differing_answer_has_the_binomial_bound():
    found = compare_paired(*lost(0, 500), margin=0.01)
    assert found.p_not_inferior == pytest.approx(0.99**500, rel=1e-3)
    edge = 1 - 0.025 ** (1 / 500)
    assert found.interval == pytest.approx((-edge, edge), abs=2e-6)


@pytest.mark.parametrize(("losses", "n", "margin"), [(3, 40, 0.3), (2, 100, 0.1), (4, 500, 0.03)])
def test_losses_alone_have_the_clopper_pearson_bound(losses, n, margin):
    totals = np.zeros(n)
    totals[:losses] = -1
    found = exact_bounds.at_most(totals, np.ones(n), -margin, 1.0)
    assert found == pytest.approx(stats.binom.cdf(losses, n, margin), rel=1e-4)


def test_the_exact_bound_keeps_its_level_for_losses_and_gains():
    """Every outcome of 30 answers, weighted by its probability: the worst case of a grid."""
    n, worst = 30, 0.0
    p_values = {}
    for down in range(13):
        for up in range(13 - down):
            totals = np.r_[-np.ones(down), np.ones(up), np.zeros(n - down - up)]
            p_values[down, up] = totals
    for lose, win in ((0.05, 0.0), (0.1, 0.05), (0.06, 0.02), (0.12, 0.1), (0.03, 0.02)):
        wrong = sum(
            stats.multinomial.pmf([d, u, n - d - u], n, [lose, win, 1 - lose - win])
            for (d, u), totals in p_values.items()
            if exact_bounds.at_most(totals, np.ones(n), win - lose, 1.0) <= 0.05
        )
        worst = max(worst, wrong)
    assert 0 < worst <= 0.05


def test_interval_and_tests_say_the_same():
    generator = np.random.default_rng(8)
    sizes = generator.geometric(0.2, 80).astype(float)
    totals = generator.integers(-2, 2, 80).astype(float)
    found = skewness.moments(totals, sizes)
    low, high = skewness.interval(found, 0.05)
    assert skewness.tails(found, low)[1] == pytest.approx(0.025)
    assert skewness.tails(found, high)[0] == pytest.approx(0.025)
    few = exact_bounds.interval(totals[:9], sizes[:9], 0.05, 1.0)
    assert exact_bounds.at_most(totals[:9], sizes[:9], few[0], 1.0) == pytest.approx(
        0.025, abs=1e-4
    )


def test_without_skewness_and_with_equal_weights_it_is_the_t_test():
    """Two-valued symmetric sums have no skewness; only the degrees of freedom differ."""
    totals = np.array([1.0, -1.0] * 40)
    found = skewness.moments(totals, np.ones(80))
    t, _ = stats.ttest_1samp(totals, -0.3)
    assert skewness.tails(found, -0.3)[1] == pytest.approx(stats.t.sf(t, 79))


def test_standard_error_equals_statsmodels():
    api = pytest.importorskip("statsmodels.api", reason="statsmodels is not installed")
    generator = np.random.default_rng(2)
    differences, images = generator.normal(size=120), generator.integers(0, 25, 120)
    fit = api.OLS(differences, np.ones(120)).fit(
        cov_type="cluster", cov_kwds={"groups": images, "df_correction": True}
    )
    sums = sums_of(differences, images.tolist())
    assert skewness.moments(sums.totals, sums.sizes).stderr == pytest.approx(fit.bse[0], rel=1e-6)


def test_design_effect_of_copies_is_their_number():
    values = np.repeat(np.random.default_rng(0).normal(size=50), 4)
    assert design_effect(values, [i // 4 for i in range(200)]) == pytest.approx(4)
    assert design_effect(np.ones(20), [0] * 20) == 1


def test_scores_without_a_range_need_enough_differing_clusters():
    base = np.full(60, 3.0)
    candidate = base.copy()
    candidate[:5] += 1.0
    found = compare_paired(base, candidate, margin=0.1)
    assert (found.verdict, found.interval) == (UNDECIDED, None)
    assert "20 are needed" in found.reason
    assert compare_paired(base, candidate).p_not_inferior == pytest.approx(0.5**5)


@pytest.mark.parametrize(
    ("base", "candidate", "options"),
    [
        ([1, 0], [1], {}),
        ([], [], {}),
        ([1, float("nan")], [1, 0], {}),
        ([1, 0], [1, 0], {"clusters": [1]}),
        ([1, 0], [1, 0], {"margin": -0.1}),
        ([1, 0], [1, 0], {"alpha": 1.0}),
    ],
)
def test_unusable_arguments_are_refused(base, candidate, options):
    with pytest.raises(ValueError, match=r"scores|cluster|margin"):
        compare_paired(base, candidate, **options)


def test_the_simulations_apply_the_rule_of_compare_paired():
    """The vectorised rates of the grid are those of the public function."""
    generator = np.random.default_rng(6)
    counts = simulation.sizes(generator, 40, 60, "geometric")
    totals, _ = simulation.binary(generator, counts, 0.1, -0.01, 0.3, "copy")
    inside = wrong = 0
    for row, size in zip(totals, counts, strict=True):
        base, candidate, images = [], [], []
        for image, (total, samples) in enumerate(zip(row, size, strict=True)):
            up, down = max(total, 0), max(-total, 0)
            base += [0.0] * int(up) + [1.0] * int(samples - up)
            candidate += [1.0] * int(samples - down) + [0.0] * int(down)
            images += [image] * int(samples)
        found = compare_paired(base, candidate, images, margin=0.01)
        inside += found.interval[0] <= -0.01 <= found.interval[1]
        wrong += found.p_not_inferior <= 0.05
    covered, inferior, _ = simulation.rates(totals, counts, totals != 0, -0.01)
    assert (inside / 40, wrong / 40) == pytest.approx((covered, inferior))


def test_both_p_values_and_the_two_sided_one_are_told():
    """6 lost and 1 won of 40: 7 differ; at the level itself the verdict is against."""
    base = [1] * 6 + [0] + [1] * 33
    candidate = [0] * 6 + [1] + [1] * 33
    found = compare_paired(base, candidate)
    tail = stats.binom.cdf(1, 7, 0.5) - stats.binom.pmf(1, 7, 0.5) / 2
    assert found.p_worse == pytest.approx(tail)
    assert found.p_not_inferior == pytest.approx(1 - tail)
    assert found.p_two_sided == pytest.approx(2 * tail)
    assert found.discordance == pytest.approx(7 / 40)
    assert compare_paired(base, candidate, alpha=found.p_worse).verdict == WORSE
    assert compare_paired(candidate, base, alpha=found.p_worse).verdict == NOT_WORSE
    assert compare_paired(base, candidate, alpha=found.p_worse * 0.999).verdict == UNDECIDED
    same = compare_paired(base, base)
    assert same.p_two_sided == 1.0


@pytest.mark.parametrize(("differing", "name"), [(0, "exact bound"), (200, "t of clusters")])
def test_many_differing_clusters_are_needed_for_the_t_test(differing, name):
    rng = np.random.default_rng(3)
    base = rng.integers(0, 2, 400).astype(float)
    candidate = base.copy()
    candidate[:differing] = 1 - candidate[:differing]
    assert compare_paired(base, candidate, margin=0.05).test.startswith(name)


def test_all_clusters_differing_alike_have_no_spread_and_so_the_exact_bound():
    """Without any spread a t test is not defined, however many clusters differ."""
    base, candidate = np.ones(400), np.zeros(400)
    assert compare_paired(base, candidate, margin=0.05).test == "exact bound"


@pytest.mark.parametrize(
    ("scores", "test"),
    [([0.0, 1.0], "exact bound"), ([0.0, 1.001], "none"), ([-0.001, 1.0], "none")],
)
def test_a_score_has_a_range_where_all_values_lie_from_0_to_1(scores, test):
    base = np.array(scores * 20)
    candidate = base.copy()
    candidate[0] = scores[1]
    assert compare_paired(base, candidate, margin=0.05).test == test
    assert compare_paired(candidate, base, margin=0.05).test == test
