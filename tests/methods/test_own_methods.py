"""A method of one's own: written by the command, checked outside the clone, and faults found."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dynllava import cli, methods
from dynllava.conformance.invariants import check_method
from dynllava.methods import plugins
from dynllava.models import supported


@pytest.fixture
def forget(monkeypatch):
    """Leave no method behind for other tests."""
    monkeypatch.setattr(methods, "_EXTERNAL", dict(methods._EXTERNAL))
    monkeypatch.setattr(plugins, "_FILES", {})


@pytest.mark.usefixtures("forget")
def test_the_written_method_keeps_every_invariant(tmp_path, capsys):
    assert cli.main(["new-method", "my_method", "--out", str(tmp_path)]) == 0
    assert cli.main(["check-method", str(tmp_path / "my_method.py")]) == 0
    lines = capsys.readouterr().out
    assert lines.count("  passed ") == 8
    assert "failed" not in lines
    assert cli.main(["new-method", "my_method", "--out", str(tmp_path)]) == 2


@pytest.mark.slow  # starts pytest in a process of its own: about half a minute
def test_its_test_runs_outside_the_clone(tmp_path):
    assert cli.main(["new-method", "outside", "--out", str(tmp_path)]) == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_outside.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize(
    ("wrong", "right", "invariant"),
    [
        # Ranks by the newest row: looks at the answer where there is no cache.
        ('Attention("newest")', 'Attention("last_prompt")', "selection sees the prompt only"),
        # Scores that depend on the other rows of the batch.
        ("view.attention[:, :, 0].mean(1) * view.stream.column.flip(0)",
         "view.attention[:, :, 0].mean(1)", "batched equals one by one"),
        ("torch.rand_like(view.attention[:, :, 0].mean(1))",
         "view.attention[:, :, 0].mean(1)", "repeated calls agree"),
    ],
)  # fmt: skip
def test_a_fault_is_found_by_its_invariant(tmp_path, wrong, right, invariant):
    assert cli.main(["new-method", "faulty", "--out", str(tmp_path)]) == 0
    path = tmp_path / "faulty.py"
    source = path.read_text().replace(right, wrong)
    path.write_text(source.replace("if TYPE_CHECKING:\n    import torch", "import torch\n"
                                   "if TYPE_CHECKING:\n    pass"))  # fmt: skip
    (method,) = plugins.load_file(path)
    broken = [item.invariant for item in check_method(method()) if item.status == "failed"]
    assert invariant in broken


def test_the_page_of_supported_models_is_the_table():
    from pathlib import Path

    page = Path(__file__).parents[2] / "docs" / "supported_models.md"
    assert page.read_text() == supported.page(), "make it: python -m dynllava.models.supported"
