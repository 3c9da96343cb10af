"""Loading tasks for a sweep: benchmark and suite names to lmms-eval task objects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynllava.errors import UserError
from dynllava.records import hash_rows

from .access import FailedTask, input_problem, loading_problem, missing_judge
from .overlays import write_caption_overlay, write_overlay
from .registry import BENCHMARKS, SUITES, Benchmark

PROMPTS = ("llava", "lmms-eval")
SMOKE = ("embedded_attribute", "embedded_existence")


@dataclass
class LoadedTask:
    """A task ready to run.

    Attributes
    ----------
    name : str
        Canonical name in records.
    task : lmms_eval ConfigurableTask
        The task with its data.
    benchmark : Benchmark or None
        Its registry entry, None for tasks outside the paper's benchmarks.
    """

    name: str
    task: Any
    benchmark: Benchmark | None = None

    @property
    def split(self) -> str:
        """Split that is evaluated."""
        return self.task.config.test_split or self.task.config.validation_split

    @property
    def metric(self) -> str:
        """Metric that the task is ranked by: the registry's, else its first one."""
        return self.benchmark.metric if self.benchmark else next(iter(self.task.aggregation()))

    @property
    def higher_is_better(self) -> bool:
        """Direction of :attr:`metric`."""
        if self.benchmark:
            return self.benchmark.higher_is_better
        return self.task.higher_is_better()[self.metric] is not False

    @property
    def scale(self) -> float | None:
        """Full score of :attr:`metric`; None if it has none."""
        if self.benchmark:
            return self.benchmark.scale
        return 1.0 if self.higher_is_better else None

    def samples(self, limit: int | None) -> int:
        """Return how many documents a run with ``limit`` evaluates."""
        total = len(self.task.eval_docs_no_media)
        return total if limit is None else min(limit, total)

    def content_hash(self, limit: int | None) -> str:
        """Return a hash of the evaluated documents, their images and their prompts.

        Prompts are in it because the same data asked differently is another measurement.
        Images count as stored, without decoding them.
        """
        rows = _stored_rows(self.task.dataset[self.split], self.samples(limit))
        texts = (str(self.task.doc_to_text(doc)) for doc in self.task.eval_docs_no_media)
        return hash_rows([row, text] for row, text in zip(rows, texts, strict=False))

    def image_ids(self, count: int) -> list[str | None]:
        """Return ``image:<hash>`` of the first ``count`` documents' images, None without any.

        Documents that share their images share the id, in whatever task.  Images count as
        stored, without decoding them.
        """
        dataset = self.task.dataset[self.split]
        columns = [name for name, kind in dataset.features.items() if _holds_images(kind)]
        if not columns:
            return [None] * count
        return [_image_id(row) for row in _stored_rows(dataset.select_columns(columns), count)]


def expand(names: Iterable[str]) -> list[str]:
    """Return task names with suites replaced by their members, each once, in order."""
    found: list[str] = []
    for name in names:
        if name == "smoke":
            found += SMOKE
        elif name == "embedded":
            found += embedded_tasks()
        else:
            found += SUITES.get(name, (name,))
    return list(dict.fromkeys(found))


def suites() -> tuple[str, ...]:
    """Return the names of all suites."""
    return (*SUITES, "embedded", "smoke")


def embedded_tasks() -> list[str]:
    """Return the tasks of the embedded model, by name; its captions give a perplexity too."""
    from dynllava.embedded import tasks_folder

    names = sorted(path.stem for path in Path(tasks_folder()).glob("embedded_*.yaml"))
    return [*names, "embedded_caption_ppl"]


def load_tasks(
    names: Sequence[str],
    scratch: Path,
    folders: Sequence[Path] = (),
    prompts: str = "llava",
) -> list[LoadedTask | FailedTask]:
    """Return the tasks called ``names``, data loaded, in that order.

    A task that cannot be evaluated here (no judge, no login, no data, questions that show
    something else than images) is returned as such, so that the others can go on.

    Parameters
    ----------
    names : sequence of str
        Benchmarks of the registry, tasks of the embedded model, or tasks found in ``folders``
        (which come first: a folder may hold a benchmark with local data).
    scratch : Path
        Empty folder for generated overlays.
    folders : sequence of Path
        Folders with task YAMLs, e.g. from :mod:`dynllava.tasks.build`.
    prompts : str
        ``"llava"`` restores the LLaVA-1.5 prompts of upstream tasks, ``"lmms-eval"`` leaves
        them as they are.

    Raises
    ------
    UserError
        If a name is unknown.
    """
    from lmms_eval.tasks import TaskManager

    if prompts not in PROMPTS:
        raise UserError(f"prompts={prompts!r}: accepted are {', '.join(PROMPTS)}")
    check_folders(folders)
    include = [str(folder) for folder in folders]
    known = _known(folders)
    for name in names:
        if name not in known and name in BENCHMARKS:
            write_overlay(
                scratch, BENCHMARKS[name], protocol=prompts == "llava", name=BENCHMARKS[name].task
            )
    if any(name.startswith("embedded_") for name in names):
        from dynllava.embedded import tasks_folder

        include.append(str(tasks_folder()))
        for kind in ("ppl", "meteor"):
            write_caption_overlay(scratch, kind, Path(tasks_folder()) / "caption.parquet")
    manager = TaskManager(include_path=[*include, str(scratch)], include_defaults=False)
    return [_load(manager, name) for name in names]


