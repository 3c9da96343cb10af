"""TokenPacker, alone, in a LLaVA and with Dynamic-LLaVA, against its official code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dynllava.models.token_packer import TokenPacker, regions

from . import CaseResult

PREFIX = "model.mm_projector."


@torch.no_grad()
def projector_values(
    projector: TokenPacker, multi: torch.Tensor, single: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the tokens and all that is recorded on the way to them."""
    seen: dict[str, torch.Tensor] = {}
    called: list[tuple[torch.Tensor, ...]] = []

    def keep(name: str) -> Any:
        return lambda module, args, out: seen.update({name: out})

    names = {"query": "ln_q_1", "key": "ln_k_1", "value": "ln_v_1"}
    hooks = [
        getattr(projector, module).register_forward_hook(keep(name))
        for name, module in names.items()
    ]
    hooks.append(
        projector.clip_attn.register_forward_pre_hook(lambda module, args: called.append(args))
    )
    tokens = projector(torch.cat([multi, single], -1))
    for hook in hooks:
        hook.remove()
    packed, weights = projector.clip_attn(*called[0], need_weights=True)
    shape = tokens.shape[:2]
    return seen | {
        "tokens": tokens,
        "coarse_query_input": projector.coarse(single),
        "attended": packed.view(*shape, -1),
        "attention": weights.view(*shape, -1),
        "region_index": regions(single.shape[1], projector.scale_factor),
    }


def made(recipe: dict[str, Any], name: str, result: CaseResult) -> torch.Tensor:
    """Return a tensor that a case gives as a rule over integers."""
    count = 1
    for size in recipe["shape"]:
        count *= size
    mask = 0xFFFFFFFF
    x = torch.arange(count, dtype=torch.int64) * 0x9E3779B1
    x = (x + recipe["key"] * 0x85EBCA77 + 0x165667B1) & mask
    x ^= x >> 16
    x = (x * 0x85EBCA6B) & mask
    x ^= x >> 13
    x = (x * 0xC2B2AE35) & mask
    x ^= x >> 16
    value = (x >> 8).float() / 2**23 - 1
    value = value * torch.tensor(recipe["scale"]) + torch.tensor(recipe["shift"])
    result.close(f"{name} (recipe)", value[:3], torch.tensor(recipe["first"][: len(value)]), 0.0)
    return value.view(recipe["shape"])


def check_projector(case: dict[str, Any], folder: Path) -> CaseResult:
    """Compare the projector alone, with stored weights or made ones."""
    from .stages import compare

    result = CaseResult(case["name"])
    tensors = load_file(folder / case["file"])
    if "weights_recipe" in case:
        parts = {**case["weights_recipe"], **case["inputs_recipe"]}
        values = {name: made(recipe, name, result) for name, recipe in parts.items()}
        inputs = {name: values.pop(name) for name in case["inputs_recipe"]}
    else:
        values, inputs = load_file(folder / case["weights"]), tensors
    state = {name.removeprefix(PREFIX): value for name, value in values.items()}
    projector = TokenPacker(
        inputs["features"].shape[-1],
        state["mlp.0.weight"].shape[0],
        case["scale_factor"],
        case["embed_dim"],
        case["num_heads"],
    ).eval()
    projector.load_state_dict(state)
    ours = projector_values(projector, inputs["features_multi"], inputs["features"])
    for name in ("features", "features_multi"):
        if name in tensors:
            result.exclude("an input, which is read", name)
    left = {name: value for name, value in tensors.items() if name not in result.excluded}
    compare(result, left, ours)
    return result


def golden_model(case: dict[str, Any], folder: Path) -> Any:
    """Return the model of a case, its tensors loaded through the official names."""
    from dynllava.models.checkpoints import (
        check_state,
        hf_config,
        official_rows,
        to_hf_name,
        tower_name,
    )
    from dynllava.models.config import DynamicLlavaConfig
    from dynllava.models.modeling import DynamicLlavaForConditionalGeneration

    official = json.loads((folder / case["config"]).read_text())
    official |= {"scale_factor": case["scale_factor"]}
    official["mm_vision_select_layer"] = case.get("select_layer", -2)
    vision = json.loads((folder / case["vision_tower"] / "config.json").read_text())
    sizes = {"width": case["embed_dim"], "heads": case["num_heads"]}
    values = hf_config(official, vision, sizes)
    model = DynamicLlavaForConditionalGeneration(DynamicLlavaConfig(**values)).eval()
    state: dict[str, torch.Tensor] = {}
    for name in case["weights"]:
        stored = load_file(folder / name)
        state |= {to_hf_name(key): value for key, value in stored.items()}
    tower = load_file(folder / case["vision_tower"] / "model.safetensors")
    named = {tower_name(key): value for key, value in tower.items()}
    state |= {name: value for name, value in named.items() if name is not None}
    state.pop("model.vision_tower.embeddings.position_ids", None)
    state = official_rows(state)
    check_state(model, state, folder)
    model.load_state_dict(state)
    return model


