"""Bench results as tables, rows and run records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynllava.costs import ledger
from dynllava.costs.report import MODE_TITLES
from dynllava.output.tables import Table, quantity
from dynllava.plan.names import FULL
from dynllava.records import (
    Counted,
    Environment,
    Measured,
    MethodInfo,
    ModelInfo,
    RunRecord,
    TaskInfo,
)

from . import stats
from .bench import Result, cost
from .speed import CPU_SUFFIX, STATIC, Subject

COLUMNS = (
    "batch",
    "output_tokens",
    "subject",
    "quantity",
    "median",
    "iqr",
    "repeats",
    "unit",
)


def title(results: Sequence[Result]) -> str:
    """Return what one group of results has in common."""
    plan, bench = results[0].plan, results[0].subject.bench
    weights = ", random weights" if bench.random_weights else ""
    text = plan.shape.total - plan.shape.image
    return (
        f"{bench.spec.name}{weights}: batch {plan.batch}, {text} text + {plan.shape.image} image "
        f"tokens, {plan.outputs} generated, {plan.repeats} repeats"
    )


def tables(results: Sequence[Result], clock: str = "wall") -> list[Table]:
    """Return times and realised shares of one plan; ``clock`` is ``"wall"`` or ``"cpu"``."""
    suffix = CPU_SUFFIX if clock == "cpu" else ""
    what = "process CPU time" if clock == "cpu" else "wall-clock time"
    times = Table(
        f"{title(results)}; {what}, median (inter-quartile range)",
        ("", "TTFT", "prefill", "per token", "tokens/s", "call, no cache", "KV", "peak memory"),
        [_time_row(result, suffix) for result in results],
    )
    return [times, _share_table(results, suffix)]


def _time_row(result: Result, suffix: str) -> list[str]:
    cells = [result.subject.name]
    for name in ("ttft", "prefill", "tpot"):
        cells.append(_time_cell(result, name + suffix))
    per_token = f"tpot{suffix}"
    speed = "-"
    if per_token in result.names:
        speed = f"{result.plan.batch / stats.spread(result.series(per_token)).median:.1f}"
    cells += [speed, _time_cell(result, f"nocache_call{suffix}")]
    cells.append(quantity(result.times[-1].kv_allocated, "byte"))
    cells.append("-" if result.peak_bytes is None else quantity(result.peak_bytes, "byte"))
    return cells


def _time_cell(result: Result, name: str) -> str:
    if name not in result.names:
        return "-"
    found = stats.spread(result.series(name))
    return f"{1e3 * found.median:.1f} ms ({1e3 * found.iqr:.1f})"


def _share_table(results: Sequence[Result], suffix: str) -> Table:
    rows = []
    for result in results:
        if result.subject.method is None:
            continue
        for mode in result.cost_ratios:
            compiled = result.ratios_to_compiled.get(mode + suffix)
            ratio = result.ratios[mode + suffix]
            share = result.shares[mode + suffix]
            rows.append(
                [
                    result.subject.name,
                    MODE_TITLES.get(mode, mode),
                    f"{ratio.median:.3f} ({ratio.iqr:.3f})",
                    "" if compiled is None else f"{compiled.median:.3f} ({compiled.iqr:.3f})",
                    f"{result.cost_ratios[mode]:.3f}",
                    "undefined" if share is None else f"{share:.2f}",
                    "SLOWER THAN DENSE" if result.is_slower(mode + suffix) else "",
                ]
            )
    columns = (
        "",
        "mode",
        "time / dense",
        "/ dense, compiled",
        "cost / dense",
        "realised share",
        "",
    )
    notes = [
        "Dense = stock transformers in the same round, decoding with the faster of its caches.",
        "Cost: FLOPs (prefill, no cache) or bytes of weights and KV (decode, cache).",
        "Realised share = (1 - time ratio) / (1 - cost ratio); undefined below 5 % counted saving.",
    ]
    kept = [
        f"{result.subject.name} kept {result.output_keep:.1%} of the output tokens."
        for result in results
        if result.output_keep is not None and result.output_keep < 1
    ]
    return Table("Realised savings", columns, rows, notes + kept, left=2)


def csv_rows(results: Sequence[Result]) -> list[tuple[Any, ...]]:
    """Return one row a measured quantity, for :data:`COLUMNS`."""
    rows = []
    for result in results:
        plan = result.plan
        for name, item in measured(result).items():
            label = (plan.batch, plan.outputs, result.subject.name, name)
            rows.append((*label, item.median, item.iqr, item.repeats, item.unit))
    return rows


def measured(result: Result) -> dict[str, Measured]:
    """Return the record's measured quantities; undefined shares are left out."""
    processes = [times.process for times in result.times]
    found = {}

    def add(name: str, values: Sequence[float], unit: str, higher_is_better: bool) -> None:
        found[name] = measured_rounds(values, processes, unit, higher_is_better)

    for name in result.names:
        add(name, result.series(name), "s", False)
        if name.startswith("tpot"):
            rates = [result.plan.batch / value for value in result.series(name)]
            add(name.replace("tpot", "tokens_per_second"), rates, "token/s", True)
    if "step" in result.names:
        rates = [result.plan.batch / value for value in result.series("step")]
        add("tokens_per_second", rates, "token/s", True)
    if result.peak_bytes is not None:
        found["peak_memory"] = Measured(result.peak_bytes, None, 1, "byte", False)
    for key, ratios in result.paired.items():
        add(key, ratios, "1", False)
    for mode, share in result.shares.items():
        if share is not None:
            saving = 1 - result.cost_ratios[mode.removesuffix(CPU_SUFFIX)]
            shares = [(1 - ratio) / saving for ratio in result.paired[f"time_ratio_{mode}"]]
            add(f"realised_share_{mode}", shares, "1", True)
    return found


