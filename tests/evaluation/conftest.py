"""Shared by the benchmark tests: fixtures on disk, and one scripted run over all of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Helper modules lie beside the tests, which are no package.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def offline():
    """Nothing here may reach the network, and nothing may wait for it."""
    before = {key: os.environ.get(key) for key in ("HF_HUB_OFFLINE", "HF_DATASETS_CACHE")}
    os.environ["HF_HUB_OFFLINE"] = "1"
    yield
    for key, value in before.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@pytest.fixture(scope="session")
def judge():
    """The stub judge, with the variables from which lmms-eval takes its address."""
    pytest.importorskip("lmms_eval")
    from benchmark_scripted import stub_judge

    names = ("OPENAI_API_KEY", "OPENAI_API_URL", "API_TYPE", "MODEL_VERSION")
    before = {key: os.environ.pop(key, None) for key in names}
    with stub_judge() as server:
        os.environ["OPENAI_API_KEY"] = "stub"
        os.environ["OPENAI_API_URL"] = f"http://127.0.0.1:{server.server_port}/v1"
        yield server
    for key, value in before.items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value


@pytest.fixture(scope="session")
def upstream_folder(tmp_path_factory, judge):
    """Parquet files and overlays of the 13 upstream tasks, in both prompt forms."""
    from benchmark_fixtures import FIXTURES, write_parquet

    from dynllava.tasks.overlays import write_overlay
    from dynllava.tasks.registry import BENCHMARKS

    root = tmp_path_factory.mktemp("upstream")
    for name, fixture in FIXTURES.items():
        data = write_parquet(fixture.rows, root / "data" / f"{name}.parquet")
        write_overlay(root / "tasks", BENCHMARKS[name], data=data, name=f"{name}_local")
        if BENCHMARKS[name].protocol:
            write_overlay(
                root / "tasks",
                BENCHMARKS[name],
                data=data,
                name=f"{name}_protocol",
                protocol=True,
            )
    return root
