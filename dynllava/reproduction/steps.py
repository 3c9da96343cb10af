"""The commands of a published row, as typed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from dynllava.errors import UserError
from dynllava.published.rows import HUB, TOWER, Row
from dynllava.tasks.registry import GENERATION, SUITES

INSTRUCTIONS = "llava_v1_5_mix665k.json"
"""LLaVA-1.5's instruction data: what the paper trained on, and what its samples must not share."""
TEMPLATE, ASPECT, DTYPE, PROMPTS = "vicuna_v1", "pad", "float16", "llava"
"""Protocol of the published scores."""
_ANNOTATIONS = {
    "lvis_vqa_single": "lvis_instruct4v_220k.json",
    "lvis_vqa_multi": "lvis_instruct4v_220k.json",
    "sharegpt4v_vqa": "sharegpt4v_instruct_gpt4-vision_cap100k.json",
}
_BUILT = "built"


@dataclass(frozen=True)
class Wanted:
    """What the caller changes of a row's commands.

    Attributes
    ----------
    checkpoint : str or None
        Weights in place of the published or trained ones.
    tasks : tuple of str
        Benchmarks of the row; empty: all.
    data : tuple of Path
        Folders with task files, in place of upstream's data.
    limit : int or None
        Documents a task.
    dtype, device, batch_size : str
    out : Path or None
        Record store; default: a folder of the row's own.
    margin : float
        What counts as agreement, in percent of a full score (perplexity: of the printed value).
    """

    checkpoint: str | None = None
    tasks: tuple[str, ...] = ()
    data: tuple[Path, ...] = ()
    limit: int | None = None
    dtype: str = DTYPE
    device: str = "auto"
    batch_size: str = "auto"
    out: Path | None = None
    margin: float = 1.0


@dataclass(frozen=True)
class Step:
    """One command and what it is for."""

    purpose: str
    command: tuple[str, ...]

    def typed(self) -> str:
        """Return the command as a shell takes it."""
        return shlex.join(self.command)


def runnable(row: Row) -> Row:
    """Return the row, or raise :class:`UserError` with the reason why it cannot be run."""
    if row.refused:
        raise UserError(f"{row.name}: {row.refused}")
    return row


def original(row: Row) -> bool:
    """Return whether a row's weights are in LLaVA's original format, without a vision tower."""
    return not HUB[row.base].startswith("llava-hf/")


def tasks_of(row: Row, wanted: Wanted) -> tuple[str, ...]:
    """Return the benchmarks to run.

    Raises
    ------
    UserError
        For one that the row has no number of.
    """
    for name in wanted.tasks:
        if name not in row.values:
            raise UserError(
                f"--tasks {name}: {row.name} prints no such score; accepted are "
                f"{', '.join(row.values)}"
            )
    return wanted.tasks or tuple(row.values)


def weights_of(row: Row, wanted: Wanted) -> str:
    """Return the model that the evaluation loads: the caller's, a trained folder, or the hub's."""
    if wanted.checkpoint is not None:
        return wanted.checkpoint
    return HUB[row.base] if row.training is None else f"{_trained(row)}/final"


def store_of(row: Row, wanted: Wanted) -> Path:
    """Return where records go; a run with a limit has a store of its own."""
    if wanted.out is not None:
        return wanted.out
    limit = "" if wanted.limit is None else f"-limit{wanted.limit}"
    return Path("runs") / f"{row.name.replace(':', '-')}{limit}"


def steps(row: Row, wanted: Wanted) -> list[Step]:
    """Return the commands of a row, in order; the last one evaluates."""
    tasks = tasks_of(runnable(row), wanted)
    found = []
    if wanted.checkpoint is None:
        found.append(Step("weights", ("hf", "download", HUB[row.base])))
        if original(row):
            found.append(Step("vision tower", ("hf", "download", TOWER)))
        if row.training is not None:
            found.append(Step("training (the paper: 8 A100 of 80 GB)", _training(row)))
    made = [name for name in GENERATION if any(task.startswith(name) for task in tasks)]
    if not wanted.data:
        found += [Step("data", _building(name)) for name in made]
    found.append(Step("can it start?", _checking(row, wanted, tasks)))
    found.append(Step("evaluation", tuple(["dynllava", *evaluation(row, wanted)])))
    return found


def evaluation(row: Row, wanted: Wanted) -> list[str]:
    """Return the arguments of ``dynllava`` that evaluate a row."""
    tasks = tasks_of(row, wanted)
    command = ["compare", "--pretrained", weights_of(row, wanted), "--methods", row.method]
    if row.budget is not None:
        command += ["--budgets", f"{row.budget:g}"]
    command += ["--tasks", *tasks]
    folders = [str(folder) for folder in wanted.data]
    if not folders and any(task in SUITES["generation"] for task in tasks):
        folders = [_BUILT]
    if folders:
        command += ["--data", *folders]
    command += ["--prompts", PROMPTS, "--conv-template", TEMPLATE, "--image-aspect", ASPECT]
    command += ["--dtype", wanted.dtype, "--device", wanted.device]
    command += ["--batch-size", wanted.batch_size, "--seeds", "1"]
    if wanted.limit is not None:
        command += ["--limit", str(wanted.limit)]
    return [*command, "--out", str(store_of(row, wanted))]


def _checking(row: Row, wanted: Wanted, tasks: tuple[str, ...]) -> tuple[str, ...]:
    known = [task for task in tasks if task not in SUITES["generation"]]
    command = ["dynllava", "check", weights_of(row, wanted), "--methods", row.method]
    command += ["--tasks", *known] if known and not wanted.data else []
    return (*command, "--conv-template", TEMPLATE, "--dtype", wanted.dtype)


def _training(row: Row) -> tuple[str, ...]:
    size = "13b" if "13b" in row.base else "7b"
    command = ["dynllava", "train", f"llava-1.5-{size}"]
    if original(row):
        command.append(f"model={HUB[row.base]}")
    command += [f"data.path={INSTRUCTIONS}", "data.image_folder=images", *(row.training or ())]
    return (*command, f"run.output_dir={_trained(row)}")


def _trained(row: Row) -> str:
    return f"weights/{row.name.replace(':', '-')}"


def _building(name: str) -> tuple[str, ...]:
    command = ["python", "-m", "dynllava.tasks.build", name]
    command += ["--annotations", _ANNOTATIONS[name], "--images", "images"]
    return (*command, "--train-annotations", INSTRUCTIONS, "--out", _BUILT)
