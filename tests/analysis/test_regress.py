import dataclasses

import numpy as np
import pytest
from dynllava.analysis.gate import regress
from dynllava.analysis.gate.checks import exit_code
from dynllava.analysis.gate.policy import Policy, load_policy
from dynllava.analysis.gate.report import text as summary
from scipy.stats import binom

from dynllava.cli import main
from dynllava.errors import UserError
from dynllava.records import Counted
from dynllava.records.reading import read_stores


def compare(base, candidate, policy=None):
    return regress.compare(read_stores(base)[0], read_stores(candidate)[0], policy or Policy())


def verdicts(checks, family):
    return [check.verdict for check in checks if check.family == family]


def test_equal_stores_pass(store, record):
    scores = [1] * 30 + [0] * 10
    base, same = store("a", [(record(), scores)]), store("b", [(record(), scores)])
    checks = compare(base, same)
    assert exit_code(checks) == 0
    assert set(verdicts(checks, "counted")) == {"ok"}


def test_planted_drop_through_the_command(store, record, capsys):
    base = store("a", [(record(value=0.9), [1] * 90 + [0] * 10)])
    worse = store("b", [(record(value=0.7), [1] * 70 + [0] * 30)])
    assert main(["regress", str(base), str(worse)]) == 1
    assert capsys.readouterr().out.startswith("REGRESSION (exit 1)")
    assert main(["regress", str(worse), str(base)]) == 0
    assert "improvement" in capsys.readouterr().out


def test_lower_is_better_metrics_turn_the_test_around(store, record):
    task = dataclasses.replace(record().task, higher_is_better=False)
    low = dataclasses.replace(record(), task=task, samples_file=None)
    base = store("c", [(low, [2.0, 3.0] * 30)])
    high = store("d", [(low, [2.5, 3.6] * 30)])
    assert exit_code(compare(base, high)) == 1
    assert exit_code(compare(high, base)) == 0


def test_twenty_samples_do_not_claim_no_regression(store, record):
    base = store("a", [(record(), [1] * 15 + [0] * 5)])
    close = store("b", [(record(value=0.7), [1] * 14 + [0] * 6)])
    checks = compare(base, close)
    assert exit_code(checks) == 0
    assert exit_code(checks, strict=True) == 1
    assert summary(checks, Policy(), "a", "b").startswith("UNDECIDED")


def test_no_regression_needs_a_findable_drop(store, record):
    """Where a drop of the stated size would have been found, and only there, nothing is said."""
    right = [1] * 700 + [0] * 300
    base, same = store("a", [(record(), right)]), store("b", [(record(), right)])
    checks = compare(base, same)
    (cell,) = [check for check in checks if check.family == "accuracy"]
    # Five lost have mid-p 0.0156 <= 0.025: P(Bin(1000, d) >= 5) is 0.8.
    assert binom.sf(4, 1000, cell.findable) == pytest.approx(0.8, abs=0.005)
    assert summary(checks, Policy(), "a", "b").startswith("NO REGRESSION")
    strict = Policy(findable_drop=0.005)
    assert summary(compare(base, same, strict), strict, "a", "b").startswith("UNDECIDED")


def test_a_drop_at_the_tolerated_size_is_rarely_flagged(store, record):
    """A true drop of exactly the tolerance is no regression: the margin is in the test."""
    generator = np.random.default_rng(5)
    policy, flagged = Policy(tolerated_drop=0.02), 0
    for number in range(30):
        base = (generator.random(1000) < 0.7).astype(float)
        candidate = np.where(generator.random(1000) < 0.02, 0.0, base)
        candidate = np.where(generator.random(1000) < 0.006 / 0.7, 0.0, candidate)
        sides = [
            store(f"{name}{number}", [(record(), scores)])
            for name, scores in (("a", base), ("b", candidate))
        ]
        flagged += exit_code(compare(*sides, policy)) == 1
    # One test at 2.5 %, made twice: more than 5 of 30 has probability below 1 in 1,000.
    assert flagged <= 5


def test_one_token_more_flops_is_caught(store, record):
    base = store("a", [(record("fastv", tokens=8.0), [1, 0])])
    more = store("b", [(record("fastv", tokens=9.0), [1, 0])])
    checks = compare(base, more)
    assert exit_code(checks) == 1
    names = {check.quantity for check in checks if check.verdict == "regression"}
    assert names == {"prefill_flops", "kv_bytes", "mean_image_tokens"}
    less = compare(more, base)
    assert exit_code(less) == 0
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
    assert exit_code(checks) == 2
    assert any(word in check.detail for check in checks if check.verdict == "refused")


