"""Run records: what a run scored and what it cost, in one schema and one append-only store."""

from .hashing import hash_files, hash_rows
from .lmms_eval_results import import_lmms_eval
from .reading import read_tree
from .schema import (
    SCHEMA_VERSION,
    Counted,
    Environment,
    Measured,
    MethodInfo,
    ModelInfo,
    RunRecord,
    Score,
    TaskInfo,
)
from .store import Problem, RecordStore

__all__ = [
    "SCHEMA_VERSION",
    "Counted",
    "Environment",
    "Measured",
    "MethodInfo",
    "ModelInfo",
    "Problem",
    "RecordStore",
    "RunRecord",
    "Score",
    "TaskInfo",
    "hash_files",
    "hash_rows",
    "import_lmms_eval",
    "read_tree",
]
