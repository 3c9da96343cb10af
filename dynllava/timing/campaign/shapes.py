"""The sizes a campaign measures at; ``tiny`` rehearses it on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

from dynllava.costs.spec import PRESETS, ModelSpec
from dynllava.errors import UserError
from dynllava.plan import ModelDims
from dynllava.plan.names import FULL, LEARNED

_TINY = ModelDims(
    layers=4,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate=96,
    vocab=50,
    predictor_dim=32,
    predictor_heads=4,
    predictor_feedforward=48,
    predictor_blocks=1,
)
_WIDER = ModelDims(**{**vars(_TINY), "hidden": 96, "intermediate": 128})


@dataclass(frozen=True)
class Shape:
    """What one campaign measures.

    Attributes
    ----------
    name : str
    spec, larger : ModelSpec
        The model, and a larger one for part 5 (None: none).
    text : int
        Text tokens of the prompt.
    batches, lengths : tuple of int
        Batch sizes; generated tokens behind which decode steps are timed.
    window : int
        Steps timed in a round.
    rounds : dict
        Kind of step -> rounds a process; six at least, so that one process has an interval
        (``tiny``: fewer of what takes long).
    passes : int
        Processes that each timing of the ``repeated`` parts is measured in.
    repeated : tuple of int
        Parts that every pass measures again; the first pass goes through all.
    compiled : tuple of str
        Methods that are timed with compiled steps too.
    training : str
        Shape of the training step (:data:`dynllava.timing.training_step.SHAPES`).
    samples : int
        Embedded questions that are answered.
    device, dtype : str
        Where and in what it runs unless said otherwise.
    compiler : str
        Backend of ``torch.compile``.
    """

    name: str
    spec: ModelSpec
    larger: ModelSpec | None
    text: int
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    window: int
    rounds: dict[str, int]
    passes: int
    repeated: tuple[int, ...]
    compiled: tuple[str, ...]
    training: str
    samples: int
    device: str
    dtype: str
    compiler: str = "inductor"


_GPU_ROUNDS = {"prefill": 12, "step": 10, "nocache": 6, "training": 6, "generation": 6}
_LENGTHS = (64, 512, 2000)
_REPEATED = ((2, 3, 5), (FULL, LEARNED))  # compiling takes most of a minute a method
_SEVEN, _THIRTEEN = PRESETS["llava-1.5-7b"], PRESETS["llava-1.5-13b"]
_TINY_ROUNDS = {**dict.fromkeys(_GPU_ROUNDS, 6), "training": 2, "generation": 1}
SHAPES = {
    "7b": Shape(
        "7b", _SEVEN, _THIRTEEN, 60, (1, 8), _LENGTHS, 8, _GPU_ROUNDS, 8,
        *_REPEATED, "7b-8-layers", 64,
        "cuda", "bfloat16",
    ),
    "13b": Shape(
        "13b", _THIRTEEN, None, 60, (1, 8), _LENGTHS, 8, _GPU_ROUNDS, 8,
        *_REPEATED, "7b-8-layers", 64,
        "cuda", "bfloat16",
    ),
    "tiny": Shape(
        "tiny", ModelSpec("tiny", _TINY, None, 36), ModelSpec("tiny-wide", _WIDER, None, 36), 12,
        (1, 2), (3, 20), 2, _TINY_ROUNDS, 2, (2,), (FULL,), "tiny", 4,
        "cpu", "float32", "eager",
    ),
}  # fmt: skip


def load_shape(name: str) -> Shape:
    """Return the shape called ``name``.

    Raises
    ------
    UserError
        If there is none.
    """
    if name not in SHAPES:
        raise UserError(f"--shape {name}: accepted are {', '.join(SHAPES)}")
    return SHAPES[name]
