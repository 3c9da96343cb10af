"""Part 1: whether every kernel path computes what it should, on the device and in its dtype.

A model with the full width and a few layers, random weights; differences are relative L2 norms of
the logits.  ``tests/timing/test_gpu.py`` runs the same checks under ``pytest -m gpu``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from dynllava.costs.spec import ModelSpec
from dynllava.methods.presets import MEASURED
from dynllava.plan import PromptShape
from dynllava.plan.names import FULL, LEARNED

from .. import speed
from ..bench_model import Bench, random_bench
from ..speed import STOCK, Inputs, Subject

KERNELS = ("sdpa", "eager", "flash_attention_2")
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.02}
"""Largest relative L2 difference of logits by dtype: kernels sum in different orders."""

LAYERS, TEXT, STEPS = 6, 24, 4


@dataclass(frozen=True)
class Check:
    """One check: ``passed`` is None where the kernel is not there, never a silent pass."""

    name: str
    passed: bool | None
    detail: str


def checks(spec: ModelSpec, device: str, dtype: str, compiler: str) -> Iterator[Check]:
    """Yield the outcome of every check, kernel by kernel."""
    layers = min(LAYERS, spec.dims.layers)
    small = dataclasses.replace(
        spec, name=f"{spec.name}, {layers} layers", vision=None,
        dims=dataclasses.replace(spec.dims, layers=layers),
    )  # fmt: skip
    for kernel in KERNELS:
        absent = missing(kernel, device)
        if absent:
            yield Check(kernel, None, absent)
            continue
        bench = random_bench(small, device, dtype, kernel)
        bench.compiled_steps.backend = compiler
        inputs = speed.make_inputs(bench, small.prompt(TEXT), 2, STEPS + 1)
        yield from _of_kernel(bench, inputs, kernel, dtype)
        del bench
    bench = random_bench(small, device, dtype)
    bench.compiled_steps.backend = compiler
    for name in (FULL, LEARNED):
        yield _checked(f"compiled, {name}: steps = eager steps", dtype, _compiled(bench, name))


def missing(kernel: str, device: str) -> str:
    """Return why a kernel cannot run here, empty if it can."""
    if kernel != "flash_attention_2":
        return ""
    from transformers.utils import is_flash_attn_2_available

    if not device.startswith("cuda"):
        return "needs CUDA"
    return "" if is_flash_attn_2_available() else "flash-attn is not installed"


def _of_kernel(bench: Bench, inputs: Inputs, kernel: str, dtype: str) -> Iterator[Check]:
    from dynllava.methods import create

    full = Subject(bench, FULL, create(FULL))
    stock = Subject(bench, STOCK, None)
    yield _checked(
        f"{kernel}: full = stock", dtype, lambda: (logits(full, inputs), logits(stock, inputs))
    )
    for name in MEASURED:
        subject = speed.calibrate_keep_rate(Subject(bench, name, create(name)), inputs, STEPS + 1)
        yield _checked(f"{kernel}, {name}: ragged batch = single", dtype, _ragged(subject, inputs))


def _checked(name: str, dtype: str, work: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> Check:
    """Return whether two tensors of logits agree; an error is a failed check, not the end."""
    try:
        found, wanted = work()
    except Exception as error:  # whatever a kernel raises on this device is the finding
        text = str(error).strip() or type(error).__name__
        return Check(name, False, f"{type(error).__name__}: {text.splitlines()[0]}"[:300])
    wanted = wanted.float()
    difference = float((found.float() - wanted).norm() / wanted.norm())
    passed = difference <= TOLERANCE[dtype]  # NaN is not
    return Check(
        name, passed, f"relative difference {difference:.2g}, {TOLERANCE[dtype]:g} allowed"
    )


@torch.inference_mode()
def logits(subject: Subject, inputs: Inputs, steps: int = STEPS) -> torch.Tensor:
    """Return the logits [B, 1 + steps, V] of the prompt's last position and of some steps."""
    model = subject.prepare()
    extra = {} if subject.method is None else {"image_mask": inputs.image_mask}
    out = model(inputs_embeds=inputs.embeds, use_cache=True, logits_to_keep=1, **extra)
    found = [out.logits[:, -1:]]
    for step in range(steps):
        token = inputs.output_tokens()[:, step : step + 1]
        out = model(
            input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1
        )
        found.append(out.logits[:, -1:])
    return torch.cat(found, 1)


def _compiled(bench: Bench, name: str) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    from dynllava.methods import create

    def work() -> tuple[torch.Tensor, torch.Tensor]:
        inputs = speed.make_inputs(bench, bench.spec.prompt(TEXT), 2, STEPS + 1)
        method = speed.calibrate_keep_rate(Subject(bench, name, create(name)), inputs, 4).method
        return tuple(logits(Subject(bench, name, method, on), inputs) for on in (True, False))

    return work


def _ragged(subject: Subject, inputs: Inputs) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Return both rows of a batch whose first row is shorter, and each row by itself."""
    cut = TEXT // 4

    @torch.inference_mode()
    def work() -> tuple[torch.Tensor, torch.Tensor]:
        model = subject.prepare()
        mask = torch.ones_like(inputs.image_mask, dtype=torch.long)
        mask[0, :cut] = 0
        out = model(
            inputs_embeds=inputs.embeds, attention_mask=mask, image_mask=inputs.image_mask,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        alone = [logits(subject, row(inputs, 0, cut), 0), logits(subject, row(inputs, 1, 0), 0)]
        return out.logits[:, -1:], torch.cat(alone)

    return work


def row(inputs: Inputs, index: int, cut: int) -> Inputs:
    """Return one row of the prompts without its first ``cut`` (text) positions."""
    shape = inputs.shape
    one = slice(index, index + 1)
    return Inputs(
        PromptShape(shape.text_before - cut, shape.image, shape.text_after),
        inputs.embeds[one, cut:],
        inputs.image_mask[one, cut:],
        None,
        None if inputs.fed is None else inputs.fed[one],
    )
