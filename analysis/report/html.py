"""The report as one self-contained HTML page: no request leaves it, every text is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources

from dynllava import __version__
from dynllava.methods.presets import CONTROL
from dynllava.plan.names import FULL

from .. import style
from ..points.realised import charted
from ..tables import render as table_render
from .data import ReportData, page_data, script_json
from .overlay import Overlay
from .provenance import provenance_rows
from .summary import facts
from .svg_charts import Bar, Dot, Line, bars, lines

_SECTIONS = (
    ("pareto", "Accuracy against cost"),
    ("verdicts", "Verdicts"),
    ("own", "Own runs"),
    ("realised", "Savings in cost and in time"),
    ("serving", "Served by an engine"),
    ("elastic", "One checkpoint, any budget"),
    ("kv", "KV cache over output length"),
    ("samples", "Kept tokens"),
    ("tables", "Tables of the paper"),
    ("provenance", "Provenance"),
)


def page(data: ReportData) -> str:
    """Return the page."""
    plotted = page_data(data)
    script = _template("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    # The policy lets nothing load and only this very script run.
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    bodies = {
        "pareto": _pareto(bool(plotted["pages"])),
        "verdicts": _verdicts(data),
        "own": _own(data),
        "realised": _realised(data),
        "serving": _serving(data),
        "elastic": _elastic(data),
        "kv": _kv(data),
        "samples": _samples(data.overlays),
        "tables": _tables(data),
        "provenance": _provenance(data),
    }
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in _SECTIONS)
    sections = "".join(
        f'<section id="{name}"><h2>{title}</h2>{bodies[name]}</section>'
        for name, title in _SECTIONS
    )
    items = "".join(f"<li><b>{escape(a)}</b><span>{escape(b)}</span></li>" for a, b in facts(data))
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<title>Token sparsification report</title><link rel="icon" href="data:,">'
        f"<style>{_template('report.css')}{_colours(plotted['looks'])}</style></head><body>"
        "<header><h1>Token sparsification for LLaVA</h1>"
        '<p class="lead">What sparsification costs in accuracy and saves in compute, memory and '
        "time: published numbers and own runs side by side, each with its origin.</p>"
        f"<nav aria-label='Sections'>{links}</nav></header><main>"
        f'<section id="summary"><h2>Summary</h2><ul class="facts">{items}</ul></section>'
        f"{sections}</main><footer>Made {made} with dynllava {escape(__version__)}."
        '<span class="paper"> Folded parts are not printed: open those you want first.</span>'
        "</footer>"
        f'<script type="application/json" id="report-data">{script_json(plotted)}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _template(name: str) -> str:
    return (resources.files("dynllava.analysis.report") / "templates" / name).read_text(
        encoding="utf-8"
    )


def _colours(looks: dict[str, dict[str, object]]) -> str:
    """Return CSS: one colour variable a curve, lighter in dark mode, and chart classes."""
    light = "".join(
        f"--c{look['index']}:{style.look(name).colour};" for name, look in looks.items()
    )
    dark = "".join(
        f"--c{look['index']}:{style.dark(style.look(name).colour)};" for name, look in looks.items()
    )
    classes = "".join(
        f".m{number}{{--m:{style.look(name).colour}}}" for number, name in enumerate(_CHARTED)
    )
    dark_classes = "".join(
        f".m{number}{{--m:{style.dark(style.look(name).colour)}}}"
        for number, name in enumerate(_CHARTED)
    )
    return (
        f":root{{{light}}}{classes}"
        f"@media(prefers-color-scheme:dark){{:root{{{dark}}}{dark_classes}}}"
        "svg .curve[class*=' m']{stroke:var(--m)}svg .bar{fill:var(--m)}"
    )


_CHARTED = tuple(style.LOOKS)


def _class(method: str) -> str:
    name = method if method in _CHARTED else CONTROL
    return f"m{_CHARTED.index(name)}"


def _pareto(any_points: bool) -> str:
    if not any_points:
        return "<p>There is nothing to plot: no point has both a score and a cost.</p>"
    headers = ("Setting", "Cost", "Score", "95 % interval", "Note", "Origin", "Source")
    head = "".join(f'<th scope="col">{name}</th>' for name in headers)
    return (
        '<p class="quiet">Up and to the left is better. The broad line is the Pareto front of what '
        "is shown, the dashed line the dense model. Hollow: published; filled: own run. Methods "
        "slower than dense are marked.</p>"
        '<div class="controls"><label>Study<select id="page"></select></label>'
        '<label>Score<select id="benchmark"></select></label>'
        '<label>Cost<select id="axis"></select></label></div>'
        '<div id="legend" role="group" aria-label="Methods: press to show or hide"></div>'
        '<div id="plot"><div id="tooltip" role="status" hidden></div></div>'
        "<noscript><p>The plot needs JavaScript; the tables below hold the same numbers.</p>"
        '</noscript><p class="quiet" id="plot-source"></p>'
        "<details><summary>The plotted numbers</summary>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        '<tbody id="plot-rows"></tbody></table></div></details>'
    )


def _verdicts(data: ReportData) -> str:
    if not data.verdicts:
        return "<p>No own run has a dense one with the same samples beside it.</p>"
    return "".join(table_render.render(table, "html") for table in data.verdicts)


def _own(data: ReportData) -> str:
    if not data.own_tables:
        return (
            "<p>There are no own evaluation records. <code>dynllava demo</code> or "
            "<code>dynllava compare</code> makes some.</p>"
        )
    return "".join(table_render.render(table, "html") for table in data.own_tables)


def _realised(data: ReportData) -> str:
    shares = charted(data.shares)
    if not shares:
        return "<p>No record holds a time and a count of the same run.</p>"
    settings: dict[str, list[Bar]] = {}
    for share in shares:
        # Below 5 % saving there is nothing to divide by; time alone still says something.
        percent = share.note if share.value is None else f"{100 * share.value:.0f} %"
        alarm = ": slower than dense" if share.slower else ""
        bar = Bar(share.label, share.value, f"{percent}{alarm}", _class(share.method), share.slower)
        settings.setdefault(share.setting, []).append(bar)
    low = min([0.0, *(max(share.value, -1.0) for share in shares if share.value is not None)])
    high = max([1.0, *(min(share.value, 1.5) for share in shares if share.value is not None)])
    chart = bars(settings, low, high, "Share of the saving in cost that became time")
    rows = "".join(
        f"<tr><td>{escape(share.setting)}</td><td>{escape(share.label)}</td>"
        f"<td>{escape(share.note)}</td>"
        f'<td class="wrap">{escape(share.origin)}</td></tr>'
        for share in sorted(data.shares, key=lambda share: (share.setting, share.dense))
    )
    return (
        '<p class="quiet">Realised share: (1 - time / dense time) / (1 - cost / dense cost). 100 % '
        "means that the whole saving in cost became time, more that the dense baseline lost time "
        "elsewhere. Where cost saves under 5 % no share is formed. Cost is compute for prefill and "
        "calls without cache, bytes moved for cached decoding: counted for own runs, Eq. 13 for "
        "published rows.</p>"
        f'<figure class="wide">{chart}</figure>'
        "<details><summary>Times and costs behind the bars</summary>"
        '<div class="scroll"><table><thead><tr><th>Setting</th><th>Method</th>'
        "<th>Change</th><th>Origin</th></tr>"
        f"</thead><tbody>{rows}</tbody></table></div></details>"
    )


def _serving(data: ReportData) -> str:
    if not data.serving:
        return "<p>There are no records of <code>dynllava serve-check</code>.</p>"
    return "".join(table_render.render(table, "html") for table in data.serving)


def _elastic(data: ReportData) -> str:
    if not data.elastic:
        return "<p>There are no records of <code>dynllava study elastic</code>.</p>"
    return "".join(table_render.render(table, "html") for table in data.elastic)


def _kv(data: ReportData) -> str:
    curves = [
        Line(
            item.label, _class(item.method), style.look(item.method).dashes, item.outputs, item.mib
        )
        for item in data.growth
    ]
    dots = [
        Dot(item.outputs, item.mib, f"from {item.outputs} tokens on {item.after} < {item.before}")
        for item in data.crossovers
    ]
    rows = "".join(
        f"<li>From {item.outputs} output tokens on, {escape(item.after)} stores less than "
        f"{escape(item.before)} ({item.mib:.0f} MiB).</li>"
        for item in data.crossovers
    )
    chart = lines(curves, dots, "output tokens", "KV cache (MiB)", "KV cache over output length")
    return (
        '<p class="quiet">LLaVA-1.5-7B, half precision, batch 1, prompt of 576 image and 56 text '
        "tokens; stored keys and values as the ledger counts them from each method's schedule. "
        "Circles: crossover points.</p>"
        f'<figure class="wide">{chart}</figure>'
        + (f'<ul class="notes">{rows}</ul>' if rows else "<p>No two methods cross here.</p>")
    )


def _samples(overlays: Sequence[Overlay]) -> str:
    if not overlays:
        return (
            "<p>No overlays are stored. <code>dynllava demo</code> makes some, and "
            "<code>dynllava show IMAGE QUESTION --store results</code> adds one.</p>"
        )
    groups: dict[tuple[str, str], list[Overlay]] = {}
    # Dense first: the others are compared with it.
    for item in sorted(overlays, key=lambda found: found.method != FULL):
        groups.setdefault((item.image, item.question), []).append(item)
    parts = [
        '<p class="quiet">Veiled patches were dropped before the last layer. Struck-through words '
        "of the answer are not kept in the cache of the sparse layers.</p>"
        '<div class="samples">'
    ]
    for (image, question), items in groups.items():
        tiles = "".join(_tile(image, item) for item in items)
        expected = next((item.expected for item in items if item.expected), "")
        reference = f'<p class="quiet">Reference answer: {escape(expected)}</p>' if expected else ""
        parts.append(
            f'<div><p class="question">{escape(question)}</p>{reference}'
            f'<div class="tiles">{tiles}</div></div>'
        )
    return "".join(parts) + "</div>"


def _tile(image: str, item: Overlay) -> str:
    kept = set(item.kept)
    total = item.grid**2
    veil = "".join(
        f"M{cell % item.grid} {cell // item.grid}h1v1h-1z"
        for cell in range(total)
        if cell not in kept
    )
    words = "".join(
        escape(text) if keep else f"<del>{escape(text)}</del>" for text, keep in item.words
    )
    label = escape(item.label)
    alt = escape(f"{item.label}: {item.dropped}", quote=True)
    verdict = ""
    if item.right is not None:
        said = "right" if item.right else "wrong"
        verdict = f' <span class="{"quiet" if item.right else "alarm"}">({said})</span>'
    return (
        f'<figure class="tile"><div class="picture"><img alt="{alt}" '
        f'src="data:image/png;base64,{escape(image, quote=True)}">'
        f'<svg viewBox="0 0 {item.grid} {item.grid}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{veil}"/></svg></div><b>{label}</b><p class="quiet">{escape(item.dropped)}</p>'
        f"<p>{words or escape(item.answer)}{verdict}</p></figure>"
    )


def _tables(data: ReportData) -> str:
    parts = [
        '<p class="quiet">Cost columns are computed from token counts and compared with print; '
        "differences to the dense model stand in brackets; bold: best sparsified model, "
        "underlined: second.</p>"
    ]
    for table in data.tables:
        parts.append(
            f"<details><summary>Table {table.number} <span>{escape(table.title)}</span></summary>"
            f"{table_render.render(table, 'html')}</details>"
        )
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{escape(value)}</td>" for value in row)
        + f'<td class="wrap">{escape(reason)}</td></tr>'
        for reason, found in table_render.mismatches(data.tables).items()
        for row in found
    )
    head = "".join(f"<th>{name}</th>" for name in (*table_render.MISMATCH_HEADERS, "why"))
    parts.append(
        "<details><summary>Cells whose computed cost differs from print "
        "<span>by more than rounding</span></summary>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div></details>"
    )
    return "".join(parts)


def _provenance(data: ReportData) -> str:
    headers, rows = provenance_rows(data)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in headers)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>" for row in rows
    )
    notes = "".join(f'<li class="alarm">{escape(note)}</li>' for note in data.notes)
    skipped = f'<h3>Skipped</h3><ul class="notes">{notes}</ul>' if notes else ""
    sources = "".join(
        f"<li>{escape(table.title)}: {escape(table.notes[0] if table.notes else '')}</li>"
        for table in data.tables
    )
    return (
        '<p class="quiet">Every own number comes from one of these records, every published one '
        "from the tables listed below.</p>"
        + (
            f"<details><summary>{len(rows)} records</summary>"
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
            "</table></div></details>"
            if rows
            else "<p>No records.</p>"
        )
        + f"{skipped}<details><summary>Published sources</summary>"
        f'<ul class="notes">{sources}</ul></details>'
    )
