"""Checks of the model's side of a run: files, prompt, arithmetic, memory, methods, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynllava.errors import UserError
from dynllava.models.layouts import Checkpoint, Layout, check_methods, inspect
from dynllava.models.supported import published_licence
from dynllava.output.files import read_json_object
from dynllava.plan.names import FULL, LEARNED

from .findings import Preflight
from .resources import memory, run_time, sizes

QUESTION = "What is in the picture?"
PICTURE = (640, 480)
"""Width and height in pixels of the picture of the trial prompt, where its size matters."""


@dataclass(frozen=True)
class Wanted:
    """What shall run; the names are those of ``dynllava compare``.

    Attributes
    ----------
    pretrained : str
    methods : tuple of str
        As they are written, with parameters.  Empty: what the checkpoint was trained for.
    batch_size : int or str
        Rows, or ``"auto"`` (halves when memory runs out).
    max_new_tokens : int
        Longest answer.
    device, dtype, attention : str or None
        ``None``: the command's default.
    vision_tower, conv_template : str or None
    image_aspect, image_backend : str
    question : str
        What is asked about one image.
    records : str
        Folder of bench records, from which times are predicted.
    """

    pretrained: str
    methods: tuple[str, ...] = ()
    batch_size: int | str = "auto"
    max_new_tokens: int = 128
    device: str | None = None
    dtype: str | None = None
    attention: str = "sdpa"
    vision_tower: str | None = None
    conv_template: str | None = None
    image_aspect: str | None = None
    image_backend: str = "pil"
    question: str = QUESTION
    records: str = "results/bench"


def check_model(wanted: Wanted) -> Preflight:
    """Return what loading and running a model would do; no weights are read.

    Of a hub model the small files are fetched, nothing else.
    """
    found = Preflight()
    try:
        checkpoint = inspect(wanted.pretrained, wanted.vision_tower)
    except UserError as error:
        found.add("no", "checkpoint", error)
        return found
    _files(found, checkpoint)
    values = _guarded(found, "configuration", lambda: hf_values(checkpoint))
    if found.ready:
        _tensors(found, checkpoint)
    device, dtype = _arithmetic(found, wanted)
    prompt = _prompt(found, wanted, checkpoint) if found.ready else 0
    _images(found, wanted, checkpoint)
    if not found.ready or values is None:
        return found
    spec = _guarded(found, "configuration", lambda: spec_of(checkpoint))
    if spec is None:
        return found
    text_values = values.get("text_config") or values
    positions = text_values.get("max_position_embeddings")
    if positions and prompt:
        need = prompt + wanted.max_new_tokens
        level = "ok" if need <= positions else "note"
        found.add(
            level,
            "positions",
            f"{positions}; a short question and an answer of {wanted.max_new_tokens} tokens need "
            f"{need}" + ("" if level == "ok" else ": beyond them answers are unreliable"),
        )
    methods = _methods(found, wanted, checkpoint, values, spec.dims.layers)
    for name, method in methods.items():
        text = max(2, prompt - image_positions(spec))
        memory(found, name, method, spec, text, wanted, device, dtype)
    run_time(found, spec, device, wanted.records)
    return found


def hf_values(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint's configuration in Hugging Face terms."""
    if not checkpoint.is_original:
        return dict(checkpoint.config)
    from dynllava.models.checkpoints import hf_config

    if checkpoint.tower is None or checkpoint.tower.config is None:
        raise UserError(f"{checkpoint.name}: the vision tower's configuration is missing")
    return hf_config(dict(checkpoint.config), dict(checkpoint.tower.config), checkpoint.packer)


def _guarded(found: Preflight, topic: str, work: Any) -> Any:
    """Return what ``work`` gives; what it refuses becomes a finding."""
    try:
        return work()
    except UserError as error:
        if not any(item.level == "no" for item in found.findings):
            found.add("no", topic, error)
    return None


def spec_of(checkpoint: Checkpoint) -> Any:
    """Return a checkpoint's :class:`~dynllava.costs.spec.ModelSpec`, whatever its layout."""
    from dynllava.costs.spec import image_values, spec_from_config

    try:
        images = image_values(checkpoint.folder)
        spec = spec_from_config(hf_values(checkpoint), checkpoint.name, images)
        return spec.for_image(PICTURE[1], PICTURE[0])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{checkpoint.folder}: not a LLaVA config ({error!r})") from None


