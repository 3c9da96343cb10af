"""What limits cost in accuracy: rates chosen for each batch against one fixed rate that fits all.

``python -m dynllava.studies.limits --out results/limits`` answers the embedded model's short
questions in batches of 1 to 8 rows under a limit on the bytes of the KV cache, once with
:meth:`set_limits`, once at the highest fixed rate that stays within the limit in every batch, and
says whether the first is worse by more than a point (paired by sample, one picture a sample).
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from typing import Any

from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.methods.base import Method
from dynllava.methods.budget import processed
from dynllava.methods.parameters import render
from dynllava.models.limits import Limits
from dynllava.models.loading import load_model, resolve
from dynllava.output.tables import quantity
from dynllava.plan import PromptShape
from dynllava.plan.names import LEARNED
from dynllava.records import (
    Counted,
    MethodInfo,
    ModelInfo,
    RecordStore,
    RunRecord,
    Score,
    TaskInfo,
    hash_files,
)
from dynllava.records.environment import capture
from dynllava.uncertainty import Comparison, compare_paired

from .predictors import CAPTION, family_rows, score

FIXED, CHOSEN = "fixed rate", "limits"
MOST_ROWS = 8
MARGIN = 0.01
TASK = "embedded_short_answers"


def batches(rows: Sequence[dict[str, Any]], seed: int) -> list[list[dict[str, Any]]]:
    """Return ``rows`` in a random order, in batches of 1 to 8."""
    draw = random.Random(seed)
    left = list(rows)
    draw.shuffle(left)
    found = []
    while left:
        size = draw.randint(1, MOST_ROWS)
        found.append(left[:size])
        left = left[size:]
    return found


def smallest(methods: Sequence[str], image_tokens: int, layers: int) -> Method:
    """Return the one of ``methods`` (rungs of one ladder) that processes fewest image tokens."""
    shape = PromptShape(20, image_tokens, 20)
    made = [create(text) for text in dict.fromkeys(methods)]
    return min(made, key=lambda method: processed(method, shape, layers))


def answered(model: Any, processor: Any, parts: Sequence[Sequence[dict[str, Any]]]
             ) -> tuple[list[float], list[str], int]:  # fmt: skip
    """Return 1 or 0 a sample, the method of each batch, and the most bytes that one stored."""
    exact: list[float] = []
    methods, most = [], 0
    for part in parts:
        exact += score(model, processor, part, len(part)).exact
        report = model.last_report
        methods.append("" if report.chosen is None else report.chosen.method)
        most = max(most, report.kv_bytes)
    return exact, methods, most


def run(args: argparse.Namespace) -> None:
    """Answer the questions both ways and append a record of each."""
    from dynllava.embedded.data import content_hash
    from dynllava.embedded.questions import FAMILIES

    names = [name for name in FAMILIES if name != CAPTION]
    rows = [row for name in names for row in family_rows(args.split, name, args.limit)]
    parts = batches(rows, args.seed)
    model, processor = load_model(args.pretrained, method=args.method)
    text, tokens = model.config.text_config, model.config.image_seq_length
    own = model.method
    dense = MOST_ROWS * 2 * text.num_hidden_layers * text.hidden_size * model.dtype.itemsize
    limit = int(args.share * dense * tokens)
    model.set_limits(Limits(kv_bytes=limit))
    chosen, methods, most_chosen = answered(model, processor, parts)
    model.set_limits()
    model.set_method(smallest(methods, tokens, text.num_hidden_layers))
    own_values = own.parameters()
    changed = {k: v for k, v in model.method.parameters().items() if v != own_values[k]}
    fixed_text = render(model.method.name, changed)
    fixed, _, most_fixed = answered(model, processor, parts)
    if max(most_chosen, most_fixed) > limit:
        raise UserError(
            f"{max(most_chosen, most_fixed)} bytes were stored, the limit is {limit}", 1
        )
    order = [row for part in parts for row in part]
    store = RecordStore(args.out)
    for label, ran, scores, most in (
        (FIXED, fixed_text, fixed, most_fixed), (CHOSEN, args.method, chosen, most_chosen)
    ):  # fmt: skip
        mean = sum(scores) / len(scores)
        record = RunRecord(
            kind="training",
            model=ModelInfo("embedded", hash_files(resolve(args.pretrained)),
                            text.num_hidden_layers, text.hidden_size, tokens),
            method=MethodInfo(own.name, label,
                              {"run": ran, "kv_limit": limit, "seed": args.seed}),
            task=TaskInfo(TASK, suite="limits study", split=args.split,
                          dataset_hash=content_hash(rows), metric="exact_match",
                          higher_is_better=True, scale=1.0, samples=len(scores)),
            scores={"exact_match": Score(mean, (mean * (1 - mean) / len(scores)) ** 0.5,
                                         len(scores))},
            counted={"kv_bytes": Counted(most, "byte", "most that a batch stored", "decode")},
            environment=capture(model.device, model.dtype, model.kernel),
        )  # fmt: skip
        store.append(record, (
            {"id": f"{row['family']}/{row['question_id']}", "exact": value}
            for row, value in zip(order, scores, strict=True)
        ))  # fmt: skip


def compared(folder: str) -> tuple[Comparison, RunRecord, RunRecord]:
    """Return the comparison of the newest two records in ``folder``, and these.

    Raises
    ------
    UserError
        If one is missing, or they did not answer the same questions under the same limit.
    """
    store = RecordStore(folder)
    newest = {record.method.label: record for record in store.read()[0]}
    if not {FIXED, CHOSEN} <= set(newest):
        raise UserError(f"{folder}: no records of this study", 1)
    fixed, chosen = newest[FIXED], newest[CHOSEN]
    scores = [{row["id"]: row["exact"] for row in store.samples(item)} for item in (fixed, chosen)]
    same = fixed.method.parameters["kv_limit"] == chosen.method.parameters["kv_limit"]
    if not same or scores[0].keys() != scores[1].keys():
        raise UserError(f"{folder}: the newest two records are of different runs", 1)
    keys = list(scores[0])
    first, second = ([part[key] for key in keys] for part in scores)
    return compare_paired(first, second, margin=MARGIN), fixed, chosen


def sentence(folder: str) -> str:
    """Return what the records in ``folder`` say, as a page quotes it."""
    found, fixed, chosen = compared(folder)
    interval = "no interval"
    if found.interval is not None:
        interval = f"95 % interval {100 * found.interval[0]:+.1f} to {100 * found.interval[1]:+.1f}"
    limit = fixed.method.parameters["kv_limit"]
    means = [100 * record.scores["exact_match"].value for record in (chosen, fixed)]
    run = fixed.method.parameters["run"]
    verdict = found.verdict.replace("margin", "a point")
    return (
        f"Embedded model, {found.samples} short questions in batches of 1 to {MOST_ROWS}, KV at "
        f"most {quantity(limit, 'byte')} a batch: {means[0]:.1f} % right with rates chosen for "
        f"each, {means[1]:.1f} % with the highest fixed ones that always fit (`{run}`); "
        f"{100 * found.difference:+.1f} points ({interval}): {verdict}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and print what it says."""
    parser = argparse.ArgumentParser(prog="python -m dynllava.studies.limits", description=__doc__)
    parser.add_argument("--pretrained", default="embedded", help="model (default: embedded)")
    parser.add_argument("--method", default=LEARNED, help=f"default: {LEARNED}")
    parser.add_argument(
        "--share", type=float, default=0.6,
        help="KV limit, of the image tokens of 8 dense rows (default: 0.6)",
    )  # fmt: skip
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, help="samples per family")
    parser.add_argument("--seed", type=int, default=0, help="of the batches")
    parser.add_argument("--out", required=True, help="folder of the records")
    args = parser.parse_args(argv)
    try:
        run(args)
        print(sentence(args.out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
