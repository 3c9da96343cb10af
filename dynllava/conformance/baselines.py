"""FastV, SparseVLM and H2O against tensors recorded from their official code.

Nothing here knows a case: sizes, parameters and variants come from ``cases.json``.  Every recorded
tensor is either compared or listed as excluded with a reason; one that is neither fails the case.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file

from dynllava.engine.attention import LayerCall
from dynllava.engine.eviction import EvictingStore
from dynllava.models.config import DynamicLlavaConfig
from dynllava.models.modeling import DynamicLlavaForConditionalGeneration
from dynllava.plan import PerHead

from . import CaseResult, Row
from .h2o_simulation import MISSING, DecodeSimulation, GlobalSimulation, PlainDecoder
from .tiny import last_report

LOGITS = 2e-4
SCORES = 1e-5
#: H2O accumulates over hundreds of queries.
H2O = 5e-4
#: Inputs, which are read, not compared.
INPUTS = ("inputs_embeds", "decode_token_ids")


@lru_cache(maxsize=4)
def golden_model(weights: Path, config: Path) -> DynamicLlavaForConditionalGeneration:
    """Return a model whose language model has the recorded weights.

    Its vision tower is a stub: the recordings start from embeddings.
    """
    import json

    stub = {
        "model_type": "clip_vision_model",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 8,
        "patch_size": 4,
    }
    model = DynamicLlavaForConditionalGeneration(
        DynamicLlavaConfig(
            vision_config=stub,
            text_config=json.loads(config.read_text()),
            sparse_config={"use_vision_predictor": False, "use_output_text_predictor": False},
        )
    )
    state = load_file(weights)
    head = {"weight": state.pop("lm_head.weight")}
    model.lm_head.load_state_dict(head)
    model.model.language_model.load_state_dict(
        {name.removeprefix("model."): tensor for name, tensor in state.items()}
    )
    return model.eval()


class Trace:
    """Hidden states and rotary positions at each layer's input, and the final hidden states."""

    def __init__(self, model: DynamicLlavaForConditionalGeneration) -> None:
        self.layers = model.model.language_model.layers
        self.norm = model.model.language_model.norm
        self.hidden: list[torch.Tensor] = []
        self.final = torch.empty(0)
        self.positions: list[torch.Tensor] = []
        self.calls: list[LayerCall] = []

    def __enter__(self) -> Trace:
        self._hooks = [
            layer.register_forward_pre_hook(self._layer, with_kwargs=True) for layer in self.layers
        ]
        self._hooks.append(self.norm.register_forward_hook(self._last))
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _layer(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        self.hidden.append(args[0])
        self.positions.append(kwargs["position_ids"])
        self.calls.append(kwargs["sparse_call"])

    def _last(self, module: Any, args: tuple, output: torch.Tensor) -> None:
        self.final = output

    @property
    def sizes(self) -> list[int]:
        """Rows that entered each layer."""
        return [hidden.shape[1] for hidden in self.hidden]


class Session:
    """One variant of a case, driven with the recorded tokens."""

    def __init__(
        self, case: dict[str, Any], folder: Path, variant: str, method: str, **parameters: Any
    ) -> None:
        self.model = golden_model(folder / case["weights"], folder / case["config"])
        self.model.set_method(method, **parameters)
        self.tensors = load_file(folder / case["file"])
        self.embeds = self.tensors["inputs_embeds"]
        self.tokens = self.tensors["decode_token_ids"]
        self.length = self.embeds.shape[1]
        self.start = case["image_start"]
        self.image = slice(self.start, self.start + case["image_length"])
        self.variant = variant
        self.cache: Any = None
        self.trace = Trace(self.model)

    def recorded(self, name: str) -> torch.Tensor:
        """Return a recorded tensor of this variant."""
        return self.tensors[f"{self.variant}.{name}"]

    @property
    def record(self) -> dict[str, Any]:
        """What the method recorded in the latest call."""
        return last_report(self.model).record

    def prefill(self, *, cache: bool = True) -> torch.Tensor:
        """Run the prompt; return the logits [L, V], zero rows where a token was dropped."""
        self.cache = self.model.new_cache() if cache else None
        return self._call(self.embeds, self.image_mask(self.length))

    def step(self, index: int) -> torch.Tensor:
        """Feed one recorded token on the cache; return its logits [V]."""
        return self._call(self._embed(slice(index, index + 1)))[-1]

    def rerun(self, index: int) -> torch.Tensor:
        """Run prompt and the recorded tokens up to ``index`` without a cache; last logits [V]."""
        embeds = torch.cat([self.embeds, self._embed(slice(0, index + 1))], 1)
        return self._call(embeds, self.image_mask(embeds.shape[1]))[-1]

    def image_mask(self, length: int) -> torch.Tensor:
        """Return [1, length] bool, True at image positions."""
        mask = torch.zeros(1, length, dtype=torch.bool)
        mask[:, self.image] = True
        return mask

    def image_values(self, values: torch.Tensor) -> torch.Tensor:
        """Return the image columns of ``values`` [1, L]."""
        return values[0, self.image]

    def image_positions(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the absolute positions of the True image columns of ``mask`` [1, L]."""
        return self.image_values(mask).nonzero().flatten() + self.start

    def kv_lengths(self) -> torch.Tensor:
        """Return [layers] entries stored now."""
        return self.cache.kv_lengths()[:, 0]

    def _embed(self, part: slice) -> torch.Tensor:
        return self.model.get_input_embeddings()(self.tokens[part])[None]

    def _call(self, embeds: torch.Tensor, image_mask: torch.Tensor | None = None) -> torch.Tensor:
        with self.trace:
            self.trace.hidden.clear()
            self.trace.positions.clear()
            self.trace.calls.clear()
            out = self.model(
                inputs_embeds=embeds,
                image_mask=image_mask,
                prompt_length=torch.tensor([self.length]),
                past_key_values=self.cache,
                use_cache=self.cache is not None,
            )
        return out.logits[0]


def check_dense(case: dict[str, Any], folder: Path, variant: str, result: CaseResult) -> None:
    """Compare the stock model's recording with the method ``full``."""
    session = Session(case, folder, variant, "full")
    logits = session.prefill()
    result.close(f"{variant}.prefill_logits", logits, session.recorded("prefill_logits"), LOGITS)
    steps = torch.stack([session.step(index) for index in range(len(session.tokens))])
    result.close(f"{variant}.decode_logits", steps, session.recorded("decode_logits"), LOGITS)


#: Recorded FastV program -> our decoder option, and whether it runs on a cache.
FASTV_VARIANTS = {
    "hf_cache": ("static", True),
    "lmms_sdpa_cache": ("static", True),
    "hf_nocache": ("reprune", False),
    "inplace_nocache": ("reprune", False),
    "mask_cache": ("rerank", True),
    "mask_nocache": ("rerank", False),
}


def check_fastv(case: dict[str, Any], folder: Path, variant: str, result: CaseResult) -> None:
    """Compare one official FastV program with the decoder option that stands for it."""
    if variant == "baseline":
        check_dense(case, folder, variant, result)
        return
    decoder, cached = FASTV_VARIANTS[variant]
    k, keep = case["params"]["K"], case["params"]["keep"]
    session = Session(case, folder, variant, "fastv", k=k, keep=keep, decoder=decoder)
    ours: dict[str, Any] = {}
    logits = session.prefill(cache=cached)
    ours["scores"] = session.image_values(session.record[f"L{k}.scores"])
    ours["keep_img"] = session.image_positions(session.record[f"L{k}.kept"])
    ours["position_ids_after"] = session.trace.positions[k][0]
    ours["layer_seq_len"] = torch.tensor(session.trace.sizes)
    # Re-ranking hides tokens but computes them all, and so does its recording.
    ours["prefill_logits"] = logits[ours["position_ids_after"]]
    if cached:
        ours["kv_len_after_prefill"] = session.kv_lengths()
    steps: dict[str, list[torch.Tensor]] = {}
    for index in range(len(session.tokens)):
        row = session.step(index) if cached else session.rerun(index)
        steps.setdefault("decode_logits", []).append(row)
        steps.setdefault("decode_position_ids", []).append(session.trace.positions[k][0, -1])
        if decoder != "static":
            record = session.record
            scores = session.image_values(record[f"L{k}.scores"])
            steps.setdefault("decode_scores", []).append(scores)
            kept = session.image_positions(record[f"L{k}.kept"])
            steps.setdefault("decode_keep_img", []).append(kept)
        if cached:
            steps.setdefault("decode_kv_len", []).append(session.kv_lengths())
    ours.update({name: torch.stack(values) for name, values in steps.items()})
    if cached:
        ours["kv_len_after_decode"] = session.kv_lengths()
    if variant == "lmms_sdpa_cache":
        # The official class runs layer K-1 twice and stores its K/V twice, which no output shows.
        for name in ("kv_len_after_prefill", "kv_len_after_decode"):
            lengths = ours.pop(name)
            single = session.recorded(name).clone()
            doubled = int(single[k - 1]) == 2 * int(lengths[k - 1])
            single[k - 1] //= 2 if doubled else 1
            result.exact(f"{variant}.{name}", lengths, single)
    compare(result, session, ours)


#: Recorded SparseVLM program -> version of ours.
SPARSEVLM_VARIANTS = {"v15": "1.5", "v20": "2.0", "rank": "rank"}


def check_sparsevlm(case: dict[str, Any], folder: Path, variant: str, result: CaseResult) -> None:
    """Compare one release of SparseVLM with the version that stands for it."""
    if variant == "dense":
        check_dense(case, folder, variant, result)
        return
    params = case["params"][variant]
    wanted = ("budgets", "pruning_layers", "scale", "bias", "priority_heads")
    session = Session(
        case,
        folder,
        variant,
        "sparsevlm",
        version=SPARSEVLM_VARIANTS[variant],
        # Some recordings show how the official code clamps a growing budget.
        strict_official=True,
        **{name: params[name] for name in wanted if name in params},
    )
    session.prefill()
    record = session.record
    ours: dict[str, Any] = {
        # Merged tokens have no column of the input, so their logits are not in the output.
        "prefill_logits": session.model.lm_head(session.trace.final)[0],
        "rater_scores": record["sparsevlm.rater_scores"][0],
        "rater_idx": record["sparsevlm.raters"][0].nonzero().flatten(),
        "layer_seq_len": torch.tensor(session.trace.sizes),
        "kv_len_after_prefill": session.kv_lengths(),
    }
    origin = torch.arange(case["image_length"]) + session.start
    for layer in params["pruning_layers"]:
        step = sparsevlm_layer(session, layer, origin)
        origin = step["origin_after"]
        ours.update({f"L{layer}.{name}": value for name, value in step.items()})
        centres = f"L{layer}.cluster_centers"
        if len(step.get("cluster_centers", ())) == 1:
            ours.pop(centres)
            reason = "with a single cluster the official centre is drawn by noise"
            result.exclude(reason, f"{variant}.{centres}")
    steps: dict[str, list[torch.Tensor]] = {}
    for index in range(len(session.tokens)):
        steps.setdefault("decode_logits", []).append(session.step(index))
        steps.setdefault("decode_kv_len", []).append(session.kv_lengths())
        positions = torch.stack([position[0, -1] for position in session.trace.positions])
        steps.setdefault("decode_query_position", []).append(positions)
    ours.update({name: torch.stack(values) for name, values in steps.items()})
    compare(result, session, ours)


def sparsevlm_layer(session: Session, layer: int, origin: torch.Tensor) -> dict[str, Any]:
    """Return our values of one pruning layer; ``origin`` [v] names the image tokens before it."""
    record = {
        name.removeprefix(f"L{layer + 1}."): value[0]
        for name, value in session.record.items()
        if name.startswith(f"L{layer + 1}.")
    }
    before = len(origin)
    span = slice(session.start, session.start + before)
    kept, recycled = int(record["count"]), int(record.get("recycled", 0))
    order = record["order"] - session.start
    keep = order[:kept].sort().values
    merged = record["merged"] if "merged" in record else torch.empty(0)
    codes = torch.tensor([-(1000 * layer + index + 1) for index in range(len(merged))])
    after = torch.cat([origin[keep], codes.to(origin)])
    values = {
        "scores": record["scores"][span],
        "keep_rel": keep,
        "keep_origin": origin[keep],
        "num_visual_before": torch.tensor([before]),
        "num_visual_after": torch.tensor([len(after)]),
        "origin_after": after,
        "hidden_next": session.trace.hidden[layer + 1][0],
        "position_ids_next": session.trace.positions[layer + 1][0],
    }
    renamed = {"input": "cluster_input", "centers": "cluster_centers", "assign": "cluster_assign"}
    for name in ("singular_values", "head_sums", "heads", "merged", *renamed):
        if name in record:
            values[renamed.get(name, name)] = record[name]
    if "rank" in record:
        values["rank"] = record["rank"][None]
    if recycled:
        values["stage2_rel"] = order[kept : kept + recycled]
    return values


#: Recorded H2O program -> position option of ours.
H2O_VARIANTS = {"real_orig": "original", "real_roll": "rolled"}


def check_h2o(case: dict[str, Any], folder: Path, variant: str, result: CaseResult) -> None:
    """Compare one H2O program: dropping with the method, simulations with plain references."""
    if variant == "full":
        check_dense(case, folder, variant, result)
        return
    if variant == "sim_decode":
        check_sim_decode(case, folder, variant, result)
        return
    if variant == "sim_global":
        check_sim_global(case, folder, variant, result)
        return
    params = case["params"]
    position = H2O_VARIANTS[variant]
    session = Session(
        case,
        folder,
        variant,
        "h2o",
        heavy=params["heavy_ratio"],
        recent=params["recent_ratio"],
        position=position,
        first_full_layers=params["first_full_layers"],
    )
    heavy, recent = cast(PerHead, session.model.program.plan.store).budget(session.length)
    logits = session.prefill()
    sums = [call.observed and call.observed.received()[0] for call in session.trace.calls]
    total = session.length + len(session.tokens)
    kept, _ = h2o_entries(session, session.length)
    ours: dict[str, Any] = {
        "heavy_budget": torch.tensor([heavy]),
        "recent_budget": torch.tensor([recent]),
        "prefill_logits": logits,
        "prefill_col_sums": padded(session, sums, session.length),
        "kept_after_prefill": kept,
        "kv_len_after_prefill": session.kv_lengths(),
    }
    steps: dict[str, list[torch.Tensor]] = {}
    for index in range(len(session.tokens)):
        before = session.kv_lengths()
        steps.setdefault("decode_logits", []).append(session.step(index))
        kept, scores = h2o_entries(session, total)
        steps.setdefault("kept_after_step", []).append(kept)
        steps.setdefault("scores_after_step", []).append(scores)
        steps.setdefault("kv_len_after_step", []).append(session.kv_lengths())
        place = torch.stack([positions[0, -1] for positions in session.trace.positions])
        if position == "rolled":
            # The store turns the query to the slot behind the entries that it held.  The official
            # module writes that slot into the position tensor that all layers share, and the
            # recording, taken afterwards, shows it for stock layers in front too; the logits
            # show that those ran at the original position.
            full = params["first_full_layers"]
            place = torch.cat([before[full : full + 1].expand(full), before[full:]])
        steps.setdefault("decode_query_position", []).append(place)
    ours.update({name: torch.stack(values) for name, values in steps.items()})
    compare(result, session, ours, H2O)


def h2o_entries(session: Session, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return kept [layers, H, size] bool and scores [layers, H, size] by original index."""
    stores = session.cache.stores
    heads = session.model.config.text_config.num_key_value_heads
    kept = torch.zeros(len(stores), heads, size, dtype=torch.bool)
    scores = torch.full((len(stores), heads, size), MISSING)
    for layer, store in enumerate(stores):
        for head in range(heads if isinstance(store, EvictingStore) else 0):
            present = store.ordinal[0, head] >= 0
            index = store.ordinal[0, head][present]
            kept[layer, head, index] = True
            scores[layer, head, index] = store.score[0, head][present]
    return kept, scores


def padded(session: Session, values: Any, size: int) -> torch.Tensor:
    """Return [layers, H, size] float32 of per-layer [H, n] values, -1 where there is none."""
    layers = len(session.trace.layers)
    heads = session.model.config.text_config.num_attention_heads
    out = torch.full((layers, heads, size), MISSING)
    for layer in range(layers):
        value = values.get(layer) if isinstance(values, dict) else values[layer]
        if value is not None:
            out[layer, :, : value.shape[-1]] = value
    return out


def simulation_inputs(
    case: dict[str, Any], folder: Path, variant: str
) -> tuple[Session, dict[str, int], dict[str, Any]]:
    """Return a session (for its model and tensors), the budgets, and their recorded form."""
    session = Session(case, folder, variant, "full")
    params = case["params"]
    heavy = int(params["heavy_ratio"] * session.length)
    recent = int(params["recent_ratio"] * session.length)
    budgets = {"heavy": heavy, "recent": recent, "first_full_layers": params["first_full_layers"]}
    ours = {"heavy_budget": torch.tensor([heavy]), "recent_budget": torch.tensor([recent])}
    return session, budgets, ours


def check_sim_decode(case: dict[str, Any], folder: Path, variant: str, result: CaseResult) -> None:
    """Compare the official masks-only decoding with its plain reference."""
    session, budgets, ours = simulation_inputs(case, folder, variant)
    simulation = DecodeSimulation(**budgets)
    decoder = PlainDecoder(session.model.model.language_model, simulation)
    head = session.model.lm_head
    total = session.length + len(session.tokens)
    ours["prefill_logits"] = head(decoder.forward(session.embeds[0]))
    ours["prefill_col_sums"] = padded(session, simulation.column_sums, session.length)
    ours["prefill_scores_after"] = padded(session, simulation.scores, session.length)
    ours["visible_after_prefill"] = padded(session, simulation.visible, session.length + 1) > 0
    steps: dict[str, list[torch.Tensor]] = {}
    for token in session.model.get_input_embeddings()(session.tokens):
        steps.setdefault("decode_position_ids", []).append(torch.tensor(decoder.seen))
        logits = head(decoder.forward(token[None]))[-1]
        steps.setdefault("decode_logits", []).append(logits)
        visible = padded(session, simulation.visible, total + 1) > 0
        steps.setdefault("visible_after_step", []).append(visible)
        steps.setdefault("scores_after_step", []).append(padded(session, simulation.scores, total))
    ours.update({name: torch.stack(values) for name, values in steps.items()})
    lengths = [decoder.keys[layer].shape[1] for layer in sorted(decoder.keys)]
    ours["kv_len_final"] = torch.tensor(lengths)
    compare(result, session, ours, H2O)


def check_sim_global(case: dict[str, Any], folder: Path, variant: str, result: CaseResult) -> None:
    """Compare the official whole-sequence masking with its plain reference."""
    session, budgets, ours = simulation_inputs(case, folder, variant)
    simulation = GlobalSimulation(**budgets)
    decoder = PlainDecoder(session.model.model.language_model, simulation)
    ours["prefill_logits"] = session.model.lm_head(decoder.forward(session.embeds[0]))
    ours["prefill_col_sums"] = padded(session, simulation.column_sums, session.length)
    ours["heavy_mask"] = padded(session, simulation.heavy_mask, session.length) > 0
    layers = range(len(session.trace.layers))
    ours["attended"] = torch.stack([simulation.attended[layer] for layer in layers])
    compare(result, session, ours, H2O)


def compare(
    result: CaseResult, session: Session, ours: dict[str, Any], relaxed: float | None = None
) -> None:
    """Compare what was recorded for this variant: floats within tolerance, the rest exactly.

    ``relaxed`` replaces the tolerances of floats (H2O's accumulated ones).
    """
    for name, value in ours.items():
        quantity = f"{session.variant}.{name}"
        if quantity not in session.tensors:
            continue
        recorded = session.tensors[quantity]
        if recorded.is_floating_point():
            tolerance = tolerance_of(name, recorded) if relaxed is None else relaxed
            result.close(quantity, value, recorded, tolerance)
        else:
            result.exact(quantity, value, recorded)


def tolerance_of(name: str, recorded: torch.Tensor) -> float:
    """Return the allowed absolute difference of a float tensor.

    Attention is at most 1, so scores get an absolute tolerance; version 2.0 of SparseVLM divides
    and sums it, and values beyond 1 get the same tolerance relative to the largest.
    """
    if any(part in name for part in ("logits", "hidden", "cluster_input", "merged")):
        return LOGITS
    largest = float(recorded.abs().max()) if recorded.numel() else 1.0
    return SCORES * max(1.0, largest)


VARIANTS = {
    "fastv": {"baseline", *FASTV_VARIANTS},
    "sparsevlm": {"dense", *SPARSEVLM_VARIANTS},
    "h2o": {"full", "sim_decode", "sim_global", *H2O_VARIANTS},
}
METHODS = {"fastv": check_fastv, "sparsevlm": check_sparsevlm, "h2o": check_h2o}


def covers(case: dict[str, Any]) -> bool:
    """Return whether every variant of a case can be checked."""
    return case["method"] in VARIANTS and set(case["variants"]) <= VARIANTS[case["method"]]


@torch.no_grad()
def check(case: dict[str, Any], folder: Path) -> CaseResult:
    """Check all variants of a case; see :func:`dynllava.conformance.check_folder`."""
    result = CaseResult(case["name"])
    for variant in case["variants"]:
        METHODS[case["method"]](case, folder, variant, result)
    covered = {row.quantity for row in result.rows} | set(result.excluded)
    for quantity in case["tensors"]:
        if quantity not in covered and quantity not in INPUTS:
            result.rows.append(
                Row(case["name"], f"{quantity} (not read)", float("inf"), 0.0, False)
            )
    return result