def image_positions(spec: Any) -> int:
    """Return the positions of a picture in a prompt, newline tokens included."""
    return spec.prompt(1).total - 1


def _files(found: Preflight, checkpoint: Checkpoint) -> None:
    tower = ""
    if checkpoint.tower is not None:
        place = "inside" if checkpoint.tower.inside else f"from {checkpoint.tower.source}"
        tower = f", vision tower {checkpoint.tower.name} {place}"
    found.add(
        "ok" if checkpoint.layout is not Layout.OTHER else "note",
        "layout",
        f"{checkpoint.layout.value} ({checkpoint.source} {checkpoint.folder}){tower}",
    )
    for problem in checkpoint.problems:
        found.add("no", "files", problem)
    for note in checkpoint.notes:
        found.add("no" if ": no tokenizer (" in note else "note", "files", note)
    sizes(found, checkpoint)
    names = ", ".join(path.name for path in checkpoint.licences)
    known = published_licence(checkpoint.name)
    unknown = "no licence file beside the weights: look at the model's page before you use it"
    if known and not names:
        unknown = f"no licence file beside the weights; {known} as published, its page decides"
    found.add("ok" if names else "note", "licence", names or unknown)
    if checkpoint.layout is Layout.STOCK:
        _generation(found, checkpoint)


def _generation(found: Preflight, checkpoint: Checkpoint) -> None:
    """Say what of a stock checkpoint's generation settings changes greedy answers."""
    path = checkpoint.folder / "generation_config.json"
    penalty = read_json_object(path).get("repetition_penalty") if path.is_file() else None
    if penalty not in (None, 1, 1.0):
        found.add(
            "note",
            "generation",
            f"generation_config.json: repetition_penalty={penalty} holds for every answer, as in "
            "transformers, unless a task sets another",
        )


def _tensors(found: Preflight, checkpoint: Checkpoint) -> None:
    from dynllava.models.loading import check_fit

    if count := _guarded(found, "tensors", lambda: check_fit(checkpoint)):
        found.add("ok", "tensors", f"{count}, named and shaped as config.json says")


