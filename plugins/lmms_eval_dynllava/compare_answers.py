"""Compare two lmms-eval runs: ``python -m lmms_eval_dynllava.compare_answers A B``.

Reads the samples (``--log_samples``) of two result folders, joins them by task and document, and
lists every answer and every efficiency number that differs.  Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynllava.errors import UserError
from dynllava.records.lmms_eval_results import RESULTS_SUFFIX, lmms_eval_samples

COMPARED = ("filtered_resps", "token_counts")


def read_answers(folder: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Return (task, document) -> the compared fields of the newest run in ``folder``.

    Raises
    ------
    UserError
        If there are no results or no samples.
    """
    results = sorted(Path(folder).rglob(f"*{RESULTS_SUFFIX}"))
    if not results:
        raise UserError(f"{folder}: no lmms-eval results (*{RESULTS_SUFFIX}) in it", 1)
    newest = results[-1]
    marker = newest.name.removesuffix(RESULTS_SUFFIX) + "_samples_"
    answers = {}
    for path in sorted(newest.parent.glob(f"{marker}*.jsonl")):
        task = path.stem.removeprefix(marker)
        for sample in lmms_eval_samples(newest, task):
            answers[task, sample["doc_id"]] = {key: sample.get(key) for key in COMPARED}
    if not answers:
        raise UserError(f"{folder}: no samples beside {newest.name}: run with --log_samples", 1)
    return answers


def differences(
    first: dict[tuple[str, int], dict[str, Any]], second: dict[tuple[str, int], dict[str, Any]]
) -> list[str]:
    """Return one line for every document that differs or that one run lacks."""
    lines = []
    for key in sorted(first.keys() | second.keys()):
        where = f"{key[0]} document {key[1]}"
        if key not in first or key not in second:
            lines.append(f"{where}: only in the {'first' if key in first else 'second'} run")
            continue
        for name in COMPARED:
            if first[key][name] != second[key][name]:
                lines.append(f"{where}: {name} {first[key][name]!r} != {second[key][name]!r}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two folders; return 0 if they agree."""
    parser = argparse.ArgumentParser(prog="compare_answers", description=__doc__)
    parser.add_argument("first")
    parser.add_argument("second")
    options = parser.parse_args(arguments)
    try:
        first, second = read_answers(options.first), read_answers(options.second)
    except UserError as error:
        print(f"compare_answers: error: {error}", file=sys.stderr)
        return error.exit_code
    lines = differences(first, second)
    for line in lines:
        print(line)
    print(f"{len(first.keys() & second.keys())} documents compared, {len(lines)} differences")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
