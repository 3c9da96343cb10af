"""``choose``: which methods stay within limits, what each is known to lose, and why others do not.

Methods and budgets are searched over their plans: costs are counted for the asked load, never taken
from a paper.  Accuracy is joined only where it is known: a published row or an own run of the
same model, each beside the dense row of the same study.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dynllava.costs.arguments import LARGEST, check_count
from dynllava.costs.devices import load_device
from dynllava.costs.spec import dtype_bytes, load_spec
from dynllava.errors import UserError
from dynllava.methods import registry
from dynllava.methods.base import Method
from dynllava.methods.budget import processed, takes_budget
from dynllava.methods.ladder import ladder
from dynllava.methods.parameters import nearest
from dynllava.plan.plan import SERVED

from . import question as ask
from .candidates import (
    Candidate,
    canonical_model,
    costs_of,
    own_candidates,
    published_candidates,
    run_of,
)
from .losses import MME, decided, task_names
from .question import KV, LOSS, PREFILL, TPOT, TTFT, WORST, Limit, Question

MOST_ROWS = 10
SOURCES = ("published", "own", "both")
FITS, MAY_FIT, DOES_NOT = "fits", "may fit", "does not fit"


@dataclass(frozen=True)
class Miss:
    """Why a method is not in the list: its nearest candidate, or that nothing is known of it."""

    name: str
    why: str
    candidate: Candidate | None = None


@dataclass(frozen=True)
class Relaxed:
    """What a higher limit buys.

    Attributes
    ----------
    limit : Limit
        As it is.
    to : float
        What it was raised to, or would have to be.
    rows : tuple of Candidate
        What then qualifies beside what did.
    """

    limit: Limit
    to: float
    rows: tuple[Candidate, ...]


@dataclass(frozen=True)
class Answer:
    """What :func:`choose` found; rows by rising loss.

    Attributes
    ----------
    question : Question
    limits : tuple of Limit
    rows : tuple of Candidate
        At most ten; several budgets of a method where there is room.
    more : int
        Rows that qualify and are not listed.
    left_out : tuple of Miss
    binding : tuple of Relaxed
        Without rows: each limit that alone stands in the way, and the nearest value of it that
        lets something through.
    relaxed : tuple of Relaxed
        Without rows: what 10 % more of each binding limit buys.
    known : int
        Candidates whose accuracy is known.
    """

    question: Question
    limits: tuple[Limit, ...]
    rows: tuple[Candidate, ...]
    more: int
    left_out: tuple[Miss, ...]
    binding: tuple[Relaxed, ...]
    relaxed: tuple[Relaxed, ...]
    known: int
    notes: tuple[str, ...] = field(default=())


def choose(
    model: str = "llava-1.5-7b",
    *,
    batch: int = 1,
    prompt_tokens: int = 60,
    outputs: int = 16,
    image: str | None = None,
    max_prefill: str | float | None = None,
    max_kv: str | float | None = None,
    max_ttft: str | float | None = None,
    max_tpot: str | float | None = None,
    device: str | None = None,
    max_loss: float | None = None,
    max_worst_loss: float | None = None,
    tasks: Iterable[str] = (),
    servable: Iterable[str] = (),
    source: str = "both",
    results: str = "results",
    dtype: str = "float16",
) -> Answer:
    """Return the methods that stay within limits, by rising loss, and why others do not.

    Parameters
    ----------
    model : str
        Preset, ``embedded``, or a folder with a ``config.json``.
    batch, prompt_tokens, outputs : int
        Equal sequences; text tokens of a prompt beside one picture; generated tokens.
    image : str, optional
        Pixels of the picture, ``"640x480"``; families that resize to one square make the same
        tokens of any.
    max_prefill : str or float, optional
        ``"0.6x"`` of the dense prefill, ``"3TFLOP"``, or FLOP; whole batch, everything counted.
    max_kv : str or float, optional
        ``"1GB"`` (10^9), ``"1GiB"``, or bytes; whole batch, stored at the end, every output kept.
    max_ttft, max_tpot : str or float, optional
        Time to first token and per output token: ``"80ms"`` or seconds; needs ``device``.
    device : str, optional
        For time limits, e.g. ``"a100-80g"``.
    max_loss, max_worst_loss : float, optional
        Points of 0-100 scores below dense: mean over the tasks, and the task that loses most.
    tasks : iterable of str
        Only these; default: all 0-100 scores of a study.  ``"mme"`` counts as percent of dense.
    servable : iterable of str
        Only these classes (:data:`dynllava.plan.plan.SERVED`).
    source : str
        ``"published"``, ``"own"`` or ``"both"``: where accuracy may come from.
    results : str
        Folder of own run records.
    dtype : str
        Of weights and cache.

    Raises
    ------
    UserError
        For a limit that is none, an unknown model, task, class or device.
    """
    asked = _question(model, batch, prompt_tokens, outputs, device, dtype, image)
    limits = _limits(asked, max_prefill, max_kv, max_ttft, max_tpot, max_loss, max_worst_loss)
    classes = _classes(servable)
    if source not in SOURCES:
        raise UserError(f"--source {source}: accepted are {', '.join(SOURCES)}")
    margin = 0.0 if max_loss is None else max_loss
    wanted = task_names(tasks)
    found: list[Candidate] = []
    if source != "own":
        found += published_candidates(asked, wanted, margin)
    if source != "published":
        found += own_candidates(_own_points(results, asked), asked, wanted, margin)
    _check_tasks(wanted, found, asked)
    found = _each_once(found)
    sure = decided([item.loss for item in found], max_loss)
    found = [replace(item, loss=known) for item, known in zip(found, sure, strict=True)]
    usable = [item for item in found if item.costs and not (classes and item.served not in classes)]
    passing = _ordered([item for item in usable if holds(item, limits)])
    rows = _short_list(passing)
    alone = () if passing else _binding(usable, limits)
    return Answer(
        asked,
        limits,
        rows,
        len(passing) - len(rows),
        tuple(_left_out(found, rows, passing, limits, classes, asked)),
        alone,
        tuple(_ten_percent(usable, limits, item.limit) for item in alone),
        len(found),
        tuple(_notes(asked, found, wanted)),
    )


def _each_once(found: Sequence[Candidate]) -> list[Candidate]:
    """Return one candidate for a method that a study prints twice: the one with most tasks."""
    best: dict[tuple[str, str], Candidate] = {}
    for item in found:
        key = (item.evidence, item.text or item.label)
        if key not in best or len(item.loss.tasks) > len(best[key].loss.tasks):
            best[key] = item
    return list(best.values())


# ---------------------------------------------------------------------- what is asked


def _question(
    model: str,
    batch: int,
    text: int,
    outputs: int,
    device: str | None,
    dtype: str,
    image: str | None,
) -> Question:
    given = {"prompt_tokens": text, "output_tokens": outputs, "batch": batch}
    for name, most in LARGEST.items():
        check_count(f"--{name.replace('_', '-')}", given[name], most)
    dtype_bytes(dtype)
    found = load_device(device) if device else None
    if found is not None:
        found.flops(dtype)
    spec = load_spec(model)
    if image is not None:
        width, height = ask.pixels(image)
        spec = spec.for_image(height, width)
    if not spec.image_tokens:
        raise UserError(f"--model {model}: has no image tokens to choose from")
    return Question(spec, batch, text, 1, outputs, dtype, found)


def _limits(
    asked: Question,
    prefill: str | float | None,
    stored: str | float | None,
    ttft: str | float | None,
    tpot: str | float | None,
    loss: float | None,
    worst: float | None,
) -> tuple[Limit, ...]:
    found = []
    if prefill is not None:
        value, share = ask.compute(prefill) if isinstance(prefill, str) else (prefill, False)
        dense = costs_of(Method(), asked)[PREFILL][0]
        found.append(Limit(PREFILL, value * dense if share else value, "FLOP", dense))
    if stored is not None:
        found.append(Limit(KV, ask.size(stored) if isinstance(stored, str) else stored, "byte"))
    for name, given in ((TTFT, ttft), (TPOT, tpot)):
        if given is None:
            continue
        if asked.device is None:
            raise UserError(f"{name} needs --device: a time is that of a device")
        if name == TPOT and asked.outputs == 1:
            raise UserError(f"{name} needs more than one output token")
        value = ask.seconds(name, given) if isinstance(given, str) else given
        found.append(Limit(name, value, "s"))
    for name, points in ((LOSS, loss), (WORST, worst)):
        if points is not None:
            if not -100 <= points <= 100:
                raise UserError(f"{name} {points:g}: accepted are points from -100 to 100")
            found.append(Limit(name, float(points), "points"))
    return tuple(found)


def _classes(servable: Iterable[str]) -> set[str]:
    found = {item.strip().upper() for item in servable if item.strip()}
    unknown = sorted(found - set(SERVED))
    if unknown:
        raise UserError(f"--servable {','.join(unknown)}: accepted are {', '.join(SERVED)}")
    return found


def _own_points(results: str, asked: Question) -> list[Any]:
    from ..points.measured import measured_points
    from ..points.stores import read_results

    model = canonical_model(asked.spec.name)
    stored = [
        item
        for item in read_results(results)
        if item.record.kind == "evaluation" and canonical_model(item.record.model.name) == model
    ]
    return measured_points(stored)


def _check_tasks(wanted: Sequence[str], found: Sequence[Candidate], asked: Question) -> None:
    """Refuse a name that nothing on this model was measured on."""
    from ..points import names

    seen = {name for item in found for name in item.loss.tasks}
    for name in wanted:
        if name not in seen and name not in names.TITLES:
            hint = nearest(name, [*names.TITLES, *seen])
            accepted = sorted(seen | set(names.TITLES) - {"average"})
            raise UserError(f"--tasks {name}: {hint}accepted are {', '.join(accepted)}")
    if wanted and not found:
        raise UserError(f"--tasks {','.join(wanted)}: no accuracy on {asked.spec.name}")


# ---------------------------------------------------------------------- what fits


def values(item: Candidate, limit: Limit) -> tuple[float, float]:
    """Return least and most of what a limit is about."""
    if limit.name == LOSS:
        return (item.loss.mean,) * 2
    if limit.name == WORST:
        return (item.loss.worst[1],) * 2
    return item.costs[limit.name]


def verdict(item: Candidate, limit: Limit) -> str:
    """Return whether a candidate fits, may fit (a time within the band) or does not."""
    low, high = values(item, limit)
    # Sums of printed decimals: a loss of exactly 1 point must not fail by a rounding error.
    slack = 1e-9 * max(abs(limit.most), 1.0)
    return FITS if high <= limit.most + slack else MAY_FIT if low <= limit.most else DOES_NOT


def holds(item: Candidate, limits: Iterable[Limit]) -> bool:
    """Return whether no limit is certainly broken."""
    return all(verdict(item, limit) != DOES_NOT for limit in limits)


def _ordered(items: Sequence[Candidate]) -> list[Candidate]:
    return sorted(items, key=lambda item: (item.loss.mean, item.costs[PREFILL]))


def _short_list(passing: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return each method's best, then further budgets, at most ten, by loss."""
    first: dict[str, Candidate] = {}
    for item in passing:
        first.setdefault(item.name, item)
    best = list(first.values())[:MOST_ROWS]
    rest = [item for item in passing if not any(item is other for other in best)]
    return tuple(_ordered(best + rest[: MOST_ROWS - len(best)]))


