"""Methods that act before layer 0 against tensors recorded from their official programs.

Sizes, parameters and weights come from ``cases.json``.  Each recorded tensor is compared twice over
where it can be: as what our own tower and rule give from the pixels, and through what the language
model receives and answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig

from dynllava.engine.family import Llava
from dynllava.engine.rows import ImageView, decide_rows
from dynllava.methods import create, divprune, fastervlm, prumerge, visionzip
from dynllava.methods.base import Method
from dynllava.models.config import DynamicLlavaConfig
from dynllava.models.modeling import DynamicLlavaForConditionalGeneration
from dynllava.plan import Nothing, Plan, Tower

from . import CaseResult, Row
from .baselines import Trace
from .crops import check_crops

#: Share of a tensor's largest value that may differ.
FEATURES, LOGITS = 1e-4, 2e-4
INPUTS = ("input_ids", "pixel_values", "image_sizes")
REPEATED = "the official program picks a token again once all others equal a picked one"


@lru_cache(maxsize=8)
def golden_model(
    folder: Path, grid: int, layers: int, heads: int
) -> DynamicLlavaForConditionalGeneration:
    """Return the recorded tower (its first ``layers``), projector and language model."""
    import json

    index = json.loads((folder / "cases.json").read_text())
    vision = {key: value for key, value in index["vision_model"].items() if key != "note"}
    vision |= {"num_hidden_layers": layers, "num_attention_heads": heads}
    vision["image_size"] = grid * vision["patch_size"]
    text = index["language_model"]
    vocabulary = text["vocab_size"]
    model = DynamicLlavaForConditionalGeneration(
        DynamicLlavaConfig(
            vision_config=CLIPVisionConfig(**vision).to_dict()
            | {"model_type": "clip_vision_model"},
            # One token more: the image's placeholder.
            text_config=LlamaConfig(**{**text, "vocab_size": vocabulary + 1}),
            image_token_index=vocabulary,
            image_seq_length=grid * grid,
            sparse_config={"use_vision_predictor": False, "use_output_text_predictor": False},
        )
    )
    state = dict(model.state_dict())
    for name, tensor in load_file(folder / "weights" / "llava.safetensors").items():
        ours = _llava_name(name)
        if ours is not None:
            state[ours][: len(tensor)] = tensor
    clip = load_file(folder / "weights" / "clip.safetensors")
    clip["vision_model.embeddings.position_embedding.weight"] = clip[f"position_embedding.g{grid}"]
    prefix = next(name for name in state if name.endswith("class_embedding"))
    prefix = prefix.removesuffix("embeddings.class_embedding")
    for name in state:
        if name.startswith(prefix) and not name.endswith("position_ids"):
            state[name].copy_(clip["vision_model." + name.removeprefix(prefix)])
    return model.eval()


def _llava_name(name: str) -> str | None:
    if name.startswith("mm_projector."):
        number, _, kind = name.removeprefix("mm_projector.").partition(".")
        return f"model.multi_modal_projector.linear_{1 if number == '0' else 2}.{kind}"
    if name.startswith("model."):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name if name.startswith("lm_head") else None


@dataclass(frozen=True)
class Chosen(Method):
    """Keeps the same patches of every image (what some official programs do to a batch)."""

    mask: tuple[bool, ...] = ()
    of: Method = field(default_factory=Method)

    def plan(self, layers: int) -> Plan:
        """Return the cut of the method that chose, without its looks."""
        (cut,) = self.of.plan(layers).cuts
        return Plan((replace(cut, by=Nothing()),))

    def choose(self, view: Any) -> torch.Tensor:
        """Return the mask."""
        return torch.tensor(self.mask)


class Session:
    """A case: its model, its tensors, and how they compare with ours."""

    def __init__(self, case: dict[str, Any], folder: Path, result: CaseResult) -> None:
        vision = case["vision"]
        self.case, self.result, self.folder = case, result, folder
        self.model = golden_model(folder, vision["grid"], vision["layers"], vision["heads"])
        self.layers = self.model.config.text_config.num_hidden_layers
        self.tensors = load_file(folder / case["file"])
        self.pixels = self.tensors["pixel_values"]

    def views(self, method: Method) -> list[ImageView]:
        """Return what the method sees of each image before the projector."""
        (cut,) = method.plan(self.layers).cuts
        looks = tuple(look for look in cut.looks if isinstance(look, Tower))
        found = Llava(self.model.model, self.model.config).features(self.pixels, looks)
        classes = found.class_token
        assert classes is not None
        return [
            ImageView(patches, cut, classes[row], {look: found.seen[look][row] for look in looks})
            for row, patches in enumerate(found.patches)
        ]

    def compare(self, prefix: str = "", **ours: Any) -> None:
        """Compare values by name: floats within tolerance, the rest exactly."""
        for name, value in ours.items():
            quantity = prefix + name
            recorded = self.tensors[quantity]
            if recorded.is_floating_point():
                share = LOGITS if name == "prefill_logits" else FEATURES
                tolerance = share * float(recorded.abs().max())
                self.result.close(quantity, value, recorded, tolerance)
            else:
                self.result.exact(quantity, value, recorded)

    def tower(self, views: list[ImageView]) -> None:
        """Compare the features and the class token's attention, its own column included."""
        states = [view.states() for view in views]
        rows = torch.stack([view.tower[fastervlm.CLASS_ROW] for view in views])
        own = 1 - rows.sum(-1, keepdim=True)
        self.compare(hidden_states=torch.stack(states), cls_attention=torch.cat([own, rows], -1))

    def answers(self, method: Method, prefix: str = "") -> None:
        """Compare what the language model receives and answers under a method."""
        before = self.case["system_tokens"]
        ids = self.tensors["input_ids"]
        image = ids.new_full(
            (len(ids), self.case["vision"]["patches"]), self.model.config.image_token_id
        )
        ids = torch.cat([ids[:, :before], image, ids[:, before + 1 :]], 1)
        self.model.set_method(method)
        trace = Trace(self.model)
        with trace:
            self.model(input_ids=ids, pixel_values=self.pixels, use_cache=False)
        logits = self.model.lm_head(trace.final)[:, -self.case["text_tokens"] :, :-1]
        shape = self.tensors[f"{prefix}prefill_logits"].shape
        logits = logits if len(shape) == 3 else logits[0]
        self.compare(prefix, inputs_embeds=trace.hidden[0], prefill_logits=logits)


