"""Methods at budgets whose accuracy is known, each with what it costs under the asked load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dynllava.costs import bands, flops, kv, ledger, roofline
from dynllava.errors import UserError
from dynllava.methods import registry
from dynllava.methods.base import Method
from dynllava.methods.budget import processed, solve
from dynllava.methods.checks import DEEPEST
from dynllava.methods.parameters import parse, render
from dynllava.published.implementations import Implementation, implementation

from ..points.published import MODELS, SOURCES, published_points
from ..points.values import Point, dense_of
from .losses import Loss, loss
from .question import KV, PREFILL, TPOT, TTFT, Question

Span = tuple[float, float]
"""Least and most of a quantity; the same where it is counted."""


@dataclass(frozen=True)
class Candidate:
    """A method with parameters, its costs, and one study's or the own runs' word on its accuracy.

    Attributes
    ----------
    name, text : str
        Registry name; the method to paste (empty: not implemented here, or its parameters are
        not known).
    method : Method or None
    costs : dict
        Limit name to (least, most), whole batch; empty without a method.
    tokens : float
        Mean image tokens a layer processes.
    loss : Loss
    evidence, label : str
        The study (or ``"own runs"``), and what it calls the row.
    weights, prompt : str
        What is needed beside the stock checkpoint and a usual prompt.
    adapts : bool
        Counts depend on the data: costs are the declared estimate, not a promise.
    """

    name: str
    text: str
    method: Method | None
    costs: Mapping[str, Span]
    tokens: float
    loss: Loss
    evidence: str
    label: str
    weights: str = ""
    prompt: str = ""
    adapts: bool = False
    served: str = ""

    @property
    def certificate(self) -> str:
        """What certifies the implementation, in words."""
        if self.method is None:
            return "not implemented here"
        parts = {part.name: part.certificate for part in self.method.parts}
        held = [text for text in parts.values() if text]
        return f"certified ({', '.join(dict.fromkeys(held))})" if held else "not certified"


def costs_of(method: Method, question: Question) -> dict[str, Span]:
    """Return what a method costs under the load, whole batch.

    Compute is counted, everything included.  KV bytes are those stored at the end with every
    output kept: the most that can come.  Times are roofline estimates times the range of
    measured / estimated of published runs in the same regime; where there is none, anything.
    """
    run = run_of(method, question)
    prefill = flops.FLOPS_PER_MAC * ledger.total(ledger.entries(run, "prefill"))
    fed = question.outputs - 1
    stored = kv.kv_state(run, fed, question.dtype, kept=fed).total_stored
    found: dict[str, Span] = {PREFILL: (prefill, prefill), KV: (stored, stored)}
    if question.device is None:
        return found
    sparse = run.schedule != run.dense().schedule
    for name, mode in ((TTFT, "prefill"), (TPOT, "decode")):
        if mode == "decode" and question.outputs == 1:
            continue
        estimate = roofline.estimate(run, mode, question.device, question.dtype)
        seconds = estimate.total if mode == "prefill" else estimate.per_call
        band = bands.time_band(mode, question.batch, sparse)
        found[name] = (0.0, float("inf"))
        if band is not None:
            found[name] = (seconds * band.low, seconds * band.high)
    return found


def run_of(method: Method, question: Question) -> ledger.Run:
    """Return the run that is counted."""
    spec = question.spec
    method.plan(spec.dims.layers).check_model(spec.dims.heads, max(spec.image_tokens, 1))
    shape = spec.prompt(question.text, images=question.images)
    return ledger.Run(spec, method, shape, question.outputs, question.batch)


def canonical_model(name: str) -> str:
    """Return what published tables call a model: ``llava-1.5-7b`` for ``llava-v1.5-7b-hf``."""
    base = name.rstrip("/").rpartition("/")[2].lower()
    return base.removesuffix("-hf").removesuffix("-dynamic").replace("-v1.5", "-1.5")


def published_candidates(
    question: Question, tasks: Sequence[str], margin: float
) -> Iterator[Candidate]:
    """Yield the published rows of the model, each beside the dense row of its own study."""
    model = canonical_model(question.spec.name)
    for source in SOURCES if model in MODELS else ():
        points = published_points(source, model)
        for point in points:
            dense = dense_of(points, point)
            if dense is None or point.is_dense:
                continue
            known = loss(point, dense, tasks, margin)
            if known is not None:
                ran = implementation(point.label, model, _printed_tokens(point))
                yield _candidate(ran, question, known, point)


def own_candidates(
    points: Sequence[Point], question: Question, tasks: Sequence[str], margin: float
) -> Iterator[Candidate]:
    """Yield own runs of the model, each beside its dense run."""
    model = canonical_model(question.spec.name)
    for point in points:
        if canonical_model(point.model) != model or point.is_dense or point.caveat:
            continue
        dense = dense_of(points, point)
        known = None if dense is None else loss(point, dense, tasks, margin)
        if known is None or not point.method or _is_reference(point.method):
            continue
        weights = "the tuned weights that these runs used" if point.weights == "tuned" else ""
        ran = Implementation(parse(point.method).name, _short(point.method), weights=weights)
        yield _candidate(ran, question, known, point)


def _is_reference(text: str) -> bool:
    try:
        return parse(text).create().plan(DEEPEST).is_reference
    except UserError:
        return False


def _short(text: str) -> str:
    """Return a method without the parameters that are the defaults anyway."""
    try:
        given = parse(text)
        usual = parse(given.name).create().parameters()
    except UserError:
        return text
    return render(
        given.name, {k: v for k, v in given.parameters.items() if usual.get(k, text) != v}
    )


def _printed_tokens(point: Point) -> float | None:
    last = point.label.rpartition(" ")[2]
    if last.isdecimal():
        return float(last)
    cost = point.costs.get("image_tokens")
    return None if cost is None else cost.value


def _candidate(ran: Implementation, question: Question, known: Loss, point: Point) -> Candidate:
    bare = Candidate(
        ran.name, "", None, {}, ran.tokens or 0.0, known, point.source, point.label, ran.weights,
        ran.prompt,
    )  # fmt: skip
    text = _text(ran, question)
    if text is None:
        return bare
    try:
        method = parse(text).create()
        if ran.prompt:
            return replace(bare, text=text, method=method)
        costs = costs_of(method, question)
    except UserError:
        return bare
    layers = question.spec.dims.layers
    plan = method.plan(layers)
    tokens = processed(method, run_of(method, question).shape, layers)
    return replace(
        bare, text=text, method=method, costs=costs, tokens=tokens, adapts=plan.adapts,
        served=plan.served,
    )  # fmt: skip


def _text(ran: Implementation, question: Question) -> str | None:
    """Return the method to paste; a budget alone is solved for on the model's usual prompt."""
    if ran.text:
        return ran.text if ran.name.partition("+")[0] in registry() else None
    if ran.name not in registry() or not ran.tokens:
        return None
    return _solved(ran.name, ran.tokens, question)


def _solved(name: str, tokens: float, question: Question) -> str | None:
    shape = question.spec.prompt(question.text)
    try:
        return render(name, solve(name, tokens, shape, question.spec.dims.layers))
    except UserError:
        return None
