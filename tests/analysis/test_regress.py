import dataclasses

import numpy as np
import pytest
from dynllava.analysis import regress
from dynllava.analysis.measured_points import read_stores
from dynllava.analysis.policy import Policy, load_policy
from dynllava.analysis.regress_report import markdown

from dynllava.cli import main
from dynllava.errors import UserError
from dynllava.records import Counted

ALPHA = 0.05


def compare(base, candidate, policy=None):
    return regress.compare(read_stores(base)[0], read_stores(candidate)[0], policy or Policy())


def verdicts(checks, family):
    return [check.verdict for check in checks if check.family == family]


def test_equal_stores_pass(store, record):
    scores = [1] * 30 + [0] * 10
    base, same = store("a", [(record(), scores)]), store("b", [(record(), scores)])
    checks = compare(base, same)
    assert regress.exit_code(checks) == 0
    assert set(verdicts(checks, "counted")) == {"ok"}


def _flag_rate(draw, draws, seed):
    """Return the share of draws whose accuracy comparison is flagged, through the whole gate."""
    generator = np.random.default_rng(seed)
    check = regress.Check("accuracy", "synthetic", "accuracy", "ok", 0.0, 0.0)
    flagged = 0
    for _ in range(draws):
        base, candidate = draw(generator)
        outcome = regress.stats.compare_paired(base, candidate)
        item = dataclasses.replace(check, p=outcome.p_worse, mde=1.0, candidate=outcome.difference)
        done = regress._adjust([item], Policy(alpha=ALPHA))
        flagged += done[0].verdict == "regression"
    return flagged / draws


def _binary(lose, win, n=400):
    def draw(generator):
        base = generator.random(n) < 0.7
        flip = generator.random(n)
        candidate = np.where(base, flip >= lose, flip < win)
        return base.astype(float), candidate.astype(float)

    return draw


def test_pure_noise_is_flagged_no_more_than_alpha():
    # 0.7 x 0.06 lost against 0.3 x 0.14 won: no true change.
    rate = _flag_rate(_binary(0.06, 0.14), 1500, seed=3)
    assert rate <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / 1500) ** 0.5


def test_a_drop_of_known_size_is_caught_at_the_nominal_rate():
    from scipy import stats

    lose, win, n = 0.10, 0.06, 400
    drop = 0.7 * lose - 0.3 * win
    discordant = 0.7 * lose + 0.3 * win
    stderr = ((discordant - drop**2) / n) ** 0.5
    nominal = stats.norm.cdf(drop / stderr - stats.norm.ppf(1 - ALPHA))
    rate = _flag_rate(_binary(lose, win, n), 800, seed=4)
    assert nominal > 0.8
    assert rate == pytest.approx(nominal, abs=0.06)


def test_continuous_scores_keep_size_and_power():
    def draw(shift):
        def inner(generator):
            base = generator.normal(0.5, 0.2, 100)
            return base, base + generator.normal(shift, 0.1, 100)

        return inner

    assert _flag_rate(draw(0.0), 800, seed=5) <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / 800) ** 0.5
    from scipy import stats

    nominal = stats.norm.cdf(0.03 / 0.01 - stats.norm.ppf(1 - ALPHA))
    assert _flag_rate(draw(-0.03), 800, seed=6) == pytest.approx(nominal, abs=0.05)


def test_planted_drop_through_the_command(store, record, capsys):
    base = store("a", [(record(value=0.9), [1] * 90 + [0] * 10)])
    worse = store("b", [(record(value=0.7), [1] * 70 + [0] * 30)])
    assert main(["regress", str(base), str(worse)]) == 1
    assert "## REGRESSION" in capsys.readouterr().out
    assert main(["regress", str(worse), str(base)]) == 0
    assert "improvement" in capsys.readouterr().out


def test_lower_is_better_metrics_turn_the_test_around(store, record):
    task = dataclasses.replace(record().task, higher_is_better=False)
    low = dataclasses.replace(record(), task=task, samples_file=None)
    base = store("c", [(low, [2.0, 3.0] * 30)])
    high = store("d", [(low, [2.5, 3.6] * 30)])
    assert regress.exit_code(compare(base, high)) == 1
    assert regress.exit_code(compare(high, base)) == 0


def test_twenty_samples_do_not_claim_no_regression(store, record):
    base = store("a", [(record(), [1] * 15 + [0] * 5)])
    close = store("b", [(record(value=0.7), [1] * 14 + [0] * 6)])
    checks = compare(base, close)
    text = markdown(checks, Policy(), "a", "b")
    assert regress.exit_code(checks) == 0
    assert "smaller drops can be missed" in text
    assert regress.exit_code(compare(base, close, Policy(largest_mde=0.05))) == 2


