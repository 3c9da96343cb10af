"""What is scored with each trained model, and the records of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynllava.analysis.elastic.names import (
    CAPTIONS,
    ELASTIC,
    FROZEN,
    FULL_DENSE,
    FULL_ELASTIC,
    FULL_TUNED,
    LONGER,
    OFF_RATE,
    OFFICIAL,
    OUTPUT_RATES,
    OWN,
    PER_IMAGE,
    SAME_MEAN,
    SHORT,
    SUITE,
    VISION_RATES,
)
from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.models.loading import load_model, resolve
from dynllava.plan.names import FULL, LEARNED
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

from ..predictors import CAPTION
from . import models
from .models import (
    OUTPUT_RATE,
    TRAINED_RATE,
    Variant,
    dense,
    fixed,
    trained,
)
from .scoring import QUESTIONS, Answers, Task, generated, teacher_forced

PER_IMAGE_RATES = (0.1, 0.2, 0.35)
FROZEN_VISION, FROZEN_OUTPUT = (0.1, 0.2, 0.5), (0.3, 0.7)
"""Rates at which predictors trained alone are scored."""
LONGER_VISION = (0.1, 0.5)
"""Rates of the recipe at twice the steps."""


@dataclass(frozen=True)
class Run:
    """One setting to score.

    Attributes
    ----------
    role : str
        What it stands for in the tables.
    variant : Variant or None
        The model; None: the dense weights.
    task : str
        :data:`SHORT` or :data:`CAPTIONS`.
    vision, output : float
        Keep rates; 1 and 1 drop nothing.  A setting at the mean of the budgets per image names the
        rate that was asked of these.
    per_image : bool
    logit_rule : bool
        Decide output tokens by logit0 > logit1, as the official code does.
    """

    role: str
    variant: Variant | None
    task: str
    vision: float = 1.0
    output: float = 1.0
    per_image: bool = False
    logit_rule: bool = False

    @property
    def label(self) -> str:
        """Its name within a seed."""
        return f"{self.role}: {self.task}, vision {self.vision:g}, output {self.output:g}"

    @property
    def trained(self) -> str:
        """Name of its weights."""
        return "dense" if self.variant is None else self.variant.name

    def parameters(self, vision: float | None = None) -> dict[str, Any]:
        """Return the method's parameters, at a realised vision rate where that is given."""
        return {
            "vision_keep_rate": self.vision if vision is None else vision,
            "output_keep_rate": self.output,
            "per_image": self.per_image,
            **({"output_threshold": 0.0} if self.logit_rule else {}),
        }


def runs(elastic: Variant) -> Iterator[Run]:
    """Yield what is scored for each seed."""
    for rate in VISION_RATES:
        yield Run(OWN, fixed(vision=rate), SHORT, rate, OUTPUT_RATE)
        yield Run(ELASTIC, elastic, SHORT, rate, OUTPUT_RATE)
    for rate in OUTPUT_RATES:
        yield Run(OWN, fixed(output=rate), CAPTIONS, TRAINED_RATE, rate)
        yield Run(ELASTIC, elastic, CAPTIONS, TRAINED_RATE, rate)
        yield Run(OFFICIAL, fixed(output=rate), CAPTIONS, TRAINED_RATE, rate, logit_rule=True)
    for rate in VISION_RATES:
        if rate != TRAINED_RATE:
            yield Run(OFF_RATE, fixed(), SHORT, rate, OUTPUT_RATE)
    for rate in PER_IMAGE_RATES:
        yield Run(PER_IMAGE, elastic, SHORT, rate, OUTPUT_RATE, per_image=True)
        yield Run(SAME_MEAN, elastic, SHORT, rate, OUTPUT_RATE)
    for task in (SHORT, CAPTIONS):
        yield Run(FULL_ELASTIC, elastic, task)
        yield Run(FULL_TUNED, fixed(), task)
        yield Run(FULL_DENSE, None, task)


