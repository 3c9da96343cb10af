"""The tables of ``dynllava profile``, from flat quantities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynllava.output.tables import Table, quantity
from dynllava.plan.names import FULL

from . import bands, conventions, ledger
from .against_published import DEVICE, DTYPE, TEXT_TOKENS, Comparison
from .devices import GIB, load_device
from .flops import COMPONENTS
from .quantities import Options, Quantity

if TYPE_CHECKING:
    from .audit import Finding

MODE_TITLES = {
    "prefill": "prefill",
    "decode": "decode, cache",
    "decode_nocache": "decode, no cache",
}

CSV_COLUMNS = ("section", "mode", "name", "value", "unit", "convention")


def describe(run: ledger.Run, options: Options) -> dict[str, Any]:
    """Return what was profiled, as plain values."""
    return {
        "model": run.spec.name,
        "method": run.method.name or FULL,
        "parameters": run.method.parameters(),
        "text_tokens": run.shape.total - run.shape.image,
        "image_tokens": run.shape.image,
        "output_tokens": run.outputs,
        "batch": run.batch,
        "dtype": options.dtype,
        "device": options.device.name if options.device else None,
        "convention": options.convention,
    }


def csv_rows(items: Sequence[Quantity]) -> list[tuple[Any, ...]]:
    """Return one row a quantity, for :data:`CSV_COLUMNS`."""
    return [tuple(getattr(item, name) for name in CSV_COLUMNS) for item in items]


def tables(run: ledger.Run, options: Options, items: Sequence[Quantity]) -> list[Table]:
    """Return the tables of one profile."""
    what = describe(run, options)
    parameters = ", ".join(f"{key}={value}" for key, value in what["parameters"].items())
    mean = sum(ledger.image_tokens_per_layer(run)) / run.spec.dims.layers
    heading = Table(
        "Run",
        ("", "value"),
        [
            ("model", what["model"]),
            ("method", f"{what['method']} ({parameters})" if parameters else what["method"]),
            ("prompt", f"{what['text_tokens']} text + {what['image_tokens']} image tokens"),
            ("generated tokens", f"{run.outputs} (the first from prefill)"),
            ("batch", str(run.batch)),
            ("mean image tokens per layer", f"{mean:.1f}"),
        ],
        left=2,
    )
    found = [heading, _by_mode("compute", _compute_title(run, options), items)]
    found[-1].notes = _compute_notes(options)
    found.append(_by_mode("kv", f"KV cache, {options.dtype}, whole batch", items))
    if options.device is not None:
        title = f"What fits on {options.device.title} next to the weights (estimate)"
        found.append(_by_mode("capacity", title, items))
        found[-1].notes = [_overhead_note()]
        found.append(_times(options, items))
        found.append(_checked(run, items))
    return found


def _overhead_note() -> str:
    fitted = bands.memory_overhead()
    low, high = min(fitted.residuals.values()) / GIB, max(fitted.residuals.values()) / GIB
    return (
        f"Overhead, fitted to {len(fitted.residuals)} published peaks (13B, batch 8): "
        f"{fitted.base / GIB:.2f} GiB + {fitted.per_kv_byte:.2f} x KV; residuals {low:+.1f} to "
        f"{high:+.1f} GiB. What fits counts it."
    )


def _checked(run: ledger.Run, items: Sequence[Quantity]) -> Table:
    """Return what published runs took beside their estimates, and speed-ups with that range."""
    seconds = {(item.mode, item.name): item.value for item in items if item.section == "time"}
    sparse = run.method.name != FULL
    rows = []
    for mode in dict.fromkeys(mode for mode, _ in seconds):
        band = bands.time_band(mode, run.batch, sparse)
        cells = [MODE_TITLES.get(mode, mode), str(band or bands.NOT_CHECKED)]
        if sparse:
            ratio = seconds[mode, "dense total"] / seconds[mode, "total"]
            cells.append(bands.speedup_text(ratio, mode, run.batch))
        rows.append(tuple(cells))
    columns = ("", "measured / estimated", *(["estimated speed-up over dense"] if sparse else []))
    notes = [
        "Range over published A100 runs of the same mode, of batch 8 or of batch 1, dense or "
        "sparse; Hugging Face eager code of the time.",
    ]
    return Table("How far such estimates were from published runs", columns, rows, notes)


def layer_table(items: Sequence[Quantity]) -> Table:
    """Return cost per decoder layer, the method's own work included."""
    return _by_mode("layers", "Cost per decoder layer", items)


