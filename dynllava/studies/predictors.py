"""Do learned predictors choose better?  Held-out comparison on the embedded model.

``python -m dynllava.studies.predictors --trained FOLDER`` scores every method at the budget of the
trained model, on the same samples, with paired tests against the learned predictors: exact
answers of the question families, perplexity of the captions.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynllava.errors import UserError
from dynllava.methods import create, presets
from dynllava.models.loading import load_model
from dynllava.plan.names import FULL, LEARNED

from .teacher_forcing import forced, prepared

CAPTION = "caption"


@dataclass
class Scores:
    """Per-sample outcome of one setting on one family.

    Attributes
    ----------
    exact : list of float
        1 where greedy decoding gives exactly the answer.
    nll : list of float
        Summed negative log-likelihood of the answer, in nats.
    tokens : list of int
        Answer tokens, the end included.
    kept_images, kept_outputs : list of float
        Share of image tokens and of judged output tokens kept.
    """

    exact: list[float] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    kept_images: list[float] = field(default_factory=list)
    kept_outputs: list[float] = field(default_factory=list)

    def accuracy(self) -> float:
        """Share of exact answers."""
        return sum(self.exact) / len(self.exact)

    def perplexity(self) -> float:
        """Perplexity per answer token over all samples."""
        return math.exp(sum(self.nll) / sum(self.tokens))


def family_rows(split: str, family: str, limit: int | None) -> list[dict[str, Any]]:
    """Return held-out rows (``image``, ``question``, ``answer``) of a family."""
    from dynllava.embedded.data import load_split

    return load_split(split, family, limit=limit)


def score(model: Any, processor: Any, rows: Sequence[dict[str, Any]], batch: int = 25) -> Scores:
    """Score answers under the model's method (:func:`.teacher_forcing.forced`)."""
    scores = Scores()
    for start in range(0, len(rows), batch):
        part = prepared(rows, range(start, min(start + batch, len(rows))), processor)
        found = {name: column.tolist() for name, column in forced(
            model, part, part.pictures(model)).items()}  # fmt: skip
        scores.exact += found["exact"]
        scores.nll += found["nll"]
        scores.tokens += found["tokens"]
        scores.kept_images += found["image_share"]
        scores.kept_outputs += found["output_share"]
    return scores


@dataclass(frozen=True)
class Setting:
    """A method with its parameters, on the ``dense`` or the ``trained`` weights."""

    label: str
    weights: str
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)


def image_settings(rate: float, layer: int) -> Iterator[Setting]:
    """Yield the comparison of image-token selections at one budget."""
    yield Setting("full, dense weights", "dense", FULL)
    yield Setting(FULL, "trained", FULL)
    yield Setting("learned", "trained", LEARNED, presets.learned(rate, layer))
    for weights in ("trained", "dense"):
        suffix = "" if weights == "trained" else ", dense weights"
        for name, parameters in presets.image_controls(rate, layer).items():
            yield Setting(f"{name}{suffix}", weights, name, parameters)
    yield Setting("no image tokens", "trained", presets.BLIND[0], {"layer": layer})


def output_settings(rate: float, layer: int) -> Iterator[Setting]:
    """Yield the comparison of output-token selections; image tokens all stay."""
    yield Setting(FULL, "trained", FULL)
    yield Setting("learned", "trained", LEARNED, presets.learned(1.0, layer, rate))
    for name, parameters in presets.output_controls(rate, layer).items():
        yield Setting(name, "trained", name, parameters)


