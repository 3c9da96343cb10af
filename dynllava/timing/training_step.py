"""Time and memory of a training step, against plain fine-tuning of the same model and batch.

``python -m dynllava.timing.training_step`` builds a LLaVA of random weights (its vision tower is
tiny, so that ratios err on the high side), runs the steps in turns and prints medians and ratios;
then the attention alone against a masked softmax that holds the N x N matrix.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dynllava.engine.masked_softmax import policy_attention
from dynllava.models.config import DynamicLlavaConfig
from dynllava.models.modeling import DynamicLlavaForConditionalGeneration
from dynllava.plan.names import FULL
from dynllava.training.gumbel import SampleNoise
from dynllava.training.policy import SparsityTargets, TrainingPolicy
from dynllava.training.step import method_step, policy_step

from .peak import peak_memory

IMAGE_TOKENS = 576
VOCABULARY = 32_000
PROMPT = 64
"""Text tokens before the answer, next to the image."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the measured model and batch."""

    hidden: int = 512
    layers: int = 4
    heads: int = 8
    intermediate: int = 1376
    length: int = 2048
    batch: int = 1
    sparse_layer: int = 2


SHAPES = {
    "tiny": Shape(64, 2, 2, 96, 656, 1, 1),
    "small": Shape(),
    "7b": Shape(4096, 32, 32, 11008),
    "7b-8-layers": Shape(4096, 8, 32, 11008),
}


@dataclass(frozen=True)
class Comparison:
    """Two pieces of work, measured in turns.

    Attributes
    ----------
    seconds : dict of str to list of float
        Time of each repeat: of the process's CPU, on an accelerator by the wall clock.
    peak_bytes : dict of str to (int or None)
        See :func:`allocated_peak`.
    """

    seconds: dict[str, list[float]]
    peak_bytes: dict[str, int | None]

    def time_ratio(self, name: str, base: str) -> float:
        """Median over the repeats of time / time of ``base`` right next to it."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return statistics.median(left / right for left, right in pairs)

    def peak_ratio(self, name: str, base: str) -> float | None:
        """Peak memory / that of ``base``, None where it cannot be measured."""
        left, right = self.peak_bytes[name], self.peak_bytes[base]
        return left / right if left and right else None


def random_model(
    shape: Shape, device: torch.device, dtype: torch.dtype
) -> DynamicLlavaForConditionalGeneration:
    """Return a model of random weights with a tiny vision tower and default predictors."""
    config = DynamicLlavaConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.heads,
            "intermediate_size": shape.intermediate,
            "vocab_size": VOCABULARY,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 336,
            "patch_size": 14,
        },
        vision_feature_layer=-1,
        image_token_index=VOCABULARY - 1,
        sparse_config={"sparse_layer": shape.sparse_layer},
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = DynamicLlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name and "projector" not in name)
    return model.train()


def random_batch(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return a batch of one image, a prompt and a long answer a row."""
    generator = torch.Generator().manual_seed(0)
    size = (shape.batch, shape.length)
    ids = torch.randint(3, VOCABULARY - 2, size, generator=generator)
    ids[:, 1 : 1 + IMAGE_TOKENS] = VOCABULARY - 1
    labels = ids.clone()
    labels[:, : IMAGE_TOKENS + PROMPT] = -100
    pixels = torch.randn(shape.batch, 3, 336, 336, generator=generator)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    return {
        **{name: value.to(device) for name, value in batch.items()},
        "pixel_values": pixels.to(device, dtype),
        "sample_ids": torch.arange(shape.batch, device=device),
    }


def step_functions(
    model: DynamicLlavaForConditionalGeneration, batch: dict[str, torch.Tensor], sparse_layer: int
) -> dict[str, Callable[[], None]]:
    """Return ``plain``, ``policy`` and ``predictors``: forward and backward of one step.

    ``plain`` fine-tunes the language model, ``policy`` trains predictors along with it,
    ``predictors`` these alone.  Gradients are cleared at the end.
    """
    language = [model.model.language_model, model.lm_head]

    def plain() -> None:
        model.set_method(FULL)
        method_step(model, batch).loss.backward()
        model.zero_grad(set_to_none=True)

    def predictors() -> None:
        for part in language:
            part.requires_grad_(False)
        policy()
        for part in language:
            part.requires_grad_(True)

    def policy() -> None:
        noise = SampleNoise(0, 0, range(len(batch["input_ids"])))
        built = TrainingPolicy(SparsityTargets(), 0.5, batch["labels"], noise)
        policy_step(model, batch, built, sparse_layer).loss.backward()
        model.last_report = None
        model.zero_grad(set_to_none=True)

    return {"plain": plain, "policy": policy, "predictors": predictors}


