"""What a campaign does, in order of worth."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .shapes import Shape

PARTS = {
    1: "smoke: every kernel path, full = stock, ragged batch = single rows",
    2: "prefill, batch 1 and 8",
    3: "decode steps with a cache and calls without one, eager and compiled",
    4: "peak memory against the ledger",
    5: "13B, a training step, generation on the embedded scenes",
    6: "further methods",
}

FAMILIES: tuple[str, ...] = ()
"""Slot for further model families: names of presets, prefill at batch 1, as they come."""


@dataclass(frozen=True)
class Step:
    """One step: what a worker does between two looks at the clock.

    Attributes
    ----------
    name : str
    part : int
        Key of :data:`PARTS`.
    kind : str
        ``smoke``, ``prefill``, ``step``, ``nocache``, ``memory``, ``training``, ``generation``,
        or ``further``.
    batch : int
    larger : bool
        Whether it runs on the shape's larger model.
    compiled : bool
        Whether it times compiled steps.
    number : int
        Which pass: a timing is repeated in every pass, each pass in a process of its own.
    """

    name: str
    part: int
    kind: str
    batch: int = 1
    larger: bool = False
    compiled: bool = False
    number: int = 0

    @property
    def key(self) -> str:
        """Name and pass: what the journal calls it."""
        return f"{self.name}/{self.number}"


def planned(shape: Shape, part: int | None = None) -> list[Step]:
    """Return all steps of a campaign (of one part), in order of worth.

    The first pass goes through all parts, the others repeat the timings of some.
    """
    found = [step for number in range(shape.passes) for step in _pass(shape, number)]
    return [step for step in found if part is None or step.part == part]


def _pass(shape: Shape, number: int) -> list[Step]:
    first = number == 0
    steps = [Step("smoke", 1, "smoke")] if first else []
    for batch in shape.batches:
        steps.append(Step(f"prefill-b{batch}", 2, "prefill", batch))
    for batch in shape.batches:
        steps.append(Step(f"step-b{batch}", 3, "step", batch))
    for batch in shape.batches:
        steps.append(Step(f"nocache-b{batch}", 3, "nocache", batch))
    for batch in shape.batches:
        steps.append(Step(f"compiled-b{batch}", 3, "step", batch, compiled=True))
    if first:
        steps += [Step(f"memory-b{batch}", 4, "memory", batch) for batch in shape.batches]
    if shape.larger is not None:
        for batch in shape.batches:
            steps.append(Step(f"larger-prefill-b{batch}", 5, "prefill", batch, larger=True))
        steps.append(Step("larger-step-b1", 5, "step", 1, larger=True))
    steps += [Step("training", 5, "training"), Step("generation", 5, "generation")]
    if first:
        steps.append(Step("further-prefill-b1", 6, "further"))
    chosen = steps if first else [step for step in steps if step.part in shape.repeated]
    return [replace(step, number=number) for step in chosen]