def ablations() -> Iterator[Run]:
    """Yield predictors trained alone, and the recipe at twice the steps."""
    for rate in FROZEN_VISION:
        yield Run(FROZEN, models.FROZEN, SHORT, rate, OUTPUT_RATE)
    for rate in FROZEN_OUTPUT:
        yield Run(FROZEN, models.FROZEN, CAPTIONS, TRAINED_RATE, rate)
    for rate in LONGER_VISION:
        yield Run(LONGER, models.longer(rate), SHORT, rate, OUTPUT_RATE)


def known(store: RecordStore) -> set[tuple[str, str, int]]:
    """Return (label, weights, seed) of the records that are there."""
    if not store.path.is_file():
        return set()
    return {
        tuple(
            [record.method.label, *(record.method.parameters[key] for key in ("trained", "seed"))]
        )
        for record in store.read()[0]
        if record.task is not None and record.task.suite == SUITE
    }


class Scorer:
    """Scores settings of one seed, and appends their records.

    Parameters
    ----------
    folder : Path
        Where the models are trained.
    store : RecordStore
    split : str
    limit : int or None
        Samples a family.
    """

    def __init__(self, folder: Path, store: RecordStore, split: str, limit: int | None) -> None:
        self.folder, self.store, self.split, self.limit = folder, store, split, limit
        self.tasks: dict[str, Task] = {}
        self.hashes: dict[str, str] = {}
        self.loaded: tuple[str, Any, Any] | None = None

    def task(self, family: str, processor: Any) -> Task:
        """Return a family's samples, prepared at the first call."""
        if family not in self.tasks:
            self.tasks[family] = Task.load(family, self.split, processor, self.limit)
        return self.tasks[family]

    def model(self, name: str) -> tuple[Any, Any]:
        """Return a model and its processor; the last one stays loaded."""
        if self.loaded is None or self.loaded[0] != name:
            self.loaded = (name, *load_model(name, method=FULL))
        return self.loaded[1], self.loaded[2]

    def score(self, run: Run, seed: int) -> RunRecord:
        """Score one setting and append its record."""
        if run.variant is None:
            name = dense(seed, self.folder)
        else:
            name = str(trained(run.variant, seed, self.folder))
        model, processor = self.model(name)
        drops = run.vision < 1 or run.output < 1
        vision = self.mean_of_budgets(run, seed) if run.role == SAME_MEAN else None
        own = run.parameters(vision)
        model.set_method(create(LEARNED, **own) if drops else create(FULL))
        if run.task == CAPTIONS:
            task = self.task(CAPTION, processor)
            found = {CAPTION: generated(model, processor, task)}
            forced = teacher_forced(model, task)
            found[CAPTION].nll = forced.nll
            rows = [caption_row(found[CAPTION], forced)]
            scores = caption_scores(found[CAPTION], forced)
        else:
            tasks = [self.task(family, processor) for family in QUESTIONS]
            found = {task.name: teacher_forced(model, task) for task in tasks}
            images = model.config.image_seq_length
            rows = [question_row(task, found[task.name], images) for task in tasks]
            scores = question_scores(found)
        method = model.method
        record = RunRecord(
            kind="training",
            model=ModelInfo(
                f"embedded, seed {seed}",
                hash_files(resolve(name)),
                model.config.text_config.num_hidden_layers,
                model.config.text_config.hidden_size,
                model.config.image_seq_length,
            ),
            method=MethodInfo(
                method.name,
                run.label,
                {
                    **method.parameters(),
                    "seed": seed,
                    "role": run.role,
                    "trained": run.trained,
                    "vision": run.vision,
                    "output": run.output,
                },
            ),
            task=TaskInfo(
                run.task,
                suite=SUITE,
                split=self.split,
                dataset_hash=self._hash(run.task),
                metric="exact_match" if run.task == SHORT else "meteor_exact_stem",
                higher_is_better=True,
                scale=1.0,
                samples=sum(len(answers.values) for answers in found.values()),
            ),
            scores=scores,
            environment=capture(model.device, model.dtype, model.kernel),
        )
        return self.store.append(record, rows)

    def mean_of_budgets(self, run: Run, seed: int) -> float:
        """Return the share that budgets per image had at this rate, to the next token.

        Raises
        ------
        UserError
            If they were not scored.
        """
        for record in self.store.read()[0]:
            own = record.method.parameters
            asked = (own.get("role"), own.get("trained"), own.get("seed"), own.get("vision"))
            if asked == (PER_IMAGE, run.trained, seed, run.vision):
                images = record.model.image_tokens or 1
                kept = round(record.scores["kept_image_share"].value * images)
                # A little above: the share is cut to whole tokens.
                return min(1.0, (kept + 0.01) / images)
        raise UserError(f"{run.label}, seed {seed}: budgets per image were not scored", 1)

    def _hash(self, task: str) -> str:
        from dynllava.embedded.data import content_hash

        if task not in self.hashes:
            families = (CAPTION,) if task == CAPTIONS else QUESTIONS
            rows = [row for family in families for row in self.tasks[family].rows]
            self.hashes[task] = content_hash(rows)
        return self.hashes[task]