def _excess(item: Candidate, limit: Limit) -> float:
    return limit.excess(values(item, limit)[0])


def _binding(usable: Sequence[Candidate], limits: Sequence[Limit]) -> tuple[Relaxed, ...]:
    """Return each limit that alone stands in the way, the one with the shortest way first.

    Where only several together would have to give, those of the nearest candidate.
    """
    found = []
    for limit in limits:
        others = [other for other in limits if other is not limit]
        through = [item for item in usable if holds(item, others)]
        if through:
            best = min(through, key=lambda item: _excess(item, limit))
            found.append(Relaxed(limit, values(best, limit)[0], (best,)))
    if not found and usable and limits:
        best = min(usable, key=lambda item: max(_excess(item, limit) for limit in limits))
        broken = [limit for limit in limits if verdict(best, limit) == DOES_NOT]
        found = [Relaxed(limit, values(best, limit)[0], (best,)) for limit in broken]
    return tuple(sorted(found, key=lambda item: item.limit.excess(item.to)))


def _ten_percent(usable: Sequence[Candidate], limits: Sequence[Limit], limit: Limit) -> Relaxed:
    more = limit.relaxed()
    changed = [more if other is limit else other for other in limits]
    return Relaxed(
        limit, more.most, _short_list(_ordered([i for i in usable if holds(i, changed)]))
    )


