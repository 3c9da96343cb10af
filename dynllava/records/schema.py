"""The schema of a run record: plain dataclasses, one JSON line each, checked on write and read."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dynllava.errors import UserError
from dynllava.output.files import DEEPEST
from dynllava.plan.names import FULL

SCHEMA_VERSION = 3
OLDEST_VERSION = 1
"""Records from here on are read: what their schema did not have yet takes its default."""
KINDS = ("evaluation", "profile", "bench", "training", "serving")
STATUSES = ("ok", "failed")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain(value: Any) -> Any:
    """Return ``value`` with tuples as lists and mappings as dicts, as JSON would give it back."""
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value


def storable(value: Any) -> Any:
    """Return ``value`` for a record of a failure: what JSON cannot hold becomes its printed form.

    A run that failed because a parameter is NaN must still be stored with that parameter.
    """
    if isinstance(value, (tuple, list)):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {str(key): storable(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value).encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class ModelInfo:
    """Which weights ran.

    Attributes
    ----------
    name : str
        As the user gave it (hub name, folder, ``embedded``).
    checkpoint_hash : str or None
        Content hash (:func:`dynllava.records.hash_files`).
    layers, hidden, image_tokens : int or None
        Decoder layers, hidden size, image tokens per image.
    weights : str or None
        Where several weights are compared under one name: ``"dense"``, or ``"tuned"`` together with
        predictors.
    source : str or None
        Where those came from (hub name, folder).
    """

    name: str
    checkpoint_hash: str | None = None
    layers: int | None = None
    hidden: int | None = None
    image_tokens: int | None = None
    weights: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class MethodInfo:
    """Which method ran with which parameters.

    Attributes
    ----------
    name : str
        Registry name.
    label : str
        What tables and plots show (empty: ``name``).
    parameters : dict
        Every hyper-parameter as a plain value; tuples are stored as lists.
    budget : float or None
        Requested mean image tokens processed per decoder layer, where a budget was asked for.
    """

    name: str
    label: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    budget: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", plain(self.parameters))

    @property
    def shown(self) -> str:
        """What tables and plots call it: the label, else the name and the budget."""
        if self.label.strip():
            return self.label.strip()
        return self.name if self.is_dense or self.budget is None else f"{self.name} {self.budget:g}"

    @property
    def is_dense(self) -> bool:
        """Whether nothing was dropped."""
        return self.name == FULL

    def unseeded(self) -> MethodInfo:
        """Return the method without the seed of a draw."""
        return dataclasses.replace(self, parameters=self.without_seed())

    def without_seed(self) -> dict[str, Any]:
        """Return the parameters but for the seed of a draw."""
        return {
            name: value
            for name, value in self.parameters.items()
            if name != "seed" and not name.endswith("_seed")
        }


@dataclass(frozen=True)
class TaskInfo:
    """What was evaluated.

    Attributes
    ----------
    name, suite, split : str or None
        Canonical task name, the suite it ran in, the data split.
    dataset_hash : str or None
        Content hash of the evaluated rows (:func:`dynllava.records.hash_rows`).
    metric : str or None
        Key in ``scores`` of the metric that the task is ranked by.
    higher_is_better : bool
        False for perplexity and the like.
    scale : float or None
        Value of a perfect score (1 or 100); None for an unbounded metric.
    samples : int or None
        How many samples were evaluated.
    prompts : str or None
        ``"llava"`` (LLaVA-1.5's protocol) or ``"lmms-eval"`` (upstream's own), for tasks where
        these can differ.
    """

    name: str
    suite: str | None = None
    split: str | None = None
    dataset_hash: str | None = None
    metric: str | None = None
    higher_is_better: bool = True
    scale: float | None = None
    samples: int | None = None
    prompts: str | None = None


@dataclass(frozen=True)
class Score:
    """A metric's value, its standard error (same unit) and its number of samples."""

    value: float
    stderr: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Counted:
    """A quantity that was counted, not timed.

    Attributes
    ----------
    value : float
    unit : str
        ``MAC``, ``FLOP``, ``byte``, ``token``, ``1`` (a share) ...
    convention : str
        What is inside the number (``counted``, ``paper Eq. 13``, ``realised`` ...).
    mode : str
        ``prefill``, ``decode``, ``decode without cache`` ...
    """

    value: float
    unit: str
    convention: str
    mode: str


