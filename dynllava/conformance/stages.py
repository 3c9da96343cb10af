"""PyramidDrop against tensors recorded from its official code.

Nothing here knows a case: sizes and parameters come from ``cases.json``.  Every recorded tensor is
either compared or listed as excluded with a reason; one that is neither fails the case.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dynllava.conformance import CaseResult, Row
from dynllava.conformance.baselines import Session

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


HANDLERS = {"pyramiddrop": check_pyramiddrop}