def check_fastervlm(session: Session) -> None:
    """Compare FasterVLM's choice of each image."""
    method = create("fastervlm", keep=session.case["params"]["tokens"])
    views = session.views(method)
    session.tower(views)
    scores = torch.stack([view.tower[fastervlm.CLASS_ROW].mean(0) for view in views])
    rows = [decide_rows(method, view).origin for view in views]
    mask = torch.stack([_mask(row, scores.shape[1]) for row in rows])
    topk = scores.argsort(dim=1, descending=True, stable=True)[:, : len(rows[0])]
    session.compare(topk=topk, kept_sorted=torch.stack(rows), mask=mask)
    session.answers(method)


def check_vispruner(session: Session) -> None:
    """Compare VisPruner's choice of each image."""
    params = session.case["params"]
    method = create("vispruner", keep=params["tokens"], important_ratio=params["important_ratio"])
    views = session.views(method)
    session.tower(views)
    mask = torch.stack([method.choose(view) for view in views])
    session.compare(mask=mask, kept_sorted=torch.stack([row.nonzero().flatten() for row in mask]))
    session.answers(method)


def check_hired(session: Session) -> None:
    """Compare HiRED's choice; the official one for LLaVA-1.5 is sample 0's for all."""
    params = session.case["params"]
    if session.case["model"] != "llava-1.5":
        check_crops(session, session.folder)
        return
    best: Any = create("hired", keep_ratio=params["token_budget_rate"])
    method = replace(best, spatial=params["spatial_budget"])
    views = session.views(method)
    session.tower(views)
    chosen = method.choose(views[0])
    session.compare(mask=best.choose(views[0]), kept=chosen.nonzero().flatten())
    session.answers(method if len(views) == 1 else Chosen(tuple(chosen.tolist()), method))


def check_divprune(session: Session) -> None:
    """Compare DivPrune's picks; the official ones are sample 0's for all."""
    method = create("divprune", keep_ratio=session.case["params"]["ratio"])
    features = session.model.model.get_image_features(
        pixel_values=session.pixels, return_dict=True
    ).pooler_output
    projected = torch.stack(list(features))
    (cut,) = method.plan(session.layers).cuts
    view = ImageView(projected[0], cut)
    picked, gaps = divprune.diverse(divprune.distances(projected[0]), view.count())
    chosen = method.choose(view)
    session.compare(
        projected=projected,
        selected=picked,
        selected_sorted=chosen.nonzero().flatten(),
        min_distance=gaps,
    )
    session.answers(method if len(projected) == 1 else Chosen(tuple(chosen.tolist()), method))


