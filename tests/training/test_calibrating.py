"""Thresholds for asked rates: measured on one half, checked on the other, stored, obeyed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava import cli
from dynllava.embedded import dynamic_path
from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.methods.calibration import Calibration
from dynllava.models.checkpoints import synthesised_official_config
from dynllava.models.loading import load_model
from dynllava.studies.elastic.runs import caption_scores
from dynllava.studies.elastic.scoring import Task, generated, teacher_forced
from dynllava.studies.teacher_forcing import prepared
from dynllava.training.calibrating import cut_off, first_answer
from dynllava.training.losses import IGNORED

CURVE = Calibration((0.1, 0.5, 0.9), (3.0, 0.0, -2.0), (0.11, 0.5, 0.88), "made", 5, 100)


@given(
    margins=st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=200, unique=True),
    rate=st.floats(0.01, 0.99),
)
@settings(max_examples=100, deadline=None)
def test_the_cut_off_keeps_the_asked_share(margins, rate):
    values = torch.tensor(margins)
    kept = int((values.double() > cut_off(values, rate)).sum())
    wanted = min(max(round(rate * len(margins)), 1), len(margins) - 1)
    assert kept == wanted


def test_thresholds_between_measured_rates_lie_on_a_line():
    assert CURVE.threshold(0.1) == 3.0
    assert CURVE.threshold(0.9) == -2.0
    assert CURVE.threshold(0.3) == pytest.approx(1.5)
    assert CURVE.threshold(0.7) == pytest.approx(-1.0)
    assert CURVE.worst() == pytest.approx(0.02)
    with pytest.raises(UserError, match=r"accepted is 0.1 to 0.9"):
        CURVE.threshold(0.95)
    assert Calibration.from_dict(CURVE.to_dict()) == CURVE
    assert Calibration.from_dict(json.loads(json.dumps(CURVE.to_dict()))) == CURVE
    assert Calibration.from_dict(None) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": [0.5, 0.1, 0.9]}, "not rising"),
        ({"thresholds": [1.0]}, "each with its threshold"),
        ({"thresholds": [1.0, float("nan"), 0.0]}, "no finite number"),
        ({"realised": ["a", "b", "c"]}, "no finite number"),
        ({"rates": 3}, "not rates"),
    ],
)
def test_a_damaged_calibration_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        Calibration.from_dict({**CURVE.to_dict(), **change})


def test_a_conversation_ends_before_its_first_answers_last_token():
    labels = torch.tensor([IGNORED, IGNORED, 5, 6, 7, IGNORED, 8, 9])
    item = {"input_ids": torch.arange(8), "labels": labels, "kinds": {"k": torch.arange(8)}}
    short, first, size = first_answer(item)
    assert (first, size) == (2, 2)
    assert short["input_ids"].tolist() == short["kinds"]["k"].tolist() == [0, 1, 2, 3]
    none = {**item, "labels": torch.full((8,), IGNORED)}
    assert first_answer(none)[2] == 0


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """The shipped model, calibrated anew on a few conversations as the page says."""
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    shutil.copytree(dynamic_path(), folder)
    config = json.loads((folder / "config.json").read_text())
    for name in ("vision_calibration", "output_calibration"):
        config["sparse_config"].pop(name, None)
    config["sparse_config"]["output_text_keep_rate"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"was trained for 0\.5; accepted are"):
        load_model(str(folder))[0].set_method("dynamic_llava", output_keep_rate=0.37)
    assert cli.main(["calibrate", str(folder), "--data", "embedded:1007:160", "--quiet"]) == 0
    return folder


def test_any_rate_is_legal_and_realised_within_three_points(calibrated):
    model, processor = load_model(str(calibrated))
    task = Task.load("caption", "val", processor, 50)
    for rate in (0.37, 0.65):
        model.set_method(create("dynamic_llava", output_keep_rate=rate))
        scores = caption_scores(generated(model, processor, task), teacher_forced(model, task))
        assert abs(scores["kept_output_share"].value - rate) < 0.03
        assert abs(scores["kept_output_share_forced"].value - rate) < 0.03
    with pytest.raises(UserError, match=r"calibrated for 0.05 to 0.95; accepted are these, or 1.0"):
        model.set_method("dynamic_llava", output_keep_rate=0.01)
    model.set_method("dynamic_llava", output_keep_rate=1.0)


def test_budgets_by_score_have_the_asked_mean_and_do_not_depend_on_the_batch(calibrated):
    model, processor = load_model(str(calibrated))
    task = Task.load("counting", "val", processor, 60)
    model.set_method(create("dynamic_llava", vision_keep_rate=0.2, per_image=True))
    together = teacher_forced(model, task)
    shares = torch.tensor(together.image_share)
    assert abs(shares.mean().item() - 0.2) < 0.05
    assert shares.std() > 0.005
    row = task.batches[0].rows[7]
    alone = Task(task.name, [task.rows[row]], [])
    alone.batches = [prepared(alone.rows, [0], processor)]
    one = teacher_forced(model, alone)
    assert one.image_share[0] == together.image_share[row]
    assert one.nll[0] == pytest.approx(together.nll[row], abs=1e-3)
    assert model.program.plan.adapts


def test_budgets_by_score_need_a_calibration(calibrated, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(calibrated, folder)
    config = json.loads((folder / "config.json").read_text())
    config["sparse_config"]["vision_calibration"] = None
    (folder / "config.json").write_text(json.dumps(config))
    model, _ = load_model(str(folder))
    with pytest.raises(UserError, match="behind dynllava calibrate"):
        model.set_method("dynamic_llava", vision_keep_rate=0.2, per_image=True)


def test_the_command_says_what_it_cannot_use(tmp_path, capsys, calibrated):
    assert cli.main(["calibrate", str(tmp_path / "none"), "--data", "embedded:1:4"]) == 2
    assert "no folder" in capsys.readouterr().err
    before = (calibrated / "config.json").read_text()
    assert cli.main(["calibrate", str(calibrated), "--data", "embedded:1:1", "--quiet"]) == 2
    assert "accepted are two or more" in capsys.readouterr().err
    assert (calibrated / "config.json").read_text() == before


def test_a_checkpoint_in_the_published_format_is_calibrated_like_ours(tmp_path):
    folder = tmp_path / "official"
    assert cli.main(["convert", str(dynamic_path()), str(folder), "--to", "official",
                     "--quiet"]) == 0  # fmt: skip
    assert cli.main(["calibrate", str(folder), "--data", "embedded:1007:40", "--quiet"]) == 0
    model, processor = load_model(str(folder))
    task = Task.load("attribute", "val", processor, 20)
    ours, other = load_model("embedded")
    # The words behind <image> stayed where they were.
    found = teacher_forced(model, task)
    wanted = teacher_forced(ours, Task.load("attribute", "val", other, 20))
    assert (found.values, found.image_share) == (wanted.values, wanted.image_share)
    assert found.nll == pytest.approx(wanted.nll, abs=1e-4)
    model.set_method("dynamic_llava", output_keep_rate=0.37)
    assert model.output_predictor.calibration.data == "embedded:1007:40"
    again = tmp_path / "hf"
    assert cli.main(["convert", str(folder), str(again), "--quiet"]) == 0
    load_model(str(again))[0].set_method("dynamic_llava", output_keep_rate=0.37)


def test_predictors_that_are_told_the_rate_have_no_official_format():
    config = json.loads((dynamic_path() / "config.json").read_text())
    config["sparse_config"]["elastic"] = "condition"
    with pytest.raises(UserError, match="have no official format"):
        synthesised_official_config(config, 96)
