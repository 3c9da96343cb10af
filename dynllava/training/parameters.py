"""Which parameters train, in which group of the optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dynllava.errors import UserError

from .config import TrainingConfig

PREDICTORS = ("image_predictor.", "output_predictor.")
PROJECTOR = (
    "multi_modal_projector.",
    "connector.",
    "visual.merger.",
    "visual.deepstack_merger_list.",
    "image_newline",
)
"""What maps a picture's features to the language model, by family; newline rows belong to it."""
TOWER = ("vision_tower.", "vision_model.", "visual.")


@dataclass(frozen=True)
class Group:
    """Parameters with one learning rate and weight decay."""

    name: str
    learning_rate: float
    weight_decay: float
    parameters: tuple[tuple[str, nn.Parameter], ...]

    @property
    def count(self) -> int:
        """Number of trained values."""
        return sum(math.prod(full_shape(parameter)) for _, parameter in self.parameters)


def freeze(model: nn.Module, config: TrainingConfig) -> None:
    """Set ``requires_grad`` of every parameter as the configuration says.

    The vision tower never trains.  A predictor that the run leaves out (keep rate 1, or another
    method) is frozen too, so that data-parallel runs find no unused parameter.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_trains(name, config))


def part_of(name: str) -> str:
    """Return what a parameter belongs to: predictors, projector, tower or language."""
    if _plain_name(name).startswith(PREDICTORS):
        return "predictors"
    if any(part in name for part in PROJECTOR):
        return "projector"
    return "tower" if any(part in name for part in TOWER) else "language"


def _trains(name: str, config: TrainingConfig) -> bool:
    part = part_of(name)
    if part == "tower":
        return False
    if part == "projector":
        return config.optim.train_projector
    if part == "predictors":
        rates = config.sparsity
        image = name.startswith(PREDICTORS[0])
        rate = rates.vision_keep_rate if image else rates.output_keep_rate
        return config.learns and rate < 1
    return config.optim.train_language


def groups(model: nn.Module, config: TrainingConfig) -> list[Group]:
    """Return the non-empty groups: language, projector, predictors, each with and without decay."""
    optim = config.optim
    settings = {
        "predictors": (optim.predictor_learning_rate, optim.predictor_weight_decay),
        "projector": (optim.projector_learning_rate, optim.weight_decay),
        "language": (optim.learning_rate, optim.weight_decay),
    }
    members: dict[tuple[str, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Vectors are biases and normalisation weights: a decay would pull them to zero.
            decays = len(full_shape(parameter)) > 1
            members.setdefault((part_of(name), decays), []).append((name, parameter))
    if not members:
        raise UserError("nothing to train: every part of the model is frozen")
    result = []
    for kind, (rate, decay) in settings.items():
        for decays in (True, False):
            if (kind, decays) in members:
                suffix = "" if decays else ", no decay"
                parameters = tuple(members[kind, decays])
                result.append(Group(kind + suffix, rate, decay if decays else 0.0, parameters))
    return result


def predictor_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (``image`` or ``output``, parameter) of the predictors that train."""
    for name, parameter in model.named_parameters():
        name = _plain_name(name)
        if parameter.requires_grad and name.startswith(PREDICTORS):
            yield name.split("_", 1)[0], parameter


def gradient_norm(gradients: list[Any]) -> float:
    """Return the L2 norm over gradients, gathering sharded ones."""
    total = 0.0
    for gradient in gradients:
        norm = gradient.float().norm()
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        total += float(norm) ** 2
    return total**0.5


def full_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of a parameter, of which ZeRO-3 may hold an empty placeholder here."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _plain_name(name: str) -> str:
    # Data-parallel and sharding wrappers put their own prefix in front.
    return name.removeprefix("module.").replace("_fsdp_wrapped_module.", "")
