"""Invariants of the package: complete wheel, light import, one version, documented modules."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import dynllava

ROOT = Path(__file__).parents[1]
SOURCES = ("dynllava", "analysis", "plugins", "results/paper", "tools")
PLACES = {
    "dynllava": "dynllava",
    "dynllava.analysis": "analysis",
    "dynllava.paper": "results/paper",
    "lmms_eval_dynllava": "plugins/lmms_eval_dynllava",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def modules():
    return sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Return the unpacked wheel, built without network from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(".*", "tests", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", str(folder / "source"), "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "-q", "-w", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def test_wheel_holds_every_module_and_data_file_of_the_checkout(wheel):
    missing = []
    for package, folder in PLACES.items():
        target = wheel / package.replace(".", "/")
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT / folder)
            wanted = path.is_file() and "__pycache__" not in relative.parts
            if wanted and not (target / relative).is_file():
                missing.append(str(path.relative_to(ROOT)))
    assert missing == []


def test_wheel_installs_nothing_under_a_generic_name(wheel):
    tops = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"dynllava", "lmms_eval_dynllava"}


def test_wheel_installed_elsewhere_works_like_the_checkout(wheel, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "import dynllava.analysis, dynllava.paper, lmms_eval_dynllava;"
        "from importlib.resources import files;"
        "print(dynllava.analysis.__file__, dynllava.paper.__file__, lmms_eval_dynllava.__file__);"
        "assert files('dynllava.paper').joinpath('table01_understanding.csv').is_file()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(wheel)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(str(wheel)) for path in done.stdout.split())


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """Return a function that runs a command of the wheel, far from the checkout."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {**os.environ, "PYTHONPATH": str(wheel), "HF_HUB_OFFLINE": "1"}
    code = (
        "import sys, dynllava, dynllava.cli;"
        "assert dynllava.__file__.startswith(sys.argv.pop(1)), dynllava.__file__;"
        "sys.exit(dynllava.cli.main())"
    )

    def run(*arguments):
        command = [sys.executable, "-c", code, str(wheel), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
        assert done.returncode == 0, done.stderr
        assert str(ROOT) not in done.stdout
        return done.stdout

    run.folder = folder
    return run


def test_wheel_lists_methods_and_prints_a_table_without_the_checkout(installed):
    assert "fastv: " in installed("methods")
    assert "dynamic_llava" in installed("table", "1")


@pytest.mark.slow  # half a minute of evaluations
def test_wheel_runs_the_demo_without_the_checkout(installed):
    out = installed("demo", "--limit", "5", "--out", "demo", "--quiet")
    assert "Look at:" in out
    for name in ("report.html", "tables.md", "results/records.jsonl"):
        assert (installed.folder / "demo" / name).is_file()


def test_import_is_light():
    code = (
        "import sys, dynllava, dynllava.cli;"
        "heavy = 'torch', 'transformers', 'lmms_eval', 'matplotlib', 'numpy', 'pandas';"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_command_line_help_needs_no_heavy_package():
    code = (
        "import sys; from dynllava.cli import build_parser; build_parser();"
        "heavy = 'transformers', 'lmms_eval', 'matplotlib', 'pandas';"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_the_version_is_written_once():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert "version" not in PROJECT["project"]
    pattern = re.compile(rf"""["']{re.escape(dynllava.__version__)}["']""")
    holders = [path for path in modules() if pattern.search(path.read_text(encoding="utf-8"))]
    assert [path.name for path in holders] == ["_version.py"]
    assert f"## {dynllava.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_readme_lines_name_environments_that_exist():
    lines = re.findall(r"^python -m pip install .*$", (ROOT / "README.md").read_text(), re.M)
    assert len(lines) == 2
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    for line in lines:
        name = re.search(r"tox -e (\w+)$", line).group(1)
        assert f"testenv:{name}" in config
    assert "testenv:py" in config
    assert "tox -e py" in lines[-1]


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", ["cpu", "gpu", "working"])
def test_torchvision_is_removed_only_where_it_cannot_work(name, tmp_path):
    """A stand-in torch and torchvision: the script must ask pip for removal in one case only."""
    cuda = "'12.8'" if name == "gpu" else "None"
    write(
        tmp_path / "torch.py",
        f"__version__ = '2'\nclass version:\n    cuda = {cuda}\n    hip = None\n",
    )
    write(tmp_path / "torchvision.py", "" if name == "working" else "raise RuntimeError('nms')\n")
    write(tmp_path / "timm.py", "import torchvision\n")
    write(tmp_path / "pip.py", "import sys\nprint('pip', *sys.argv[1:])\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "fix_torchvision.py")],
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for package in ("torchvision", "timm"):
        removed = f"pip uninstall -q -y {package}" in done.stdout
        assert removed == (name == "cpu")


def write(path, text):
    path.write_text(text)


def test_the_readme_shows_what_the_records_say():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "readme_results.py"), "--check"], check=False
    )
    assert done.returncode == 0
