"""Keep rates and ablations of the paper's tables 5-7 and 16-17 on the embedded model.

``python -m dynllava.studies.keep_rates --out results/training [key=value ...]`` trains each variant
from the embedded configuration and appends the held-out scores of its predictors to the records.
A record's label names the variant and its steps; what is in the store already is not made again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence

from dynllava.errors import UserError
from dynllava.models.loading import load_model
from dynllava.training.config import read_config
from dynllava.training.run import train

from .predictors import CAPTION, RecordWriter, Setting, family_rows, score

VARIANTS = {
    "recipe": (),
    "without masked softmax": ("sparsity.masking=zero",),
    "vision 0.5": ("sparsity.vision_keep_rate=0.5",),
    "vision 0.8": ("sparsity.vision_keep_rate=0.8",),
    "output 0.2": ("sparsity.output_keep_rate=0.2",),
    "output 0.8": ("sparsity.output_keep_rate=0.8",),
    "sparse layer 1": ("sparse_layer=1",),
    "sparse layer 4": ("sparse_layer=4",),
    "lambda 10": ("sparsity.mask_loss_weight=10",),
    "lambda 1000": ("sparsity.mask_loss_weight=1000",),
    "LEN_OT 0": ("sparsity.min_answer_length=0",),
    "LEN_OT 100": ("sparsity.min_answer_length=100",),
    "vision 0.5, output 0.2": ("sparsity.vision_keep_rate=0.5", "sparsity.output_keep_rate=0.2"),
    "vision 0.5, output 0.8": ("sparsity.vision_keep_rate=0.5", "sparsity.output_keep_rate=0.8"),
    "vision 0.8, output 0.2": ("sparsity.vision_keep_rate=0.8", "sparsity.output_keep_rate=0.2"),
    "vision 0.8, output 0.8": ("sparsity.vision_keep_rate=0.8", "sparsity.output_keep_rate=0.8"),
}
"""Overrides of the embedded configuration by label; ``recipe`` is vision 0.2, output 0.5."""


def known_labels(folder: str) -> set[str]:
    """Return the labels of the records that ``folder`` holds."""
    from dynllava.records import RecordStore

    store = RecordStore(folder)
    return {record.method.label for record in store.read()[0]} if store.path.is_file() else set()


def main(argv: Sequence[str] | None = None) -> int:
    """Train and score the variants that are not in the store yet."""
    parser = argparse.ArgumentParser(
        prog="python -m dynllava.studies.keep_rates", description=__doc__
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every variant")
    parser.add_argument("--out", required=True, help="folder of the records")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="labels of variants")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, help="samples per family")
    args = parser.parse_args(argv)
    done = known_labels(args.out)
    try:
        for label in args.only or VARIANTS:
            steps = read_config("embedded", args.overrides).run.max_steps
            if f"{label}, {steps} steps" not in done:
                run_variant(label, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run_variant(label: str, args: argparse.Namespace) -> None:
    """Train one variant in a temporary folder and record its scores."""
    from dynllava.embedded.questions import FAMILIES

    with tempfile.TemporaryDirectory() as scratch:
        config = read_config(
            "embedded", [*args.overrides, *VARIANTS[label], f"run.output_dir={scratch}/run"]
        )
        args.trained = str(train(config))
        model, processor = load_model(args.trained)
        rows = {name: family_rows(args.split, name, args.limit) for name in FAMILIES}
        name = f"{label}, {config.run.max_steps} steps"
        setting = Setting(name, "trained", model.method.name, model.method.parameters())
        scores = {family: score(model, processor, part) for family, part in rows.items()}
        RecordWriter(args, {"trained": model}, rows).add(setting, scores, model)
    questions = [name for name in FAMILIES if name != CAPTION]
    mean = sum(scores[name].accuracy() for name in questions) / len(questions)
    caption = scores[CAPTION]
    kept = sum(caption.kept_outputs) / len(caption.kept_outputs)
    print(
        f"{label}: exact {100 * mean:.1f}, caption perplexity {caption.perplexity():.4f}, "
        f"output tokens kept {kept:.3f} ({config.run.max_steps} steps)"
    )


if __name__ == "__main__":
    sys.exit(main())
