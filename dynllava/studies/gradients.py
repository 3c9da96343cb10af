"""The gradient of the policy against what really keeping a token changes.

``python -m dynllava.studies.gradients`` drops all but a random share of the image tokens, asks the
training step for the gradient of the language loss at dropped tokens, and compares it with what
really keeping one of them changes, for the masked softmax, for its bounded gradient, and for hidden
states multiplied by the mask (the ablation of the paper's table 7).
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from dynllava.embedded.questions import FAMILIES
from dynllava.engine.decoder import PolicyHook
from dynllava.engine.stream import Segment
from dynllava.errors import UserError
from dynllava.models.loading import load_model
from dynllava.plan.names import FULL
from dynllava.prompts import PLAIN_QUESTION
from dynllava.uncertainty.bootstrap import cluster_draws

from .predictors import CAPTION, family_rows

KINDS = {
    "masked softmax": ("softmax", False),
    "masked softmax, bounded gradient": ("softmax", True),
    "hidden states times the mask": ("zero", False),
}
"""What is called what: masking and whether the gradient is bounded."""
MATTERS = 0.05
"""Nats; tokens that change the loss by less have no sign to be right about."""


@dataclass(frozen=True)
class Agreement:
    """Gradient against change, over the dropped tokens that were tried.

    Attributes
    ----------
    samples, tokens, mattering : int
        Questions, tokens tried, and those that change the loss by :data:`MATTERS` nats or more.
    right_sign : float
        Share of the mattering tokens whose gradient has the sign of the change.
    interval : tuple of float
        Of that share, 95 %, by drawing questions (percentile bootstrap).
    largest : float
        Largest gradient in nats; the change of a loss cannot exceed the loss.
    """

    samples: int
    tokens: int
    mattering: int
    right_sign: float
    interval: tuple[float, float]
    largest: float


class Probe:
    """Loss of one question's first answer token under a mask of its image tokens."""

    def __init__(self, model: Any, processor: Any, row: dict[str, Any], layer: int) -> None:
        text = PLAIN_QUESTION.format(row["question"])
        self.inputs = processor(images=[row["image"]], text=[text], return_tensors="pt")
        answer = processor.tokenizer(row["answer"], add_special_tokens=False)["input_ids"][0]
        self.answer = torch.tensor([answer])
        self.model, self.layer = model, layer

    def losses(self, masks: torch.Tensor, kind: str) -> torch.Tensor:
        """Return the loss [B] under image masks [B, patches], in nats."""
        masking, bounded = KINDS[kind]

        def build(view: Any) -> torch.Tensor | None:
            image = view.stream.is_segment(Segment.IMAGE)
            policy = torch.ones(image.shape).masked_scatter(image, masks)
            if masking == "softmax":
                return policy
            hidden = view.stream.hidden * policy[..., None]
            view.stream = replace(view.stream, hidden=hidden)
            return None

        count = masks.shape[0]
        repeated = {
            name: value.expand(count, *value.shape[1:]) for name, value in self.inputs.items()
        }

        def every(view: Any) -> torch.Tensor:
            return view.stream.is_segment(Segment.IMAGE)

        hook = PolicyHook(self.layer, build, every if bounded else None)
        logits = self.model(**repeated, use_cache=False, policy_hook=hook).logits[:, -1]
        return F.cross_entropy(logits.float(), self.answer.expand(count), reduction="none")

    def gradient(self, mask: torch.Tensor, kind: str) -> torch.Tensor:
        """Return the derivative of the loss by each image token's mask [patches]."""
        leaf = mask[None].clone().requires_grad_()
        return torch.autograd.grad(self.losses(leaf, kind).sum(), leaf)[0][0]

    def changes(self, mask: torch.Tensor, tokens: Sequence[int], kind: str) -> torch.Tensor:
        """Return by how much the loss changes where one dropped token more is kept."""
        masks = mask.repeat(len(tokens) + 1, 1)
        for row, token in enumerate(tokens):
            masks[row, token] = 1
        with torch.no_grad():
            losses = self.losses(masks, kind)
        return losses[:-1] - losses[-1]


def measure(
    model: Any,
    processor: Any,
    rows: Sequence[dict[str, Any]],
    kind: str,
    rate: float = 0.2,
    tried: int = 24,
    seed: int = 0,
) -> Agreement:
    """Return how gradient and change agree at randomly dropped tokens."""
    draw = random.Random(seed)
    layer = model.sparsity.sparse_layer
    right, matter, tokens, largest = [], [], 0, 0.0
    for row in rows:
        probe = Probe(model, processor, row, layer)
        patches = model.config.image_seq_length
        kept = draw.sample(range(patches), int(rate * patches))
        mask = torch.zeros(patches)
        mask[kept] = 1
        chosen = draw.sample(sorted(set(range(patches)) - set(kept)), tried)
        slope = probe.gradient(mask, kind)[chosen]
        change = probe.changes(mask, chosen, kind)
        counts = change.abs() >= MATTERS
        right.append(int((slope.sign() == change.sign())[counts].sum()))
        matter.append(int(counts.sum()))
        tokens += len(chosen)
        largest = max(largest, float(slope.abs().max()))
    right_of, matter_of = (torch.tensor(values).double() for values in (right, matter))
    drawn = torch.from_numpy(cluster_draws(len(rows))).double()
    shares = (drawn @ right_of) / (drawn @ matter_of).clamp(min=1)
    low, high = (float(shares.quantile(level)) for level in (0.025, 0.975))
    share = float(right_of.sum() / matter_of.sum().clamp(min=1))
    return Agreement(len(rows), tokens, int(matter_of.sum()), share, (low, high), largest)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m dynllava.studies.gradients", description=__doc__
    )
    parser.add_argument("--pretrained", default="embedded", help="model (default: embedded)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=40, help="questions a family (default: 40)")
    args = parser.parse_args(argv)
    try:
        model, processor = load_model(args.pretrained, method=FULL)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    names = [family for family in FAMILIES if family != CAPTION]
    rows = [row for name in names for row in family_rows(args.split, name, args.limit)]
    print("| masking | questions | tokens that matter | right sign % | largest gradient, nats |")
    print("|---|---|---|---|---|")
    for kind in KINDS:
        found = measure(model, processor, rows, kind)
        low, high = (100 * value for value in found.interval)
        print(
            f"| {kind} | {found.samples} | {found.mattering} of {found.tokens} | "
            f"{100 * found.right_sign:.1f} [{low:.1f}, {high:.1f}] | {found.largest:.3g} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
