"""What a token is."""

from __future__ import annotations

from enum import IntEnum


class Segment(IntEnum):
    """What a token is."""

    PAD = 0
    TEXT = 1
    IMAGE = 2
    OUTPUT = 3
    #: Learned tokens that stand for an image (VoCo-LLaMA).
    VOCO = 4