def check_divprune_function(case: dict[str, Any], folder: Path, result: CaseResult) -> None:
    """Compare the greedy choice with direct calls of the official function."""
    tensors = load_file(folder / case["file"])
    for name, count in case["params"].items():
        distance = divprune.distances(tensors[f"{name}.features"])
        result.close(f"{name}.distance", distance, tensors[f"{name}.distance"], FEATURES)
        recorded = tensors[f"{name}.selected"].tolist()
        picked, _ = divprune.diverse(tensors[f"{name}.distance"], count)
        if len(set(recorded)) < len(recorded):
            result.exclude(REPEATED, f"{name}.selected")
        else:
            result.exact(f"{name}.selected", picked, tensors[f"{name}.selected"])


def check_visionzip(session: Session) -> None:
    """Compare VisionZip's groups; its recorded indices count the class token."""
    params = session.case["params"]
    method = visionzip.VisionZip(
        dominant=params["dominant_argument"], contextual=params["contextual"]
    )
    views = session.views(method)
    session.tower(views)
    found = [method.groups(view) for view in views]
    others = [torch.cat([item.target, item.members]).sort().values for item in found]
    keys = torch.stack([view.tower[visionzip.KEYS] for view in views])
    heads = session.case["vision"]["heads"]
    scores = torch.stack([view.tower[visionzip.CLASS_ROW].sum(0) for view in views])
    best = torch.stack([item.dominant for item in found]) + 1
    ours = {
        "cls_attention_sum": scores,
        "metric": keys.unflatten(-1, (heads, -1)).mean(2),
        "dominant_topk": best,
        "kept_sorted": torch.cat([torch.zeros_like(best[:, :1]), best.sort(1).values], 1),
        "rest": torch.stack(others) + 1,
        "target": torch.stack([item.target for item in found]) + 1,
        "target_rel": torch.searchsorted(others[0], found[0].target),
        "merged_from": torch.stack([item.members for item in found]) + 1,
        "assign": torch.stack([item.nearest for item in found]),
        "similarity_max": torch.stack([item.cosine for item in found]),
        "features": torch.stack([method.rows(view).features for view in views]),
    }
    session.compare(**ours)
    session.answers(method)


PRUMERGE: dict[str, dict[str, Any]] = {
    "prumerge": {},
    "plus": {"plus": True},
    "prumerge_fixed": {},
    "plus_fixed": {"plus": True, "strict_official": True},
}


def check_prumerge(session: Session) -> None:
    """Compare the variants of PruMerge."""
    (view,) = session.views(create("prumerge"))
    received, keys = prumerge.attention(view), view.tower[prumerge.KEYS]
    bound = prumerge.fence(received)
    session.compare(
        hidden_states=view.states()[None],
        keys=keys[None],
        cls_query=view.tower[prumerge.QUERY][None],
        cls_attention=received,
        upper_bound=bound[None],
    )
    for variant in session.case["variants"]:
        fixed = variant.endswith("_fixed")
        ratio = session.case["counts"][variant]["ratio"] if fixed else None
        method = prumerge.PruMerge(ratio=ratio, **PRUMERGE[variant])
        kept = method.kept(received)
        cluster, rest = prumerge.neighbours(keys[1:], kept)
        ours = {
            "topk": replace(method, plus=False).kept(received),
            "kept": kept,
            "kept_sorted": kept.sort().values,
            "rest": rest,
            "cluster": cluster,
            "features": method.rows(view).features[None],
        }
        if not fixed:
            ours["ratio"] = (received > bound).float().mean()[None]
        session.compare(f"{variant}.", **ours)
        session.answers(method, f"{variant}.")


CHECKS: dict[str, Callable[[Session], None]] = {
    "fastervlm": check_fastervlm,
    "visionzip": check_visionzip,
    "divprune": check_divprune,
    "vispruner": check_vispruner,
    "prumerge": check_prumerge,
    "hired": check_hired,
}


def covers(case: dict[str, Any]) -> bool:
    """Return whether every variant of a case can be checked."""
    known = case["method"] in CHECKS
    return known and set(case.get("variants", ())) <= set(PRUMERGE)


@torch.no_grad()
def check(case: dict[str, Any], folder: Path) -> CaseResult:
    """Check a case; see :func:`dynllava.conformance.check_folder`."""
    result = CaseResult(case["name"])
    if "vision" in case:
        CHECKS[case["method"]](Session(case, folder, result))
    else:
        check_divprune_function(case, folder, result)
    covered = {row.quantity for row in result.rows} | set(result.excluded)
    for quantity in set(case["tensors"]) - covered - set(INPUTS):
        if quantity.endswith(".features") and "vision" not in case:
            continue
        result.rows.append(Row(case["name"], f"{quantity} (not read)", float("inf"), 0.0, False))
    return result


def _mask(kept: torch.Tensor, patches: int) -> torch.Tensor:
    return torch.zeros(patches, dtype=torch.bool).index_fill_(0, kept, True)
