"""Training cases of a golden folder: one recorded step, the masked softmax, the temperature.

:mod:`dynllava.conformance` calls :data:`HANDLERS` by the kind of a case, and :func:`check_tau`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dynllava.engine.masked_softmax import official_masked_softmax
from dynllava.models.checkpoints import to_hf_name
from dynllava.models.loading import load_model
from dynllava.training.gumbel import RecordedNoise
from dynllava.training.losses import IGNORED
from dynllava.training.parameters import part_of
from dynllava.training.policy import SparsityTargets, TrainingPolicy
from dynllava.training.schedules import gumbel_tau
from dynllava.training.step import StepResult, policy_step

from . import CaseResult
from .dynamic import expand_ids, tensors_of

VALUES = 1e-4
GRADIENTS = 1e-4  # x largest recorded entry: the stricter half of rtol 1e-3, atol 1e-4 x largest
NORMS = 1e-3  # x recorded norm
SOFTMAX = 1e-6


def check_train_step(case: dict[str, Any], folder: Path) -> CaseResult:
    """Repeat a recorded forward and backward pass: loss parts, masks, policy, every gradient."""
    result = CaseResult(case["name"])
    recorded, values = tensors_of(case, folder), case["values"]
    # A model of its own: the gradients of another case must not add up.
    model = load_model(folder / "checkpoint")[0].train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) != "tower")
    batch = training_batch(case, recorded, model.config)
    policy = TrainingPolicy(
        targets_of(case),
        values["tau"],
        batch["labels"],
        RecordedNoise(
            image=recorded["gumbel_noise_0_image"], output=recorded["gumbel_noise_1_output_text"]
        ),
    )
    final: list[torch.Tensor] = []
    handle = model.model.language_model.norm.register_forward_hook(
        lambda module, args, output: final.append(output)
    )
    step = policy_step(model, batch, policy, model.config.sparsity().sparse_layer)
    handle.remove()
    step.loss.backward()
    _compare_losses(result, step, recorded)
    _compare_decisions(result, policy, recorded)
    valid = batch["attention_mask"].bool()
    vocabulary = recorded["logits"].shape[-1]
    result.exact("labels_expanded", batch["labels"], recorded["labels_expanded"])
    result.close("logits", step.logits[valid][:, :vocabulary], recorded["logits"][valid], VALUES)
    result.close("final_hidden", final[0][valid], recorded["final_hidden"][valid], VALUES)
    _compare_gradients(result, model, recorded, values)
    return result


def targets_of(case: dict[str, Any]) -> SparsityTargets:
    """Return the targets that a case was recorded with."""
    overrides = case["config_overrides"]
    return SparsityTargets(
        vision_keep_rate=overrides["vision_keep_rate"],
        output_keep_rate=overrides["output_text_keep_rate"],
        mask_loss_weight=overrides["mask_loss_weight"],
        min_answer_length=overrides["output_text_len_for_training"],
    )


def training_batch(
    case: dict[str, Any], recorded: dict[str, torch.Tensor], config: Any
) -> dict[str, torch.Tensor]:
    """Return the recorded batch with each image placeholder expanded to the image's tokens."""
    ids, tokens = recorded["input_ids"], config.image_seq_length
    marker = case["index"]["image_token_index"]

    def expand(values: torch.Tensor, fill: int) -> torch.Tensor:
        # The column of the placeholder is expanded in every tensor alike.
        return expand_ids(torch.where(ids == marker, marker, values.long()), case, tokens, fill)

    return {
        "input_ids": expand(ids, config.image_token_index),
        "labels": expand(recorded["labels"], IGNORED),
        "attention_mask": expand(recorded["attention_mask"], 1),
        "pixel_values": recorded["pixel_values"],
    }


