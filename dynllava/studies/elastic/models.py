"""What the study trains: the paper's recipe at each rate, elastic predictors, ablations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dynllava.analysis.elastic.names import OUTPUT_RATES, VISION_RATES
from dynllava.errors import UserError
from dynllava.models.loading import load_model
from dynllava.plan.names import FULL
from dynllava.training.calibrating import calibrate, store
from dynllava.training.checkpointing import IDENTITY
from dynllava.training.config import TrainingConfig, read_config
from dynllava.training.prepare import picture_tokens, prepare_data
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

ELASTIC = {
    "rank": Variant("elastic-rank", "embedded-elastic", (TWICE,)),
    "rank-frozen": Variant(
        "elastic-rank-frozen", "embedded-elastic", (TWICE, "optim.train_language=false")
    ),
    "mixed": Variant(
        "elastic-mixed",
        "embedded-elastic",
        (
            TWICE,
            "sparsity.gradient=bounded_output",
            "sparsity.vision_keep_rates=null",
            "sparsity.vision_keep_rate=0.1",
        ),
    ),
    "condition": Variant(
        "elastic-condition",
        "embedded-elastic",
        (TWICE, "sparsity.elastic=condition", "sparsity.gradient=slope"),
    ),
    "lowest": Variant(
        "elastic-lowest",
        "embedded",
        ("sparsity.vision_keep_rate=0.1", "sparsity.output_keep_rate=0.3"),
    ),
}
"""One checkpoint for every rate: one ranking head at drawn rates (``frozen``: predictors only), a
predictor that is told the drawn rate, and the paper's recipe at the lowest rates; ``mixed`` trains
the image predictor by the recipe at its lowest rate and ranks output tokens."""


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


def trained(variant: Variant, seed: int, folder: Path, calibrated: bool = True) -> Path:
    """Return the folder of a trained model, trained and calibrated now unless it is there.

    Raises
    ------
    UserError
        Where the dense weights of the seed are not there: they are trained by
        ``python -m dynllava.embedded.train``.
    """
    weights = dense(seed, folder)
    if seed and not Path(weights).is_dir():
        raise UserError(
            f"{weights}: no dense weights of seed {seed}; train them first: "
            f"python -m dynllava.embedded.train {folder}/dense{seed} --seed {seed}"
        )
    config = configuration(variant, seed, folder)
    output = Path(config.run.output_dir)
    model = output / FINAL
    if (model / DONE).is_file():
        return model
    if not (model / "config.json").is_file():
        model = train(config, resume=(output / IDENTITY).is_file(), log=False)
    if calibrated:
        calibrate_model(model, seed)
    (model / DONE).touch()
    return model


def calibrate_model(folder: Path, seed: int) -> None:
    """Calibrate a model on 400 conversations that no split and no training holds."""
    name = f"embedded:{1007 + seed}:400"
    model, processor = load_model(str(folder), method=FULL)
    config = read_config("embedded", [f"model={folder}", f"data.path={name}"])
    dataset = prepare_data(config, processor, picture_tokens(model))
    least = config.sparsity.min_answer_length
    store(folder, calibrate(model, dataset, name, least, progress=False))
