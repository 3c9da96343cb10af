"""Devices as data: memory, bandwidth and peak compute, one JSON file each with its source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from dynllava.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """What a roofline needs to know of a device.

    Attributes
    ----------
    name, title : str
        Short name (the file's) and product name.
    memory_gib : float
        Device memory in GiB.
    bandwidth_bytes_per_s : float
        Peak memory bandwidth.
    peak_flops : dict
        Dtype name -> peak dense FLOP/s (no structured sparsity).
    source : str
        Where the numbers are from.
    """

    name: str
    title: str
    memory_gib: float
    bandwidth_bytes_per_s: float
    peak_flops: dict[str, float]
    source: str

    @property
    def memory_bytes(self) -> int:
        """Device memory in bytes."""
        return int(self.memory_gib * GIB)

    def flops(self, dtype: str) -> float:
        """Return the peak FLOP/s in ``dtype``."""
        if dtype not in self.peak_flops:
            accepted = ", ".join(self.peak_flops)
            raise UserError(f"dtype {dtype!r} on {self.name}: accepted are {accepted}")
        return self.peak_flops[dtype]


def device_names() -> list[str]:
    """Return the names of all devices."""
    files = _folder().iterdir()
    return sorted(item.name[: -len(".json")] for item in files if item.name.endswith(".json"))


def load_device(name: str) -> Device:
    """Return the device called ``name``.

    Raises
    ------
    UserError
        If there is none.
    """
    names = device_names()
    if name not in names:
        raise UserError(f"device {name!r}: accepted are {', '.join(names)}")
    text = _folder().joinpath(f"{name}.json").read_text(encoding="utf-8")
    return Device(**json.loads(text))


def _folder() -> Traversable:
    return resources.files("dynllava.costs").joinpath("device_specs")