@dataclass(frozen=True)
class Measured:
    """A quantity that was measured: median and inter-quartile range over ``repeats`` runs.

    Attributes
    ----------
    median, iqr : float
        Over all rounds, in ``unit``.
    repeats : int
        Rounds, of all processes together.
    unit : str
        ``s``, ``token/s``, ``byte``, ``1`` (a ratio or share) ...
    higher_is_better : bool or None
        Direction; None where it was not stored (records of schema 1) or means nothing.
    rounds : dict
        Process -> every round's value, in the order they ran (empty: not stored).  A process is
        named by when it started and its id, so that names sort by time.
    """

    median: float
    iqr: float | None
    repeats: int
    unit: str
    higher_is_better: bool | None = None
    rounds: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """Where and with what a number was made (see :func:`dynllava.records.environment.capture`).

    ``image_aspect`` (``pad``, ``crop``, ``checkpoint``) and ``template`` are the protocol of images
    and prompts; None where no model was asked, and in records of schemas 1 and 2.
    """

    versions: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    dtype: str | None = None
    attention: str | None = None
    image_backend: str | None = None
    image_aspect: str | None = None
    template: str | None = None
    threads: int | None = None
    commit: str | None = None
    dirty: bool | None = None
    date: str = field(default_factory=_now)


@dataclass(frozen=True)
class RunRecord:
    """One run: what it scored and what it cost.

    ``kind`` is one of :data:`KINDS`, ``status`` one of :data:`STATUSES`; a failed run has a
    one-line ``error``.  ``samples_file`` is relative to the folder of the store.
    """

    kind: str
    model: ModelInfo
    method: MethodInfo
    task: TaskInfo | None = None
    status: str = "ok"
    error: str | None = None
    scores: dict[str, Score] = field(default_factory=dict)
    counted: dict[str, Counted] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)
    environment: Environment = field(default_factory=Environment)
    samples_file: str | None = None
    schema_version: int = SCHEMA_VERSION
    record_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: str = field(default_factory=_now)

    @property
    def task_name(self) -> str:
        """The task's name, empty for a record without one."""
        return "" if self.task is None else self.task.name

    def validate(self) -> None:
        """Raise :class:`UserError` naming the first field that does not fit the schema."""
        _check_version(self.schema_version)
        _build(RunRecord, dataclasses.asdict(self), "record")
        _check_values(self)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dicts."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the record as one JSON line without the newline, validated."""
        self.validate()
        return json.dumps(self.to_dict(), allow_nan=False, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunRecord:
        """Return the record that ``data`` describes, or raise :class:`UserError`."""
        if "schema_version" not in data:
            raise UserError("record: schema_version is missing, so this is not a run record", 1)
        _check_version(data["schema_version"])
        if data["schema_version"] < SCHEMA_VERSION:
            written = data["schema_version"]
            data = _completed(cls, {**data, "schema_version": SCHEMA_VERSION}, written)
        record = _build(cls, data, "record")
        _check_values(record)
        return record

    @classmethod
    def from_json(cls, line: str) -> RunRecord:
        """Parse one line (see :meth:`from_dict` for the errors)."""
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"record: not JSON ({error})", 1) from None
        if not isinstance(data, dict):
            raise UserError(f"record: a JSON object is expected, found {type(data).__name__}", 1)
        return cls.from_dict(data)


class UnknownSchemaError(UserError):
    """A record of a schema version that this package does not know."""


def _check_version(version: Any) -> None:
    known = isinstance(version, int) and not isinstance(version, bool)
    if not known or not OLDEST_VERSION <= version <= SCHEMA_VERSION:
        raise UnknownSchemaError(
            f"schema_version {version!r} is unknown: this dynllava reads versions "
            f"{OLDEST_VERSION} to {SCHEMA_VERSION}",
            1,
        )


