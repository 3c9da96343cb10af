"""Inference cases of the official Dynamic-LLaVA: vision, prefill, decoding, generation."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dynllava.models.loading import load_model
from dynllava.models.modeling import DynamicLlavaForConditionalGeneration

from . import CaseResult
from .tiny import last_report

LOGITS = 1e-4
PIXELS = 1e-5


@lru_cache(maxsize=2)
def golden_model(folder: Path) -> DynamicLlavaForConditionalGeneration:
    """Return the golden folder's checkpoint, loaded through the official-format path."""
    return load_model(folder / "checkpoint")[0]


def prepare(case: dict[str, Any], folder: Path) -> DynamicLlavaForConditionalGeneration:
    """Return the model with the case's configuration overrides applied to its method."""
    model = golden_model(folder)
    sparsity = model.config.sparsity()
    overrides = case.get("config_overrides", {})
    judges = overrides.get("use_text_predictor", True) and overrides.get(
        "use_output_text_predictor", sparsity.use_output_text_predictor
    )
    rates = overrides.get("vision_keep_rate", sparsity.vision_keep_rate)
    sees = overrides.get("use_vision_predictor", sparsity.use_vision_predictor)
    model.set_method(
        "dynamic_llava",
        sparse_layer=overrides.get("sparse_layer", sparsity.sparse_layer),
        vision_keep_rate=rates if sees else 1.0,
        # Inference decides by the logits: the rate only says whether the predictor runs.
        output_keep_rate=sparsity.output_text_keep_rate if judges else 1.0,
    )
    return model


