"""Does a method keep the promises of this library?  On a tiny random model, without the clone.

Each check is a function of a :class:`Subject` that raises :class:`Broken`; a check that does not
apply to a method's plan says why.  ``dynllava check-method`` runs them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dynllava.errors import UserError
from dynllava.methods.base import Method
from dynllava.plan import PromptShape

from .tiny import IMAGE_TOKEN, batch, pixels, prompts, tiny_model

TOLERANCE = 2e-5
"""Largest difference of float32 logits that rounding explains on the tiny model."""
NEW_TOKENS = 8


class Broken(Exception):
    """An invariant does not hold; the message says where."""


class NotApplicable(Exception):
    """The plan rules the invariant out; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """One invariant of one method.

    Attributes
    ----------
    invariant : str
    status : str
        ``passed``, ``failed`` or ``not applicable``.
    detail : str
        What broke, or why it does not apply.
    """

    invariant: str
    status: str
    detail: str = ""


@dataclass
class Subject:
    """A method on a tiny model, and its inputs: rows of different length, one without an image."""

    method: Method
    model: Any = field(default_factory=lambda: tiny_model(kv_heads=2))
    seed: int = 0

    def __post_init__(self) -> None:
        self.model.set_method(self.method)
        self.layers = self.model.config.text_config.num_hidden_layers
        self.plan = self.method.plan(self.layers)
        self.ids, self.images = prompts(self.seed), pixels(self.seed)

    def inputs(self, side: str = "left", rows: Sequence[int] | None = None) -> dict[str, Any]:
        """Return the batch, or some of its rows."""
        chosen = range(len(self.ids)) if rows is None else rows
        return batch([self.ids[row] for row in chosen], [self.images[row] for row in chosen], side)

    @torch.no_grad()
    def last_logits(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the logits [B, V] behind the prompt."""
        return self.model(**inputs, logits_to_keep=1).logits[:, 0]

    def greedy(self, inputs: dict[str, Any], **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return new tokens [B, T] and their logits [T, B, V]."""
        out = self.model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **kwargs,
        )
        return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits)

    @property
    def layer_tokens(self) -> list[list[int]]:
        """Tokens per layer and row of the latest prompt."""
        return self.model.last_report.layer_tokens


def close(ours: torch.Tensor, other: torch.Tensor, what: str) -> None:
    """Raise :class:`Broken` unless two tensors agree within :data:`TOLERANCE`."""
    worst = float((ours - other).abs().max())
    if not worst <= TOLERANCE:
        raise Broken(f"{what}: logits differ by {worst:.2g} (allowed {TOLERANCE:g})")


def same(ours: Any, other: Any, what: str) -> None:
    """Raise :class:`Broken` unless two values are equal."""
    if ours != other:
        raise Broken(f"{what}: {ours} against {other}")


def batched_equals_one_by_one(subject: Subject) -> None:
    """Check that a row's answer depends on no other row, nor on the side of the padding."""
    _needs_cache(subject)
    for side in ("left", "right"):
        together = subject.last_logits(subject.inputs(side))
        counts = subject.layer_tokens
        for row in range(len(subject.ids)):
            alone = subject.last_logits(subject.inputs(rows=[row]))
            close(together[row], alone[0], f"row {row} of a batch padded on the {side}")
            same(
                [layer[row] for layer in counts],
                [layer[0] for layer in subject.layer_tokens],
                f"tokens per layer of row {row}, batched against alone",
            )


def batched_generation_equals_one_by_one(subject: Subject) -> None:
    """Check that decoding keeps rows apart too: tokens, logits and cache lengths."""
    _needs_cache(subject)
    tokens, logits = subject.greedy(subject.inputs())
    lengths = subject.model.last_report.kv_lengths
    for row in range(len(subject.ids)):
        alone, alone_logits = subject.greedy(subject.inputs(rows=[row]))
        same(tokens[row].tolist(), alone[0].tolist(), f"generated tokens of row {row}")
        close(logits[:, row], alone_logits[:, 0], f"generation of row {row}")
        own = [layer[0] for layer in subject.model.last_report.kv_lengths]
        same([layer[row] for layer in lengths], own, f"cache lengths of row {row}")


def cached_equals_uncached(subject: Subject) -> None:
    """Check that decoding with and without the cache gives the same."""
    _needs_cache(subject)
    if subject.plan.evicts:
        raise NotApplicable("evicts from what was stored: without a cache nothing is evicted")
    if subject.plan.decode == "rerank":
        raise NotApplicable("ranks anew at every step; without a cache the prompt's row ranks")
    tokens, logits = subject.greedy(subject.inputs())
    other_tokens, other_logits = subject.greedy(subject.inputs(), use_cache=False)
    same(tokens.tolist(), other_tokens.tolist(), "generated tokens, cached against uncached")
    close(logits, other_logits, "generation, cached against uncached")


