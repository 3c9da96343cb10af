"""One row a case: a command, what is wrong with it, the line it must end with, the exit code.

A row is ``Case("convert {tmp}/a {tmp}/out", "why it fails", "part of the line", 2, make)``
where ``make(tmp)`` writes the row's files.  In a command, ``{tmp}`` is the row's folder (and the
working directory), ``{golden}`` the recorded tensors that come with the tests.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
OFFICIAL = GOLDEN / "dynamic_llava" / "checkpoint"
TOWER = GOLDEN / "dynamic_llava" / "tiny_clip_vision_tower"
Make = Callable[[Path], Any]


@dataclass(frozen=True)
class Case:
    """See the module's description.

    ``full`` = bytes after which the disk is full; ``leaves`` = the one folder that the command
    rightly makes although it fails (a sweep stores that a run failed).
    """

    command: str
    wrong: str
    line: str
    code: int = 2
    make: Make | None = None
    full: int | None = None
    leaves: str | None = None

    def __str__(self) -> str:
        return f"{(self.command.split() or ['dynllava'])[0]}: {self.wrong}"


def check(case: Case, tmp: Path, capsys: Any) -> None:
    """Run the case and check exit code, the last line, and that nothing was written."""
    if case.make is not None:
        case.make(tmp)
    before = snapshot(tmp)
    command = case.command.replace("{tmp}", str(tmp)).replace("{golden}", str(GOLDEN))
    capsys.readouterr()
    with disk_of(case.full):
        code = run(shlex.split(command))
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.strip()]
    assert "Traceback" not in err, err
    assert code == case.code, err
    assert lines, "no line on standard error"
    assert any(
        case.line.replace("{tmp}", str(tmp)) in line
        for line in (lines if code == 0 else lines[-1:])
    ), err
    if code:
        assert len(lines[-1]) < 1000, lines[-1]
        made = snapshot(tmp)
        if case.leaves:
            made = {name: data for name, data in made.items() if Path(name).parts[0] != case.leaves}
        assert made == before, f"left behind: {sorted(made.keys() ^ before.keys())}"


def run(arguments: list[str]) -> int:
    """Run a command in this process; ``model_args`` stands for the plugin's own arguments."""
    if arguments[:1] == ["model_args"]:
        return model_args(arguments[1])
    from dynllava.cli import main

    try:
        return main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


def model_args(text: str) -> int:
    """Read a ``--model_args`` text as lmms-eval does and hand it to the plugin."""
    import sys

    from lmms_eval.utils import simple_parse_args_string
    from lmms_eval_dynllava.arguments import ModelArguments

    from dynllava.errors import UserError

    try:
        ModelArguments.parse(simple_parse_args_string(text))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return relative path -> content (None for a folder)."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@contextmanager
def disk_of(size: int | None):
    """Let no file grow beyond ``size`` bytes, as on a full disk."""
    if size is None:
        yield
        return
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


# ---------------------------------------------------------------- files of a row


def text(name: str, content: str | bytes) -> Make:
    """Write one file."""

    def make(tmp: Path) -> None:
        path = tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def folder(name: str) -> Make:
    """Make an empty folder."""
    return lambda tmp: (tmp / name).mkdir(parents=True)


def several(*makes: Make) -> Make:
    """Do all of them in order."""

    def make(tmp: Path) -> None:
        for item in makes:
            item(tmp)

    return make


def official(*edits: Make) -> Make:
    """Copy the official tiny checkpoint to ``checkpoint`` (with its tower), then edit it."""

    def make(tmp: Path) -> None:
        copy_tree(OFFICIAL, tmp / "checkpoint")
        copy_tree(TOWER, tmp / TOWER.name)
        several(*edits)(tmp)

    return make


def embedded(*edits: Make) -> Make:
    """Copy the shipped dynamic model to ``checkpoint``, then edit it."""

    def make(tmp: Path) -> None:
        from dynllava.embedded import dynamic_path

        copy_tree(dynamic_path(), tmp / "checkpoint")
        several(*edits)(tmp)

    return make


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder; files are linked where the file system can, and broken up when edited."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, target / path.name)


def config(name: str = "checkpoint/config.json", drop: str = "", **values: Any) -> Make:
    """Change keys of a JSON file; ``a__b`` is key ``b`` of the object ``a``."""

    def make(tmp: Path) -> None:
        path = tmp / name
        data = json.loads(path.read_text())
        data.pop(drop, None)
        for key, value in values.items():
            *outer, last = key.split("__")
            inner = data
            for part in outer:
                inner = inner[part]
            inner[last] = value
        path.write_text(json.dumps(data))

    return make


def tensors(change: Callable[[dict[str, Any]], Any], name: str = "checkpoint") -> Make:
    """Change the tensors of ``model.safetensors``."""

    def make(tmp: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = tmp / name / "model.safetensors"
        state = load_file(path)
        change(state)
        save_file(state, path)

    return make


def as_bin(value: Callable[[dict[str, Any]], Any]) -> Make:
    """Put ``pytorch_model.bin`` with ``value(state)`` in the place of ``model.safetensors``."""

    def make(tmp: Path) -> None:
        import torch
        from safetensors.torch import load_file

        path = tmp / "checkpoint" / "model.safetensors"
        state = load_file(path)
        path.unlink()
        torch.save(value(state), path.with_name("pytorch_model.bin"))

    return make


def without(name: str) -> Make:
    """Remove a file."""
    return lambda tmp: os.unlink(tmp / name)


def cut(name: str, share: float = 0.5) -> Make:
    """Cut a file short."""

    def make(tmp: Path) -> None:
        data = (tmp / name).read_bytes()
        (tmp / name).write_bytes(data[: int(len(data) * share)])

    return make


def record(**changes: Any) -> str:
    """Return one line of a valid store; ``changes`` replace fields of the record."""
    from dynllava.records import MethodInfo, ModelInfo, RunRecord, Score, TaskInfo

    made = RunRecord(
        kind="evaluation",
        model=ModelInfo("m"),
        method=MethodInfo("full"),
        task=TaskInfo("t", metric="accuracy", scale=1.0, samples=4),
        scores={"accuracy": Score(0.5, 0.1, 4)},
    ).to_dict()
    return json.dumps({**made, **changes}) + "\n"


NESTED = "[" * 5000 + "]" * 5000
"""JSON that is nested beyond reason."""
