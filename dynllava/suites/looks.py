"""What choosing image tokens before layer 0 costs beside the vision tower that they come from.

LLaVA-1.5's tower (CLIP-L/14 at 336 pixels, random weights) on random pictures: the tower alone, and
the tower with each method's looks into it and its choice, in random order within each round.  The
projector is left out on both sides: choosing makes it cheaper.  A method that chooses behind the
projector gets random rows of the language model's width.
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
from dynllava.methods.presets import LOOKING
from dynllava.timing.targets import LOOK

from .common import parser

TOWER_LAYERS = 24
TASK = "look-b{batch}-i576"
MODEL = "CLIP-L/14-336 tower (random weights)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser("looks", __doc__)
    options.add_argument("--methods", nargs="+", default=list(LOOKING))
    options.add_argument("--batch", type=int, default=1, help="pictures")
    options.add_argument("--layers", type=int, default=TOWER_LAYERS, help="of the tower")
    options.add_argument("--processes", type=int, default=1, help="run so often, each on its own")
    options.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = options.parse_args(argv)
    try:
        return _run(args)
    except UserError as error:
        print(f"{options.prog}: error: {error}", file=sys.stderr)
        return error.exit_code


def _run(args: argparse.Namespace) -> int:
    from dynllava.timing import bench

    rounds = 8 if args.repeats is None else args.repeats
    for name, value in (("batch", args.batch), ("layers", args.layers - 1), ("repeats", rounds)):
        if value < 1:
            raise UserError(f"--{name}: accepted is a number from {2 if name == 'layers' else 1}")
    chosen = {name: _decisions(name) for name in args.methods}
    if args.processes > 1:
        for number in range(args.processes):
            print(f"process {number + 1}/{args.processes}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "dynllava.suites.looks", "--repeats", str(rounds)]
            for name in ("batch", "layers", "device", "store", "threads"):
                if getattr(args, name) is not None:
                    command += [f"--{name}", str(getattr(args, name))]
            command += ["--methods", *args.methods, "--seed", str(args.seed + number)]
            done = subprocess.run(command, check=False)
            if done.returncode:
                return done.returncode
        return 0
    bench.set_threads(args.threads)
    found = measure(chosen, args.batch, args.layers, rounds, args.device, args.seed)
    for name, ratios in found.items():
        _append(args, name, ratios)
        share = counted_share(name)
        print(f"{name}: look {share:.4%} of the tower's MACs (counted), tower with look and choice "
              f"/ tower {statistics.median(ratios):.3f} (median of {rounds} rounds)")  # fmt: skip
    print(f"wrote {len(found)} records to {args.store}")
    return 0


def _decisions(name: str) -> Any:
    """Return a method's program; refuse one that does not choose before layer 0."""
    from dynllava.engine.program import Program
    from dynllava.methods import create

    program = Program(create(name), 32)
    if program.features is None and program.embedded is None:
        raise UserError(f"--methods {name}: accepted are methods that choose before layer 0")
    return program


def counted_share(name: str) -> float:
    """Return the MACs of a method's looks into LLaVA-1.5's tower, by those of the tower."""
    from dynllava.costs.ledger import Run, by_component, entries
    from dynllava.costs.spec import LLAVA_15_7B
    from dynllava.methods import create

    run = Run(LLAVA_15_7B, create(name), LLAVA_15_7B.prompt(60), 1, 1)
    found = by_component(entries(run, "prefill"))
    return found.get("tower_look", 0) / found["vision_tower"]


def built(layers: int, device: str, seed: int) -> Any:
    """Return LLaVA-1.5's tower of random weights as the engine takes it, without a projector."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaConfig

    from dynllava.engine.family import Llava

    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=16,
        image_size=336, patch_size=14,
    )  # fmt: skip
    vision._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    with torch.device(device):
        tower = CLIPVisionModel._from_config(vision).eval()

    class Model(torch.nn.Module):
        """A tower whose features stay as they are."""

        vision_tower = tower
        multi_modal_projector = torch.nn.Identity()

    return Llava(Model(), LlavaConfig(vision_config=vision, vision_feature_layer=-2))


def measure(
    programs: dict[str, Any], batch: int, layers: int, rounds: int, device: str, seed: int
) -> dict[str, list[float]]:
    """Return each method's ratio to the tower alone, of every round (process CPU time on a CPU)."""
    import torch
    from tqdm import tqdm

    from dynllava.engine.early import cut_features
    from dynllava.engine.rows import ImageView, decide_all

    family = built(layers, device, seed)
    pixels = torch.randn(batch, 3, 336, 336, device=device)
    rows = torch.randn(batch, 576, 4096, device=device)

    def now() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def plain() -> Any:
        return family.features(pixels, ())

    def with_choice(program: Any) -> Callable[[], Any]:
        def work() -> Any:
            if program.features is not None:
                return cut_features(program, family, pixels, {})
            plain()
            decision = program.embedded
            return decide_all(decision.method, [ImageView(one, decision.cut) for one in rows])

        return work

    subjects = {"": plain, **{name: with_choice(item) for name, item in programs.items()}}
    order = random.Random(seed)
    found: dict[str, list[float]] = {name: [] for name in programs}
    with torch.inference_mode():
        for number in tqdm(range(rounds + 1), desc="rounds"):
            seconds = {}
            for name in order.sample(list(subjects), len(subjects)):
                start = now()
                subjects[name]()
                seconds[name] = now() - start
            for name in programs if number else ():  # the first round warms up
                found[name].append(seconds[name] / seconds[""])
    return found


def _append(args: argparse.Namespace, label: str, ratios: Sequence[float]) -> None:
    from dynllava.methods import create
    from dynllava.records import Counted, MethodInfo, ModelInfo, RecordStore, RunRecord, TaskInfo
    from dynllava.records.environment import capture
    from dynllava.timing.bench_report import measured_rounds
    from dynllava.timing.speed import process_name

    method = create(label)
    share = Counted(counted_share(label), "1", "MACs of the looks / of the 24 layers", "prefill")
    process = [process_name()] * len(ratios)
    name = MODEL if args.layers == TOWER_LAYERS else f"{args.layers} layers of {MODEL}"
    record = RunRecord(
        kind="bench",
        model=ModelInfo(name, None, args.layers, 1024, 576),
        method=MethodInfo(method.name, "" if label == method.name else label, method.parameters()),
        task=TaskInfo(TASK.format(batch=args.batch), suite="speed"),
        counted={"look_share": share},
        measured={LOOK: measured_rounds(ratios, process, "1", False)},
        environment=capture(args.device, "float32", "sdpa"),
    )
    RecordStore(args.store).append(record)


if __name__ == "__main__":
    sys.exit(main())
