"""Loading a checkpoint against stock ``from_pretrained``: time, CPU time and peak memory.

A random LLaVA in bfloat16 is written as safetensors and as ``.bin``, and loaded as stored and into
float32.  Each load runs in a process of its own that has imported everything and loaded nothing,
ours and stock in turns.  It ends when every weight has been read: mapped files are read only then.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dynllava.output.tables import Table, as_text
from dynllava.plan.names import FULL
from dynllava.records import MethodInfo, ModelInfo, RecordStore, RunRecord, TaskInfo
from dynllava.records.environment import capture
from dynllava.timing.bench_report import measured_rounds
from dynllava.timing.speed import process_name
from dynllava.timing.stats import paired_ratios, spread
from dynllava.timing.targets import LOADING

from .common import parser

STORED = "bfloat16"
LOADED = {"same dtype": STORED, "other dtype": "float32"}
FORMATS = ("safetensors", "bin")
QUANTITIES = {"loading_time": "s", "loading_cpu_time": "s", "loading_memory": "byte"}
PRELOADED = [
    "dynllava.models.loading",
    "dynllava.models.processors",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llama.modeling_llama",
    "transformers.models.clip.modeling_clip",
]
"""What the processes have imported before they start."""
LAYER_BYTES = 2 * (4 * 2048**2 + 3 * 2048 * 5504)
VOCABULARY = 32_064


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser("loading", __doc__)
    options.add_argument("--gigabytes", type=float, default=1.0, help="size of the checkpoint")
    options.add_argument("--scratch", type=Path, help="folder for it (default: a temporary one)")
    args = options.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folders, layers = write_checkpoint(Path(scratch), args.gigabytes)
        rows = []
        for kind, folder in folders.items():
            for label, dtype in LOADED.items():
                name = f"{kind}, {label}"
                found = compare(folder, dtype, args.repeats or 5, name, args.threads)
                record = as_record(found, f"loading-{kind}-{dtype}", dtype, layers, args.gigabytes)
                RecordStore(args.store).append(record)
                rows.append((name, *cells(found)))
    title = f"Loading {args.gigabytes:g} GB of {STORED} weights, ours / stock: median (IQR)"
    columns = ("", *(name.removeprefix("loading_").replace("_", " ") for name in QUANTITIES))
    print(as_text([Table(title, columns, rows)]), end="")
    print(f"wrote {len(rows)} records to {args.store}")
    return 0


def write_checkpoint(folder: Path, gigabytes: float) -> tuple[dict[str, Path], int]:
    """Write one random LLaVA-1.5 in both formats; return the folders and its number of layers."""
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    # A default method of ours begins at layer 2.
    layers = max(3, round((gigabytes * 1e9 - 4 * VOCABULARY * 2048) / LAYER_BYTES))
    vision = CLIPVisionConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        image_size=56, patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=2048, intermediate_size=5504, num_hidden_layers=layers, num_attention_heads=16,
        vocab_size=VOCABULARY,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=32_000, image_seq_length=16
    )
    folders = {name: folder / name for name in FORMATS}
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Llava(config)
    finally:
        torch.set_default_dtype(default)
    model.save_pretrained(folders["safetensors"], max_shard_size="400MB")
    del model
    pickled, index = folders["bin"], dict[str, str]()
    pickled.mkdir()
    for file in folders["safetensors"].iterdir():
        if file.suffix != ".safetensors":
            if "index" not in file.name:
                (pickled / file.name).write_bytes(file.read_bytes())
            continue
        name = file.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        tensors = load_file(file)
        torch.save(tensors, pickled / name)
        index |= dict.fromkeys(tensors, name)
    (pickled / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8"
    )
    return folders, layers


def load_once(who: str, folder: str, dtype: str, threads: int | None = None) -> dict[str, float]:
    """Load in this process and return what it took.

    Parameters
    ----------
    who : str
        ``ours`` or ``stock``.
    folder, dtype : str
        The checkpoint, and what to load it into.
    threads : int, optional
        Of torch (stock reads with threads of its own beside them).

    Returns
    -------
    dict
        ``loading_time``, ``loading_cpu_time`` (user and system) in s, ``loading_memory`` in byte:
        the process's peak resident memory above what it held before.
    """
    import torch
    from transformers import LlavaForConditionalGeneration as Llava

    from dynllava.models.loading import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    before, cpu, start = _resident(), _cpu(), time.perf_counter()
    if who == "ours":
        model: Any = load_model(folder, method=FULL, dtype=dtype)[0]
    else:
        model = Llava.from_pretrained(folder, dtype=getattr(torch, dtype))
    for parameter in model.parameters():
        # One value of each page of 4 KiB.
        parameter.detach().flatten()[:: 4096 // parameter.element_size()].sum()
    found = {"loading_time": time.perf_counter() - start, "loading_cpu_time": _cpu() - cpu}
    return found | {"loading_memory": _peak() - before}


def compare(
    folder: Path, dtype: str, repeats: int, label: str, threads: int | None = None
) -> dict[str, dict[str, list[float]]]:
    """Return who -> quantity -> one value a round.

    The first round, which fills the page cache, is left out.
    """
    found: dict[str, dict[str, list[float]]] = {
        who: {name: [] for name in QUANTITIES} for who in ("ours", "stock")
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as processes:
        for number in tqdm(range(repeats + 1), desc=label):
            # Turns are swapped each round.
            for who in sorted(found, reverse=bool(number % 2)):
                taken = processes.submit(load_once, who, str(folder), dtype, threads).result()
                if number:
                    for name, value in taken.items():
                        found[who][name].append(value)
    return found


def as_record(
    found: dict[str, dict[str, list[float]]], task: str, dtype: str, layers: int, gigabytes: float
) -> RunRecord:
    """Return the record of one comparison: ours, and its ratios to stock."""
    measured = {}
    for name, unit in QUANTITIES.items():
        ours, stock = found["ours"][name], found["stock"][name]
        # Every load is a process of its own.
        process = [f"{process_name()}-{number}" for number in range(len(ours))]
        measured[name] = measured_rounds(ours, process, unit, False)
        measured[f"{name}_stock"] = measured_rounds(stock, process, unit, False)
        ratio = paired_ratios(ours, stock)
        measured[f"{name}_ratio"] = measured_rounds(ratio, process, "1", False)
    return RunRecord(
        kind="bench",
        model=ModelInfo(f"{gigabytes:g} GB (random weights)", None, layers, 2048, 16),
        method=MethodInfo(FULL, label=LOADING),
        task=TaskInfo(task, suite="speed"),
        measured=measured,
        environment=capture("cpu", dtype, "sdpa"),
    )


def cells(found: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return a table row: the ratio of each quantity, and what stock takes."""
    row = []
    for name, unit in QUANTITIES.items():
        ratio = spread(paired_ratios(found["ours"][name], found["stock"][name]))
        stock = spread(found["stock"][name]).median
        base = f"{stock:.2f} s" if unit == "s" else f"{stock / 1e9:.2f} GB"
        row.append(f"{ratio.median:.3f} ({ratio.iqr:.3f}) of {base}")
    return row


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
