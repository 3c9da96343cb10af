"""The study: what is trained and scored once, what the records say, and how often it is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from dynllava.analysis.elastic import names
from dynllava.analysis.elastic.tables import elastic_tables
from dynllava.analysis.elastic.verdicts import (
    NOT_WORSE,
    UNDECIDED,
    WORSE,
    Study,
    decided,
    off_rate,
    per_image,
    verdicts,
)
from dynllava.analysis.tables.render import render

from dynllava import cli
from dynllava.embedded import dynamic_path
from dynllava.errors import UserError
from dynllava.records import MethodInfo, ModelInfo, RecordStore, RunRecord, Score, TaskInfo
from dynllava.records.reading import read_stores
from dynllava.studies.elastic import models, runs
from dynllava.uncertainty import compare_paired

ROOT = Path(__file__).parents[2]
STORE = ROOT / "results" / "elastic"
TASKS = ("attribute", "counting")


def put(store, role, vision, answers, seed=0, kept=None, data="same", variant=names.VARIANT):
    """Append a record of made-up answers, as many of each task."""
    half = len(answers) // 2
    parts = [answers[:half], answers[half:]]
    rows = [
        {
            "family": family,
            "exact": "".join(str(int(value)) for value in part),
            "objects": "".join(str(1 + index % 3) for index in range(len(part))),
            "kept": list(kept[:half] if kept is not None else [round(vision * 144)] * len(part)),
        }
        for family, part in zip(TASKS, parts, strict=True)
    ]
    own = {"role": role, "seed": seed, "vision": vision, "output": 0.5, "trained": variant}
    score = Score(float(np.mean(answers)), None, len(answers))
    record = RunRecord(
        "training",
        ModelInfo("made", image_tokens=144),
        MethodInfo("dynamic_llava", f"{role} {vision} {seed}", own),
        task=TaskInfo(names.SHORT, suite=names.SUITE, dataset_hash=data, metric="exact_match",
                      scale=1.0),
        scores={"exact_match": score, "kept_image_share": Score(vision)},
    )  # fmt: skip
    RecordStore(store).append(record, rows)


def test_a_planted_loss_is_worse_and_a_planted_tie_is_not(tmp_path):
    generator = np.random.default_rng(0)
    own = (generator.random(4000) < 0.9).astype(int)
    lost = own.copy()
    lost[np.flatnonzero(own)[:200]] = 0  # five points
    tie = own.copy()
    swapped = generator.choice(4000, 20, replace=False)
    tie[swapped] = 1 - tie[swapped]
    for rate, answers in ((0.1, lost), (0.2, tie)):
        put(tmp_path, names.OWN, rate, own)
        put(tmp_path, names.ELASTIC, rate, answers)
    put(tmp_path, names.OFF_RATE, 0.1, lost)
    study = Study.read(str(tmp_path))
    first, second = verdicts(study, 0)
    assert (first.rate, first.verdict) == (0.1, WORSE)
    assert first.comparison.difference == pytest.approx(-0.05)
    assert (second.rate, second.verdict) == (0.2, NOT_WORSE)
    assert [(rate, round(found.difference, 3)) for rate, _, found in off_rate(study, 0)] == [
        (0.1, -0.05)
    ]
    shown = "\n".join(
        render(table, "markdown") for table in elastic_tables(read_stores(tmp_path)[0])
    )
    assert "| vision 0.1 | 0 | 4,000 |" in shown
    assert "not worse by more than 1 point" in shown


def test_other_elastic_trainings_have_tables_of_their_own(tmp_path):
    ones, zeros = np.ones(600, int), np.zeros(600, int)
    put(tmp_path, names.OWN, 0.1, ones)
    put(tmp_path, names.ELASTIC, 0.1, ones)
    put(tmp_path, names.ELASTIC, 0.1, zeros, variant="elastic-rank")
    put(tmp_path, names.FROZEN, 0.1, zeros, variant="elastic-mixed-frozen")
    put(tmp_path, names.LONGER, 0.1, zeros, variant="vision-0.1-output-0.5-600")
    tables = {table.title: table for table in elastic_tables(read_stores(tmp_path)[0])}
    told = {title: table.rows[0][-1].text.split(" [")[0] for title, table in tables.items()}
    assert told == {
        "Elastic against trained for the rate": NOT_WORSE,
        "Elastic against trained for the rate (elastic-rank)": WORSE,
        "Predictors only, at equal steps": "-100.0",
        "The recipe at one rate, for twice the steps": "-100.0",
    }


def test_few_samples_stay_undecided(tmp_path):
    own = np.ones(60, int)
    other = own.copy()
    other[:1] = 0
    put(tmp_path, names.OWN, 0.1, own)
    put(tmp_path, names.ELASTIC, 0.1, other)
    assert [item.verdict for item in verdicts(Study.read(str(tmp_path)), 0)] == [UNDECIDED]


def test_runs_on_other_samples_are_not_compared(tmp_path):
    with pytest.raises(UserError, match="no records of this study"):
        Study.read(str(tmp_path))
    put(tmp_path, names.OWN, 0.1, np.ones(40, int))
    put(tmp_path, names.ELASTIC, 0.1, np.ones(40, int), data="other")
    with pytest.raises(UserError, match="answered other samples"):
        verdicts(Study.read(str(tmp_path)), 0)


def test_budgets_are_split_by_task_and_by_objects(tmp_path):
    generator = np.random.default_rng(1)
    fixed = (generator.random(1200) < 0.8).astype(int)
    other = fixed.copy()
    other[600:][fixed[600:] == 0] = 1  # counting gains all that it lacked
    put(tmp_path, names.SAME_MEAN, 0.1, fixed)
    put(tmp_path, names.PER_IMAGE, 0.1, other, kept=[10, 20] * 300)
    found = per_image(Study.read(str(tmp_path)), 0)
    assert len(found) == 1
    assert found[0].realised == pytest.approx(15 / 144)
    assert found[0].spread == pytest.approx((10 / 144, 20 / 144))
    assert found[0].parts["family", "attribute"].difference == 0
    assert found[0].parts["family", "counting"].difference > 0.15
    put(tmp_path, names.SAME_MEAN, 0.2, fixed, seed=1)
    put(tmp_path, names.PER_IMAGE, 0.2, other, seed=1, kept=[10, 20] * 300)
    tables = {table.title: table for table in elastic_tables(read_stores(tmp_path)[0])}
    by_task = [cell.text for cell in tables["By threshold minus same top-k, by task"].rows[0]]
    assert by_task[:3] == ["attribute", "0", "600"]
    assert by_task[4] == "-"  # seed 0 has no rate 0.2
    objects = [found[0].parts["objects", number] for number in (1, 2, 3)]
    assert sum(item.samples for item in objects) == 1200


def test_eight_true_losses_of_a_point_are_rarely_called_none():
    """At a true loss of exactly the margin, any "not worse" among eight comes in 5 % at most."""
    generator = np.random.default_rng(2)
    draws, wrong = 400, 0
    for _ in range(draws):
        found = []
        for _ in range(8):
            own = generator.random(3000)
            # Lost 3 %, won 2 %: a loss of one point among one in twenty that differs.
            first = (own < 0.92).astype(float)
            change = generator.random(3000)
            second = np.where(change < 0.03 / 0.92, 0.0, first) * first
            second = np.where((first == 0) & (generator.random(3000) < 0.02 / 0.08), 1.0, second)
            found.append(compare_paired(first, second, margin=0.01))
        wrong += NOT_WORSE in decided(found)
    # 5 % and three standard errors of 400 draws.
    assert wrong / draws <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5
    assert wrong > 0


def test_what_is_scored_covers_the_eight_rates_and_no_label_twice():
    found = list(runs.runs(models.ELASTIC["mixed"]))
    assert len({run.label for run in found}) == len(found)
    for role in (names.OWN, names.ELASTIC):
        short = [run.vision for run in found if (run.role, run.task) == (role, names.SHORT)]
        captions = [run.output for run in found if (run.role, run.task) == (role, names.CAPTIONS)]
        assert tuple(short) == names.VISION_RATES
        assert tuple(captions) == names.OUTPUT_RATES
    assert {variant.name for variant in models.fixed_variants()} == {
        run.variant.name for run in found if run.role == names.OWN
    }


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder in which every model of seed 0 is the shipped one, as if trained."""
    folder = tmp_path_factory.mktemp("work")
    source = folder / "source"
    shutil.copytree(dynamic_path(), source)
    assert cli.main(["calibrate", str(source), "--data", "embedded:1007:60", "--quiet"]) == 0
    (source / models.DONE).touch()
    for variant in [*models.fixed_variants(), models.ELASTIC["mixed"]]:
        target = models.target(variant, 0, folder) / "final"
        target.parent.mkdir(parents=True)
        target.symlink_to(source)
    return folder


