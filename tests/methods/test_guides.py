"""The pages' code runs, and the guide's method passes what every method must."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from tiny import batch, pixels, prompts, tiny_model

from dynllava import methods
from dynllava.errors import UserError
from dynllava.models.config import model_dims
from dynllava.plan import PromptShape

DOCS = Path(__file__).parents[2] / "docs"


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.fixture
def guide(monkeypatch, tmp_path):
    """The guide's file, imported as a module of its own."""
    (tmp_path / "pyramid_of_the_guide.py").write_text(snippets("adding_a_method.md")[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(methods, "_EXTERNAL", {})
    monkeypatch.delitem(sys.modules, "pyramid_of_the_guide", raising=False)
    importlib.import_module("pyramid_of_the_guide")


def test_the_budget_snippet_runs():
    exec(compile(snippets("methods.md")[0], "methods.md", "exec"), {})


@pytest.mark.usefixtures("guide")
def test_the_guides_second_snippet_runs():
    exec(compile(snippets("adding_a_method.md")[1], "adding_a_method.md", "exec"), scope := {})
    assert scope["model"].method.name == "pyramid"


@pytest.mark.usefixtures("guide")
def test_the_guides_method_holds_the_invariants():
    model = tiny_model(kv_heads=2)
    assert "pyramid" in methods.names()
    model.set_method("pyramid", layers=(1, 3))
    ids, images = prompts(), pixels()
    inputs = batch(ids, images)
    settings = {"max_new_tokens": 5, "do_sample": False}
    cached = model.generate(**inputs, **settings)
    report = model.last_report
    for row, one in enumerate(ids):
        where = (one == 99).nonzero().flatten()
        before = int(where[0]) if len(where) else len(one)
        shape = PromptShape(before, len(where), len(one) - before - len(where))
        schedule = model.method.schedule(shape, 5)
        assert [layer[row] for layer in report.layer_tokens] == list(schedule.prefill_rows)
        assert [layer[row] for layer in report.kv_lengths] == schedule.kv_lengths(4)
    assert model.generate(**inputs, use_cache=False, **settings).tolist() == cached.tolist()
    for row in range(4):
        alone = model.generate(**batch([ids[row]], [images[row]]), **settings)
        assert cached[row, -5:].tolist() == alone[0, -5:].tolist()
    with torch.no_grad():
        model(**inputs)
    assert model.method.overhead(PromptShape(5, 16, 6), model_dims(model.config))
    with pytest.raises(UserError):
        model.set_method("pyramid", layers=(9,))
