"""What the study trains: the paper's recipe at each rate, elastic predictors, ablations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dynllava.analysis.elastic.names import OUTPUT_RATES, VISION_RATES
from dynllava.training.calibrating import calibrate_folder, store
from dynllava.training.checkpointing import IDENTITY
from dynllava.training.config import DataConfig, TrainingConfig, read_config
from dynllava.training.run import FINAL, train

TRAINED_RATE = 0.2
"""Vision keep rate of the paper's recipe; its output keep rate is 0.5."""
OUTPUT_RATE = 0.5
SHIPPED = "embedded-dense"
"""The dense weights of seed 0."""
DONE = "calibrated"
"""File in a finished model's folder."""


@dataclass(frozen=True)
class Variant:
    """Something to train.

    Attributes
    ----------
    name : str
        Its folder.
    config : str
        Shipped configuration.
    overrides : tuple of str
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()


def fixed(vision: float = TRAINED_RATE, output: float = OUTPUT_RATE) -> Variant:
    """Return the paper's recipe at one pair of keep rates."""
    rates = (f"sparsity.vision_keep_rate={vision:g}", f"sparsity.output_keep_rate={output:g}")
    return Variant(f"vision-{vision:g}-output-{output:g}", "embedded", rates)


def fixed_variants() -> list[Variant]:
    """Return what elastic predictors are compared with."""
    vision = [fixed(vision=rate) for rate in VISION_RATES]
    return vision + [fixed(output=rate) for rate in OUTPUT_RATES if rate != OUTPUT_RATE]


TWICE = "data.path=embedded:{data}:9600"
"""Records for twice the steps."""

RANKS = ("sparsity.gradient=bounded", "sparsity.vision_keep_rates=[0.05,0.3]")
ELASTIC = {
    "mixed": Variant("elastic-mixed", "embedded-elastic", (TWICE,)),
    "rank": Variant("elastic-rank", "embedded-elastic", (TWICE, *RANKS)),
    "condition": Variant(
        "elastic-condition",
        "embedded-elastic",
        (TWICE, *RANKS, "sparsity.elastic=condition", "sparsity.gradient=slope"),
    ),
    "lowest": Variant(
        "elastic-lowest",
        "embedded",
        ("sparsity.vision_keep_rate=0.1", "sparsity.output_keep_rate=0.3"),
    ),
}
"""One checkpoint for every rate: images by the paper's recipe at the lowest rate and one ranking of
output tokens at drawn rates (``mixed``, the default), both ranked at drawn rates, a predictor that
is told the drawn rate, and the paper's recipe at the lowest rates."""
FROZEN = Variant("elastic-mixed-frozen", "embedded-elastic", (TWICE, "optim.train_language=false"))
"""The same with the language model frozen."""


def longer(rate: float) -> Variant:
    """Return the recipe at one vision rate for the steps of the elastic training."""
    once = fixed(vision=rate)
    return Variant(f"{once.name}-600", once.config, (*once.overrides, TWICE, "run.max_steps=600"))


def configuration(variant: Variant, seed: int, folder: Path) -> TrainingConfig:
    """Return the training configuration of a variant and seed below the study's folder."""
    own = [item.format(data=7 + seed) for item in variant.overrides]
    return read_config(
        variant.config,
        [
            f"model={dense(seed, folder)}",
            f"data.path=embedded:{7 + seed}:4800",
            f"run.seed={42 + seed}",
            f"run.output_dir={target(variant, seed, folder)}",
            *own,
        ],
    )


def dense(seed: int, folder: Path) -> str:
    """Return the dense weights of a seed: the shipped ones, or those trained in the folder."""
    return SHIPPED if seed == 0 else str(folder / f"dense{seed}" / "model")


def target(variant: Variant, seed: int, folder: Path) -> Path:
    """Return the folder that a run writes."""
    return folder / f"seed{seed}" / variant.name


def train_dense(seed: int, output: Path) -> None:
    """Train the dense model of a seed from nothing, or go on from its checkpoint."""
    from dynllava.embedded.train import main

    resume = ["--resume"] if (output / "checkpoint.pt").is_file() else []
    main([str(output), "--seed", str(seed), *resume])


def trained(variant: Variant, seed: int, folder: Path) -> Path:
    """Return the folder of a trained model, trained and calibrated now unless it is there.

    Where the dense weights of the seed are not there, they are trained first.
    """
    if seed and not Path(dense(seed, folder)).is_dir():
        train_dense(seed, folder / f"dense{seed}")
    config = configuration(variant, seed, folder)
    output = Path(config.run.output_dir)
    model = output / FINAL
    if (model / DONE).is_file():
        return model
    if not (model / "config.json").is_file():
        model = train(config, resume=(output / IDENTITY).is_file(), log=False)
    # Conversations that no split and no training holds.
    data = DataConfig(f"embedded:{1007 + seed}:400")
    store(model, calibrate_folder(model, data, progress=False))
    (model / DONE).touch()
    return model