def test_missing_record_and_different_samples_are_refused(store, record):
    both = [(record(), [1, 0]), (record("fastv"), [1, 0])]
    checks = compare(store("a", both), store("b", both[:1]))
    assert exit_code(checks) == 2
    checks = compare(store("c", [(record(), [1, 0])]), store("d", [(record(), [1, 0, 1])]))
    assert any("different samples" in check.detail for check in checks)


def test_nan_scores_are_refused_not_ignored(store, record):
    checks = compare(
        store("a", [(record(), [1, 0, 1])]), store("b", [(record(), [1, float("nan"), 1])])
    )
    assert exit_code(checks) == 2
    assert any("finite score on one side only" in check.detail for check in checks)


def test_scores_without_samples_use_standard_errors(store, record):
    base, worse = store("a", [(record(), None)]), store("b", [(record(value=0.3), None)])
    checks = compare(base, worse)
    assert verdicts(checks, "accuracy") == ["regression"]
    assert any("unpaired" in check.detail for check in checks)


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("rises", [True, False])
def test_scores_without_samples_know_their_direction(store, record, higher_is_better, rises):
    first, second = record(value=0.3), record(value=0.8)
    task = dataclasses.replace(first.task, higher_is_better=higher_is_better)
    low, high = (dataclasses.replace(item, task=task) for item in (first, second))
    base, new = (low, high) if rises else (high, low)
    checks = compare(store("a", [(base, None)]), store("b", [(new, None)]))
    (verdict,) = verdicts(checks, "accuracy")
    assert (verdict == "regression") is (rises != higher_is_better)
    (effect,) = (check.effect for check in checks if check.family == "accuracy")
    assert effect == pytest.approx(0.5 if rises == higher_is_better else -0.5)


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
    assert exit_code(compare(base, worse, Policy(ignore=ignore))) == 0


def test_changed_convention_is_refused(store, record):
    other = dataclasses.replace(
        record(), counted=record().counted | {"kv_bytes": Counted(1, "byte", "other", "decode")}
    )
    checks = compare(store("a", [(record(), None)]), store("b", [(other, None)]))
    assert any("different convention" in check.detail for check in checks)


def test_summary_file_and_history(store, record, tmp_path, capsys):
    base = store("a", [(record(), [1, 0])])
    assert main(["regress", str(base), str(base), "--summary", str(tmp_path / "s.md")]) == 0
    assert "UNDECIDED" in (tmp_path / "s.md").read_text()
    items = [
        (record(commit="a" * 40), None),
        (record(commit="b" * 40, value=0.7, created="2026-01-02T00:00:00+00:00"), None),
    ]
    folder = store("h", items)
    assert main(["regress", "--history", str(folder), "--out", str(tmp_path / "pics")]) == 0
    names = {p.name for p in (tmp_path / "pics").iterdir()}
    families = ("accuracy", "compute", "memory", "times", "tokens")
    assert names == {f"history-{name}.{kind}" for name in families for kind in ("png", "svg")}


def test_history_has_a_page_a_family_with_readable_titles(store, record):
    from dynllava.analysis.gate.history import collect
    from dynllava.analysis.gate.history_labels import scaled, setting, words

    items = [(record(task=f"embedded_task{n}", tokens=float(n + 1)), None) for n in range(20)]
    commits, families = collect(read_stores(store("h", items))[0])
    assert commits == ["aaaaaaaa"]
    assert len(families["accuracy"]) == 20
    assert families["accuracy"][0].title == "Accuracy\nsynthetic-model\nTask0"
    # Costs of evaluations are means over their tasks: one panel a quantity.
    (compute,) = families["compute"]
    assert compute.title == "Prefill compute\nsynthetic-model\nmean over tasks"
    assert len(compute.series["full"]["aaaaaaaa"]) == 20
    assert setting("speed-b8-t56-i144-o64") == "batch 8, 56 text + 144 image, 64 out"
    assert words("kv_bytes") == "KV bytes"
    assert scaled(0.02, "s") == (1e3, "ms")
    assert scaled(3 * 2**20, "byte") == (2**-20, "MiB")
