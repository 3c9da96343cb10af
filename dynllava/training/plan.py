"""``--dry-run``: what a run would train, for how long, in how much memory, on which data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .config import TrainingConfig
from .data import InstructionDataset
from .parameters import full_shape, groups
from .prepare import data_processor, meta_model, picture_tokens, prepare_data

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAM_BYTES = 8
"""Two float32 moments a trained value."""


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on one device; not measured, fragmentation and communication left out."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Everything on one device, nothing sharded."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def sharded(self, processes: int) -> int:
        """Weights, gradients and optimiser state split over ``processes`` (FSDP, ZeRO-3)."""
        return self.activations + (self.total - self.activations) // processes


def estimate_memory(config: TrainingConfig, model, length: int) -> Memory:
    """Estimate the memory of a training step of ``length`` tokens a row.

    Activations: with gradient checkpointing one hidden state a layer and one layer's inner
    tensors, without it every layer's; the logits in float32 and their gradient.  The masked
    softmax adds nothing that grows with the square of the length.
    """
    size = BYTES[config.run.dtype]
    total = sum(math.prod(full_shape(item)) for item in model.parameters())
    trained = sum(group.count for group in groups(model, config))
    text = model.config.text_config
    act = 2 if config.run.bf16 else size
    tokens = config.run.device_batch * length
    # Norms, q, k, v, attention output, residuals: about 10 hidden sizes; gate, up and product: 3.
    inner = tokens * (10 * text.hidden_size + 3 * text.intermediate_size) * act
    layers = text.num_hidden_layers
    if config.run.gradient_checkpointing:
        activations = layers * tokens * text.hidden_size * act + inner
    else:
        activations = layers * inner
    activations += tokens * text.vocab_size * (act + 4)
    return Memory(total * size, trained * size, trained * ADAM_BYTES, activations)


def steps_of(config: TrainingConfig, samples: int) -> int:
    """Return the optimiser steps of a run over ``samples``."""
    if config.run.max_steps > 0:
        return config.run.max_steps
    return math.ceil(config.run.epochs * math.ceil(samples / config.run.global_batch))


def plan(config: TrainingConfig, processes: int = 1) -> list[str]:
    """Return the plan as printable lines; reads the data, loads no weights."""
    model = meta_model(config)
    data = prepare_data(config, data_processor(config), picture_tokens(model))
    accumulation = config.accumulation(processes)
    length = min(config.data.max_length, max(data.lengths))
    memory = estimate_memory(config, model, length)
    return [
        f"model          {config.model}",
        f"method         {config.method}",
        *_parameter_lines(config, model),
        *data.statistics.lines(),
        *_missing_line(data),
        f"steps          {steps_of(config, len(data))} of {config.run.global_batch} samples "
        f"({processes} processes x {config.run.device_batch} x {accumulation} accumulated)",
        f"memory         {_gib(memory.total)} on one device, {_gib(memory.sharded(processes))} "
        f"sharded over {processes} (estimate at {length} tokens a row; activations "
        f"{_gib(memory.activations)})",
    ]


def _parameter_lines(config: TrainingConfig, model) -> list[str]:
    total = sum(math.prod(full_shape(item)) for item in model.parameters())
    found = groups(model, config)
    trained = sum(group.count for group in found)
    lines = [f"parameters     {total:,} of which {trained:,} are trained"]
    for group in found:
        lines.append(
            f"  {group.name:24} {group.count:>14,}  learning rate {group.learning_rate:g}, "
            f"weight decay {group.weight_decay:g}"
        )
    return lines


def _missing_line(data: InstructionDataset) -> list[str]:
    return [f"left out       {len(data.missing)} missing image files"] if data.missing else []


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
