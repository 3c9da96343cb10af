"""What training over processes that each hold a part of the weights needs beside the engines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from dynllava.errors import UserError


def shard_on_cpu(accelerator: Any) -> bool:
    """Make an accelerator of several CPU processes shard, if its launcher asked for FSDP.

    accelerate applies its FSDP settings to processes with a GPU or the like alone; on CPUs the same
    launch trains data-parallel without a word.  The settings are the launcher's own (``FSDP_*``
    variables that ``accelerate launch`` sets from its configuration file).

    Returns
    -------
    bool
        Whether it shards now and did not before.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    state = accelerator.state
    if not wanted or state.distributed_type != DistributedType.MULTI_CPU:
        return False
    state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if state.mixed_precision != "no":
        state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
    # Both hold it; later views of the state copy the second one.
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    return True


def check_records(has_image: Sequence[bool], zero3: bool, processes: int) -> None:
    """Refuse data on which processes under ZeRO-3 would wait for each other for ever.

    ZeRO-3 gathers weights module by module, so every process must run the same modules; one whose
    micro-batch has no image skips the vision tower.  FSDP gathers the tower with the rest.

    Raises
    ------
    UserError
        If text-only records meet ZeRO-3 over several processes.
    """
    without = sum(not image for image in has_image)
    if zero3 and processes > 1 and without:
        raise UserError(
            f"data.path: {without} of {len(has_image)} records have no image, which ZeRO-3 over "
            f"{processes} processes cannot train on (a process without an image would not run the "
            "vision tower); accepted are records with images, or FSDP"
        )