def question_row(task: Task, answers: Answers, images: int) -> dict[str, Any]:
    """Return a family's sample row: a digit a question, and its scene's objects.

    ``kept`` is a list of image tokens (of ``images``), or one number where all keep as many.
    """
    kept = [round(share * images) for share in answers.image_share]
    return {
        "family": task.name,
        "exact": "".join(str(int(value)) for value in answers.values),
        "objects": "".join(str(count) for count in task.objects),
        "kept": kept[0] if len(set(kept)) == 1 else kept,
    }


def caption_row(answers: Answers, forced: Answers) -> dict[str, Any]:
    """Return the sample row of all captions."""
    return {
        "family": CAPTION,
        "meteor": [round(value, 4) for value in answers.values],
        "nll": [round(value, 3) for value in forced.nll],
        "tokens": forced.tokens,
        "judged": answers.tokens,
        "output_share": [round(value, 4) for value in answers.output_share],
        "output_share_forced": [round(value, 4) for value in forced.output_share],
    }


def question_scores(found: dict[str, Answers]) -> dict[str, Score]:
    """Return the pooled scores, and each family's."""
    values = [value for answers in found.values() for value in answers.values]
    kept = [share for answers in found.values() for share in answers.image_share]
    scores = {"exact_match": _share(values)}
    scores |= {f"exact_match_{name}": _share(answers.values) for name, answers in found.items()}
    return scores | {"kept_image_share": Score(sum(kept) / len(kept), None, len(kept))}


def caption_scores(answers: Answers, forced: Answers) -> dict[str, Score]:
    """Return METEOR, perplexity, and the realised shares (over all judged tokens)."""
    count = len(answers.values)
    mean = sum(answers.values) / count
    spread = math.sqrt(sum((value - mean) ** 2 for value in answers.values) / max(1, count - 1))
    judged = sum(answers.tokens)
    stayed = sum(a * b for a, b in zip(answers.tokens, answers.output_share, strict=True))
    fed = [tokens - 1 for tokens in forced.tokens]
    kept = sum(a * b for a, b in zip(fed, forced.output_share, strict=True))
    return {
        "meteor_exact_stem": Score(mean, spread / math.sqrt(count), count),
        "perplexity": Score(math.exp(sum(forced.nll) / sum(forced.tokens)), None, count),
        "kept_output_share": Score(stayed / max(1, judged), None, count),
        "kept_output_share_forced": Score(kept / max(1, sum(fed)), None, count),
        "kept_image_share": Score(sum(answers.image_share) / count, None, count),
    }


def _share(values: list[float]) -> Score:
    mean = sum(values) / len(values)
    return Score(mean, math.sqrt(mean * (1 - mean) / len(values)), len(values))


def score_all(
    wanted: list[Run],
    seeds: list[int],
    folder: Path,
    out: str,
    split: str,
    limit: int | None,
    progress: bool = True,
) -> None:
    """Score what the store lacks of the wanted settings."""
    from tqdm import tqdm

    store = RecordStore(out)
    scorer = Scorer(folder, store, split, limit)
    left = [(run, seed) for seed in seeds for run in wanted]
    done = known(store)
    left = [(run, seed) for run, seed in left if (run.label, run.trained, seed) not in done]
    # Models in turn: each is loaded once.
    left.sort(key=lambda item: (item[1], item[0].trained))
    for run, seed in tqdm(left, desc="elastic", disable=not progress):
        scorer.score(run, seed)
