"""One rule for the dtype: plugin, compare, bench and show take the same one for a device."""

from __future__ import annotations

import argparse
import importlib

import pytest

from dynllava.models.loading import default_dtype


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", "float32"), ("cuda", "float16"), ("cuda:1", "float16")]
)
def test_half_precision_on_a_gpu_only(device, dtype):
    assert default_dtype(device) == dtype


@pytest.mark.parametrize("command", ["compare", "bench", "show"])
def test_no_command_has_a_default_of_its_own(command):
    parser = argparse.ArgumentParser()
    importlib.import_module(f"dynllava.commands.{command}").configure(parser)
    assert parser.get_default("dtype") is None


def test_the_plugin_has_no_default_of_its_own():
    from lmms_eval_dynllava.arguments import ModelArguments

    assert ModelArguments.parse({}).dtype is None
