"""Train the embedded model from scratch: first the vision tower, then the decoder.

Run ``python -m dynllava.embedded.train --help``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .alignment import alignment_loss, alignment_targets, image_tokens, pixel_batch
from .language import run_layers
from .model import build_model, build_processor
from .muon import Muon
from .packing import attention_masks, draw_questions, pack
from .scenes import generate_scene, seeded_random

STAGES = ("vision", "language")
# Parameters trained in each stage, by part of their name.
TRAINED = {
    "vision": ("vision_tower", "multi_modal_projector", "embed_tokens"),
    "language": ("language_model",),
}
BLINDED_LAYERS = 2


@dataclass
class Settings:
    """Everything that decides a run.

    Attributes
    ----------
    seed : int
    steps : tuple of int
        Steps of the vision and of the language stage.
    minutes : tuple of float, optional
        Wall-clock lengths of the two stages instead of steps.
    batch : tuple of int
        Images per step of the two stages.
    matrix_rate : tuple of float
        Muon's learning rate in the two stages.
    other_rate : float
        AdamW's learning rate for embeddings, norms and biases.
    grounding : float
        Weight of the grounding loss.
    blind_share : float
        Share of rows whose text is kept from the image in layers 0 and 1 at first.
    init : pathlib.Path, optional
        Trained model to go on from: another cycle of the language stage only.
    """

    seed: int = 0
    steps: tuple[int, int] = (820, 705)
    minutes: tuple[float, float] | None = None
    batch: tuple[int, int] = (32, 14)
    matrix_rate: tuple[float, float] = (0.015, 0.012)
    other_rate: float = 2e-3
    grounding: float = 0.3
    blind_share: float = 0.7
    init: Path | None = None


def rate_factor(step: int, progress: float) -> float:
    """Warm-up over 40 steps, then constant, then linear decay over the last half."""
    return min(1.0, (step + 1) / 40) * min(1.0, (1 - progress) / 0.5 + 0.02)


def blind_probability(progress: float, share: float) -> float:
    """Share of rows with early layers closed: constant, then falling to 0 from 60 to 90 %."""
    return share * max(0.0, min(1.0, (0.9 - progress) / 0.3))


def vision_step(model, settings: Settings, step: int, progress: float):
    """Loss and record of one step that aligns image tokens with words."""
    seed = f"train/vision/{settings.seed}/{step}"
    scenes = [generate_scene(f"{seed}/{index}") for index in range(settings.batch[0])]
    targets = torch.from_numpy(np.stack([alignment_targets(scene) for scene in scenes]))
    words = model.get_input_embeddings().weight
    loss, accuracy = alignment_loss(image_tokens(model, pixel_batch(scenes)), words, targets)
    return loss, accuracy


def language_step(model, settings: Settings, step: int, progress: float):
    """Loss and record of one step of question answering."""
    seed = f"train/language/{settings.seed}/{step}"
    rng = seeded_random(seed)
    scenes = [generate_scene(f"{seed}/{index}") for index in range(settings.batch[1])]
    packed = pack(scenes, [draw_questions(scene, rng) for scene in scenes])
    probability = blind_probability(progress, settings.blind_share)
    blind = torch.tensor([rng.random() < probability for _ in scenes])
    open_mask, early_mask = attention_masks(packed, blind)
    depth = model.config.text_config.num_hidden_layers
    masks = [early_mask] * BLINDED_LAYERS + [open_mask] * (depth - BLINDED_LAYERS)
    with torch.no_grad():
        images = image_tokens(model, pixel_batch(scenes))
    states, grounding = run_layers(
        model, packed.tokens, packed.positions, images, masks, packed.links
    )
    predicted = packed.labels >= 0
    logits = model.lm_head(states[predicted])
    labels, weights = packed.labels[predicted], packed.weights[predicted]
    losses = F.cross_entropy(logits, labels, reduction="none")
    loss = (losses * weights).sum() / weights.sum()
    loss = loss + settings.grounding * sum(grounding.values())
    record = {f"grounding_{layer}": value.item() for layer, value in grounding.items()}
    in_caption = weights < 1
    if bool(in_caption.any()):
        record["caption_loss"] = losses[in_caption].mean().item()
    right = torch.zeros_like(predicted)
    right[predicted] = logits.argmax(-1) == labels
    asked: Counter[str] = Counter()
    solved: Counter[str] = Counter()
    for row, families in enumerate(packed.families):
        for family, place in families:
            asked[family] += 1
            solved[family] += int(right[row, place])
    record |= {family: solved[family] / count for family, count in asked.items()}
    return loss, record


class Run:
    """One training run: its model, place in the schedule, log and checkpoint."""

    def __init__(self, settings: Settings, folder: Path, resume: bool) -> None:
        self.settings, self.folder = settings, folder
        self.model = build_model(settings.seed)
        self.stage, self.step, self.elapsed = 0, 0, 0.0
        self.checkpoint, self.log = folder / "checkpoint.pt", folder / "log.jsonl"
        state = None
        if resume:
            # Not only tensors, but plain containers: nothing in it can run code.
            state = torch.load(self.checkpoint, weights_only=True)
            self.stage, self.step, self.elapsed = state["stage"], state["step"], state["elapsed"]
            self.model.load_state_dict(state["model"])
        else:
            self.log.write_text("")
            if settings.init is not None:
                self._take_weights(settings.init)
        self._start_stage()
        if state is not None and state["optimizers"]:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def _take_weights(self, folder: Path) -> None:
        """Start at the language stage from the weights of an earlier run."""
        from transformers import LlavaForConditionalGeneration

        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.stage = STAGES.index("language")

    def _start_stage(self) -> None:
        parts = TRAINED[STAGES[self.stage]]
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(any(part in name for part in parts))
            if parameter.requires_grad:
                flat = parameter.ndim == 2 and "embed" not in name
                (matrices if flat else others).append(parameter)
        self.trained = matrices + others
        self.rates = (self.settings.matrix_rate[self.stage], self.settings.other_rate)
        self.optimizers = (
            Muon(matrices, self.rates[0]),
            torch.optim.AdamW(others, self.rates[1], weight_decay=0.0),
        )

    def progress(self) -> float:
        """Finished share of the present stage."""
        if self.settings.minutes is not None:
            return self.elapsed / (60 * self.settings.minutes[self.stage])
        return self.step / self.settings.steps[self.stage]

    def train(self, save_every: int) -> None:
        """Go on until both stages are done."""
        from tqdm import tqdm

        while self.stage < len(STAGES):
            name = STAGES[self.stage]
            advance = vision_step if name == "vision" else language_step
            with tqdm(total=100, desc=name, unit="%", mininterval=5) as bar:
                while (progress := self.progress()) < 1:
                    started = time.monotonic()
                    self._advance(advance, progress)
                    self.elapsed += time.monotonic() - started
                    bar.update(min(100, int(100 * self.progress())) - bar.n)
                    if self.step % save_every == 0:
                        self.save()
            self.stage, self.step, self.elapsed = self.stage + 1, 0, 0.0
            if self.stage < len(STAGES):
                self._start_stage()
                self.save()

    def _advance(self, advance, progress: float) -> None:
        factor = rate_factor(self.step, progress)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.zero_grad()
        loss, record = advance(self.model, self.settings, self.step, progress)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        entry = {
            "stage": STAGES[self.stage],
            "step": self.step,
            "seconds": round(self.elapsed, 1),
            "rate_factor": round(factor, 4),
            "loss": round(loss.item(), 4),
            **{key: round(value, 4) for key, value in record.items()},
        }
        with self.log.open("a") as log:
            log.write(json.dumps(entry) + "\n")
        self.step += 1

    def save(self) -> None:
        """Write the checkpoint; a kill at any moment leaves the old or the new one."""
        state = {
            "stage": self.stage,
            "step": self.step,
            "elapsed": self.elapsed,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        scratch = self.checkpoint.with_suffix(".tmp")
        torch.save(state, scratch)
        os.replace(scratch, self.checkpoint)


def export(model, folder: Path) -> None:
    """Save a model for use with stock transformers: float16 weights, processor, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.do_sample = False
    model.generation_config.max_new_tokens = 160
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written private, meant to be shared
    build_processor().save_pretrained(folder)


