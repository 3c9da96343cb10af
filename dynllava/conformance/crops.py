"""HiRED for LLaVA-NeXT against tensors recorded from its official program."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig
from transformers import LlavaNextForConditionalGeneration as LlavaNext

from dynllava.engine.family import family_of
from dynllava.engine.rows import ImageView
from dynllava.methods import hired
from dynllava.methods.crop_budgets import official_voters
from dynllava.models.layout import layouts
from dynllava.models.wrapping import wrap

from .baselines import Trace


@lru_cache(maxsize=4)
def crops_model(folder: Path, grid: int, layers: int, heads: int, pinpoints: str) -> Any:
    """Return a stock LLaVA-NeXT with the recorded tower, projector and language model.

    ``pinpoints`` are the resolutions of its grids of crops, as JSON.
    """
    import json

    from .vision_side import golden_model

    plain = golden_model(folder, grid, layers, heads)
    vision = plain.config.vision_config.to_dict()
    text = plain.config.text_config.to_dict()
    model = LlavaNext(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(**vision).to_dict()
            | {"model_type": "clip_vision_model"},
            text_config=LlamaConfig(**text),
            image_token_index=plain.config.image_token_id,
            image_grid_pinpoints=json.loads(pinpoints),
        )
    )
    newline = load_file(folder / "weights" / "llava.safetensors")["image_newline"]
    model.load_state_dict({**plain.state_dict(), "model.image_newline": newline})
    return model.eval()


def check_crops(session: Any, folder: Path) -> None:
    """Compare votes, budgets and masks, and what the language model receives and answers."""
    import json

    case = session.case
    params, vision = case["params"], case["vision"]
    sizes = vision["grid"], vision["layers"], vision["heads"]
    stock = crops_model(folder, *sizes, json.dumps(params["grid_pinpoints"]))
    method = hired.HiRED(
        keep_ratio=params["token_budget_rate"], alpha=params["alpha"], strict_official=True
    )
    views = _views(session, stock, method)
    every = [crop for view in views for crop in view.crops]
    for name, look in (("first", hired.FIRST), ("last", hired.CLASS_ROW)):
        rows = torch.stack([crop.tower[look] for crop in every])
        own = 1 - rows.sum(-1, keepdim=True)
        session.compare(**{f"cls_attention_{name}": torch.cat([own, rows], -1)})
    states = [crop.states() for crop in every]
    session.compare(
        hidden_states=torch.stack(states),
        mask=torch.cat([method.masks(view) for view in views]),
        crops=torch.tensor([len(view.crops) for view in views]),
    )
    for number, view in enumerate(views):
        first = view.crops[0].tower[hired.FIRST].sum(0)
        session.compare(
            f"image{number}.",
            first_layer_topk=official_voters(hired.ranked(first), method.alpha),
            sub_budgets=torch.tensor(method.budgets(view)[1:]),
        )
    _answers(session, stock, method)


def _views(session: Any, stock: Any, method: hired.HiRED) -> list[ImageView]:
    """Return what the method sees of each picture."""
    (cut,) = method.plan(session.layers).cuts
    family = family_of(stock.model, stock.config)
    pixels, pictures = family.crops(session.pixels, session.tensors["image_sizes"])
    looks = (hired.CLASS_ROW, hired.FIRST)
    found = family.features(pixels, looks)
    assert found.class_token is not None  # a CLIP tower has one
    views, first = [], 0
    for picture in pictures:
        crops = tuple(
            ImageView(
                found.patches[index],
                cut,
                found.class_token[index],
                {look: found.seen[look][index] for look in looks},
            )
            for index in range(first, first + picture.crops)
        )
        first += picture.crops
        features = torch.cat([crop.features for crop in crops])[picture.packed]
        views.append(ImageView(features, cut, crops=crops, picture=picture))
    return views


def _answers(session: Any, stock: Any, method: hired.HiRED) -> None:
    """Compare what reaches the language model, left-padded as recorded, and its logits."""
    case, given = session.case, session.tensors
    before, after, token = case["system_tokens"], case["text_tokens"], stock.config.image_token_id
    pictures = layouts(stock.config, {"image_sizes": given["image_sizes"]}, [])
    width = before + after + max(picture.tokens for picture in pictures)
    ids = given["input_ids"].new_zeros(len(pictures), width)
    mask = torch.zeros_like(ids)
    for row, picture in enumerate(pictures):
        image = ids.new_full((picture.tokens,), token)
        text = given["input_ids"][row]
        own = torch.cat([text[:before], image, text[before + 1 :]])
        ids[row, width - len(own) :], mask[row, width - len(own) :] = own, 1
    wrapped = wrap(stock, method)
    trace = Trace(wrapped)
    with trace:
        wrapped(
            input_ids=ids, attention_mask=mask, pixel_values=session.pixels,
            image_sizes=given["image_sizes"], use_cache=False,
        )  # fmt: skip
    lengths = wrapped.last_report.layer_counts[0]
    most = int(lengths.max())
    hidden = trace.hidden[0].new_zeros(trace.hidden[0].shape)
    logits = []
    for row, length in enumerate(lengths.tolist()):
        hidden[row, most - length :] = trace.hidden[0][row, :length]
        logits.append(wrapped.lm_head(trace.final[row, length - after : length])[:, :-1])
    there = (torch.arange(most) >= most - lengths[:, None]).int()
    session.compare(
        feature_lens=lengths - before - after,
        attention_mask_after=there,
        inputs_embeds=hidden,
        prefill_logits=torch.stack(logits),
    )
