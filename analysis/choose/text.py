"""An answer as text no wider than the terminal, and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dynllava.costs.kv import kv_state
from dynllava.output import terminal
from dynllava.output.tables import quantity
from dynllava.plan.plan import SERVED

from ..points import names
from .candidates import Candidate, run_of
from .question import KV, LOSS, PREFILL, TPOT, TTFT, WORST, Limit, points
from .search import FITS, MAY_FIT, Answer, Miss, Relaxed, over, values, verdict

TITLES = {
    PREFILL: "prefill", KV: "KV", TTFT: "first token", TPOT: "per token", LOSS: "mean loss",
    WORST: "worst task",
}  # fmt: skip
MOST_OUTPUTS = 1 << 16


def text(answer: Answer, width: int) -> str:
    """Return the answer as lines of at most ``width`` columns."""
    lines = terminal.paragraph(load(answer), width)
    lines += terminal.paragraph(f"Limits: {limits(answer)}.", width)
    if answer.rows:
        lines += ["", *_table(answer, width)]
        for number, item in enumerate(answer.rows, 1):
            lines += ["", *_row(number, item, answer, width)]
        if answer.more:
            lines += ["", f"{answer.more} more qualify."]
    else:
        lines += ["", *_none(answer, width)]
    lines += ["", *_left_out(answer, width)]
    for note in (*(answer.notes if answer.rows else ()), *_conventions(answer)):
        lines += terminal.paragraph(note, width)
    return "\n".join(lines) + "\n"


def load(answer: Answer) -> str:
    """Return what is run, in words."""
    asked = answer.question
    where = f", {asked.device.title}" if asked.device else ""
    return (
        f"{asked.spec.name}, batch {asked.batch}, {asked.text} text + "
        f"{asked.images * asked.spec.image_tokens} image tokens, {asked.outputs} output tokens, "
        f"{asked.dtype}{where}."
    )


def limits(answer: Answer) -> str:
    """Return the limits, in words."""
    shown = [f"{TITLES[item.name]} at most {item.text(item.most)}" for item in answer.limits]
    return ", ".join(shown) or "none"


def _amount(item: Candidate, limit: Limit) -> str:
    low, high = values(item, limit)
    if low == high:
        return limit.text(low)
    if high == float("inf"):
        return "no published run of this regime"
    return f"{limit.text(low)} to {limit.text(high)}"


def _margin(item: Candidate, limit: Limit) -> str:
    """Return an amount with what is left to its limit."""
    found, high = verdict(item, limit), values(item, limit)[1]
    if found == MAY_FIT:
        return f"{_amount(item, limit)}: may fit"
    assert found == FITS
    left = limit.most - high
    if limit.unit == "points":
        return f"{_amount(item, limit)} ({left:.2f} to spare)"
    return f"{_amount(item, limit)} ({left / limit.most:.0%} to spare)"


def _table(answer: Answer, width: int) -> list[str]:
    costs = [limit for limit in answer.limits if limit.unit != "points"]
    header = ["", "method", *(TITLES[limit.name] for limit in costs), "mean loss", "worst", "tasks",
              "class"]  # fmt: skip
    rows = [
        [
            str(number),
            item.name,
            *(_short(item, limit) for limit in costs),
            points(item.loss.mean),
            points(item.loss.worst[1]),
            f"{len(item.loss.tasks)}/{item.loss.asked}",
            item.served,
        ]
        for number, item in enumerate(answer.rows, 1)
    ]
    return terminal.grid(header, rows, 2, width)


def _short(item: Candidate, limit: Limit) -> str:
    low, high = values(item, limit)
    if low != high:
        return verdict(item, limit)
    return f"{low / limit.share_of:.2f}x" if limit.share_of else quantity(low, limit.unit)


def _row(number: int, item: Candidate, answer: Answer, width: int) -> Iterator[str]:
    yield from terminal.paragraph(item.text, width, f"{number:<3}", "   ")
    for line in details(item, answer):
        yield from terminal.paragraph(line, width, "   ", "     ")


def details(item: Candidate, answer: Answer) -> list[str]:
    """Return what is to be known of a candidate, a line each."""
    task, most = item.loss.worst
    found = []
    costs = [limit for limit in answer.limits if limit.unit != "points" and item.costs]
    shown = [f"{TITLES[limit.name]} {_margin(item, limit)}" for limit in costs]
    if shown:
        estimate = " (declared estimate: its counts depend on the picture)" * item.adapts
        found.append(f"cost: {'; '.join(shown)}{estimate}")
    room = outputs_within(item, answer)
    if room is not None:
        found.append(f"output: up to {room} tokens stay within the KV limit")
    found.append(
        f"loss: {points(item.loss.mean)} points, mean of {len(item.loss.tasks)} of "
        f"{item.loss.asked} tasks; worst {names.title(task)} {points(most)}; {item.loss.text()}"
    )
    at = f", {item.tokens:.1f} image tokens a layer" if item.tokens else ""
    found.append(f"evidence: {item.evidence}: {item.label}{at}")
    served = f"class {item.served} ({SERVED[item.served]})" if item.served else ""
    found.append("; ".join(filter(None, (item.certificate, served))))
    needs = f"{answer.question.spec.name} in {answer.question.dtype}, {weight(answer)}"
    found.append(f"needs: {'; '.join(filter(None, (needs, item.weights)))}")
    return found


def weight(answer: Answer) -> str:
    """Return the bytes of the stock weights."""
    return quantity(answer.question.spec.weight_bytes(answer.question.dtype), "byte")


def outputs_within(item: Candidate, answer: Answer) -> int | None:
    """Return the most output tokens within the KV limit, None without one."""
    limit = next((limit for limit in answer.limits if limit.name == KV), None)
    if limit is None or item.method is None or verdict(item, limit) != FITS:
        return None
    asked = answer.question

    def fits(outputs: int) -> bool:
        run = run_of(item.method, replace(asked, outputs=outputs))  # type: ignore[arg-type]
        fed = outputs - 1
        return kv_state(run, fed, asked.dtype, kept=fed).total_stored <= limit.most

    low, high = asked.outputs, MOST_OUTPUTS
    if fits(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _none(answer: Answer, width: int) -> Iterator[str]:
    yield "None qualifies."
    for note in answer.notes:
        yield from terminal.paragraph(note, width)
    if not answer.binding:
        return
    alone = len(answer.binding[0].rows[0].costs) and _single(answer)
    for item, more in zip(answer.binding, answer.relaxed, strict=True):
        title = TITLES[item.limit.name]
        what = "would do alone" if alone else "has to give as well"
        yield from terminal.paragraph(
            f"{title}: {item.limit.text(item.to)} in place of {item.limit.text(item.limit.most)} "
            f"({_more(item.limit.excess(item.to))}) {what}: {item.rows[0].text}",
            width, "  ", "    ",
        )  # fmt: skip
        yield from terminal.paragraph(bought(more), width, "    ", "    ")


def _more(excess: float) -> str:
    """Return how far a value lies above a limit: percent, or times where that is many."""
    return f"{100 * excess:+.0f} %" if excess < 10 else f"{1 + excess:,.0f} times as much"


def _single(answer: Answer) -> bool:
    """Return whether each binding limit stands in the way alone."""
    first = answer.binding[0]
    others = [limit for limit in answer.limits if limit is not first.limit]
    return not over(first.rows[0], others)


def bought(item: Relaxed) -> str:
    """Return what 10 % more of a limit buys."""
    start = f"10 % more ({item.limit.text(item.to)}) buys"
    if not item.rows:
        return f"{start} nothing."
    best = item.rows[0]
    return f"{start} {len(item.rows)}: {best.text} at {points(best.loss.mean)} points."


def _left_out(answer: Answer, width: int) -> Iterator[str]:
    if not answer.left_out:
        return
    yield "Left out because:"
    same: dict[str, list[Miss]] = {}
    for miss in answer.left_out:
        same.setdefault(miss.why, []).append(miss)
    for why, items in same.items():
        first = items[0].candidate
        shown = ", ".join(item.name for item in items)
        if len(items) == 1 and first is not None and first.text:
            shown = first.text
        yield from terminal.paragraph(f"{shown}: {why}", width, "  ", "    ")


def _conventions(answer: Answer) -> Iterator[str]:
    yield (
        "Prefill: FLOP (1 MAC = 2 FLOP), vision tower, projector and the method's own work "
        "included, whole batch. KV: stored at the end, whole batch, every output kept; "
        "1 GB is 10^9 bytes, 953.7 MiB. Loss: points below the dense row of the same study."
    )
    if answer.question.device is not None:
        yield (
            "Times: roofline estimate times measured / estimated of published A100 runs "
            "(dynllava profile --published)."
        )


def document(answer: Answer) -> dict[str, Any]:
    """Return the answer as plain values."""
    asked = answer.question
    return {
        "model": asked.spec.name,
        "batch": asked.batch,
        "prompt_tokens": asked.text,
        "image_tokens": asked.images * asked.spec.image_tokens,
        "output_tokens": asked.outputs,
        "dtype": asked.dtype,
        "device": asked.device.name if asked.device else None,
        "limits": [
            {"name": item.name, "most": item.most, "unit": item.unit} for item in answer.limits
        ],
        "rows": [_document(item, answer) for item in answer.rows],
        "more": answer.more,
        "left_out": [
            {
                "method": miss.name,
                "why": miss.why,
                "nearest": None if miss.candidate is None else _document(miss.candidate, answer),
            }
            for miss in answer.left_out
        ],
        "binding": [
            {
                "limit": item.limit.name,
                "needed": item.to,
                "unit": item.limit.unit,
                "method": item.rows[0].text,
                "ten_percent_more": more.to,
                "ten_percent_buys": [row.text for row in more.rows],
            }
            for item, more in zip(answer.binding, answer.relaxed, strict=True)
        ],
        "notes": list(answer.notes),
    }


def _document(item: Candidate, answer: Answer) -> dict[str, Any]:
    task, most = item.loss.worst
    return {
        "method": item.text,
        "name": item.name,
        "image_tokens_per_layer": item.tokens,
        "costs": {
            limit.name: {
                "least": _finite(values(item, limit)[0]),
                "most": _finite(values(item, limit)[1]),
                "unit": limit.unit,
                "limit": limit.most,
                "verdict": verdict(item, limit),
            }
            for limit in answer.limits
            if limit.unit == "points" or item.costs
        },
        "loss": {
            "mean": item.loss.mean,
            "worst": {"task": task, "points": most},
            "tasks": item.loss.tasks,
            "asked": item.loss.asked,
            "interval": item.loss.interval,
            "verdict": item.loss.verdict,
        },
        "evidence": item.evidence,
        "label": item.label,
        "implemented": item.method is not None,
        "certificate": item.certificate,
        "class": item.served or None,
        "adapts": item.adapts,
        "weights": item.weights,
        "output_tokens_within_kv": outputs_within(item, answer) if item.costs else None,
    }


def _finite(value: float) -> float | None:
    return None if value in (float("inf"), float("-inf")) else value
