"""Dynamic-LLaVA's trainer on top of transformers' Trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from dynllava.errors import UserError
from dynllava.models.checkpoints import check_state
from dynllava.models.encoding import is_llava
from dynllava.models.files import weight_files
from dynllava.models.loading import read_hf_state
from dynllava.models.modeling import DynamicLlavaForConditionalGeneration
from dynllava.models.sanity import check_finite
from dynllava.models.stock import family_state

from . import checkpointing
from .batches import Collator, GroupedSampler
from .config import TrainingConfig
from .data import InstructionDataset
from .gumbel import SampleNoise
from .parameters import gradient_norm, groups, predictor_parameters
from .policy import TrainingPolicy
from .schedules import gumbel_tau
from .sharding import shard_on_cpu
from .step import StepResult, method_step, policy_step

METRICS = (
    "loss_language",
    "loss_image_mask",
    "loss_output_mask",
    "keep_rate_image",
    "keep_rate_output",
)
"""Averaged over the steps between two log lines and over processes."""


class DynamicTrainer(Trainer):
    """Trains a model under the policy of its predictors, or under another method.

    Noise, order of samples and temperature are pure functions of the seed, the step and the
    sample: a resumed run repeats an uninterrupted one, and a run on more processes repeats one
    with as much accumulation.

    Parameters
    ----------
    config : TrainingConfig
    model : PreTrainedModel
        With ``requires_grad`` set (:func:`dynllava.training.parameters.freeze`).
    dataset : InstructionDataset
    arguments : TrainingArguments
        See :func:`training_arguments`.
    processor : ProcessorMixin
        LLaVA-1.5's is stored beside each checkpoint's weights; others' files are copied once, as
        they are published.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: torch.nn.Module,
        dataset: InstructionDataset,
        arguments: TrainingArguments,
        processor: Any,
    ) -> None:
        self.config = config
        self.totals = dict.fromkeys(METRICS, (0.0, 0))
        self.skipped: set[str] = set()
        self.truncated = 0
        self.gradient_norms: dict[str, float] = {}
        super().__init__(
            model,
            arguments,
            data_collator=Collator(processor.tokenizer.pad_token_id),
            processing_class=processor if is_llava(processor) else None,
            train_dataset=dataset,
            callbacks=[_EpochOrder(self), _GradientNorms(self)],
        )
        # The loss is a mean over the micro-batch, as in the official code; Trainer then divides
        # by the number of micro-batches.
        self.model_accepts_loss_kwargs = False

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator; FSDP that its launcher asked for holds on CPUs too."""
        super().create_accelerator_and_postprocess()
        if shard_on_cpu(self.accelerator):
            self.is_fsdp_enabled = True

    @property
    def tau(self) -> float:
        """Gumbel temperature of the current step."""
        optim = self.config.optim
        return gumbel_tau(
            self.state.global_step, self.state.max_steps, optim.tau_start, optim.tau_end
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupedSampler:
        run = self.config.run
        dataset = self.train_dataset
        self.sampler = GroupedSampler(
            dataset.lengths, dataset.has_image, run.global_batch, run.seed, run.group_by_length
        )
        return self.sampler

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimiser with one group per learning rate and decay."""
        if getattr(self, "optimizer", None) is None:
            model = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            options.pop("lr", None)
            self.optimizer = kind(
                [
                    {
                        "params": [parameter for _, parameter in group.parameters],
                        "lr": group.learning_rate,
                        "weight_decay": group.weight_decay,
                    }
                    for group in groups(model, self.config)
                ],
                lr=self.config.optim.learning_rate,
                **options,
            )
        return self.optimizer

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a micro-batch; stop the run where it is no finite number."""
        self._note_data(inputs)
        if self.config.learns:
            policy = self._policy(inputs)
            result = policy_step(model, inputs, policy, self.config.sparse_layer)
        else:
            result = method_step(model, inputs)
        # The report would keep the pass's tensors, and with them its graph, alive.
        self.accelerator.unwrap_model(model).last_report = None
        self._check_finite(result, inputs)
        self._add_metrics(result)
        return (result.loss, {"logits": result.logits}) if return_outputs else result.loss

    def _policy(self, inputs: dict[str, Any]) -> TrainingPolicy:
        samples = inputs["sample_ids"].tolist()
        noise = SampleNoise(self.config.run.seed, self.state.global_step, samples)
        targets = self.config.sparsity
        dense = None
        if targets.dense_share > 0:
            dense = torch.from_numpy(noise.uniform("dense") < targets.dense_share)
        return TrainingPolicy(targets, self.tau, inputs["labels"], noise, dense)

    def _check_finite(self, result: StepResult, inputs: dict[str, Any]) -> None:
        if torch.isfinite(result.loss):
            return
        last = checkpointing.latest(Path(self.args.output_dir))
        kept = f"last good checkpoint: {last}" if last else "no checkpoint had been written"
        raise UserError(
            f"the loss is {float(result.loss.detach())} at step {self.state.global_step + 1} "
            f"(samples {inputs['sample_ids'].tolist()}); {kept}",
            exit_code=1,
        )

    def check_weights(self) -> None:
        """Stop before weights that are no finite numbers are stored as a result.

        A finite loss does not exclude them: the last update of a run is judged by no loss.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            # Each process holds a part; what it holds is looked at (ZeRO-3 keeps it aside).
            tensors = (
                (name, getattr(parameter, "ds_tensor", parameter))
                for name, parameter in self.model.named_parameters()
            )
        else:
            tensors = self.accelerator.unwrap_model(self.model).named_parameters()
        last = checkpointing.latest(Path(self.args.output_dir))
        where = f"step {self.state.global_step} (last good checkpoint: {last or 'none'})"
        check_finite(tensors, where)

    def _note_data(self, inputs: dict[str, Any]) -> None:
        self.skipped.update(inputs.pop("skipped", ()))
        self.truncated += int(inputs.pop("truncated", torch.zeros(1)).sum())

    def _add_metrics(self, result: StepResult) -> None:
        for name, value in result.metrics().items():
            if not math.isnan(value):
                total, count = self.totals[name]
                self.totals[name] = (total + value, count + 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add keep rates, mask losses, temperature and predictor gradient norms to a log line."""
        if "loss" in logs:
            counts = torch.tensor(
                list(self.totals.values()), dtype=torch.float64, device="cpu"
            ).flatten()
            if self.args.world_size > 1:
                # Not every back-end reduces float64.
                moved = counts.float().to(self.args.device)
                counts = self.accelerator.reduce(moved, "sum").cpu()
            for name, (total, count) in zip(METRICS, counts.view(-1, 2).tolist(), strict=True):
                if count:
                    logs[name] = total / count
            self.totals = dict.fromkeys(METRICS, (0.0, 0))
            if self.config.learns:
                optim, done = self.config.optim, self.state.global_step - 1
                logs["tau"] = gumbel_tau(done, self.state.max_steps, optim.tau_start, optim.tau_end)
                logs.update(self.gradient_norms)
            logs["images_skipped"] = float(len(self.skipped))
            logs["answers_truncated"] = float(self.truncated)
        super().log(logs, start_time)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        """Load weights strictly: stored names differ from those of the module tree."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        model, folder = self.model if model is None else model, Path(resume_from_checkpoint)
        if not isinstance(model, DynamicLlavaForConditionalGeneration):
            model.load_state_dict(family_state(model, folder))
            return
        state = read_hf_state(weight_files(folder))
        check_state(model, state, folder)
        model.load_state_dict(state, strict=False)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save, mark the checkpoint as complete, and only then drop old ones."""
        self.check_weights()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            checkpointing.mark_complete(folder / f"checkpoint-{self.state.global_step}")
            rotate_checkpoints(output_dir=str(folder), save_total_limit=limit, use_mtime=True)
            (folder / "skipped_images.txt").write_text(
                "".join(f"{line}\n" for line in sorted(self.skipped)), encoding="utf-8"
            )


class _EpochOrder(TrainerCallback):
    """Tells the sampler which epoch begins (also after a resume)."""

    def __init__(self, trainer: DynamicTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.sampler.choose_epoch(int((state.epoch or 0) + 1e-9))


class _GradientNorms(TrainerCallback):
    """Notes the predictors' gradient norms, after clipping, before the optimiser uses them."""

    def __init__(self, trainer: DynamicTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found: dict[str, list[Any]] = {}
        for name, parameter in predictor_parameters(self.trainer.model):
            if parameter.grad is not None:
                found.setdefault(name, []).append(parameter.grad)
        self.trainer.gradient_norms = {
            f"grad_norm_{name}_predictor": gradient_norm(grads) for name, grads in found.items()
        }


def training_arguments(config: TrainingConfig) -> TrainingArguments:
    """Return transformers' arguments of a run; creating them also starts the process group."""
    run, optim = config.run, config.optim
    on_cpu = run.device == "cpu" or not torch.cuda.is_available()
    tf32 = not on_cpu and torch.cuda.get_device_capability() >= (8, 0)
    arguments = TrainingArguments(
        output_dir=run.output_dir,
        num_train_epochs=run.epochs,
        max_steps=run.max_steps,
        per_device_train_batch_size=run.device_batch,
        learning_rate=optim.learning_rate,
        lr_scheduler_type=optim.scheduler,
        warmup_steps=optim.warmup_ratio,
        optim=optim.optimizer,
        max_grad_norm=optim.max_grad_norm,
        bf16=run.bf16,
        tf32=run.tf32 if tf32 else None,
        gradient_checkpointing=run.gradient_checkpointing,
        # Named activation_checkpointing in the latest releases; this name works in all.
        gradient_checkpointing_kwargs={"use_reentrant": False},
        dataloader_num_workers=run.workers,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        logging_steps=run.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=run.save_steps,
        save_total_limit=run.save_limit,
        seed=run.seed,
        data_seed=run.seed,
        report_to=run.report_to,
        use_cpu=run.device == "cpu",
        # Every trained parameter takes part in every batch (with a zero gradient at least).
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
    )
    # One process drives one device: without a launcher, the first one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    arguments.gradient_accumulation_steps = config.accumulation(arguments.world_size)
    return arguments
