"""The array job of the Slurm page: shown as it is, and run on a real one-node cluster."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER, JOB = ROOT / "tools" / "one_node_slurm.sh", ROOT / "tools" / "slurm_cells.sh"
PAGE = ROOT / "docs" / "slurm.md"


def test_the_page_shows_the_array_job_as_it_is():
    assert f"```bash\n{JOB.read_text(encoding='utf-8')}```" in PAGE.read_text(encoding="utf-8")


def missing():
    """Return why the cluster cannot be started here, or None."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
    absent = [name for name in programs if shutil.which(name, path=path) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)"
    return None if os.getuid() == 0 else "Slurm's daemons need root"


@pytest.fixture
def slurm():
    """Environment of a running cluster; short path, because sockets allow no long ones."""
    if reason := missing():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    subprocess.run([CLUSTER, "start", folder], check=True, timeout=120)
    bin_folder = Path(sys.executable).parent
    yield {
        **os.environ,
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run([CLUSTER, "stop", folder], check=True, timeout=120)
    shutil.rmtree(folder)


def records(folder):
    """Return (method, task) -> scores and counted costs; a pair that comes twice is an error."""
    found = {}
    for line in (folder / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        key = record["method"]["name"], record["task"]["name"]
        assert key not in found, f"{key} was evaluated twice"
        assert record["status"] == "ok", record["error"]
        found[key] = record["scores"], record["counted"]
    return found


def wait(what, seconds):
    """Wait until ``what()`` is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


@pytest.mark.slow  # Six evaluations' starts and a cluster: two minutes.
def test_an_array_job_that_is_killed_and_requeued_ends_equal_to_one_process(slurm, tmp_path):
    def call(*command):
        done = subprocess.run(
            command, env=slurm, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    store = tmp_path / "cells"
    job = call("sbatch", "--parsable", str(JOB), str(store)).strip()

    def evaluated(method):
        file = store / "records.jsonl"
        return file.exists() and f'"name":"{method}"' in file.read_text().replace(": ", ":")

    wait(lambda: evaluated("full") or evaluated("fastv"), 300)
    assert len(records(store)) < 9, "the jobs were done before they could be killed"
    call("scontrol", "requeue", f"{job}_0")
    call("scancel", "--signal=KILL", "--full", f"{job}_1")
    wait(lambda: f"{job}_1" not in call("squeue", "--array", "-h", "-o", "%i"), 60)
    call("scontrol", "requeue", f"{job}_1")
    for task in (0, 1):
        # Slurm lets a requeued job wait for two minutes.
        call("scontrol", "update", f"jobid={job}_{task}", "starttime=now")

    def completed():
        shown = call("scontrol", "show", "job", job)
        states = re.findall(r"JobState=(\w+)", shown)
        assert "FAILED" not in states, shown
        return set(states) == {"COMPLETED"}

    wait(completed, 500)
    for task in range(3):
        assert "wrote 3 records" in (tmp_path / f"cells-{task}.log").read_text()

    lines = JOB.read_text().split("dynllava compare", 1)[1].replace("\\\n", " ").split()
    place = lines.index("--methods")
    lines[place + 1 : place + 2] = ["full", "fastv", "dynamic_llava"]
    one = tmp_path / "one"
    call("dynllava", "compare", *lines[:-1], str(one))
    assert records(store) == records(one)
