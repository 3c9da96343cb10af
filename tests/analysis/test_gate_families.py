"""The gate's families through the real command: planted drops, corrected p values, its output."""

import json

import numpy as np
import pytest

from dynllava.cli import main


def grid(store, record, name, methods, tasks, samples, lost=0, cluster=None):
    """Store methods x tasks cells whose answers are right but for ``lost`` in the first cell."""
    items = []
    for method in range(methods):
        for task in range(tasks):
            scores = [1.0] * (samples * 3 // 4) + [0.0] * (samples - samples * 3 // 4)
            if method == task == 0:
                scores[:lost] = [0.0] * lost
            items.append((record(f"method{method}", f"task{task}", budget=8.0), scores))
    return str(store(name, items))


def gate(store, record, capsys, methods, tasks, samples, lost, *options):
    base = grid(store, record, "a", methods, tasks, samples)
    new = grid(store, record, "b", methods, tasks, samples, lost)
    code = main(["regress", base, new, "--json", *options])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("methods", "tasks", "samples", "lost", "p", "outcome"),
    [
        # Mid-p of 7 lost: 0.5**7 / 2 = 0.0039 <= 0.025 / 4, by the pooled test of the method.
        (4, 3, 40, 7, 0.5**8, "regression"),
        (4, 3, 100, 6, 0.5**7, "undecided"),
        (14, 7, 40, 7, 0.5**8, "undecided"),
        (14, 7, 100, 6, 0.5**7, "undecided"),
    ],
)
def test_planted_drops(store, record, capsys, methods, tasks, samples, lost, p, outcome):
    code, found = gate(store, record, capsys, methods, tasks, samples, lost)
    assert found["outcome"] == outcome
    assert code == (1 if outcome == "regression" else 0)
    (drop,) = found["largest_drops"]
    assert drop["effect"] == pytest.approx(-lost / samples)
    assert drop["p"] == pytest.approx(p)
    # Flagged or not, the drop stands there with what could have been found in its cell.
    assert drop["findable"] > lost / samples or outcome == "regression"
    pooled = next(check for check in found["checks"] if check["family"] == "method")
    assert pooled["p"] == pytest.approx(p)
    assert pooled["adjusted"] == pytest.approx(min(1, methods * p))
    assert pooled["verdict"] == outcome


def test_the_findable_drop_is_exact_where_no_answers_differ(store, record, capsys):
    from scipy import stats

    _, found = gate(store, record, capsys, 4, 3, 40, 0)
    # The pooled test needs mid-p 0.5**k / 2 <= 0.025 / 4: k = 7 of the cell's 40.
    drop = next(check["findable"] for check in found["checks"] if check["family"] == "accuracy")
    assert stats.binom.sf(6, 40, drop) == pytest.approx(0.8, abs=0.005)


def test_ten_questions_on_a_picture_are_one_observation(tmp_path, record, capsys):
    """Seven lost questions about one picture are one lost cluster of forty."""
    from dynllava.records import RecordStore

    def write(name, lost):
        rows = [
            {"doc_id": i, "score": float(i not in lost), "cluster": f"image:{i // 10}"}
            for i in range(400)
        ]
        store = RecordStore(tmp_path / name)
        store.append(record(), rows)
        return str(tmp_path / name)

    base = write("a", set())
    assert main(["regress", base, write("b", set(range(7))), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["largest_drops"][0]["p"] == pytest.approx(0.5)
    assert "40 clusters" in found["largest_drops"][0]["detail"]
    # The same seven answers on seven pictures are evidence.
    assert main(["regress", base, write("c", set(range(0, 70, 10)))]) == 1


def test_an_image_counts_once_over_all_tasks_of_a_method(tmp_path, record, capsys):
    from dynllava.records import RecordStore

    def write(name, value):
        store = RecordStore(tmp_path / name)
        for task in ("one", "two"):
            rows = [
                {"doc_id": i, "score": value if i < 6 else 1.0, "cluster": f"image:{i}"}
                for i in range(50)
            ]
            store.append(record(task=task), rows)
        return str(tmp_path / name)

    main(["regress", write("a", 1.0), write("b", 0.0), "--json"])
    pooled = json.loads(capsys.readouterr().out)["checks"][0]
    assert "100 samples, 50 clusters" in pooled["detail"]
    # Six pictures lost in both tasks: one of 2**6 sign patterns, not of 2**12.
    assert pooled["p"] == pytest.approx(0.5**6)


def test_the_terminal_gets_at_most_25_lines(store, record, capsys):
    generator = np.random.default_rng(0)
    sides = []
    for name, right in (("a", 0.9), ("b", 0.6)):
        items = [
            (record(f"method{m}", f"task{t}", budget=8.0), generator.random(80) < right)
            for m in range(9)
            for t in range(5)
        ]
        sides.append(str(store(name, items if name == "a" else items[:-9])))
    assert main(["regress", *sides]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 200
    assert lines[0].startswith("REGRESSION (exit 1)")
    assert main(["regress", *sides, "--markdown"]) == 1
    assert capsys.readouterr().out.startswith("## REGRESSION")


def test_strict_turns_undecided_into_1(store, record, capsys):
    assert gate(store, record, capsys, 2, 2, 40, 1)[0] == 0
    base = grid(store, record, "c", 2, 2, 40)
    assert main(["regress", base, base, "--strict"]) == 1
    assert "UNDECIDED (exit 1)" in capsys.readouterr().out


def test_scores_that_are_no_shares_are_tested_alone(store, record, capsys):
    """Perplexities have no common unit with answers: no pooled test, lower is better."""
    import dataclasses

    item = record(task="ppl")
    item = dataclasses.replace(
        item, task=dataclasses.replace(item.task, higher_is_better=False, scale=None)
    )
    low = [2.0 + i / 100 for i in range(60)]
    base = str(store("a", [(item, low)]))
    worse = str(store("b", [(item, [value * 1.1 for value in low])]))
    assert main(["regress", base, worse, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [check["family"] for check in found["checks"]][:2] == ["accuracy", "counted"]
    assert found["checks"][0]["verdict"] == "regression"
    assert main(["regress", worse, base]) == 0