class Run:
    """A case's prompt and forced tokens, with what the layers saw."""

    def __init__(self, case: dict[str, Any], folder: Path, method: str) -> None:
        from .baselines import Trace

        self.model = golden_model(case, folder)
        self.tensors = load_file(folder / case["file"])
        self.model.set_method(method, **self.parameters(method))
        self.trace = Trace(self.model)
        self.cache = self.model.new_cache()
        config = self.model.config
        ids = self.tensors["input_ids"][0]
        at = int((ids < 0).nonzero()[0])
        image = ids.new_full((config.image_seq_length,), config.image_token_id)
        self.ids = torch.cat([ids[:at], image, ids[at + 1 :]])[None]
        self.start, self.length = at, len(image)
        self.vocabulary = config.text_config.vocab_size - 1

    def parameters(self, method: str) -> dict[str, Any]:
        """Return the checkpoint's own parameters of ``dynamic_llava``."""
        if method == "full":
            return {}
        sparsity = self.model.config.sparsity()
        return {
            "sparse_layer": sparsity.sparse_layer,
            "vision_keep_rate": sparsity.vision_keep_rate,
            "output_keep_rate": sparsity.output_text_keep_rate,
        }

    def feed(self, ids: torch.Tensor, **more: Any) -> torch.Tensor:
        """Feed tokens [1, q] on the cache; return the logits of the last layer's rows."""
        with self.trace as trace:
            for seen in (trace.hidden, trace.positions, trace.calls):
                seen.clear()
            self.model(ids, past_key_values=self.cache, **more)
        return self.model.lm_head(self.trace.final)[0, :, : self.vocabulary]

    def prompt(self) -> dict[str, Any]:
        """Run the prompt; return what every case records of it."""
        pixels = self.tensors["pixel_values"]
        found = self.model.model.get_image_features(
            pixel_values=pixels, return_dict=True, output_hidden_states=True
        )
        layers = self.model.config.vision_feature_layer
        states = [found.hidden_states[layer][:, 1:] for layer in layers]
        logits = self.feed(self.ids, pixel_values=pixels)
        return {
            "features": states[-1],
            "features_multi": torch.cat(states[:-1], -1),
            "image_tokens": torch.stack(list(found.pooler_output)),
            "inputs_embeds": self.trace.hidden[0],
            "prefill_logits": logits,
            "position_ids": self.trace.positions[0],
            "position_ids_sparse": self.trace.positions[-1],
            "layer_seq_len": torch.tensor(self.trace.sizes),
            "kv_len_after_prefill": self.cache.kv_lengths()[:, 0],
        }


@torch.no_grad()
def check_llava(case: dict[str, Any], folder: Path) -> CaseResult:
    """Compare pixels to logits, dense, and decoding on a cache."""
    run = Run(case, folder, "full")
    return finish(case, run, run.prompt(), [step(run, token) for token in steps_of(run)])


@torch.no_grad()
def check_dynamic(case: dict[str, Any], folder: Path) -> CaseResult:
    """Compare the same under Dynamic-LLaVA, with the predictors' inputs and decisions."""
    run = Run(case, folder, "dynamic_llava")
    ours = run.prompt()
    record = run.model.last_report.record
    ours["kept_image_indices"] = torch.tensor(run.model.last_report.kept_image_indices[0])
    for name in ("image_predictor_input", "image_predictor_logits"):
        ours[name] = record[name]
    steps = []
    for token in steps_of(run):
        values = step(run, token)
        values["output_predictor_logits"] = run.model.last_report.record["output_predictor_logits"][
            0, 0
        ]
        values["keep_decisions"] = run.cache.decisions[-1][0]
        values["decode_query_position"] = run.trace.positions[0][0, -1]
        steps.append(values)
    return finish(case, run, ours, steps)


def steps_of(run: Run) -> torch.Tensor:
    """Return the forced tokens [T, 1, 1]."""
    return run.tensors["decode_token_ids"][:, None, None]


def step(run: Run, token: torch.Tensor) -> dict[str, torch.Tensor]:
    """Feed one token; return what every case records of it."""
    return {
        "decode_logits": run.feed(token)[-1],
        "decode_position_ids": run.trace.positions[0][0, -1],
        "decode_kv_len": run.cache.kv_lengths()[:, 0],
    }


def finish(
    case: dict[str, Any], run: Run, ours: dict[str, Any], steps: list[dict[str, torch.Tensor]]
) -> CaseResult:
    """Compare what a case recorded."""
    from .stages import collect, compare

    collect(ours, steps)
    result = CaseResult(case["name"])
    for name in ("input_ids", "pixel_values"):
        result.exclude("an input, which is read", name)
    read = (*result.excluded, "decode_token_ids")
    result.exclude("an input, which is read", "decode_token_ids")
    left = {name: value for name, value in run.tensors.items() if name not in read}
    embeds = left.pop("inputs_embeds", None)
    if embeds is not None:
        result.close("inputs_embeds", ours["inputs_embeds"], embeds, 1e-4)
    compare(result, left, ours)
    return result


HANDLERS = {
    "projector_full_size": check_projector,
    "projector": check_projector,
    "llava": check_llava,
    "dynamic_llava": check_dynamic,
}


def check(case: dict[str, Any], folder: Path) -> CaseResult:
    """Check a case of any kind; see :func:`dynllava.conformance.check_folder`."""
    return HANDLERS[case["kind"]](case, folder)