@pytest.mark.slow
def test_the_command_scores_once_and_tells(work, tmp_path, capsys):
    out = str(tmp_path / "records")
    command = ["study", "elastic", "--work", str(work), "--out", out, "--limit", "6", "--split",
               "val"]  # fmt: skip
    assert cli.main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["tables"]
    assert len(told[0]["rows"]) == 8
    assert cli.main([*command, "--stages", "tell"]) == 0
    told = capsys.readouterr().out
    assert "| vision 0.1 | 0 | 36 |" in told
    assert "| output 0.3 | 0 | 6 |" in told
    lines = (Path(out) / "records.jsonl").read_text().splitlines()
    assert len(lines) == len(list(runs.runs(models.ELASTIC["mixed"])))
    assert cli.main(command) == 0
    assert (Path(out) / "records.jsonl").read_text().splitlines() == lines
    records = [json.loads(line) for line in lines]
    found = {}
    for record in records:
        own = record["method"]["parameters"]
        found[own["role"], own["vision"]] = record["scores"]
    assert {role for role, _ in found} >= {names.OWN, names.ELASTIC, names.PER_IMAGE}
    for rate in runs.PER_IMAGE_RATES:
        # To the next token, and 6 pictures of each of 6 families.
        by_score, same = (
            found[role, rate]["kept_image_share"]["value"]
            for role in (names.PER_IMAGE, names.SAME_MEAN)
        )
        assert abs(by_score - same) <= 0.51 / 144


def test_the_command_says_what_it_lacks(tmp_path, capsys):
    base = ["study", "elastic", "--work", str(tmp_path), "--out", str(tmp_path / "out"), "--quiet"]
    for more, message in (
        (["--seeds", "-1"], "accepted are numbers from 0"),
        (["--limit", "2"], "accepted is a number from 6"),
        (["--variant", "best"], "accepted are mixed"),
    ):
        assert cli.main([*base, *more]) == 2
        assert message in capsys.readouterr().err
