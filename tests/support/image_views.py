"""What a method sees of one image before layer 0, from random numbers."""

from __future__ import annotations

import torch

from dynllava.engine.rows import ImageView
from dynllava.methods import prumerge, visionzip


def synthetic(patches=48, width=16, seed=0, keys=None):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(patches, width, generator=generator)
    keys = torch.randn(patches + 1, width, generator=generator) if keys is None else keys
    query = torch.randn(width, generator=generator)
    looks = {prumerge.KEYS: keys, prumerge.QUERY: query}
    row = torch.randn(4, patches, generator=generator).softmax(1)
    looks |= {visionzip.CLASS_ROW: row, visionzip.KEYS: keys}
    return features, torch.randn(width, generator=generator), looks


def view_of(method, **options):
    features, class_token, looks = synthetic(**options)
    (cut,) = method.plan(4).cuts
    return ImageView(features, cut, class_token, looks)
