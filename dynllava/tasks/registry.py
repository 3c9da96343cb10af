"""The paper's benchmarks: which lmms-eval task each one is, and how its prompt and score differ.

Scores are looked up in the published CSVs (:mod:`dynllava.paper`), never written down here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dynllava.errors import UserError
from dynllava.published import tables
from dynllava.published.labels import is_dense

PROTOCOL = "dynllava.tasks.protocol"


SAME_PROMPT = "same prompt"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of the paper.

    Attributes
    ----------
    name : str
        Canonical name; also the column of the published CSV.
    title : str
        Name as printed in the paper.
    task : str
        lmms-eval task.
    yaml : str
        The task's YAML below ``lmms_eval/tasks`` (empty for tasks of this project).
    split : str
        Split that the task evaluates.
    paper_split : str
        Split of the published score.
    metric : str
        Metric key in the results.
    scale : float
        Full score of the metric as lmms-eval reports it: 1, 100 or 2000 (MME).
    estimator : str
        How the metric is formed from samples, see :mod:`dynllava.evaluation.statistics`.
    cluster : str
        Field of a document that several questions share (an image, a pair), or ``""``.
    judge : bool
        Whether scoring needs a language-model judge.
    submission : bool
        Whether the published split is scored by a submission server only.
    departures : str
        Where lmms-eval's default departs from the LLaVA-1.5 protocol.
    remaining : str
        What still differs from how the published score was made when ``protocol`` is applied
        (beside the split); empty = nothing known.
    logged : str
        Metric of lmms-eval whose samples form ``metric``, where that is none of its own.
    protocol : dict
        YAML overrides that restore the protocol as far as they can; empty = nothing to restore.
    table : int
        Table of the paper that prints the scores.
    higher_is_better : bool
        Direction of the metric.
    """

    name: str
    title: str
    task: str
    yaml: str
    split: str
    paper_split: str
    metric: str
    scale: float
    estimator: str = "mean"
    cluster: str = ""
    judge: bool = False
    submission: bool = False
    departures: str = ""
    remaining: str = ""
    logged: str = ""
    protocol: dict[str, Any] = field(default_factory=dict)
    table: int = 1
    higher_is_better: bool = True

    def to_paper_scale(self, value: float) -> float:
        """Return ``value`` on the scale of the published tables (percent; MME points)."""
        return value * 100 if self.scale == 1 and self.estimator != "perplexity" else value

    def caution(self, prompts: str | None = None) -> str:
        """Return in one line what keeps an own score from being compared with the published one.

        Parameters
        ----------
        prompts : str, optional
            ``"llava"`` or ``"lmms-eval"``; None: not recorded, so lmms-eval's own are assumed.

        Returns
        -------
        str
            Empty if nothing is known to differ.
        """
        parts = []
        if self.submission:
            parts.append(
                f"published on {self.paper_split} (submission server), own run on {self.split}"
            )
        if prompts == "llava":
            parts += [self.remaining] if self.remaining else []
        elif self.departures != SAME_PROMPT:
            parts.append(f"lmms-eval's own prompts: {self.departures}")
        return f"{self.title}: {'; '.join(parts)}" if parts else ""

    def expected(self, model: str) -> float | None:
        """Return the published score of dense ``model``, e.g. ``"llava-1.5-7b"``, if any."""
        for row in tables.table(self.table):
            if row["model"] == model and is_dense(row["method"]):
                printed = row.get(self.name)
                return printed.value if printed else None
        return None


_GREEDY = {"max_new_tokens": 128, "temperature": 0, "num_beams": 1, "do_sample": False}

