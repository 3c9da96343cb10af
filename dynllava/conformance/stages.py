"""PyramidDrop and VoCo-LLaMA against tensors recorded from their official code.

Nothing here knows a case: sizes and parameters come from ``cases.json``.  Every recorded tensor is
either compared or listed as excluded with a reason; one that is neither fails the case.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from . import CaseResult, Row, token_packer
from .baselines import Session

#: Allowed absolute differences: logits, hidden states and keys; attention.
LOGITS, SCORES = 1e-4, 1e-5
#: What is read, not compared.
INPUTS = {
    "inputs_embeds": "an input, which is read",
    "decode_token_ids": "an input, which is read",
    "input_ids": "the same input as inputs_embeds, before the image is put in",
}


def compare(result: CaseResult, tensors: dict[str, torch.Tensor], ours: dict[str, Any]) -> None:
    """Compare what was recorded: floats within tolerance, the rest exactly."""
    for name, recorded in tensors.items():
        if name in INPUTS:
            result.exclude(INPUTS[name], name)
        elif name not in ours:
            result.rows.append(Row(result.case, f"{name} (not read)", float("inf"), 0.0, False))
        elif recorded.is_floating_point():
            tolerance = SCORES if name.endswith(("scores", "attention")) else LOGITS
            result.close(name, ours[name], recorded, tolerance)
        else:
            result.exact(name, ours[name], recorded)


def collect(ours: dict[str, Any], steps: list[dict[str, torch.Tensor]]) -> None:
    """Add what each decoding step gave, stacked."""
    for name in steps[0] if steps else ():
        ours[name] = torch.stack([step[name] for step in steps])


@torch.no_grad()
def check_pyramiddrop(case: dict[str, Any], folder: Path) -> CaseResult:
    """Prefill, cached decoding and whole-sequence decoding, beside the dense model."""
    params = case["params"]
    method = {"layers": params["layer_list"], "ratios": params["image_token_ratio_list"]}
    dense = Session(case, folder, "dense", "full").prefill()
    session = Session(case, folder, "", "pyramiddrop", **method)
    ours: dict[str, Any] = {"dense.prefill_logits_last": dense[-1]}
    logits = session.prefill()
    present = torch.arange(case["image_length"])
    for stage, layer in enumerate(params["layer_list"]):
        record = session.record
        span = slice(session.start, session.start + len(present))
        kept = record[f"L{layer}.kept"][0, span]
        ours[f"stage{stage}.scores"] = record[f"L{layer}.scores"][0, span]
        ours[f"stage{stage}.candidates"] = present
        present = present[kept]
        ours[f"stage{stage}.keep_image"] = present
        ours[f"stage{stage}.layer_input"] = session.trace.hidden[layer][0]
        ours[f"stage{stage}.position_ids"] = session.trace.positions[layer][0]
    columns = torch.arange(session.length)
    last = session.start + case["image_length"]
    text = (columns < session.start) | (columns >= last)
    survivors = text | torch.isin(columns, present + session.start)
    ours["prefill_logits"] = logits[survivors]
    ours["layer_seq_len"] = torch.tensor(session.trace.sizes)
    ours["kv_len_after_prefill"] = session.kv_lengths()
    ours["k_cache_last_layer"] = session.cache.stores[-1].key[0, :, : session.trace.sizes[-1]]
    steps = []
    for index in range(len(session.tokens)):
        row = session.step(index)
        position = torch.stack([position[0, -1] for position in session.trace.positions])
        steps.append(
            {
                "decode_logits": row,
                "decode_query_position": position,
                "decode_kv_len": session.kv_lengths(),
            }
        )
    session.cache = None
    for index, step in enumerate(steps):
        step["rerun.decode_logits"] = session.rerun(index)
    collect(ours, steps)
    result = CaseResult(case["name"])
    compare(result, session.tensors, ours)
    return result


#: Recorded VoCo-LLaMA tensors that are evidence of something else, by the start of their name.
VOCO_EXCLUDED = {
    "twostage_slot.": "documents positions counted from the cut cache, which are wrong",
    "onepass.kv_len_after_prefill": "the released program stores everything and cannot go on",
    "twostage.stage1_kv_len": "the cache before it is cut; here it is never stored",
}


@torch.no_grad()
def check_voco(case: dict[str, Any], folder: Path) -> CaseResult:
    """One pass, whole sequences at each step, and a prefix followed by the rest on its cache."""
    image = next((span for span in spans_of(case) if span[0] == "image"), ("image", 0, 0))
    session = Session(
        {**case, "image_start": image[1], "image_length": image[2]},
        folder, "", "voco_llama", token_id=case["voco_token_id"],
    )  # fmt: skip
    learned = torch.zeros(1, session.length, dtype=torch.bool)
    learned[:, session.tensors["voco_index"]] = True
    tokens = session.model.get_input_embeddings()(session.tokens)[None]
    result = CaseResult(case["name"])
    ours: dict[str, Any] = {"voco_index": voco_index(case)}

    def call(embeds: torch.Tensor, cache: Any = None) -> torch.Tensor:
        width = embeds.shape[1]
        mask = torch.nn.functional.pad(learned, (0, max(0, width - session.length)))[:, :width]
        with session.trace as trace:
            for seen in (trace.hidden, trace.positions, trace.calls):
                seen.clear()
            out = session.model(
                inputs_embeds=embeds,
                learned_mask=mask if cache is None or cache.is_empty else None,
                prompt_length=torch.tensor([min(width, session.length)]),
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return out.logits[0]

    def visible() -> torch.Tensor:
        shown = session.trace.calls[-1].mask
        size = session.trace.sizes[-1]
        return torch.ones(size, size).tril() > 0 if shown is None else shown[0, 0]

    session.model.set_method("full")
    ours["plain_causal.last_logits"] = call(session.embeds)[-1]
    session.model.set_method("voco_llama", token_id=case["voco_token_id"])
    ours["onepass.prefill_logits"] = call(session.embeds)
    ours["onepass.visible"] = visible()
    ours["onepass.position_ids"] = session.trace.positions[0][0]
    steps: list[dict[str, torch.Tensor]] = []
    total = session.length + len(session.tokens)
    for index in range(len(session.tokens)):
        logits = call(torch.cat([session.embeds, tokens[:, : index + 1]], 1))[-1]
        row = visible()[-1]
        row = torch.nn.functional.pad(row, (0, total - len(row)))
        steps.append({"rerun.decode_logits": logits, "rerun.visible_last_row": row})
    session.cache = session.model.new_cache()
    split = int(learned.nonzero().amax() + 1) if learned.any() else session.length
    ours["twostage.stage1_logits_last"] = call(session.embeds[:, :split], session.cache)[-1]
    held = int(session.kv_lengths()[0])
    ours["twostage.cached_index"] = torch.arange(split - held, split)
    if split < session.length:
        ours["twostage.stage2_logits"] = call(session.embeds[:, split:], session.cache)
        ours["twostage.stage2_position_ids"] = session.trace.positions[0][0]
    ours["twostage.kv_len_after_prefill"] = session.kv_lengths()
    for index, step in enumerate(steps):
        step["twostage.decode_logits"] = call(tokens[:, index : index + 1], session.cache)[-1]
        step["twostage.decode_position"] = session.trace.positions[0][0, -1]
        step["twostage.decode_kv_len"] = session.kv_lengths()
    collect(ours, steps)
    for name in session.tensors:
        for start, reason in VOCO_EXCLUDED.items():
            if name.startswith(start):
                result.exclude(reason, name)
    left = {name: value for name, value in session.tensors.items() if name not in result.excluded}
    compare(result, left, ours)
    return result


def spans_of(case: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Return (kind, start, length) of each span of a case's layout."""
    found, start = [], 0
    for span in case["layout"]:
        found.append((span["kind"], start, span["length"]))
        start += span["length"]
    return found


def voco_index(case: dict[str, Any]) -> torch.Tensor:
    """Return the places of the learned tokens."""
    places = [
        torch.arange(start, start + length)
        for kind, start, length in spans_of(case)
        if kind == "voco"
    ]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *places])


HANDLERS = {
    "pyramiddrop": check_pyramiddrop,
    "voco_llama": check_voco,
    "tokenpacker": token_packer.check,
    "tokenpacker_dynamic_llava": token_packer.check,
}
