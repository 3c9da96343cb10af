"""``dynllava demo`` end to end with a random model in place of the trained one."""

import pytest
from dynllava.analysis.report import overlay

from dynllava.cli import main


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """A random model of the embedded architecture: its answers mean nothing."""
    from dynllava.embedded.model import build_model, build_processor

    folder = tmp_path_factory.mktemp("model") / "random"
    build_model(0).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


def test_demo_writes_everything_it_names(random_model, tmp_path, capsys):
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    arguments = ["demo", "--pretrained", str(random_model), "--out", str(tmp_path / "demo"),
                 "--limit", "2", "--methods", "fastv", "--budgets", "96", "--quiet"]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for name in ("report.html", "report.md", "tables.md", "pareto", "results/records.jsonl"):
        assert (tmp_path / "demo" / name).exists()
        assert name in shown
    assert (tmp_path / "demo" / "pareto" / "own-random-image_tokens-benchmarks.png").exists()
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "fastv 96" in page
    found, notes = overlay.read_all(tmp_path / "demo" / "results")
    assert notes == []
    assert {item.method for item in found} == {"full", "fastv"}
    dense = next(item for item in found if item.method == "full")
    assert len(dense.kept) == dense.grid**2 == 144


def test_show_writes_a_picture_and_an_overlay(random_model, tmp_path, capsys):
    from dynllava.embedded import generate_scene

    generate_scene(3).image.save(tmp_path / "scene.png")
    arguments = ["show", str(tmp_path / "scene.png"), "describe the image.", "--pretrained",
                 str(random_model), "--method", "structure", "--store", str(tmp_path / "res"),
                 "--max-new-tokens", "6"]  # fmt: skip
    assert main(arguments) == 0
    assert "144 of 144 patches kept" in capsys.readouterr().out
    assert (tmp_path / "scene-structure.png").read_bytes().startswith(b"\x89PNG")
    item = overlay.read(tmp_path / "res" / "overlays" / "scene-structure.json")
    assert "".join(text for text, _ in item.words).strip() == item.answer


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["show", "absent.png", "what?"], "absent.png: not a readable image"),
        (["demo", "--limit", "0"], "accepted is a number from 1"),
    ],
)
def test_wrong_usage_is_one_line(arguments, word, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1
