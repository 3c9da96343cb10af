"""Names, titles and directions of the benchmarks that the analysis knows."""

from __future__ import annotations

import re

PAPER12 = (
    "vqav2", "gqa", "vizwiz", "sciqa", "textvqa", "pope",
    "mmbench", "seed", "mm_vet", "mmvp", "realworldqa", "cvbench_2d",
)  # fmt: skip
"""The 12 understanding benchmarks of the Dynamic-LLaVA paper, in its order."""

TITLES = {
    "vqav2": "VQAv2", "gqa": "GQA", "vizwiz": "VizWiz", "sciqa": "SciQA", "textvqa": "TextVQA",
    "pope": "POPE", "mme": "MME", "mmbench": "MMBench", "seed": "SEED", "mm_vet": "MM-Vet",
    "mmvp": "MMVP", "realworldqa": "RealWorldQA", "cvbench_2d": "CV-Bench 2D",
    "llava_wild": "LLaVA-Bench (wild)", "average": "Average relative to dense",
}  # fmt: skip

_ALIASES = {
    "vqav2_val": "vqav2", "vizwiz_vqa_val": "vizwiz", "vizwiz_vqa": "vizwiz",
    "scienceqa_img": "sciqa", "scienceqa": "sciqa", "textvqa_val": "textvqa",
    "mmbench_en_dev_static": "mmbench", "mmbench_en_dev": "mmbench", "seedbench": "seed",
    "mmvet": "mm_vet", "cv_bench_2d": "cvbench_2d", "cvbench": "cvbench_2d",
}  # fmt: skip

LOWER_IS_BETTER = ("ppl", "perplexity")


def canonical(task: str) -> str:
    """Return the analysis' name of a task: lmms-eval's task names become the short ones."""
    return _ALIASES.get(task, task)


def title(name: str) -> str:
    """Return what plots and tables call benchmark ``name``."""
    if name in TITLES:
        return TITLES[name]
    words = name.removeprefix("embedded_").replace("_", " ").replace("ppl", "PPL")
    return words[:1].upper() + words[1:]


def higher_is_better(name: str) -> bool:
    """Return whether larger values of a published column are better (all but perplexity)."""
    return not any(word in name for word in LOWER_IS_BETTER)


_NUMBER = re.compile(r" ([0-9.]+)(?=$|,| \()")
_RATIO = re.compile(r"\br=[0-9.]+")


def budget(label: str) -> str:
    """Return the budget within a point's label, as it stands beside the point; empty if none.

    ``fastv 67, tuned weights`` says ``67``, ``fastv k=3,r=0.75`` says ``r=0.75``.
    """
    number = _NUMBER.search(label)
    if number:
        return number[1]
    ratio = _RATIO.search(label)
    return ratio[0] if ratio else ""
