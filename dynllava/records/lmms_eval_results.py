"""Import of plain lmms-eval result folders, whatever model made them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from dynllava.errors import UserError
from dynllava.plan.names import FULL

from .schema import Environment, MethodInfo, ModelInfo, RunRecord, Score, TaskInfo

PLUGIN = "dynamic_llava"
"""What lmms-eval calls the model of our plugin."""

RESULTS_SUFFIX = "_results.json"
# model_args that say which weights run how, and are no hyper-parameters of a method.
_NO_METHOD_PARAMETERS = frozenset(
    """pretrained model method dtype device device_map attn_implementation compile batch_size
    conv_template image_aspect image_backend vision_tower max_new_tokens max_batch_size plugin
    code_version trust_remote_code revision""".split()  # noqa: SIM905
)


def import_lmms_eval(folder: str | os.PathLike[str]) -> list[RunRecord]:
    """Return one ``evaluation`` record per task of every ``*_results.json`` under ``folder``.

    The record's id comes from the content of the results file and the task, so importing twice
    gives the same ids.  What lmms-eval does not write (hashes, counted cost) stays empty; a
    ``method=`` in the model's arguments is taken over, else the method is ``full``.

    Raises
    ------
    UserError
        If there is no results file, or one is damaged.  (The lmms-eval command line exits 0
        when an evaluation failed; the missing results file is how one notices.)
    """
    root = Path(folder)
    files = [root] if root.is_file() else sorted(root.rglob(f"*{RESULTS_SUFFIX}"))
    if not files:
        raise UserError(f"{root}: no lmms-eval results (*{RESULTS_SUFFIX}) in it", 1)
    return [record for file in files for record in _import_file(file)]


def lmms_eval_samples(results_file: str | os.PathLike[str], task: str) -> list[dict[str, Any]]:
    """Return what ``--log_samples`` wrote for ``task`` beside ``results_file`` ([] if nothing)."""
    path = Path(results_file)
    stamp = path.name.removesuffix(RESULTS_SUFFIX)
    samples = path.with_name(f"{stamp}_samples_{task}.jsonl")
    if not samples.exists():
        return []
    try:
        return [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{samples}: damaged ({error})", 1) from None


def _import_file(path: Path) -> list[RunRecord]:
    data = path.read_bytes()
    try:
        content = json.loads(data)
        results, config = content["results"], content["config"]
        tasks = [name for name in results if name in content["configs"]]
        return [_record(content, config, name, data) for name in tasks]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: no complete lmms-eval result ({error!r})", 1) from None


def _record(content: dict[str, Any], config: dict[str, Any], name: str, data: bytes) -> RunRecord:
    arguments = _arguments(config.get("model_args"))
    samples = content.get("n-samples", {}).get(name, {}).get("effective")
    scores = _scores(content["results"][name], samples)
    task = content["configs"][name]
    metric = next(iter(scores), None)
    better = content.get("higher_is_better", {}).get(name, {})
    method = str(arguments.get("method", FULL))
    return RunRecord(
        kind="evaluation",
        record_id=hashlib.sha256(data + name.encode()).hexdigest()[:32],
        model=ModelInfo(str(arguments.get("pretrained", config["model"]))),
        method=MethodInfo(
            method,
            parameters={
                key: value
                for key, value in arguments.items()
                if "method" in arguments and key not in _NO_METHOD_PARAMETERS
            },
        ),
        task=TaskInfo(
            name=name,
            split=task.get("test_split") or task.get("validation_split"),
            metric=metric,
            # lmms-eval leaves the flag out, or null, where the metric's default applies.
            higher_is_better=better.get(metric.split(",")[0]) is not False if metric else True,
            samples=samples,
        ),
        scores=scores,
        environment=Environment(
            versions={"lmms-eval": str(content.get("lmms_eval_version", "unknown"))},
            device=_text(config.get("device")),
            dtype=_text(arguments.get("dtype")),
            attention=_text(arguments.get("attn_implementation")),
            **_protocol(config.get("model"), arguments),
            date=str(content.get("date", "unknown")),
        ),
    )


def _protocol(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return how our own model made its pixels and prompts; other models do not say."""
    if model != PLUGIN:
        return {}
    backend = _text(arguments.get("image_backend", "pil"))
    return {
        "image_backend": "PIL" if backend == "pil" else backend,
        "image_aspect": _text(arguments.get("image_aspect", "pad")),
        "template": _text(arguments.get("conv_template")),
    }


def _scores(row: dict[str, Any], samples: int | None) -> dict[str, Score]:
    """Return the numeric metrics of one task; ``metric,none`` becomes ``metric``."""
    scores = {}
    for key, value in row.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or "_stderr" in metric or not _is_number(value):
            continue
        stderr = row.get(f"{metric}_stderr,{filter_name}")
        label = metric if filter_name == "none" else key
        scores[label] = Score(value, stderr if _is_number(stderr) else None, samples)
    return scores


def _arguments(text: Any) -> dict[str, Any]:
    """Return lmms-eval's ``model_args`` (``key=value,key=value`` or already a dict) as a dict."""
    if isinstance(text, dict):
        return text
    pairs = (item.partition("=") for item in str(text or "").split(",") if "=" in item)
    return {key.strip(): _value(value.strip()) for key, _, value in pairs}


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (bool, int)) or _is_number(value) else text


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
