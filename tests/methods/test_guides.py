"""The pages' code runs as it stands, and the guide's methods pass what every method must."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny import batch, pixels, prompts, tiny_model

from dynllava import methods
from dynllava.cli import main
from dynllava.errors import UserError
from dynllava.methods import plugins
from dynllava.models.config import model_dims
from dynllava.plan import PromptShape
from dynllava.records import read_tree

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = ("key_norm", "far_apart", "pyramid")


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.fixture
def guide(monkeypatch, tmp_path):
    """The guide's files in the current folder, and no method left behind for other tests."""
    files = snippets("adding_a_method.md")[:3]
    assert [text.split("\n", 1)[0] for text in files] == [f"# {name}.py" for name in EXAMPLES]
    for name, text in zip(EXAMPLES, files, strict=True):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods, "_EXTERNAL", dict(methods._EXTERNAL))
    monkeypatch.setattr(plugins, "_FILES", {})
    return tmp_path


@pytest.mark.parametrize("snippet", snippets("methods.md"))
def test_the_snippets_of_the_methods_page_run(snippet):
    exec(compile(snippet, "methods.md", "exec"), {})


@pytest.mark.usefixtures("guide")
def test_the_guides_last_snippet_runs():
    exec(compile(snippets("adding_a_method.md")[3], "adding_a_method.md", "exec"), scope := {})
    assert scope["model"].method.name == "pyramid"


@pytest.mark.usefixtures("guide")
@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_passes_check_method(name, capsys):
    assert main(["check-method", f"{name}.py"]) == 0
    lines = capsys.readouterr().out
    assert "  failed " not in lines
    assert lines.count("  passed ") >= 7


@pytest.mark.usefixtures("guide")
def test_the_examples_keep_what_their_pages_say():
    (norm,), (apart,) = (plugins.load_file(f"{name}.py") for name in EXAMPLES[:2])

    class View:
        keys = torch.tensor([[[[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]]]])
        # The second lies beside the first; the third and the fourth are the farthest pair.
        features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])

        def count(self):
            return 3

    assert norm().score(View()).tolist() == [[5.0, 1.0, 0.0]]
    assert apart().choose(View()).tolist() in ([True, False, True, True], [False, True, True, True])


@pytest.mark.usefixtures("guide")
def test_the_pyramids_schedule_is_what_the_layers_see():
    plugins.load_file("pyramid.py")
    model = tiny_model(kv_heads=2)
    model.set_method("pyramid", layers=(1, 3))
    ids = prompts()
    model.generate(**batch(ids, pixels()), max_new_tokens=5, do_sample=False)
    report = model.last_report
    for row, one in enumerate(ids):
        where = (one == 99).nonzero().flatten()
        before = int(where[0]) if len(where) else len(one)
        shape = PromptShape(before, len(where), len(one) - before - len(where))
        schedule = model.method.schedule(shape, 5)
        assert [layer[row] for layer in report.layer_tokens] == list(schedule.prefill_rows)
        assert [layer[row] for layer in report.kv_lengths] == schedule.kv_lengths(4)
    assert model.method.overhead(PromptShape(5, 16, 6), model_dims(model.config))
    with pytest.raises(UserError):
        model.set_method("pyramid", layers=(9,))


@pytest.mark.usefixtures("guide")
def test_a_method_of_a_file_is_first_class(capsys):
    """Compared at a budget, profiled, timed and reported, by its name and ``--plugin`` alone."""
    plugin = ["--plugin", "key_norm.py"]
    task = ["--tasks", "embedded_existence", "--limit", "2", "--device", "cpu", "--quiet"]
    assert (
        main(
            [
                "compare",
                *plugin,
                "--methods",
                "full",
                "key_norm",
                "--budgets",
                "67",
                *task,
                "--out",
                "own",
            ]
        )
        == 0
    )
    assert main(["profile", *plugin, "--method", "key_norm:layer=3", "--store", "own/profile"]) == 0
    speed = [
        "--model",
        "embedded",
        "--repeats",
        "1",
        "--output-tokens",
        "2",
        "--store",
        "own/bench",
    ]
    assert main(["bench", *plugin, "--methods", "key_norm:layer=3", *speed]) == 0
    assert main(["report", *plugin, "report.html", "--results", "own"]) == 0
    records, problems = read_tree("own")
    assert problems == []
    kinds = {record.kind for record in records if record.method.name == "key_norm"}
    assert kinds == {"evaluation", "profile", "bench"}
    compared = [record for record in records if record.kind == "evaluation"]
    solved = next(item for item in compared if item.method.name == "key_norm")
    assert solved.counted["mean_image_tokens"].value == pytest.approx(67, abs=1)
    assert "key_norm" in Path("report.html").read_text()
    capsys.readouterr()