def optimizer_bytes(model: DynamicLlavaForConditionalGeneration, *, predictors: bool) -> int:
    """Return the bytes that AdamW keeps (two moments in float32), counted from the parameters."""
    parts = [model.image_predictor, model.output_predictor]
    parts += [] if predictors else [model.model.language_model, model.lm_head]
    found = [part for part in parts if part is not None]
    return sum(8 * item.numel() for part in found for item in part.parameters())


def attention_functions(
    shape: Shape, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], None]]:
    """Return ``square`` (N x N masked softmax by autograd) and ``blockwise`` (ours)."""
    width = shape.hidden // shape.heads
    size = (shape.batch, shape.heads, shape.length, width)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(size, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)
    )
    policy = (torch.rand(shape.batch, shape.length, generator=generator) > 0.5).float()
    policy = policy.to(device).requires_grad_()
    own = torch.eye(shape.length, device=device)
    future = torch.ones_like(own).triu(1).bool()

    def square() -> None:
        scores = (query.float() @ key.float().mT) * width**-0.5
        scores = scores.masked_fill(future, float("-inf"))
        weight = policy[:, None, None, :] * (1 - own) + own
        numerator = (scores - scores.amax(-1, keepdim=True)).exp() * weight
        weights = numerator / numerator.sum(-1, keepdim=True)
        (weights.to(dtype) @ value).float().square().sum().backward()

    def blockwise() -> None:
        out = policy_attention(query, key, value, policy, width**-0.5)
        out.float().square().sum().backward()

    return {"square": square, "blockwise": blockwise}


def compare(
    functions: dict[str, Callable[[], None]], device: torch.device, repeats: int
) -> Comparison:
    """Run each function once for its memory, then all in turns ``repeats`` times."""
    peaks = {}
    for name, function in functions.items():
        function()  # buffers that stay are not counted as this function's peak
        peaks[name] = allocated_peak(device, function)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    # Other work on a shared machine disturbs process CPU time less.
    now = time.process_time if device.type == "cpu" else time.perf_counter
    for _ in range(repeats):
        for name, function in functions.items():
            _synchronize(device)
            start = now()
            function()
            _synchronize(device)
            seconds[name].append(now() - start)
    return Comparison(seconds, peaks)


def allocated_peak(device: torch.device, work: Callable[[], None]) -> int | None:
    """Return the peak bytes of ``work``: on a CPU of the tensors allocated while it runs.

    Resident memory would not do there: what an earlier run freed stays with the process.
    """
    if device.type != "cpu":
        return peak_memory(device, work)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [
        (event.start_ns(), event.nbytes())
        for event in recorded.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    now = peak = 0
    for _, change in sorted(events):
        now += change
        peak = max(peak, now)
    return peak


def compare_steps(shape: Shape, device: str, dtype: str, repeats: int, checkpoint: bool) -> Any:
    """Return the :class:`Comparison` of a training step with a plain fine-tuning step."""
    place, kind = torch.device(device), getattr(torch, dtype)
    model = random_model(shape, place, kind)
    if checkpoint:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = random_batch(shape, place, kind)
    return compare(step_functions(model, batch, shape.sparse_layer), place, repeats)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m dynllava.timing.training_step")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    args = parser.parse_args(argv)
    shape, place = SHAPES[args.shape], torch.device(args.device)
    steps = compare_steps(shape, args.device, args.dtype, args.repeats, args.gradient_checkpointing)
    print(f"{shape}, {args.dtype}, {args.device}, {args.repeats} repeats in turns")
    report(steps, "policy", "plain", shape)
    report(steps, "predictors", "policy", shape)
    with torch.device("meta"):
        model = random_model(shape, torch.device("meta"), torch.float32)
    sizes = [optimizer_bytes(model, predictors=alone) / 2**20 for alone in (False, True)]
    print(f"AdamW's moments, counted: {sizes[0]:.1f} MiB; of predictors alone {sizes[1]:.1f} MiB")
    functions = attention_functions(shape, place, getattr(torch, args.dtype))
    report(compare(functions, place, args.repeats), "blockwise", "square", shape)
    return 0


def report(comparison: Comparison, name: str, base: str, shape: Shape) -> None:
    """Print medians, tokens per second, peaks and ratios."""
    for label in (base, name):
        median = statistics.median(comparison.seconds[label])
        peak = comparison.peak_bytes[label]
        memory = "not measured" if peak is None else f"{peak / 2**20:.0f} MiB"
        speed = shape.batch * shape.length / median
        print(f"{label:10} {median:8.3f} s  {speed:9.0f} tokens/s  peak {memory}")
    peak_ratio = comparison.peak_ratio(name, base)
    memory = "not measured" if peak_ratio is None else f"{peak_ratio:.2f}"
    print(f"{name} / {base}: time {comparison.time_ratio(name, base):.2f}, peak memory {memory}")


if __name__ == "__main__":
    sys.exit(main())
