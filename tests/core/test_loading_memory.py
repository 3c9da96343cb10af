"""Loading costs the memory of its result; the image back-end is the one asked for, or an error."""

from __future__ import annotations

import json
import subprocess
import sys

import public_layouts as layouts
import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from dynllava.errors import UserError
from dynllava.models.loading import load_processor
from dynllava.records.environment import image_backend

MEASURE = """
import json, sys, threading, time
import torch
from dynllava.models.loading import load_model

def anonymous():
    # Pages of mapped files are the system's to drop; these are not.
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])

folder, tower, small = sys.argv[1:]
load_model(small, vision_tower=tower)  # what importing and a first load cost for good
before, peak, running = anonymous(), 0, True

def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
model, _ = load_model(folder, dtype="float32", vision_tower=tower)
running = False
thread.join()
result = sum(t.numel() * t.element_size() for t in model.state_dict().values())
print(json.dumps({"peak": peak - before, "result": result}))
"""


@pytest.mark.slow  # A fresh process that writes and loads a checkpoint: a minute where busy.
def test_half_precision_shards_load_into_float32_without_a_second_copy(tmp_path):
    """60 MB of ``.bin`` shards become 120 MB of weights; a copy of either would be 1.5 times."""
    sizes = layouts.Sizes(hidden=768, mlp=2048, layers=4)
    tower = layouts.clip_tower(tmp_path / "tower", sizes)
    folder = layouts.original(tmp_path / "large", sizes)
    small = layouts.original(tmp_path / "small", layouts.Sizes())
    command = [sys.executable, "-c", MEASURE, str(folder), str(tower), str(small)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["result"] > 100e6
    assert found["result"] * 0.9 < found["peak"] < found["result"] * 1.25, found


@pytest.mark.slow  # Sixteen loads of a 0.6 GB checkpoint, each in a process of its own.
def test_loading_takes_no_more_memory_than_stock(tmp_path):
    """Both formats, as stored and into another dtype; what ``dynllava.suites.loading`` records."""
    command = [sys.executable, "-m", "dynllava.suites.loading", "--gigabytes", "0.6"]
    command += ["--repeats", "1", "--store", str(tmp_path / "store"), "--scratch", str(tmp_path)]
    subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)
    lines = (tmp_path / "store" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        record = json.loads(line)
        found[record["task"]["name"]] = record["measured"]["loading_memory_ratio"]["median"]
    assert sorted(found) == [
        f"loading-{kind}-{dtype}"
        for kind in ("bin", "safetensors")
        for dtype in ("bfloat16", "float32")
    ]
    assert max(found.values()) <= 1.05, found


@pytest.fixture
def folder(tmp_path):
    return layouts.llava_hf(tmp_path / "hf", layouts.Sizes())


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision can be imported here")
def test_torchvision_that_cannot_be_imported_is_one_line(folder):
    """Not a silent PIL: the record would name another back-end than the command."""
    with pytest.raises(UserError, match="image_backend=torchvision: torchvision cannot be import"):
        load_processor(folder, image_backend="torchvision")
    assert image_backend(load_processor(folder)) == "PIL"


@pytest.mark.skipif(not is_torchvision_available(), reason="torchvision cannot be imported here")
def test_torchvision_makes_nearly_the_pixels_of_pil_and_says_so(folder):
    noise = torch.randint(0, 256, (70, 110, 3), generator=torch.Generator().manual_seed(5))
    picture = Image.fromarray(noise.byte().numpy())
    processors = {
        name: load_processor(folder, image_backend=name) for name in ("pil", "torchvision")
    }
    assert image_backend(processors["torchvision"]) == "torchvision"
    first, second = (
        processor.image_processor(picture, return_tensors="pt")["pixel_values"]
        for processor in processors.values()
    )
    torch.testing.assert_close(first, second, atol=0.03, rtol=0)
