"""Carry out a training run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from dynllava.errors import UserError
from dynllava.models.layouts import inspect
from dynllava.output import said
from dynllava.output.files import check_output_folder

from . import checkpointing
from .config import TrainingConfig, read_config

FINAL = "final"
LOG = "log.jsonl"


def run(args: argparse.Namespace) -> int:
    """Plan or train; return the exit code."""
    config = read_config(args.config, args.overrides)
    if args.processes < 1:
        raise UserError(f"--processes {args.processes}: accepted is a number from 1")
    if args.dry_run:
        from .plan import plan

        lines = plan(config, args.processes)
        if args.json:
            print(json.dumps({"plan": lines}, indent=2))
        elif not args.quiet:
            print("\n".join(lines))
        return 0
    folder = train(config, resume=args.resume, log=not (args.json or args.quiet))
    said.wrote(args, [folder], "trained model")
    return 0


def train(config: TrainingConfig, resume: bool = False, log: bool = True) -> Path:
    """Train as configured.

    Parameters
    ----------
    config : TrainingConfig
    resume : bool
        Continue from the last complete checkpoint of ``run.output_dir``.
    log : bool
        Print a line each ``run.logging_steps``; the log file is written either way.

    Returns
    -------
    Path
        Folder of the trained model: loads with :func:`dynllava.models.loading.load_model`.

    Raises
    ------
    UserError
        If the output folder holds another run, the data are not usable, the loss stops being
        finite, or a checkpoint cannot be written (the ones before it stay).
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    from .prepare import picture_tokens, prepare_data, prepare_model, stored_files
    from .sharding import check_records
    from .trainer import DynamicTrainer, training_arguments

    output = Path(config.run.output_dir)
    check_output_folder(output, "run.output_dir")
    # Before the arguments: once these know ZeRO-3, transformers would split the modules of the
    # empty outline that checkpoints are read into. The engine splits the loaded weights.
    model, processor = prepare_model(config)
    arguments = training_arguments(config)
    dataset = prepare_data(config, processor, picture_tokens(model))
    check_records(dataset.has_image, is_deepspeed_zero3_enabled(), arguments.world_size)
    identity = checkpointing.identity(
        dataclasses.asdict(config),
        {**dataclasses.asdict(dataset.statistics), "missing": len(dataset.missing)},
        arguments.world_size,
    )
    start = _start(output, identity, resume, arguments)
    trainer = DynamicTrainer(config, model, dataset, arguments, processor)
    if not log:
        trainer.remove_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
        trainer.check_weights()
        final = output / FINAL
        # Training runs without a cache; what it gives generates with one.
        model.config.use_cache = True
        trainer.save_model(str(final))
        if arguments.should_save:
            # A pickle that nobody needs to load the model.
            (final / "training_args.bin").unlink(missing_ok=True)
            # The terms of the weights that it began with hold for what they became.
            for path in stored_files(inspect(config.model)):
                shutil.copy(path, final / path.name)
            _write_log(output / LOG, trainer.state.log_history)
    except OSError as error:
        last = checkpointing.latest(output)
        raise UserError(
            f"{error}; last complete checkpoint: {last or 'none'}", exit_code=1
        ) from error
    return final


def _start(output: Path, identity: dict[str, Any], resume: bool, arguments: Any) -> Path | None:
    """Return the checkpoint to continue from; claim the folder for a new run otherwise."""
    known = (output / checkpointing.IDENTITY).is_file()
    if resume and not known:
        raise UserError(f"{output} holds no run to resume")
    if known and not resume:
        raise UserError(f"{output} already holds a run: --resume continues it")
    if known:
        checkpointing.check_resume(output, identity)
    if arguments.world_size > 1:
        # Every process must have looked at the folder before one of them claims it.
        torch.distributed.barrier()
    with arguments.main_process_first(desc="checkpoint folder"):
        if arguments.process_index == 0:
            checkpointing.remove_torn(output)
            if not known:
                checkpointing.write_identity(output, identity)
    return checkpointing.latest(output) if known else None


def _write_log(file: Path, history: list[dict[str, Any]]) -> None:
    scratch = file.with_suffix(".tmp")
    scratch.write_text("".join(json.dumps(line) + "\n" for line in history), encoding="utf-8")
    scratch.replace(file)
