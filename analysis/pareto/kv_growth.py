"""KV cache over the length of the output, and where methods cross."""

from __future__ import annotations

from dataclasses import dataclass

from dynllava import methods
from dynllava.costs.kv import entry_bytes
from dynllava.costs.ledger import Run
from dynllava.costs.spec import load_spec
from dynllava.methods.presets import KV_GROWTH

TEXT_TOKENS = 56
"""Text tokens of a prompt of LVIS-VQA, single round (table 8)."""


@dataclass(frozen=True)
class Growth:
    """One method's cache in MiB after 0, step, 2 step ... output tokens."""

    method: str
    label: str
    outputs: tuple[int, ...]
    mib: tuple[float, ...]


@dataclass(frozen=True)
class Crossover:
    """The first method is smaller before ``outputs`` tokens, the second from there on."""

    before: str
    after: str
    outputs: int
    mib: float


def growth(model: str = "llava-1.5-7b", most: int = 2000, step: int = 10) -> list[Growth]:
    """Return the growth of each method's stored keys and values, as the ledger counts them.

    Output tokens are kept at the rate that each method's schedule declares; half precision.
    """
    spec = load_spec(model)
    unit = entry_bytes(spec.dims, "float16")
    outputs = tuple(range(0, most + 1, step))
    found = []
    for name, label, parameters in KV_GROWTH:
        if name not in methods.names():
            continue
        run = Run(spec, methods.create(name, **parameters), spec.prompt(TEXT_TOKENS))
        mib = tuple(unit * sum(run.schedule.kv_lengths(fed)) / 2**20 for fed in outputs)
        found.append(Growth(name, label, outputs, mib))
    return found


def crossovers(curves: list[Growth]) -> list[Crossover]:
    """Return where one method's cache becomes smaller than another's."""
    found = []
    for first in curves:
        for second in curves:
            for index in range(1, len(first.outputs)):
                was = first.mib[index - 1] < second.mib[index - 1]
                if was and first.mib[index] >= second.mib[index]:
                    found.append(
                        Crossover(
                            first.label, second.label, first.outputs[index], second.mib[index]
                        )
                    )
    return sorted(found, key=lambda item: item.outputs)