def thin_log(source: Path, target: Path, every: int = 10) -> None:
    """Copy every tenth step of a log, and the last of each stage."""
    entries = [json.loads(line) for line in source.read_text().splitlines()]
    last = {entry["stage"]: entry for entry in entries}
    kept = [e for e in entries if e["step"] % every == 0 or e is last[e["stage"]]]
    target.write_text("".join(json.dumps(entry) + "\n" for entry in kept))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(prog="python -m dynllava.embedded.train")
    parser.add_argument("output", type=Path, help="folder for log, checkpoint and model/")
    parser.add_argument("--seed", type=int, default=0)
    pair: dict[str, Any] = {"nargs": 2, "metavar": ("VISION", "LANGUAGE")}
    parser.add_argument("--steps", type=int, default=Settings.steps, **pair)
    parser.add_argument("--minutes", type=float, help="wall clock instead of steps", **pair)
    parser.add_argument("--batch", type=int, default=Settings.batch, **pair)
    parser.add_argument("--grounding", type=float, default=Settings.grounding)
    parser.add_argument("--blind-share", type=float, default=Settings.blind_share)
    parser.add_argument("--init", type=Path, help="model folder: train its language stage on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    options = parser.parse_args(arguments)
    for name in ("steps", "minutes", "batch"):
        values = getattr(options, name)
        if values is not None and min(values) <= 0:
            parser.error(f"--{name} must be positive, got {' '.join(map(str, values))}")
    if options.init is not None and not (options.init / "model.safetensors").is_file():
        parser.error(f"--init: no model.safetensors in {options.init}")
    if options.resume and not (options.output / "checkpoint.pt").is_file():
        parser.error(f"--resume: no checkpoint.pt in {options.output}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, then write ``OUTPUT/model`` and ``OUTPUT/model/training_log.jsonl``."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    settings = Settings(
        seed=options.seed,
        steps=tuple(options.steps),
        minutes=None if options.minutes is None else tuple(options.minutes),
        batch=tuple(options.batch),
        grounding=options.grounding,
        blind_share=options.blind_share,
        init=options.init,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    run = Run(settings, options.output, options.resume)
    run.train(options.save_every)
    target = options.output / "model"
    shutil.rmtree(target, ignore_errors=True)
    export(run.model, target)
    thin_log(run.log, target / "training_log.jsonl")
    print(f"model: {target}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
