"""The full grid: both LLaVA-1.5 sizes, every method with its defaults, every mode."""

from __future__ import annotations

from dataclasses import dataclass

from dynllava import methods
from dynllava.output.tables import Table, quantity
from dynllava.plan.names import FULL

from . import bands, flops, kv, ledger, roofline
from .quantities import Options
from .spec import LLAVA_15_7B, LLAVA_15_13B

COLUMNS = (
    "model",
    "method",
    "mode",
    "flop",
    "dense_flop",
    "kv_bytes",
    "estimated_seconds",
    "estimated_dense_seconds",
    "batch",
)


@dataclass(frozen=True)
class Grid:
    """Rows of :data:`COLUMNS`; ``estimated_seconds`` is None without a device."""

    rows: list[tuple]
    title: str

    def table(self) -> Table:
        """Return the grid with readable units."""
        cells = [
            (
                f"{model} {method}",
                mode,
                quantity(flop, "FLOP"),
                quantity(1 - flop / dense, "1"),
                quantity(stored, "byte"),
                "-" if seconds is None else quantity(seconds, "s"),
                "-"
                if seconds is None or method == FULL
                else bands.speedup_text(baseline / seconds, mode, batch),
            )
            for model, method, mode, flop, dense, stored, seconds, baseline, batch in self.rows
        ]
        columns = (
            "",
            "mode",
            "compute",
            "saved",
            "KV stored",
            "estimated time",
            "estimated speed-up",
        )
        return Table(self.title, columns, cells, ["1 MAC = 2 FLOP; everything included."])


def grid(text_tokens: int, outputs: int, batch: int, options: Options) -> Grid:
    """Profile every method at its defaults on both models."""
    rows = []
    for spec in (LLAVA_15_7B, LLAVA_15_13B):
        for name in methods.names():
            shape = spec.prompt(text_tokens)
            run = ledger.Run(spec, methods.create(name), shape, outputs, batch)
            for mode in ledger.modes(run):
                rows.append((spec.name, name, mode, *_numbers(run, mode, options)))
    title = (
        f"All methods at their defaults, {text_tokens} text + 576 image tokens, "
        f"{outputs} generated, batch {batch}, {options.dtype}"
    )
    return Grid(rows, title)


def _numbers(run: ledger.Run, mode: str, options: Options) -> tuple:
    counter = options.layer_counter
    flop, dense = (
        flops.FLOPS_PER_MAC * ledger.total(ledger.entries(item, mode, layer_counter=counter))
        for item in (run, run.dense())
    )
    fed = {"prefill": 0, "decode": run.outputs - 1}.get(mode)
    # Without a cache nothing is stored.
    stored = 0 if fed is None else kv.kv_state(run, fed, options.dtype).total_stored
    seconds = baseline = None
    if options.device is not None:
        arguments = (mode, options.device, options.dtype, options.efficiency)
        seconds = roofline.estimate(run, *arguments).total
        baseline = roofline.estimate(run.dense(), *arguments).total
    return flop, dense, stored, seconds, baseline, run.batch