def test_one_token_more_flops_is_caught(store, record):
    base = store("a", [(record("fastv", tokens=8.0), [1, 0])])
    more = store("b", [(record("fastv", tokens=9.0), [1, 0])])
    checks = compare(base, more)
    assert regress.exit_code(checks) == 1
    names = {check.quantity for check in checks if check.verdict == "regression"}
    assert names == {"prefill_flops", "kv_bytes", "mean_image_tokens"}
    less = compare(more, base)
    assert regress.exit_code(less) == 0
    assert "improvement" in verdicts(less, "counted")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"dataset_hash": "sha256:other"}, "data set"),
        ({"environment": {"dtype": "bfloat16"}}, "dtype"),
        ({"environment": {"device": "cuda"}}, "device"),
        ({"model_hash": "sha256:other"}, "checkpoint"),
        ({"parameters": {"seed": 1}}, "method parameters"),
        ({"counted": {}}, "did not count it"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(store, record, change, word):
    other = record()
    if "dataset_hash" in change:
        other = record(**change)
    if "environment" in change:
        environment = dataclasses.replace(other.environment, **change["environment"])
        other = dataclasses.replace(other, environment=environment)
    if "model_hash" in change:
        model = dataclasses.replace(other.model, checkpoint_hash=change["model_hash"])
        other = dataclasses.replace(other, model=model)
    if "parameters" in change:
        method = dataclasses.replace(other.method, parameters=change["parameters"])
        other = dataclasses.replace(other, method=method)
    if "counted" in change:
        other = dataclasses.replace(other, counted={})
    checks = compare(store("a", [(record(), [1, 0])]), store("b", [(other, [1, 0])]))
    assert regress.exit_code(checks) == 2
    assert any(word in check.detail for check in checks if check.verdict == "refused")


def test_missing_record_and_different_samples_are_refused(store, record):
    both = [(record(), [1, 0]), (record("fastv"), [1, 0])]
    checks = compare(store("a", both), store("b", both[:1]))
    assert regress.exit_code(checks) == 2
    checks = compare(store("c", [(record(), [1, 0])]), store("d", [(record(), [1, 0, 1])]))
    assert any("different samples" in check.detail for check in checks)


def test_nan_scores_are_refused_not_ignored(store, record):
    checks = compare(
        store("a", [(record(), [1, 0, 1])]), store("b", [(record(), [1, float("nan"), 1])])
    )
    assert regress.exit_code(checks) == 2
    assert any("finite score on one side only" in check.detail for check in checks)


def test_scores_without_samples_use_standard_errors(store, record):
    base, worse = store("a", [(record(), None)]), store("b", [(record(value=0.3), None)])
    checks = compare(base, worse)
    assert verdicts(checks, "accuracy") == ["regression"]
    assert any("unpaired" in check.detail for check in checks)


def test_empty_store_cannot_be_compared(store, tmp_path, record, capsys):
    (tmp_path / "empty").mkdir()
    full = store("a", [(record(), [1, 0])])
    assert main(["regress", str(full), str(tmp_path / "empty")]) == 2
    assert "candidate: no successful run record" in capsys.readouterr().err
    assert main(["regress", str(full), str(tmp_path / "absent")]) == 2
    assert main(["regress"]) == 2


def test_policy_file(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("alpha: 0.01\nignore: [ttft]\n")
    assert load_policy(str(path)) == Policy(alpha=0.01, ignore=("ttft",))
    for text, word in [
        ("beta: 1", "unknown"),
        ("alpha: x", "wrong type"),
        ("alpha: 2", "accepted"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=word):
            load_policy(str(path))
    with pytest.raises(UserError, match="cannot read"):
        load_policy(str(tmp_path / "absent.yaml"))


def test_ignored_quantities_are_left_out(store, record):
    base, worse = store("a", [(record(tokens=8.0), None)]), store("b", [(record(tokens=9.0), None)])
    ignore = ("prefill_flops", "kv_bytes", "mean_image_tokens")
    assert regress.exit_code(compare(base, worse, Policy(ignore=ignore))) == 0


def test_changed_convention_is_refused(store, record):
    other = dataclasses.replace(
        record(), counted=record().counted | {"kv_bytes": Counted(1, "byte", "other", "decode")}
    )
    checks = compare(store("a", [(record(), None)]), store("b", [(other, None)]))
    assert any("different convention" in check.detail for check in checks)


def test_summary_file_and_history(store, record, tmp_path, capsys):
    base = store("a", [(record(), [1, 0])])
    assert main(["regress", str(base), str(base), "--summary", str(tmp_path / "s.md")]) == 0
    assert "PASS" in (tmp_path / "s.md").read_text()
    items = [
        (record(commit="a" * 40), None),
        (record(commit="b" * 40, value=0.7, created="2026-01-02T00:00:00+00:00"), None),
    ]
    folder = store("h", items)
    assert main(["regress", "--history", str(folder), "--out", str(tmp_path / "pics")]) == 0
    assert sorted(p.name for p in (tmp_path / "pics").iterdir()) == [
        "history-1.png",
        "history-1.svg",
    ]
