"""A tiny random LLaVA with eight layers, and its spec."""

import pytest

from dynllava.costs.spec import ModelSpec
from dynllava.plan import ModelDims
from dynllava.timing.bench_model import build_bench

TINY_DIMS = ModelDims(
    layers=8,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate=96,
    vocab=50,
    predictor_dim=32,
    predictor_heads=4,
    predictor_feedforward=48,
    predictor_blocks=2,
)


@pytest.fixture(scope="session")
def tiny_spec():
    return ModelSpec("mid-size", TINY_DIMS, None, image_tokens=36)


@pytest.fixture(scope="session")
def tiny_bench(tiny_spec):
    return build_bench("mid-size", tiny_spec, "cpu", "float32", "sdpa")