# ---------------------------------------------------------------------- what is left out


def _left_out(
    found: Sequence[Candidate],
    rows: Sequence[Candidate],
    passing: Sequence[Candidate],
    limits: Sequence[Limit],
    classes: set[str],
    asked: Question,
) -> Iterable[Miss]:
    listed = {item.name for item in rows}
    by_name: dict[str, list[Candidate]] = {}
    for item in found:
        by_name.setdefault(item.name, []).append(item)
    for name in sorted(set(by_name) - listed):
        yield _miss(name, by_name[name], passing, limits, classes, asked)
    for name in registry():
        if name not in by_name and not registry()[name]().plan(asked.spec.dims.layers).is_reference:
            yield Miss(name, _unknown(name, limits, asked))


def _miss(
    name: str,
    items: Sequence[Candidate],
    passing: Sequence[Candidate],
    limits: Sequence[Limit],
    classes: set[str],
    asked: Question,
) -> Miss:
    waiting = [item for item in items if any(item is other for other in passing)]
    if waiting:
        return Miss(name, "qualifies, below the ten listed", waiting[0])
    counted = [item for item in items if item.costs]
    allowed = [item for item in counted if not classes or item.served in classes]
    if allowed:
        best = min(allowed, key=lambda item: max(_excess(item, limit) for limit in limits))
        return Miss(name, over(best, limits) + _between(name, allowed, limits, asked), best)
    if counted:
        return Miss(name, f"class {counted[0].served}", counted[0])
    best = min(items, key=lambda item: item.loss.mean)
    if best.method is not None:
        return Miss(name, f"needs {best.prompt} in the prompt and {best.weights}", best)
    at = f" at {best.tokens:g} image tokens" if best.tokens else ""
    known = f"published: {ask.points(best.loss.mean)} points{at}"
    return Miss(name, f"not implemented here ({known})", best)


