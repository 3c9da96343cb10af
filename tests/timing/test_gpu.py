"""Kernel paths on a CUDA device, in bfloat16: what a GPU campaign checks first."""

import pytest
import torch

from dynllava.costs.spec import PRESETS
from dynllava.timing.campaign import smoke


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_kernel_path_computes_what_it_should(dtype):
    found = list(smoke.checks(PRESETS["mid-size"], "cuda", dtype, "inductor"))
    assert [check for check in found if check.passed is False] == []
    assert sum(check.passed is True for check in found) >= 14