def _compare_losses(
    result: CaseResult, step: StepResult, recorded: dict[str, torch.Tensor]
) -> None:
    assert step.policy is not None
    image, output = step.policy.image, step.policy.output
    # Both predictors are trained.
    assert image is not None
    assert output is not None
    parts = {
        "loss": step.loss,
        "loss_lm": step.language,
        "loss_image_mask": image.loss,
        "loss_output_text_mask": output.loss,
    }
    for name, value in parts.items():
        result.close(name, value, recorded[name], VALUES)


def _compare_decisions(
    result: CaseResult, policy: TrainingPolicy, recorded: dict[str, torch.Tensor]
) -> None:
    image, output = policy.image, policy.output
    # Both predictors are trained.
    assert image is not None
    assert output is not None
    assert policy.policy is not None
    result.close("image_predictor_logits", image.logits, recorded["image_predictor_logits"], VALUES)
    lengths = [
        recorded[f"output_text_mask_{row}"].shape[0] for row in range(output.logits.shape[0])
    ]
    # Behind a row's answer the official code has zero vectors, here there is nothing.
    pairs = [
        (output.logits[row, :length], recorded["output_predictor_logits"][row, :length])
        for row, length in enumerate(lengths)
    ]
    ours, theirs = (torch.cat(side) for side in zip(*pairs, strict=True))
    result.close("output_predictor_logits", ours, theirs, VALUES)
    result.exact("image_mask", image.mask.detach(), recorded["image_mask"])
    for row, length in enumerate(lengths):
        name = f"output_text_mask_{row}"
        result.exact(name, output.mask[row, :length].detach(), recorded[name])
    result.exact("policy", policy.policy.detach(), recorded["policy"][..., 0])


def _compare_gradients(
    result: CaseResult,
    model: torch.nn.Module,
    recorded: dict[str, torch.Tensor],
    values: dict[str, Any],
) -> None:
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    for name, theirs in recorded.items():
        if name.startswith("grad."):
            # Conversion adds a vocabulary row for the placeholder, which no loss reaches.
            ours = gradients[to_hf_name(name.removeprefix("grad."))][: theirs.shape[0]]
            result.close(name, ours, theirs, GRADIENTS * float(theirs.abs().max()))
    for name, norm in values["grad_l2_norms"].items():
        ours = gradients[to_hf_name(name)].norm()
        result.close(f"grad_l2_norms.{name}", ours, torch.tensor(norm), NORMS * norm)
    expected = {to_hf_name(name) for name in values["grad_l2_norms"]}
    result.exact(
        "parameters_without_gradient",
        torch.tensor(len(expected ^ gradients.keys())),
        torch.tensor(0),
    )


def check_masked_softmax(case: dict[str, Any], folder: Path) -> CaseResult:
    """Check the official softmax, epsilon included, with its gradients."""
    result = CaseResult(case["name"])
    recorded = tensors_of(case, folder)
    for variant in ("random", "all_keep", "dropped_max"):
        scores = recorded[f"{variant}.attn"].clone().requires_grad_()
        policy = recorded[f"{variant}.policy"].clone().requires_grad_()
        output = official_masked_softmax(scores, policy[..., 0])
        output.backward(recorded[f"{variant}.grad_output"])
        ours = {
            "output": output,
            "grad_policy": policy.grad,
            "grad_attn": scores.grad.nan_to_num(0.0),
        }
        for name, value in ours.items():
            theirs = recorded[f"{variant}.{name}"]
            tolerance = SOFTMAX * max(1.0, float(theirs.abs().max()))
            result.close(f"{variant}.{name}", value, theirs, tolerance)
    return result


def check_tau(schedule: list[dict[str, Any]]) -> CaseResult:
    """Check the recorded temperatures."""
    result = CaseResult("gumbel_tau_schedule")
    for entry in schedule:
        ours = gumbel_tau(entry["global_step"], entry["max_steps"], entry["start"], entry["end"])
        result.close(
            f"step_{entry['global_step']}",
            torch.tensor(ours, dtype=torch.float64),
            torch.tensor(entry["tau"], dtype=torch.float64),
            1e-12,
        )
    return result


HANDLERS = {"train": check_train_step, "masked_softmax": check_masked_softmax}