def _compute_title(run: ledger.Run, options: Options) -> str:
    convention = conventions.convention(options.convention)
    unit = options.unit if options.convention == "counted" else convention.unit
    return (
        f"Compute, convention {convention.name} ({convention.tokens} tokens, {unit}), whole batch"
    )


def _compute_notes(options: Options) -> list[str]:
    convention = conventions.convention(options.convention)
    notes = [f"One layer, n tokens: {convention.formula} ({convention.source})."]
    if options.convention == "counted":
        notes.append("Matrix products only; causal attention as the full square; 1 MAC = 2 FLOP.")
        notes.append("Decoding: every generated token but the first is fed once.")
    else:
        notes.append("Without vision tower, projector, text tokens, predictors and lm head.")
    return notes


def _by_mode(section: str, title: str, items: Sequence[Quantity]) -> Table:
    """Return a table with a row per name and a column per mode."""
    chosen = [item for item in items if item.section == section]
    modes = list(dict.fromkeys(item.mode for item in chosen))
    names = sorted(dict.fromkeys(item.name for item in chosen), key=_row_order)
    cells = {(item.name, item.mode): quantity(item.value, item.unit) for item in chosen}
    rows = [
        [name.replace("_", " "), *[cells.get((name, mode), "-") for mode in modes]]
        for name in names
        if any(item.value for item in chosen if item.name == name)
    ]
    return Table(title, ["", *[MODE_TITLES.get(mode, mode) for mode in modes]], rows)


def _row_order(name: str) -> int:
    """Return components first, in the order of the ledger, then everything else as it came."""
    return COMPONENTS.index(name) if name in COMPONENTS else len(COMPONENTS)


def _times(options: Options, items: Sequence[Quantity]) -> Table:
    assert options.device is not None
    table = _by_mode("time", f"Estimated time on {options.device.title}, {options.dtype}", items)
    share = options.efficiency
    table.notes = [
        f"Roofline ESTIMATE, not a measurement: {share.compute:.0%} of peak compute and "
        f"{share.bandwidth:.0%} of peak bandwidth assumed,",
        "matrix products only: no norms, softmax, kernel launches, sampling or host time.",
        f"Device: {options.device.source}.",
    ]
    return table


def audit_tables(run: ledger.Run, findings: Sequence[Finding]) -> list[Table]:
    """Return the audit: MACs by three counters, and what none of them counts."""
    from .audit import uncounted

    rows = [
        (
            f"{MODE_TITLES[item.mode]}: {item.component}",
            str(item.closed),
            "-" if item.fvcore is None else str(item.fvcore),
            "-" if item.torch is None else str(item.torch),
            "yes" if item.agrees else "NO",
        )
        for item in findings
        if item.closed or item.fvcore or item.torch
    ]
    columns = ("MAC, whole batch", "closed form", "fvcore", "FlopCounterMode", "agree")
    compared = Table("Audit", columns, rows, ["fvcore cannot trace CLIP on meta tensors (-)."])
    listed = [(where, name, size) for where, name, size in uncounted(run)]
    rest = Table("Not counted by any of them", ("where", "operation", "size"), listed)
    return [compared, rest]


def _published_note(row: Comparison) -> str:
    """Return the row's note, and for memory what the estimate is with the fitted overhead."""
    if row.kv_gib is None:
        return row.note
    total = row.estimated + bands.memory_overhead().of(row.kv_gib * GIB) / GIB
    memory = load_device(DEVICE).memory_bytes / GIB
    text = f"with overhead {total:.1f} GB" + (", does not fit" if total > memory else "")
    return f"{row.note}; {text}".lstrip("; ")


def published_table(rows: Sequence[Comparison]) -> Table:
    """Return published measurements beside our estimates, row by row."""
    cells = [
        (
            f"{row.table}: {row.model} {row.method}, batch {row.batch}",
            row.quantity,
            "-" if row.measured is None else f"{row.measured:g} {row.unit}",
            f"{row.estimated:.3g} {row.unit}",
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            _published_note(row),
        )
        for row in rows
    ]
    columns = ("published", "quantity", "measured", "estimated", "measured / estimated", "note")
    notes = [
        f"Estimates: {DEVICE}, {DTYPE}, {TEXT_TOKENS} text tokens (assumed: not printed); "
        "nothing is fitted.",
        "Memory: weights + KV + working set, GB read as GiB.",
        *(f"{MODE_TITLES[mode]}, batch {batch}, {kind}: measured / estimated {band}."
          for mode in MODE_TITLES for batch in (1, 8) for kind in ("dense", "sparse")
          if (band := bands.time_band(mode, batch, kind == "sparse")) is not None),
        _overhead_note(),
    ]  # fmt: skip
    return Table("Published A100 measurements and estimates", columns, cells, notes)