def use(models: dict[str, Any], setting: Setting) -> Any:
    """Return the model of a setting with its method set."""
    model = models[setting.weights]
    model.set_method(create(setting.method, **setting.parameters))
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison, print it, and append its records."""
    parser = argparse.ArgumentParser(
        prog="python -m dynllava.studies.predictors", description=__doc__
    )
    parser.add_argument(
        "--dense", default="embedded-dense", help="weights before predictor training"
    )
    parser.add_argument("--trained", required=True, help="folder of the trained model")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, help="samples per family")
    parser.add_argument("--out", help="folder that records are appended to")
    args = parser.parse_args(argv)
    try:
        return compare(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def compare(args: argparse.Namespace) -> int:
    """Carry out ``main`` for parsed arguments."""
    from dynllava.embedded.questions import FAMILIES

    trained, processor = load_model(args.trained)
    models = {"trained": trained, "dense": load_model(args.dense, method=FULL)[0]}
    sparsity = trained.config.sparsity()
    layer = sparsity.sparse_layer
    questions = [family for family in FAMILIES if family != CAPTION]
    rows = {name: family_rows(args.split, name, args.limit) for name in (*questions, CAPTION)}
    writer = RecordWriter(args, models, rows)
    print(f"image tokens: exact answers, {sparsity.vision_keep_rate:g} kept from layer {layer} on")
    results = {}
    for setting in image_settings(sparsity.vision_keep_rate, layer):
        model = use(models, setting)
        results[setting.label] = {name: score(model, processor, rows[name]) for name in questions}
        writer.add(setting, results[setting.label], model)
    print_accuracies(results, questions)
    print(f"output tokens: caption perplexity, {sparsity.output_text_keep_rate:g} kept")
    captions = {}
    for setting in output_settings(sparsity.output_text_keep_rate, layer):
        model = use(models, setting)
        captions[setting.label] = score(model, processor, rows[CAPTION])
        writer.add(setting, {CAPTION: captions[setting.label]}, model)
    print_perplexities(captions)
    return 0


def print_accuracies(results: dict[str, dict[str, Scores]], questions: Sequence[str]) -> None:
    """Print accuracy per family, the mean, and the paired difference from the learned choice."""
    reference = [value for name in questions for value in results["learned"][name].exact]
    print(
        f"{'':22}" + "".join(f"{name[:10]:>11}" for name in questions) + f"{'mean':>8}  learned -"
    )
    for label, scores in results.items():
        values = [scores[name].accuracy() for name in questions]
        own = [value for name in questions for value in scores[name].exact]
        cells = "".join(f"{100 * value:11.1f}" for value in values)
        mean = 100 * sum(values) / len(values)
        print(f"{label:22}{cells}{mean:8.1f}  {_difference(own, reference, 100)}")


def print_perplexities(results: dict[str, Scores]) -> None:
    """Print perplexity, realised keep rate, and the paired difference in nats per token."""
    per_token = {
        label: [nll / count for nll, count in zip(scores.nll, scores.tokens, strict=True)]
        for label, scores in results.items()
    }
    for label, scores in results.items():
        kept = sum(scores.kept_outputs) / len(scores.kept_outputs)
        difference = _difference(per_token[label], per_token["learned"], 1)
        print(f"{label:22}{scores.perplexity():9.4f}  kept {kept:5.3f}  nats {difference}")


def _difference(base: Sequence[float], candidate: Sequence[float], scale: float) -> str:
    """Return ``candidate - base`` with its 95 % interval and p value."""
    from dynllava.uncertainty import compare_paired

    if list(base) == list(candidate):
        return "(equal)"
    found = compare_paired(base, candidate)
    if found.interval is None:
        return f"{scale * found.difference:+.3f} (too few samples differ for an interval)"
    low, high = found.interval
    return (
        f"{scale * found.difference:+.3f} [{scale * low:+.3f}, {scale * high:+.3f}] "
        f"p={found.p_two_sided:.2g}"
    )


class RecordWriter:
    """Appends one training record a setting and family, if a folder was given."""

    def __init__(
        self, args: argparse.Namespace, models: dict[str, Any], rows: dict[str, list[Any]]
    ) -> None:
        from dynllava.embedded.data import content_hash

        self.args = args
        self.models = models
        self.hashes = {name: content_hash(part) for name, part in rows.items()} if args.out else {}

    def add(self, setting: Setting, scores: dict[str, Scores], model: Any) -> None:
        """Append the records of a setting."""
        if self.args.out is None:
            return
        from dynllava.models.loading import resolve
        from dynllava.records import (
            MethodInfo,
            ModelInfo,
            RecordStore,
            RunRecord,
            Score,
            TaskInfo,
            hash_files,
        )
        from dynllava.records.environment import capture

        name = self.args.trained if setting.weights == "trained" else self.args.dense
        text = model.config.text_config
        for family, part in scores.items():
            count = len(part.exact)
            accuracy = part.accuracy()
            caption = family == CAPTION
            RecordStore(self.args.out).append(
                RunRecord(
                    kind="training",
                    model=ModelInfo(
                        f"embedded ({setting.weights} weights)",
                        hash_files(resolve(name)),
                        text.num_hidden_layers,
                        text.hidden_size,
                        model.config.image_seq_length,
                    ),
                    method=MethodInfo(setting.method, setting.label, setting.parameters),
                    task=TaskInfo(
                        f"embedded_{family}",
                        suite="predictor study",
                        split=self.args.split,
                        dataset_hash=self.hashes[family],
                        metric="perplexity" if caption else "exact_match",
                        higher_is_better=not caption,
                        scale=None if caption else 1.0,
                        samples=count,
                    ),
                    scores={
                        "exact_match": Score(
                            accuracy, math.sqrt(accuracy * (1 - accuracy) / count), count
                        ),
                        "perplexity": Score(part.perplexity(), None, count),
                        "kept_image_share": Score(sum(part.kept_images) / count, None, count),
                        "kept_output_share": Score(sum(part.kept_outputs) / count, None, count),
                    },
                    environment=capture(model.device, model.dtype, model.kernel),
                )
            )


if __name__ == "__main__":
    sys.exit(main())
