"""Training configuration: plain dataclasses, read from YAML, changed by ``key=value``."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dynllava.errors import UserError
from dynllava.plan.names import LEARNED

from .policy import SparsityTargets

PREDICTOR_SIZES = ("d_model", "nhead", "dim_feedforward", "num_layers")
CONFIGS = Path(__file__).parent / "configs"
"""Shipped configurations, and accelerate's (``accelerate-*.yaml``)."""


@dataclass(frozen=True)
class DataConfig:
    """Where the instruction data are and how they become tokens.

    Attributes
    ----------
    path : str
        ``.json``, ``.jsonl``, ``.parquet``, a saved dataset, a hub name, or
        ``embedded:SEED:COUNT`` for the embedded model's generator.
    image_folder : str or None
        Image paths are relative to it.
    split : str
        Of a hub dataset.
    template : str or None
        ``vicuna_v1`` (LLaVA-1.5's default) or ``plain``; other families are trained in their
        checkpoint's own chat template.
    image_aspect : str or None
        ``pad`` (LLaVA-1.5's default), ``crop`` or ``checkpoint`` (the only one of other families).
    max_length : int
        Tokens; longer conversations are cut.
    skip_missing : bool
        Leave out records whose image file is missing instead of refusing to start.
    """

    path: str = ""
    image_folder: str | None = None
    split: str = "train"
    template: str | None = None
    image_aspect: str | None = None
    max_length: int = 2048
    skip_missing: bool = False


@dataclass(frozen=True)
class OptimConfig:
    """What is trained and how fast.

    Attributes
    ----------
    learning_rate, predictor_learning_rate, projector_learning_rate : float
        Of the language model, the predictors, the projector (if trained).
    weight_decay, predictor_weight_decay : float
        Not applied to biases and normalisation weights.
    train_language, train_projector : bool
        The vision tower is always frozen.  The paper freezes the projector; the official code
        trains it.
    scheduler : str
        Any of transformers' schedules.
    warmup_ratio : float
        Share of the steps, in [0, 1).
    tau_start, tau_end : float
        Gumbel temperature, exponential over the run.
    """

    learning_rate: float = 5e-6
    predictor_learning_rate: float = 2e-4
    projector_learning_rate: float = 5e-6
    weight_decay: float = 0.0
    predictor_weight_decay: float = 0.0
    train_language: bool = True
    train_projector: bool = False
    scheduler: str = "cosine"
    warmup_ratio: float = 0.03
    optimizer: str = "adamw_torch"
    max_grad_norm: float = 1.0
    tau_start: float = 1.0
    tau_end: float = 0.1


@dataclass(frozen=True)
class RunConfig:
    """How the run is carried out.

    Attributes
    ----------
    output_dir : str
    epochs : float
    max_steps : int
        Overrides ``epochs`` if positive.
    global_batch : int
        Samples per optimiser step over all processes; accumulation follows from it.
    device_batch : int
        Samples per device and forward pass.
    bf16, tf32, gradient_checkpointing, group_by_length : bool
        ``tf32`` takes effect on GPUs that have it.
    dtype : str
        Of the weights in memory.
    device : str
        ``auto`` or ``cpu``.
    attention : str
        Kernel of the layers without policy.
    workers : int
        Processes that load images.
    seed, logging_steps, save_steps, save_limit, report_to
        As in transformers' ``TrainingArguments``.
    """

    output_dir: str = "training-output"
    epochs: float = 1.0
    max_steps: int = -1
    global_batch: int = 64
    device_batch: int = 8
    bf16: bool = True
    tf32: bool = True
    gradient_checkpointing: bool = True
    group_by_length: bool = True
    dtype: str = "float32"
    device: str = "auto"
    attention: str = "sdpa"
    workers: int = 4
    seed: int = 42
    logging_steps: int = 1
    save_steps: int = 500
    save_limit: int = 2
    report_to: str = "none"