def _arithmetic(found: Preflight, wanted: Wanted) -> tuple[str, str]:
    import torch

    from dynllava.engine import flash
    from dynllava.engine.attention import check_kernel
    from dynllava.models.loading import check_device, default_dtype, parse_dtype

    device = wanted.device
    if device in (None, "auto"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    assert device is not None
    if _guarded(found, "device", lambda: check_device(device)) is None:
        return device, wanted.dtype or "float32"
    dtype = wanted.dtype or default_dtype(device)
    if _guarded(found, "dtype", lambda: parse_dtype(dtype)) is None:
        return device, "float32"
    kernel = _guarded(found, "kernel", lambda: check_kernel(wanted.attention))
    if kernel == flash.NAME:
        _guarded(found, "kernel", lambda: flash.check_available(parse_dtype(dtype), device))
    if found.ready or kernel:
        level = "ok" if dtype == "float16" else "note"
        usual = "" if level == "ok" else "; published scores were made in float16"
        found.add(level, "arithmetic", f"{dtype} on {device}, attention {wanted.attention}{usual}")
    return device, dtype


def _prompt(found: Preflight, wanted: Wanted, checkpoint: Checkpoint) -> int:
    """Check the template and the tokens of one question; return the prompt's length (0: none)."""
    from PIL import Image

    from dynllava.models.encoding import encoder_of
    from dynllava.models.processors import load_processor
    from dynllava.prompts import Turn, choose_template, prompt_ids, render

    def shown() -> tuple[str, str, list[int], int]:
        processor = load_processor(checkpoint, None, wanted.image_backend)
        if processor is None:
            raise UserError(f"{checkpoint.name}: has no tokenizer, so it cannot be evaluated")
        template = choose_template(wanted.conv_template, processor)
        text = render(template, [Turn("user", wanted.question, [None])], processor)
        image = processor.image_token_id
        if checkpoint.layout is Layout.STOCK:
            picture = Image.new("RGB", PICTURE, "grey")
            given = encoder_of(processor).encode([text], [[picture]], [checkpoint.name])
            ids = given["input_ids"][0].tolist()
            if image not in ids:
                raise UserError(f"{checkpoint.name}: its processor gives a picture no tokens")
            return template.name, text, ids, image
        values = hf_values(checkpoint)
        size = (values.get("vision_config") or {}).get("image_size", 336) // processor.patch_size
        positions = size * size + processor.num_additional_image_tokens
        positions -= processor.vision_feature_select_strategy == "default"
        image = values.get("image_token_index", values.get("image_token_id", 32000))
        ids = prompt_ids(processor.tokenizer, text, image, positions)
        return template.name, text, ids, image

    got = _guarded(found, "prompt", shown)
    if got is None:
        return 0
    name, text, ids, image = got
    first = ids.index(image)
    last = len(ids) - ids[::-1].index(image)
    stock = checkpoint.layout is Layout.STOCK
    own = "" if stock or name == "vicuna_v1" else "; published scores were made with vicuna_v1"
    found.add("note" if own else "ok", "template", f"{name}: {text!r}{own}")
    between = last - first - ids.count(image)
    size = f" for a picture of {PICTURE[0]} x {PICTURE[1]}" if stock else ""
    more = f" and {between} tokens between them" if between else ""
    found.add(
        "ok",
        "tokens",
        f"{len(ids)}{size}: ... {_joined(ids[max(0, first - 4) : first])} "
        f"[{image} x {ids.count(image)}{more}] {_joined(ids[last : last + 4])} ...",
    )
    return len(ids)


def _joined(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def _images(found: Preflight, wanted: Wanted, checkpoint: Checkpoint) -> None:
    from dynllava.models.encoding import resolve_aspect

    llava = checkpoint.layout is not Layout.STOCK
    aspect = _guarded(found, "images", lambda: resolve_aspect(llava, wanted.image_aspect))
    if aspect is None:
        return
    differs = []
    if llava and aspect != "pad":
        differs.append("published scores were made with images padded to a square (pad)")
    if wanted.image_backend != "pil":
        differs.append("resized by torchvision, where LLaVA used PIL: values differ slightly")
    text = "; ".join([f"{aspect}, {wanted.image_backend}", *differs])
    found.add("note" if differs else "ok", "images", text)


def _methods(
    found: Preflight,
    wanted: Wanted,
    checkpoint: Checkpoint,
    values: Mapping[str, Any],
    layers: int,
) -> dict[str, Any]:
    """Return the methods that fit, by the text that names them."""
    from dynllava.methods import create
    from dynllava.methods.parameters import parse
    from dynllava.models.config import SparsityConfig

    names = wanted.methods or ((LEARNED,) if checkpoint.predictors else (FULL,))
    sparse = values.get("sparse_config") if checkpoint.predictors else None
    trained = SparsityConfig.from_dict(sparse).to_dict() if sparse else None
    fitting = {}
    for text in names:

        def made(text: str = text) -> Any:
            check_methods(checkpoint, [text])
            chosen = parse(text)
            parameters = dict(chosen.parameters)
            if chosen.name == LEARNED and trained and not parameters:
                parameters = {
                    "sparse_layer": trained["sparse_layer"],
                    "vision_keep_rate": trained["vision_keep_rate"],
                    "output_keep_rate": trained["output_text_keep_rate"],
                }
            method = create(chosen.name, **parameters)
            plan = method.plan(layers)
            if checkpoint.layout is Layout.STOCK:
                _check_family(checkpoint, method, plan)
            if trained:
                from dynllava.methods.predictors import check_predictors

                check_predictors(plan, SparsityConfig.from_dict(trained))
            return method

        try:
            method = made()
        except UserError as error:
            found.add("no", "method", error)
            continue
        fitting[text] = method
        note = _keep_rates(method, trained)
        found.add("note" if note else "ok", "method", f"{text}{note}")
    return fitting


def _check_family(checkpoint: Checkpoint, method: Any, plan: Any) -> None:
    """Refuse what wrapping the model would."""
    from transformers import CONFIG_MAPPING

    from dynllava.models.families import check_method, check_text_model

    config = CONFIG_MAPPING[checkpoint.model_type](**checkpoint.config)
    check_text_model(config.text_config)
    check_method(config, method, plan)


def _keep_rates(method: Any, trained: Mapping[str, Any] | None) -> str:
    if trained is None or method.name != LEARNED:
        return ""
    rate, own = method.vision_keep_rate, trained["vision_keep_rate"]
    return "" if rate in (own, 1.0) else f": keeps {rate} of the image, trained for {own}"