_BENCHMARKS = (
    Benchmark(
        "vqav2",
        "VQAv2",
        "vqav2_val",
        "vqav2/vqav2_val.yaml",
        "validation",
        "test-dev",
        "exact_match",
        1,
        cluster="image_id",
        submission=True,
        departures="same prompt; the published split is test-dev, which only the submission "
        "server scores (task vqav2_test writes the file), the default here is validation",
    ),
    Benchmark(
        "gqa",
        "GQA",
        "gqa",
        "gqa/gqa.yaml",
        "testdev",
        "testdev_balanced",
        "exact_match",
        1,
        cluster="imageId",
        departures=SAME_PROMPT,
    ),
    Benchmark(
        "vizwiz",
        "VizWiz",
        "vizwiz_vqa_val",
        "vizwiz_vqa/vizwiz_vqa_val.yaml",
        "val",
        "test",
        "exact_match",
        1,
        submission=True,
        departures="the question is re-capitalised (its first letter up, all others down); no "
        "token limit is set; the published split is test, which only the submission server scores",
        protocol={
            "doc_to_text": f"!function {PROTOCOL}.vizwiz_text",
            "generation_kwargs": _GREEDY,
        },
        table=12,
    ),
    Benchmark(
        "sciqa",
        "SciQA",
        "scienceqa_img",
        "scienceqa/scienceqa_img.yaml",
        "test",
        "test, questions with an image",
        "exact_match",
        1,
        departures="same wording; an answer counts only if it is the letter, or starts with the "
        "letter and a full stop",
        remaining="an answer counts only if it is the letter, or starts with the letter and a full "
        "stop",
    ),
    Benchmark(
        "textvqa",
        "TextVQA",
        "textvqa_val",
        "textvqa/textvqa_val.yaml",
        "validation",
        "validation",
        "exact_match",
        1,
        cluster="image_id",
        departures="the reference OCR tokens that LLaVA-1.5 puts behind the question are left "
        "out (worth about 12 points to LLaVA-1.5); the question is re-capitalised; no token limit "
        "is set",
        protocol={
            "doc_to_text": f"!function {PROTOCOL}.textvqa_text",
            "generation_kwargs": _GREEDY,
        },
    ),
    Benchmark(
        "pope",
        "POPE",
        "pope",
        "pope/pope.yaml",
        "test",
        "test (random, popular, adversarial)",
        "pope_f1_category_mean",
        1,
        estimator="f1",
        cluster="image_source",
        departures="same prompt; an answer other than the bare word yes or no counts as neither, "
        "where LLaVA-1.5's script looks for 'no' and 'not' in it",
        remaining="an answer other than the bare word yes or no counts as neither, where "
        "LLaVA-1.5's script looks for 'no' and 'not' in it",
        logged="pope_f1_score",
    ),
    Benchmark(
        "mme",
        "MME",
        "mme",
        "mme/mme.yaml",
        "test",
        "test (perception)",
        "mme_perception_score",
        2000,
        estimator="mme",
        cluster="question_id",
        departures=SAME_PROMPT,
    ),
    Benchmark(
        "mmbench",
        "MMBench",
        "mmbench_en_dev_static",
        "mmbench/mmbench_en_dev_static.yaml",
        "dev",
        "dev (English)",
        "gpt_eval_score",
        100,
        estimator="circular",
        cluster="index",
        submission=True,
        departures="the sentence 'There are several options:' and an empty line are added, and "
        "the hint is joined by a space; answers are read by rules, where the published score "
        "comes from the submission server",
        remaining="answers are read by rules instead of by the server",
        protocol={"doc_to_text": f"!function {PROTOCOL}.mmbench_text"},
    ),
    Benchmark(
        "seed",
        "SEED",
        "seedbench",
        "seedbench/seedbench.yaml",
        "test",
        "image questions",
        "seed_image",
        1,
        departures="same prompt; the task also asks the video questions (several frames each), "
        "which the published score leaves out; no token limit is set",
        protocol={
            "process_docs": f"!function {PROTOCOL}.seed_image_questions",
            "generation_kwargs": _GREEDY,
        },
    ),
    Benchmark(
        "mm_vet",
        "MM-Vet",
        "mmvet",
        "mmvet/mmvet.yaml",
        "test",
        "test",
        "gpt_eval_score",
        100,
        judge=True,
        departures="a request to think step by step is put before the question; the judge is "
        "gpt-4o by default, where the published score used the benchmark's GPT-4 server",
        remaining="the judge is gpt-4o by default, where the published score used the benchmark's "
        "GPT-4 server",
        protocol={"lmms_eval_specific_kwargs": {"default": {"pre_prompt": "", "post_prompt": ""}}},
        table=12,
    ),
    Benchmark(
        "mmvp",
        "MMVP",
        "mmvp",
        "mmvp/mmvp.yaml",
        "train",
        "all 150 pairs",
        "mmvp_pair_accuracy",
        1,
        estimator="pairs",
        cluster="Index",
        departures="not part of the LLaVA-1.5 protocol; letters are asked for and read by rules, "
        "where the benchmark's authors let a judge read free text; two pairs' answers are "
        "corrected in the data",
        remaining="letters are asked for and read by rules, where the benchmark's authors let a "
        "judge read free text; two pairs' answers are corrected in the data",
    ),
    Benchmark(
        "realworldqa",
        "RealWorldQA",
        "realworldqa",
        "realworldqa/realworldqa.yaml",
        "test",
        "test",
        "exact_match",
        1,
        departures="not part of the LLaVA-1.5 protocol; the question carries its own instruction",
        remaining="not part of the LLaVA-1.5 protocol: the prompt of the published score is not "
        "known",
    ),
    Benchmark(
        "cvbench_2d",
        "CV-Bench 2D",
        "cv_bench_2d",
        "cv_bench/cv_bench_2d.yaml",
        "test",
        "test, 2D",
        "cv_bench_acc",
        1,
        cluster="filename",
        departures="not part of the LLaVA-1.5 protocol; a note on the answer's form is put before "
        "the question instead of LLaVA's instruction behind it; plain mean over questions, where "
        "the benchmark's authors average the ADE20K and COCO parts",
        remaining="plain mean over questions, where the benchmark's authors average the ADE20K and "
        "COCO parts; the prompt of the published score is not known",
        protocol={"doc_to_text": f"!function {PROTOCOL}.cvbench_text"},
    ),
)

BENCHMARKS: dict[str, Benchmark] = {item.name: item for item in _BENCHMARKS}

GENERATION = ("lvis_vqa_single", "lvis_vqa_multi", "sharegpt4v_vqa")
"""The paper's generation benchmarks; each has a task ``<name>_ppl`` and one ``<name>_meteor``."""

PAPER12 = (
    "vqav2",
    "gqa",
    "vizwiz",
    "sciqa",
    "textvqa",
    "pope",
    "mmbench",
    "seed",
    "mm_vet",
    "mmvp",
    "realworldqa",
    "cvbench_2d",
)
SUITES: dict[str, tuple[str, ...]] = {
    "paper12": PAPER12,
    "understanding": tuple(BENCHMARKS),
    "generation": tuple(f"{name}_{kind}" for name in GENERATION for kind in ("ppl", "meteor")),
}


def get(name: str) -> Benchmark:
    """Return the benchmark called ``name`` (canonical or lmms-eval name)."""
    for item in _BENCHMARKS:
        if name in (item.name, item.task):
            return item
    raise UserError(f"unknown benchmark {name!r}: accepted are {', '.join(BENCHMARKS)}")