def selection_sees_the_prompt_only(subject: Subject) -> None:
    """Check that the image tokens kept do not depend on output tokens behind the prompt."""
    if not subject.plan.uses_cache:
        raise NotApplicable("prunes anew at every step, by the newest token")
    if subject.plan.evicts:
        raise NotApplicable("needs its cache: output tokens are never part of the prompt's pass")
    found = []
    for answer in ([5, 6, 7], [60, 61, 62]):
        rows = [torch.cat([one, torch.tensor(answer)]) for one in subject.ids]
        lengths = torch.tensor([len(one) for one in subject.ids])
        inputs = batch(rows, subject.images)
        with torch.no_grad():
            subject.model(**inputs, prompt_length=lengths, use_cache=False)
        found.append(subject.model.last_report.kept_image_indices)
    same(found[0], found[1], "kept image tokens with two different answers behind the prompt")


def schedule_equals_lengths_seen(subject: Subject) -> None:
    """Check that the plan's tokens per layer and cache lengths are those that really occur."""
    _needs_cache(subject)
    if _estimated(subject):
        raise NotApplicable("its counts depend on the data: the plan declares an estimate")
    subject.greedy(subject.inputs())
    report = subject.model.last_report
    for row, one in enumerate(subject.ids):
        schedule = subject.plan.schedule(_shape(one), subject.layers)
        same(
            [layer[row] for layer in report.layer_tokens],
            list(schedule.prefill_rows),
            f"tokens per layer of row {row}, seen against declared",
        )
        kept = sum(report.output_kept[row]) if any(schedule.drops_output) else None
        same(
            [layer[row] for layer in report.kv_lengths],
            schedule.kv_lengths(NEW_TOKENS - 1, kept),
            f"cache lengths of row {row}, seen against declared",
        )


def scoring_equals_decoding(subject: Subject) -> None:
    """Check that scoring an answer gives the logits of having generated it."""
    _needs_cache(subject)
    inputs = subject.inputs()
    tokens, logits = subject.greedy(inputs)
    scored = subject.model.score(continuation_ids=tokens, return_logits=True, **inputs)
    close(scored.transpose(0, 1), logits, "scoring against decoding")


def keeping_everything_equals_dense(subject: Subject) -> None:
    """Check that with every share at 1 the method is the dense model."""
    shares = {
        item.name: 1.0
        for item in dataclasses.fields(subject.method)  # type: ignore[arg-type]
        if item.metadata.get("budget") == "share"
    }
    if not shares:
        raise NotApplicable("no parameter is declared as a share (share(0.5))")
    whole = dataclasses.replace(subject.method, **shares)
    try:
        recomputes = whole.plan(subject.layers).decode == "recompute"
    except UserError as refusal:
        raise NotApplicable(f"its other parameters exclude it: {refusal}") from None
    if recomputes:
        raise NotApplicable("runs without a cache only")
    try:
        subject.model.set_method(whole)
        tokens, logits = subject.greedy(subject.inputs())
        subject.model.set_method("full")
        dense_tokens, dense_logits = subject.greedy(subject.inputs())
    finally:
        subject.model.set_method(subject.method)
    same(tokens.tolist(), dense_tokens.tolist(), "generated tokens at share 1 against dense")
    close(logits, dense_logits, "share 1 against dense")


def repeated_calls_agree(subject: Subject) -> None:
    """Check that the same call twice gives the same, bit for bit."""
    inputs = subject.inputs()
    first, second = subject.last_logits(inputs), subject.last_logits(inputs)
    if not torch.equal(first, second):
        raise Broken("the same call twice gives different logits")


CHECKS: tuple[Callable[[Subject], None], ...] = (
    repeated_calls_agree,
    batched_equals_one_by_one,
    batched_generation_equals_one_by_one,
    cached_equals_uncached,
    selection_sees_the_prompt_only,
    schedule_equals_lengths_seen,
    scoring_equals_decoding,
    keeping_everything_equals_dense,
)


def check_method(method: Method, seed: int = 0) -> list[Outcome]:
    """Run every invariant; an exception of the method's own counts as a failure."""
    subject = Subject(method, seed=seed)
    found = []
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            check(subject)
        except NotApplicable as reason:
            found.append(Outcome(name, "not applicable", str(reason)))
        except Broken as fault:
            found.append(Outcome(name, "failed", str(fault)))
        except Exception as error:  # the method's own code may raise anything
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            found.append(Outcome(name, "failed", line))
        else:
            found.append(Outcome(name, "passed"))
    return found


def _needs_cache(subject: Subject) -> None:
    if not subject.plan.uses_cache:
        raise NotApplicable("runs without a cache only")


def _estimated(subject: Subject) -> bool:
    return any(type(cut.keep).__name__ == "Rule" for cut in subject.plan.cuts)


def _shape(ids: torch.Tensor) -> Any:
    where = (ids == IMAGE_TOKEN).nonzero().flatten()
    before = int(where[0]) if len(where) else len(ids)
    return PromptShape(before, len(where), len(ids) - before - len(where))
