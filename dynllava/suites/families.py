"""What the shared loop costs in other families: ``full`` against stock transformers.

Mid-size models with random weights, a small vision tower, one picture of some 140 tokens.  Each
round generates the same tokens with the stock model and with ``full`` on the same weights, in
random order; prefill is the time to the first token, a step the mean of the following ones.  Ratios
are taken within a round, processes repeat all of it, and the interval is over processes' medians.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from dynllava.errors import UserError

STORE = "results/bench"
TEXT = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 2000,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IMAGE, VIDEO = 1990, 1991
TEXT_TOKENS = 56
QUANTITIES = ("prefill", "step")
TASK = "family-{family}-b{batch}-t56-i{image}-o{outputs}"


def _qwen2_5_vl(batch: int) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import Qwen2_5_VLConfig

    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6}
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
        "out_hidden_size": 512, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, image_token_id=IMAGE,
        video_token_id=VIDEO, vision_start_token_id=1992, vision_end_token_id=1993,
    )  # fmt: skip
    grid = torch.tensor([[1, 24, 24]] * batch)
    return config, {"pixel_values": torch.randn(576 * batch, 1176), "image_grid_thw": grid}


def _internvl(batch: int) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import InternVLConfig

    config = InternVLConfig(
        vision_config={**TOWER, "image_size": [336, 336], "patch_size": [14, 14]},
        text_config={"model_type": "qwen2", **TEXT}, image_token_id=IMAGE, image_seq_length=144,
    )  # fmt: skip
    return config, {"pixel_values": torch.randn(batch, 3, 336, 336)}


def _llava_next(batch: int) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import LlavaNextConfig

    vision = {"model_type": "clip_vision_model", **TOWER, "image_size": 112, "patch_size": 14}
    config = LlavaNextConfig(
        vision_config={**vision, "projection_dim": 64},
        text_config={"model_type": "mistral", "sliding_window": None, **TEXT},
        image_token_index=IMAGE, image_grid_pinpoints=[[112, 112]],
    )  # fmt: skip
    sizes = torch.tensor([[112, 112]] * batch)
    return config, {"pixel_values": torch.randn(batch, 2, 3, 112, 112), "image_sizes": sizes}


#: Family -> (what builds its configuration and pictures, image positions of a picture).
FAMILIES: dict[str, tuple[Callable[[int], tuple[Any, dict[str, Any]]], int]] = {
    "qwen2_5_vl": (_qwen2_5_vl, 144),
    "internvl": (_internvl, 144),
    "llava_next": (_llava_next, 64 + 64 + 8),
}


def built(family: str, batch: int, device: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """Return a random stock model in eval mode, and the inputs of a batch of equal rows."""
    import torch
    from transformers import AutoModelForImageTextToText

    make, count = FAMILIES[family]
    torch.manual_seed(seed)
    config, pictures = make(batch)
    model = AutoModelForImageTextToText.from_config(config).eval().to(device)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    words = torch.randint(3, 1900, (batch, TEXT_TOKENS))
    image = torch.full((batch, count), IMAGE)
    ids = torch.cat([words[:, :8], image, words[:, 8:]], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pictures}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    return model, {name: tensor.to(device) for name, tensor in inputs.items()}


def timed(model: Any, inputs: dict[str, Any], outputs: int, now: Callable[[], float]) -> Any:
    """Return seconds to the first token, mean seconds of the following, and the tokens."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    marks: list[float] = []

    class Clock(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            marks.append(now())
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    start = now()
    with torch.inference_mode():
        out = model.generate(
            **inputs,
            max_new_tokens=outputs,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([Clock()]),
        )
    return marks[0] - start, (marks[-1] - marks[0]) / (len(marks) - 1), out.tolist()


def measure(
    family: str, batch: int, outputs: int, rounds: int, device: str, seed: int
) -> dict[str, list[float]]:
    """Return the ratios ``full`` / stock of every round, for ``prefill`` and ``step``.

    Raises
    ------
    RuntimeError
        If the two do not give the same tokens: then no time is worth comparing.
    """
    import torch

    from dynllava.models.wrapping import wrap
    from dynllava.plan.names import FULL

    def now() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    stock, inputs = built(family, batch, device, seed)
    subjects = {"stock": stock, FULL: wrap(stock, FULL)}
    order = random.Random(seed)
    found: dict[str, list[float]] = {name: [] for name in QUANTITIES}
    for number in range(rounds + 1):
        seconds, tokens = {}, {}
        for name in order.sample(list(subjects), len(subjects)):
            *seconds[name], tokens[name] = timed(subjects[name], inputs, outputs, now)
        if tokens["stock"] != tokens[FULL]:
            raise RuntimeError(f"{family}: full and stock transformers give different tokens")
        # The first round warms up.
        for index, quantity in enumerate(QUANTITIES if number else ()):
            found[quantity].append(seconds[FULL][index] / seconds["stock"][index])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    from .common import parser

    options = parser("families", __doc__)
    options.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    options.add_argument("--batch", type=int, default=1, help="equal rows")
    options.add_argument("--output-tokens", type=int, default=32, help="generated tokens")
    options.add_argument("--processes", type=int, default=8, help="run so often, each on its own")
    options.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = options.parse_args(argv)
    try:
        return _run(args)
    except UserError as error:
        print(f"{options.prog}: error: {error}", file=sys.stderr)
        return error.exit_code


def _run(args: argparse.Namespace) -> int:
    for name, least in (("processes", 1), ("batch", 1), ("output_tokens", 2)):
        if getattr(args, name) < least:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {getattr(args, name)}: accepted is a number from {least}")
    rounds = 5 if args.repeats is None else args.repeats
    if rounds < 1:
        raise UserError(f"--repeats {rounds}: accepted is a number from 1")
    if args.processes > 1:
        for number in range(args.processes):
            print(f"process {number + 1}/{args.processes}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "dynllava.suites.families", "--processes", "1"]
            for name in ("batch", "output_tokens", "device", "store", "threads"):
                if getattr(args, name) is not None:
                    command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
            command += ["--repeats", str(rounds), "--families", *args.families]
            done = subprocess.run([*command, "--seed", str(args.seed + number)], check=False)
            if done.returncode:
                return done.returncode
        print(summary(args.store))
        return 0
    _measured(args, rounds)
    return 0


def _measured(args: argparse.Namespace, rounds: int) -> None:
    """Measure in this process and append one record a family."""
    import torch

    from dynllava.plan.names import FULL
    from dynllava.records import (
        MethodInfo,
        ModelInfo,
        RecordStore,
        RunRecord,
        TaskInfo,
    )
    from dynllava.records.environment import capture
    from dynllava.timing.bench_report import measured_rounds
    from dynllava.timing.speed import process_name

    if args.threads:
        torch.set_num_threads(args.threads)
    store = RecordStore(args.store)
    process = process_name()
    for family in args.families:
        found = measure(family, args.batch, args.output_tokens, rounds, args.device, args.seed)
        image = FAMILIES[family][1]
        values = {"family": family, "batch": args.batch, "image": image}
        task = TASK.format(**values, outputs=args.output_tokens)
        record = RunRecord(
            kind="bench",
            model=ModelInfo(f"mid-size {family} (random weights)", None, 8, 512, image),
            method=MethodInfo(FULL),
            task=TaskInfo(name=task, suite="speed"),
            measured={
                f"time_ratio_{name}": measured_rounds(values, [process] * len(values), "1", False)
                for name, values in found.items()
            },
            environment=capture(args.device, "float32", "sdpa"),
        )
        store.append(record)
        shown = ", ".join(f"{name} {statistics.median(v):.3f}" for name, v in found.items())
        print(f"{family}: full / stock, median of {rounds} rounds: {shown}", flush=True)


def summary(store: str) -> str:
    """Return the point and the 95 % interval of every ratio, over the processes of all records."""
    from dynllava.output.tables import Table, as_text
    from dynllava.records import RecordStore
    from dynllava.records.pooling import pooled
    from dynllava.timing.intervals import interval

    rows = []
    for record in pooled(RecordStore(store).read()[0]):
        if record.task is None or not record.task.name.startswith("family-"):
            continue
        for name, item in record.measured.items():
            medians = [statistics.median(values) for values in item.rounds.values()]
            found = interval(item)
            ends = "under six rounds" if found is None else f"[{found.low:.3f}, {found.high:.3f}]"
            what = "" if found is None else found.what
            point = f"{statistics.median(medians):.3f}"
            cell = (record.task.name, name.removeprefix("time_ratio_"), point, ends, what)
            rows.append(cell)
    columns = ("task", "", "full / stock", "95 % interval", "over")
    title = "Time of full by that of stock transformers (median of the processes' medians)"
    return as_text([Table(title, columns, rows)])


if __name__ == "__main__":
    sys.exit(main())