def over(item: Candidate, limits: Iterable[Limit]) -> str:
    """Return which limits a candidate breaks and by how much."""
    texts = []
    for limit in limits:
        if verdict(item, limit) == DOES_NOT:
            low = values(item, limit)[0]
            what = limit.name.removeprefix("--max-").replace("-", " ")
            task = f" ({item.loss.worst[0]})" if limit.name == WORST else ""
            texts.append(f"{what} {limit.text(low)}{task}, limit {limit.text(limit.most)}")
    return "; ".join(texts)


def _between(
    name: str, items: Sequence[Candidate], limits: Sequence[Limit], asked: Question
) -> str:
    """Return the highest budget within the cost limits, and what is known of those beside it."""
    reach = _reach(name, limits, asked)
    if not reach:
        return ""
    below = [item for item in items if item.tokens <= reach]
    above = [item for item in items if item.tokens > reach]
    beside = [max(below, key=_tokens)] if below else []
    beside += [min(above, key=_tokens)] if above else []
    known = ", ".join(
        f"{ask.points(item.loss.mean)} points at {item.tokens:.0f}" for item in beside
    )
    return f"; costs allow {reach:.0f} image tokens a layer (known: {known})"


def _tokens(item: Candidate) -> float:
    return item.tokens


def _unknown(name: str, limits: Sequence[Limit], asked: Question) -> str:
    """Say that no accuracy is known, and how far its budget could go within the cost limits."""
    said = f"no accuracy known on {canonical_model(asked.spec.name)}"
    reach = _reach(name, limits, asked)
    if reach is None:
        return said
    return (
        f"{said}; costs allow {reach:.0f} image tokens a layer"
        if reach
        else (f"{said}; no budget fits")
    )


def _reach(name: str, limits: Sequence[Limit], asked: Question) -> float | None:
    """Return the most image tokens a layer within the cost limits; 0: none, None: no budget."""
    costs = [limit for limit in limits if limit.unit != "points"]
    layers = asked.spec.dims.layers
    shape = run_of(Method(), asked).shape
    try:
        if not takes_budget(name) or not costs:
            return None
        rungs = ladder(name, shape, layers)
        top = rungs.highest(
            lambda method: all(costs_of(method, asked)[i.name][0] <= i.most for i in costs)
        )
    except UserError:
        return None
    return 0.0 if top is None else processed(rungs.method(top), shape, layers)


def _notes(asked: Question, found: Sequence[Candidate], wanted: Sequence[str]) -> Iterable[str]:
    if not found:
        model = canonical_model(asked.spec.name)
        yield (
            f"No accuracy is known on {model}, so no loss can be held against a limit: measure "
            "with dynllava compare. What the costs allow stands below."
        )
    if MME in wanted:
        yield "MME counts as percent of the dense score."