@dataclass(frozen=True)
class TrainingConfig:
    """Everything a training run depends on.

    Attributes
    ----------
    model : str
        Hub name, folder, or ``embedded``.
    method : str
        ``dynamic_llava`` trains predictors and model; any other method of the registry trains
        the model with that method active (``fastv`` is the paper's dagger row, ``full`` plain
        fine-tuning).
    method_args : dict
        Parameters of another method.
    sparse_layer : int
        First layer under the policy.
    predictor : dict
        Sizes of fresh predictors (``d_model``, ``nhead``, ``dim_feedforward``, ``num_layers``).
    sparsity : SparsityTargets
    data : DataConfig
    optim : OptimConfig
    run : RunConfig
    """

    model: str = ""
    method: str = LEARNED
    method_args: dict[str, Any] = field(default_factory=dict)
    sparse_layer: int = 2
    predictor: dict[str, int] = field(default_factory=dict)
    sparsity: SparsityTargets = field(default_factory=SparsityTargets)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def learns(self) -> bool:
        """Whether predictors are trained, not only weights under a method."""
        return self.method == LEARNED

    def validate(self) -> None:
        """Raise :class:`UserError` naming the first value that is not accepted."""
        for name, value in (("model", self.model), ("data.path", self.data.path)):
            if not value:
                raise UserError(f"{name} is empty: name a {name.split('.')[0]}")
        from transformers import SchedulerType
        from transformers.training_args import OptimizerNames

        self.sparsity.validate()
        run, optim = self.run, self.optim
        for name in ("global_batch", "device_batch", "logging_steps", "save_steps", "save_limit"):
            if getattr(run, name) < 1:
                raise UserError(f"run.{name}={getattr(run, name)}: accepted is 1 or more")
        if not 0 <= optim.warmup_ratio < 1:
            raise UserError(f"optim.warmup_ratio={optim.warmup_ratio}: accepted is [0, 1)")
        for name in (
            "learning_rate",
            "predictor_learning_rate",
            "projector_learning_rate",
            "weight_decay",
            "predictor_weight_decay",
            "max_grad_norm",
        ):
            value = getattr(optim, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"optim.{name}={value}: accepted is a finite number from 0")
        for name in ("tau_start", "tau_end"):
            value = getattr(optim, name)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"optim.{name}={value}: accepted is a finite number above 0")
        for name, size in self.predictor.items():
            if name not in PREDICTOR_SIZES:
                raise UserError(
                    f"unknown key predictor.{name}: known: {', '.join(PREDICTOR_SIZES)}"
                )
            _checked(size, int, f"predictor.{name}")
            if size < 1:
                raise UserError(f"predictor.{name}={size}: accepted is 1 or more")
        if not (math.isfinite(run.epochs) and run.epochs > 0):
            raise UserError(f"run.epochs={run.epochs}: accepted is a finite number above 0")
        if self.data.max_length < 1:
            raise UserError(f"data.max_length={self.data.max_length}: accepted is 1 or more")
        if run.device not in ("auto", "cpu"):
            raise UserError(f"run.device={run.device!r}: accepted are auto and cpu")
        for name, kinds in (("scheduler", SchedulerType), ("optimizer", OptimizerNames)):
            value, known = getattr(optim, name), [kind.value for kind in kinds]
            if value not in known:
                raise UserError(f"optim.{name}={value!r}: accepted are {', '.join(known)}")
        if run.workers < 0:
            raise UserError(f"run.workers={run.workers}: accepted is 0 or more")
        if not 0 <= run.seed < 2**32:
            raise UserError(f"run.seed={run.seed}: accepted is 0 to {2**32 - 1}")

    def accumulation(self, processes: int) -> int:
        """Return forward passes per optimiser step on each of ``processes``."""
        per_pass = self.run.device_batch * processes
        if self.run.global_batch % per_pass:
            raise UserError(
                f"run.global_batch={self.run.global_batch} is no multiple of {per_pass} "
                f"({processes} processes x run.device_batch={self.run.device_batch})"
            )
        return self.run.global_batch // per_pass


def read_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> TrainingConfig:
    """Return the validated configuration of a YAML file.

    Parameters
    ----------
    path : str or Path
        A file, or the name of a shipped configuration (``llava-1.5-7b``, ``embedded``, ...).
    overrides : sequence of str
        ``key=value`` with dotted keys, e.g. ``data.path=mix.json``; values are YAML.
    """
    file = Path(path)
    if not file.is_file():
        shipped = CONFIGS / f"{Path(path).name.removesuffix('.yaml')}.yaml"
        if not shipped.is_file():
            names = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
            known = ", ".join(name for name in names if not name.startswith("accelerate-"))
            raise UserError(f"no configuration {path}: give a YAML file or one of {known}")
        file = shipped
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: not a mapping of keys to values")
    for item in overrides:
        _override(values, item)
    config = build(TrainingConfig, values)
    config.validate()
    return config


def _override(values: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise UserError(f"{item!r}: overrides are key=value")
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UserError(f"{key}: {part} holds a value, not a section")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{item!r}: the value is no YAML") from error


def build(kind: type, values: dict[str, Any], prefix: str = "") -> Any:
    """Return a dataclass of ``kind`` from nested mappings; unknown keys and wrong types refused."""
    hints = typing.get_type_hints(kind)
    names = {item.name for item in dataclasses.fields(kind)}
    result = {}
    for name, value in values.items():
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 1)
            hint = (
                f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(sorted(names))}"
            )
            raise UserError(f"unknown key {prefix}{name}: {hint}")
        hint = hints[name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise UserError(f"{prefix}{name}: accepted is a section of keys and values")
            result[name] = build(hint, value, f"{prefix}{name}.")
        else:
            result[name] = _checked(value, hint, f"{prefix}{name}")
    return kind(**result)


def _checked(value: Any, hint: Any, name: str) -> Any:
    accepted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    accepted = tuple(typing.get_origin(kind) or kind for kind in accepted)
    if float in accepted and not isinstance(value, bool):
        try:
            # YAML reads 5e-6 (without a point) as text.
            return float(value)
        except (TypeError, ValueError):
            pass
    if isinstance(value, accepted) and (bool in accepted or not isinstance(value, bool)):
        return value
    kinds = " or ".join(kind.__name__ for kind in accepted).replace("NoneType", "null")
    raise UserError(f"{name}={value!r}: accepted is {kinds}")


def differing_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ between two nested mappings."""
    keys = []
    for name in sorted(old.keys() | new.keys()):
        left, right = old.get(name), new.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            keys += differing_keys(left, right, f"{prefix}{name}.")
        elif left != right:
            keys.append(f"{prefix}{name}")
    return keys