def _completed(kind: Any, value: Any, written: int) -> Any:
    """Return data of schema ``written`` with the defaults of the fields that came later."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        kind = next(item for item in arguments if item is not type(None))
    if origin is dict and isinstance(value, dict):
        return {key: _completed(arguments[1], item, written) for key, item in value.items()}
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict)):
        return value
    later = {}
    for item in dataclasses.fields(kind):
        added = _LATER.get(kind.__name__, {}).get(item.name, 0)
        if written < added and item.name not in value:
            made = item.default_factory
            later[item.name] = item.default if made is dataclasses.MISSING else made()
    hints = _hints(kind)
    found = {key: _completed(hints.get(key), item, written) for key, item in value.items()}
    return {**found, **later}


_LATER: dict[str, dict[str, int]] = {
    "Environment": {"image_aspect": 3, "template": 3},
    "Measured": {"higher_is_better": 2, "rounds": 2},
    "ModelInfo": {"weights": 2, "source": 2},
    "TaskInfo": {"prompts": 2},
}
"""Class -> field -> the schema that added it; all have defaults."""


def _check_values(record: RunRecord) -> None:
    """Check what types alone cannot say."""
    if record.kind not in KINDS:
        raise UserError(f"record.kind={record.kind!r}: accepted are {', '.join(KINDS)}", 1)
    if record.status not in STATUSES:
        raise UserError(f"record.status={record.status!r}: accepted are {', '.join(STATUSES)}", 1)
    if (record.status == "failed") != (record.error is not None):
        raise UserError("record.error: a failed record has one, an ok record has none", 1)
    if not record.record_id or not set(record.record_id) <= set("0123456789abcdefABCDEF-_"):
        # It becomes a file name, so nothing that a path could hide in.
        raise UserError(f"record.record_id={record.record_id!r}: hexadecimal digits, - and _", 1)
    if record.kind == "evaluation" and record.task is None:
        raise UserError("record.task: an evaluation needs one", 1)
    metric = record.task.metric if record.task else None
    if record.status == "ok" and metric is not None and metric not in record.scores:
        raise UserError(f"record.task.metric={metric!r} is not among the scores", 1)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(kind: Any, value: Any, path: str) -> Any:
    """Return JSON data ``value`` as an instance of the type ``kind``, or raise naming ``path``."""
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _build(next(item for item in arguments if item is not type(None)), value, path)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise UserError(f"{path}: an object with text keys is expected, found {value!r}", 1)
        return {key: _build(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise UserError(f"{path}: a list is expected, found {value!r}", 1)
        return [_build(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
    if kind is Any:
        _check_plain(value, path)
        return value
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{path}: {kind.__name__} is expected, found {value!r}", 1)
    _check_plain(value, path)
    return value


def _build_dataclass(kind: Any, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{path}: an object is expected, found {value!r}", 1)
    names = {item.name for item in dataclasses.fields(kind)}
    wrong = [f"unknown {key}" for key in sorted(value.keys() - names)]
    wrong += [f"missing {key}" for key in sorted(names - value.keys())]
    if wrong:
        raise UserError(f"{path}: {', '.join(wrong)}", 1)
    hints = _hints(kind)
    return kind(**{key: _build(hints[key], item, f"{path}.{key}") for key, item in value.items()})


def _check_plain(value: Any, path: str, depth: int = 0) -> None:
    """Refuse depth and what JSON cannot hold: other types, NaN, infinities, lone surrogates."""
    if depth > DEEPEST:
        raise UserError(f"{path[:80]}...: nested more than {DEEPEST} levels deep", 1)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}: a finite number is expected, found {value!r}", 1)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{path}: not valid Unicode text: {value!r}", 1) from None
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_plain(item, f"{path}[{index}]", depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise UserError(f"{path}: text keys are expected, found {key!r}", 1)
            _check_plain(key, path)
            _check_plain(item, f"{path}.{key}", depth + 1)
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise UserError(f"{path}: {type(value).__name__} is no plain value", 1)