def check_folders(folders: Sequence[Path]) -> None:
    """Raise :class:`UserError` unless every folder exists and holds a task file.

    A folder that is left out without a word would have the upstream data used in its place.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"--data {folder}: no such folder")
        if not any(Path(folder).rglob("*.yaml")):
            raise UserError(f"--data {folder}: no task file (*.yaml) in it")


def check_names(names: Iterable[str], folders: Sequence[Path]) -> None:
    """Raise :class:`UserError` for names that no suite, benchmark or folder has."""
    known = {*BENCHMARKS, *embedded_tasks(), *(_known(folders) if folders else ())}
    for name in expand(names):
        if name not in known:
            raise _unknown(name)


def _known(folders: Sequence[Path]) -> set[str]:
    """Return the names of the tasks and groups in ``folders``."""
    from lmms_eval.tasks import TaskManager

    include = [str(folder) for folder in folders]
    # Indexing upstream's 2,000 task files takes seconds, so only what is asked for is indexed.
    try:
        manager = TaskManager(include_path=include, include_defaults=False)
    except Exception as error:
        # A task file that is no YAML ends the whole index.
        raise UserError(f"--data {', '.join(include)}: {one_line(error)}") from error
    return {*manager.all_subtasks, *manager.task_index}


def _unknown(name: str) -> UserError:
    return UserError(
        f"unknown task {name!r}: accepted are the suites {', '.join(suites())}, the benchmarks "
        f"{', '.join(BENCHMARKS)}, and tasks in a folder given with --data"
    )


def _load(manager: Any, name: str) -> LoadedTask | FailedTask:
    benchmark = BENCHMARKS.get(name)
    registered = benchmark.task if benchmark and name not in manager.task_index else name
    if registered not in manager.task_index:
        raise _unknown(name)
    problem = missing_judge(benchmark)
    if problem is not None:
        return FailedTask(name, problem, benchmark)
    try:
        loaded = manager.load_task_or_group(registered, task_type="simple")
    except Exception as error:
        return FailedTask(name, loading_problem(error), benchmark)
    (task,) = loaded.values()
    if isinstance(task, dict):
        raise UserError(f"{name} is a group: name its tasks ({', '.join(task)})")
    found = LoadedTask(name, task, benchmark)
    problem = input_problem(task.dataset[found.split])
    return found if problem is None else FailedTask(name, problem, benchmark)


def one_line(error: BaseException) -> str:
    """Return what went wrong in one line; lmms-eval's retries hide it one level down."""
    attempt = getattr(error, "last_attempt", None)
    cause = attempt.exception() if attempt is not None else error
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {text}"[:500]


def _stored_rows(dataset: Any, count: int) -> Iterator[dict[str, Any]]:
    """Yield the first ``count`` rows with images as stored bytes, one batch in memory at a time."""
    for batch in dataset.select(range(count)).with_format("arrow").iter(batch_size=64):
        for row in batch.to_pylist():
            yield {name: _bytes(value) for name, value in row.items()}


def _holds_images(kind: Any) -> bool:
    from datasets import Image

    return isinstance(getattr(kind, "feature", kind), Image)


def _image_id(row: dict[str, Any]) -> str | None:
    images = [image for value in row.values() for image in _images(value)]
    if not images:
        return None
    digest = hashlib.sha256()
    for image in images:
        data = image if isinstance(image, bytes) else image.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return f"image:{digest.hexdigest()[:16]}"


def _images(value: Any) -> list[bytes | str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [image for item in value for image in _images(item)]
    if isinstance(value, str) and Path(value).is_file():
        return [Path(value).read_bytes()]
    return [value]


def _bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_bytes(item) for item in value]
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:
        # The path says where the data set was built, not what is in it.
        return value["path"] if value["bytes"] is None else value["bytes"]
    return value