def measured_rounds(
    values: Sequence[float], processes: Sequence[str], unit: str, higher_is_better: bool
) -> Measured:
    """Return a measured quantity with every round, to six digits, by the process that ran it."""
    item = stats.spread(values)
    rounds: dict[str, list[float]] = {}
    for process, value in zip(processes, values, strict=True):
        rounds.setdefault(process, []).append(float(f"{value:.6g}"))
    return Measured(item.median, item.iqr, item.repeats, unit, higher_is_better, rounds)


def counted(result: Result) -> dict[str, Counted]:
    """Return the record's counted quantities (language model only), whole batch."""
    plan, subject = result.plan, result.subject
    run = subject.run_of(plan.shape, plan.outputs, plan.batch, result.output_keep)
    note = f"counted without vision tower, batch {plan.batch}"
    found = {
        "prefill_macs": Counted(
            ledger.total(ledger.entries(run, "prefill", vision=False)), "MAC", note, "prefill"
        ),
        "kv_bytes_allocated": Counted(
            result.times[-1].kv_allocated, "byte", f"realised, batch {plan.batch}", "decode"
        ),
    }
    if "tpot" in result.names:
        found["decode_macs"] = Counted(
            ledger.total(ledger.entries(run, "decode")), "MAC", note, "decode"
        )
        found["decode_bytes_moved"] = Counted(cost(result, "decode"), "byte", note, "decode")
    if result.output_keep is not None:
        found["output_keep"] = Counted(result.output_keep, "1", "realised", "decode")
    for mode, value in result.cost_ratios.items():
        found[f"cost_ratio_{mode}"] = Counted(value, "1", note, mode)
    return found


def describe(subject: Subject) -> tuple[ModelInfo, MethodInfo]:
    """Return what a record says about a subject's model and method."""
    spec = subject.bench.spec
    name = f"{spec.name} (random weights)" if subject.bench.random_weights else spec.name
    if subject.method is None:
        cache = "StaticCache" if subject.name.startswith(STATIC) else "DynamicCache"
        cache += ", compiled" if subject.compiled else ""
        method = MethodInfo(
            FULL,
            label=f"dense, {subject.name}",
            parameters={"implementation": f"transformers, {cache}"},
        )
    else:
        # Further settings of a method, and compiled steps, are told apart by their label.
        own = subject.method.name
        label = "" if subject.name == own else subject.name
        method = MethodInfo(own, label=label, parameters=subject.method.parameters())
    dims = spec.dims
    return ModelInfo(name, None, dims.layers, dims.hidden, spec.image_tokens or None), method


def record(result: Result, environment: Environment) -> RunRecord:
    """Return the record of one subject under one plan."""
    plan = result.plan
    model, method = describe(result.subject)
    text = plan.shape.total - plan.shape.image
    task = f"{plan.what}-b{plan.batch}-t{text}-i{plan.shape.image}-o{plan.outputs}"
    return RunRecord(
        kind="bench",
        model=model,
        method=method,
        task=TaskInfo(name=task, suite="speed"),
        counted=counted(result),
        measured=measured(result),
        environment=environment,
    )