def tensors_of(case: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    """Return the case's tensors."""
    return load_file(folder / case["file"])


def expand_ids(ids: torch.Tensor, case: dict[str, Any], image_tokens: int, token: int):
    """Return input ids [B, L] with the one placeholder a row repeated for each image token."""
    placeholder = case["index"]["image_token_index"]
    rows = []
    for row in ids:
        at = (row == placeholder).nonzero().flatten().tolist()
        parts = [row] if not at else [row[: at[0]], row.new_full((image_tokens,), token)]
        rows.append(torch.cat(parts if not at else [*parts, row[at[0] + 1 :]]))
    return torch.stack(rows)


class Recorder:
    """Records the decoder layers' inputs and outputs and the final hidden states of one call."""

    def __init__(self, model: DynamicLlavaForConditionalGeneration) -> None:
        self.model = model
        self.layer_outputs: list[torch.Tensor] = []
        self.positions: list[torch.Tensor] = []
        self.final: torch.Tensor | None = None

    def __enter__(self) -> Recorder:
        decoder = self.model.model.language_model
        self._hooks = [
            layer.register_forward_hook(self._layer, with_kwargs=True) for layer in decoder.layers
        ]
        self._hooks.append(decoder.norm.register_forward_hook(self._norm))
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _layer(self, module: Any, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        self.layer_outputs.append(output)
        self.positions.append(kwargs["position_ids"])

    def _norm(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self.final = output


class Session:
    """Teacher-forced decoding of one case."""

    def __init__(self, case: dict[str, Any], folder: Path) -> None:
        self.case = case
        self.model = prepare(case, folder)
        self.tensors = tensors_of(case, folder)
        self.result = CaseResult(case["name"])
        config = self.model.config
        self.vocab = config.official_config["vocab_size"]
        self.ids = expand_ids(
            self.tensors["input_ids"], case, config.image_seq_length, config.image_token_id
        )
        self.pixels = self.tensors.get("pixel_values")
        self.cache = self.model.new_cache()

    @torch.no_grad()
    def prefill(self) -> torch.Tensor:
        """Run the prompt; return the last row's logits [B, V]."""
        out = self.model(
            self.ids, pixel_values=self.pixels, past_key_values=self.cache, logits_to_keep=1
        )
        return out.logits[:, -1, : self.vocab]

    @torch.no_grad()
    def feed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Feed tokens [B, q] on the cache; return logits [B, q, V]."""
        keep = 1 if tokens.shape[1] == 1 else 0
        out = self.model(tokens, past_key_values=self.cache, logits_to_keep=keep)
        return out.logits[..., : self.vocab]

    def decode(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Feed tokens [B, T] one by one and return what the golden cases record, stacked."""
        seen: dict[str, list[torch.Tensor]] = {
            name: [] for name in ("logits", "hidden", "predictor", "kept", "lengths", "positions")
        }
        for step in range(tokens.shape[1]):
            with Recorder(self.model) as recorder:
                seen["logits"].append(self.feed(tokens[:, step : step + 1])[:, 0])
            assert recorder.final is not None  # a call was recorded
            seen["hidden"].append(recorder.final[:, 0])
            record = last_report(self.model).record
            seen["predictor"].append(record["output_predictor_logits"][:, 0])
            seen["kept"].append(self.cache.decisions[-1])
            seen["lengths"].append(self.cache.kv_lengths())
            seen["positions"].append(recorder.positions[0][:, 0])
        return {name: torch.stack(values) for name, values in seen.items()}


def check_vision(case: dict[str, Any], folder: Path) -> CaseResult:
    """Vision tower and projector."""
    model, tensors = prepare(case, folder), tensors_of(case, folder)
    result = CaseResult(case["name"])
    with torch.no_grad():
        out = model.model.get_image_features(
            pixel_values=tensors["pixel_values"], return_dict=True, output_hidden_states=True
        )
    layer = model.config.vision_feature_layer
    tower = out.hidden_states[layer]
    if model.config.vision_feature_select_strategy == "default":
        tower = tower[:, 1:]
    result.close("tower_features", tower, tensors["tower_features"], LOGITS)
    features = torch.stack(list(out.pooler_output))
    result.close("image_features", features, tensors["image_features"], LOGITS)
    return result


def check_preprocess(case: dict[str, Any], folder: Path) -> CaseResult:
    """Image preprocessing with the PIL back-end."""
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    from dynllava.models.processors import image_values

    tensors = tensors_of(case, folder)
    config = golden_model(folder).config
    values = image_values(config.to_dict()["vision_config"], config.official_config)
    values.pop("image_processor_type")
    processor = LlavaImageProcessorPil(**values)
    names = sorted(name for name in tensors if name.startswith("image_"))
    images = [tensors[name].numpy() for name in names]
    pixels = processor(images, return_tensors="pt", input_data_format="channels_last")
    result = CaseResult(case["name"])
    result.close("pixel_values", pixels["pixel_values"], tensors["pixel_values"], PIXELS)
    return result


def check_prefill(case: dict[str, Any], folder: Path) -> CaseResult:
    """Prefill with image sparsification."""
    session = Session(case, folder)
    model, tensors, result = session.model, session.tensors, session.result
    with Recorder(model) as recorder, torch.no_grad():
        model(session.ids, pixel_values=session.pixels, past_key_values=session.cache)
    report = last_report(model)
    record = report.record
    hidden = recorder.final
    logits = model.lm_head(hidden)[..., : session.vocab]
    result.close(
        "image_predictor_input",
        record["image_predictor_input"],
        tensors["image_predictor_input"],
        LOGITS,
    )
    result.close(
        "image_predictor_logits",
        record["image_predictor_logits"],
        tensors["image_predictor_logits"],
        LOGITS,
    )
    result.exact("kept_image_indices", report.kept_image_indices, tensors["kept_image_indices"])
    result.exact("position_ids_sparse", recorder.positions[-1], tensors["position_ids_sparse"])
    result.close("final_hidden", hidden, tensors["final_hidden"], LOGITS)
    result.close("logits", logits, tensors["logits"], LOGITS)
    result.close("last_logits", logits[:, -1], tensors["last_logits"], LOGITS)
    result.exact("kv_lengths", session.cache.kv_lengths().amax(1), tensors["kv_lengths"])
    for index, output in enumerate(recorder.layer_outputs):
        name = f"layer_{index}_output_last"
        if name in tensors:
            result.close(name, output[:, -1], tensors[name], LOGITS)
    return result


def check_decode(case: dict[str, Any], folder: Path) -> CaseResult:
    """Check decoding with KV cache, batch 1."""
    session = Session(case, folder)
    tensors, result = session.tensors, session.result
    first = session.prefill()
    report = last_report(session.model)
    result.close("prefill_last_logits", first, tensors["prefill_last_logits"], LOGITS)
    if "image_predictor_logits" in tensors:
        ours = report.record["image_predictor_logits"]
        result.close("image_predictor_logits", ours, tensors["image_predictor_logits"], LOGITS)
        result.exact("kept_image_indices", report.kept_image_indices, tensors["kept_image_indices"])
    result.exact(
        "prefill_kv_lengths", session.cache.kv_lengths()[:, 0], tensors["prefill_kv_lengths"]
    )
    ours = session.decode(tensors["next_tokens"])
    result.close(
        "output_predictor_logits", ours["predictor"], tensors["output_predictor_logits"], LOGITS
    )
    result.exact("keep_decisions", ours["kept"], tensors["keep_decisions"])
    result.close("logits", ours["logits"], tensors["logits"], LOGITS)
    result.close("final_hidden", ours["hidden"], tensors["final_hidden"], LOGITS)
    result.exact("kv_lengths", ours["lengths"][..., 0], tensors["kv_lengths"])
    result.exact("true_cache_length", ours["lengths"], tensors["true_cache_length"])
    result.exact("position_ids", ours["positions"], tensors["position_ids"])
    return result


def check_decode_batch(case: dict[str, Any], folder: Path) -> CaseResult:
    """Check a ragged batch decoding with KV cache: correct is each sample run alone."""
    session = Session(case, folder)
    tensors, result = session.tensors, session.result
    first = session.prefill()
    kept = last_report(session.model).kept_image_indices
    result.exact("kept_image_indices", kept, tensors["kept_image_indices"])
    result.close("prefill_last_logits", first, tensors["prefill_last_logits"], LOGITS)
    ours = session.decode(tensors["next_tokens"])
    result.close(
        "output_predictor_logits", ours["predictor"], tensors["output_predictor_logits"], LOGITS
    )
    result.exact("keep_decisions", ours["kept"], tensors["keep_decisions"])
    result.close("logits", ours["logits"], tensors["logits"], LOGITS)
    result.exact("true_cache_length", ours["lengths"], tensors["true_cache_length"])
    result.exclude(
        "the official batched run pads caches with unmasked zero keys",
        *(name for name in tensors if name.startswith("official_batched_")),
    )
    return result


def check_multiturn(case: dict[str, Any], folder: Path) -> CaseResult:
    """Check a second turn of several tokens on the cache, all of them stored."""
    session = Session(case, folder)
    tensors, result = session.tensors, session.result
    session.prefill()
    one = session.decode(tensors["answer_tokens_1"])
    result.close("logits_1", one["logits"], tensors["logits_1"], LOGITS)
    result.exact("keep_decisions_1", one["kept"], tensors["keep_decisions_1"])
    result.exact("kv_lengths_1", one["lengths"][..., 0], tensors["kv_lengths_1"])
    with Recorder(session.model) as recorder:
        turn = session.feed(tensors["second_turn_tokens"])
    result.close("second_turn_logits", turn, tensors["second_turn_logits"], LOGITS)
    lengths = session.cache.kv_lengths()[:, 0]
    result.exact("second_turn_kv_lengths", lengths, tensors["second_turn_kv_lengths"])
    positions = recorder.positions[-1]
    result.exact("second_turn_position_ids", positions, tensors["second_turn_position_ids"])
    two = session.decode(tensors["answer_tokens_2"])
    result.close("logits_2", two["logits"], tensors["logits_2"], LOGITS)
    result.exact("keep_decisions_2", two["kept"], tensors["keep_decisions_2"])
    result.exact("kv_lengths_2", two["lengths"][..., 0], tensors["kv_lengths_2"])
    result.close(
        "output_predictor_logits_2", two["predictor"], tensors["output_predictor_logits_2"], LOGITS
    )
    return result


@torch.no_grad()
def check_nocache(case: dict[str, Any], folder: Path) -> CaseResult:
    """Check decoding without a cache: our decision rule, and the official selection."""
    session = Session(case, folder)
    model, tensors, result = session.model, session.tensors, session.result
    tokens = tensors["next_tokens"]
    prompt = torch.full((session.ids.shape[0],), session.ids.shape[1])

    def call(step: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return the last logits [B, V], kept output tokens [T] and the sparse length."""
        ids = torch.cat([session.ids, tokens[:, :step]], 1)
        out = model(
            ids,
            pixel_values=session.pixels,
            use_cache=False,
            prompt_length=prompt,
            logits_to_keep=1,
        )
        stream = last_report(model).final_stream
        assert stream is not None  # of a call without a cache
        columns = stream.column[0]
        kept = torch.zeros(tokens.shape[1], dtype=torch.int64)
        kept[columns[columns >= session.ids.shape[1]] - session.ids.shape[1]] = 1
        return out.logits[:, -1, : session.vocab], kept, stream.size

    rule = [call(step) for step in range(tokens.shape[1] + 1)]
    image = last_report(model).kept_image_indices
    result.exact("kept_image_indices", image, tensors["kept_image_indices"])
    judged = last_report(model).record["output_predictor_logits"]
    start = int(prompt[0])
    newest = start + tokens.shape[1] - 1
    result.close(
        "output_predictor_logits",
        # Before the sparse layer nothing was dropped: stream rows are the caller's columns.
        judged[0, start:newest],
        tensors["output_predictor_logits"],
        LOGITS,
    )
    result.exact(
        "decision_rule_mask", torch.stack([row[1] for row in rule]), tensors["decision_rule_mask"]
    )
    # With a cache the first call is clean and the rule decides, so all calls must agree.
    result.close(
        "kv_mode_logits", torch.stack([row[0] for row in rule]), tensors["kv_mode_logits"], LOGITS
    )
    model.set_method(model.method.name, **{**model.method.parameters(), "strict_official": True})
    strict = [call(step) for step in range(tokens.shape[1] + 1)]
    mask = torch.stack([row[1] for row in strict])
    result.exact("kept_output_mask", mask, tensors["kept_output_mask"])
    # Call 0 has the last prompt token twice in the official code; from call 1 on it is clean.
    clean = (tensors["last_token_duplicated"] == 0).nonzero().flatten()
    logits = torch.stack([row[0] for row in strict])
    result.close("logits", logits[clean], tensors["logits"][clean], LOGITS)
    lengths = torch.tensor([row[2] for row in strict])
    result.exact("sparse_lengths", lengths[clean], tensors["sparse_lengths"][clean])
    result.exclude(
        "marks the calls where the official code has the last prompt token twice; those "
        "calls are left out of logits and sparse_lengths",
        "last_token_duplicated",
    )
    return result


@torch.no_grad()
def check_generate(case: dict[str, Any], folder: Path) -> CaseResult:
    """Greedy generation through ``generate()``."""
    session = Session(case, folder)
    model, tensors, result = session.model, session.tensors, session.result
    recorded = tensors["tokens"]
    eos = model.generation_config.eos_token_id
    if bool((recorded[:, :-1] == eos).any()):
        eos = None  # the recorded run did not stop there
    judged: list[torch.Tensor] = []
    assert model.output_predictor is not None  # the cases' model has both
    hook = model.output_predictor.register_forward_hook(
        lambda module, args, output: judged.append(output[:, 0])
    )
    out = model.generate(
        input_ids=session.ids,
        pixel_values=session.pixels,
        max_new_tokens=recorded.shape[1],
        eos_token_id=eos,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    hook.remove()
    tokens = out.sequences[:, session.ids.shape[1] :]
    result.exact("tokens", tokens, recorded)
    bos = tensors["raw_sequences"][:, :1]
    result.exact("raw_sequences", torch.cat([bos, tokens], 1), tensors["raw_sequences"])
    logits = torch.stack(out.logits)[..., : session.vocab]
    result.close("scores", logits, tensors["scores"], LOGITS)
    result.close(
        "output_predictor_logits",
        torch.cat(judged),
        tensors["output_predictor_logits"],
        LOGITS,
    )
    kept = torch.tensor(last_report(model).output_kept[0])
    result.exact("keep_decisions", kept, tensors["keep_decisions"])
    result.exclude(
        "the official no-cache loop starts from a call with the last prompt token twice",
        "nocache_tokens",
        "nocache_scores",
    )
    return result


HANDLERS = {
    "vision": check_vision,
    "preprocess": check_preprocess,
    "prefill": check_prefill,
    "decode_kv": check_decode,
    "decode_kv_batch": check_decode_batch,
    "decode_kv_multiturn": check_multiturn,
    "decode_nocache": check_nocache,
    "generate": check_generate,
}
