"""The whole processor of a checkpoint: tokenizer with ``<image>``, images, patches, template."""

from __future__ import annotations

from typing import Any

from dynllava.errors import UserError
from dynllava.output.files import read_json_object, reason
from dynllava.prompts.templates import VICUNA_JINJA

from .layouts import Checkpoint, Layout
from .tokenizers import add_image_token, load_tokenizer

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
BACKENDS = ("pil", "torchvision")


def load_processor(checkpoint: Checkpoint, config: Any = None, image_backend: str = "pil") -> Any:
    """Return the processor of a checkpoint, or None if it has no tokenizer.

    What a folder leaves out (older revisions of llava-hf have no ``processor_config.json``, the
    original format has a tokenizer only) is filled in from the configuration and from the vision
    tower's own ``preprocessor_config.json``.

    Parameters
    ----------
    checkpoint : Checkpoint
    config : LlavaConfig, optional
        The loaded model's; default: read from the checkpoint.
    image_backend : str
        ``"pil"``, with which LLaVA was trained and evaluated, or ``"torchvision"``.

    Raises
    ------
    UserError
        If the files cannot be read or do not fit the model.
    """
    check_backend(image_backend)
    if checkpoint.layout is Layout.STOCK:
        from .family_processors import load_family_processor

        return load_family_processor(checkpoint.folder, checkpoint.model_type, image_backend)
    tokenizer = load_tokenizer(checkpoint.folder)
    if tokenizer is None:
        return None
    values = _model_values(checkpoint, config)
    if checkpoint.is_original or "official_config" in checkpoint.config:
        add_image_token(tokenizer, values["image_token_index"], checkpoint.folder)
    elif tokenizer.get_vocab().get(checkpoint.image_token) is None:
        checkpoint.require()
    try:
        return _assemble(checkpoint, tokenizer, values, image_backend)
    except UserError:
        raise
    except Exception as error:
        # Processor files are parsed by libraries with error classes of their own.
        raise UserError(
            f"{checkpoint.folder}: the tokenizer or processor cannot be read ({reason(error)})"
        ) from None


def check_backend(image_backend: str) -> None:
    """Refuse what cannot resize images here."""
    if image_backend not in BACKENDS:
        raise UserError(f"image_backend={image_backend!r}: accepted are {', '.join(BACKENDS)}")
    if image_backend == "torchvision" and not _torchvision():
        raise UserError(
            "image_backend=torchvision: torchvision cannot be imported here (docs/installing.md); "
            "accepted is pil"
        )


def _torchvision() -> bool:
    from transformers.utils import is_torchvision_available

    return bool(is_torchvision_available())


def image_values(vision: dict[str, Any], official: dict[str, Any]) -> dict[str, Any]:
    """Return the image processor of a checkpoint in the original format whose tower has none.

    Parameters
    ----------
    vision : dict
        The tower's configuration.
    official : dict
        The checkpoint's ``config.json``.
    """
    size = vision["image_size"]
    return {
        "image_processor_type": "LlavaImageProcessor",
        "do_pad": official.get("image_aspect_ratio") == "pad",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_convert_rgb": True,
    }


def _model_values(checkpoint: Checkpoint, config: Any) -> dict[str, Any]:
    """Return the configuration in Hugging Face terms."""
    if config is not None:
        return dict(config.to_dict())
    if checkpoint.is_original:
        from .checkpoints import hf_config

        checkpoint.require()
        return hf_config(
            dict(checkpoint.config), dict(checkpoint.eyes.config or {}), checkpoint.packer
        )
    return dict(checkpoint.config)


def _assemble(checkpoint: Checkpoint, tokenizer: Any, values: dict[str, Any], backend: str) -> Any:
    from transformers import LlavaProcessor

    folder = checkpoint.folder
    stored: dict[str, Any] = {}
    if (folder / "processor_config.json").is_file():
        stored = read_json_object(folder / "processor_config.json")
    vision = values.get("vision_config") or {}
    # A packed token stands for a block of patches.
    block = (values.get("token_packer") or {}).get("scale_factor", 1)
    patch = stored.get("patch_size") or vision.get("patch_size", 14) * block
    extra = stored.get("num_additional_image_tokens")
    if extra is None:
        # CLIP has a class token, SigLIP has none.
        extra = 0 if "siglip" in str(vision.get("model_type")) else 1
    processor = LlavaProcessor(
        image_processor=_image_processor(checkpoint, values, stored, backend),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy=stored.get("vision_feature_select_strategy")
        or values.get("vision_feature_select_strategy", "default"),
        num_additional_image_tokens=extra,
        chat_template=_chat_template(checkpoint, tokenizer, stored),
    )
    return processor


def _image_processor(
    checkpoint: Checkpoint, values: dict[str, Any], stored: dict[str, Any], backend: str
) -> Any:
    # transformers 5.17 offers this class at its top level only beside torchvision.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.models.llava import image_processing_pil_llava as pil

    if (checkpoint.folder / "preprocessor_config.json").is_file() or "image_processor" in stored:
        return AutoImageProcessor.from_pretrained(checkpoint.folder, backend=backend)
    kind = str(values["vision_config"].get("model_type", "clip_vision_model"))
    if not kind.startswith("clip"):
        raise UserError(
            f"{checkpoint.folder}: no preprocessor_config.json; what it says is known for CLIP, "
            f"not for {kind}: take the file of the same checkpoint"
        )
    official = values.get("official_config") or dict(checkpoint.config)
    chosen = image_values(values["vision_config"], official)
    tower = checkpoint.tower.folder if checkpoint.tower else None
    if tower is not None and (tower / "preprocessor_config.json").is_file():
        own = read_json_object(tower / "preprocessor_config.json")
        # Older files have one number for a size, and none of the newer switches.
        size, crop = own.get("size"), own.get("crop_size")
        own["size"] = {"shortest_edge": size} if isinstance(size, int) else size
        own["crop_size"] = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        chosen |= {key: own[key] for key in chosen if own.get(key) is not None}
        chosen["image_processor_type"] = "LlavaImageProcessor"
        chosen["do_pad"] = official.get("image_aspect_ratio") == "pad"
    chosen.pop("image_processor_type")
    if backend == "torchvision":
        from transformers import LlavaImageProcessor

        return LlavaImageProcessor(**chosen)
    return pil.LlavaImageProcessorPil(**chosen)


def _chat_template(checkpoint: Checkpoint, tokenizer: Any, stored: dict[str, Any]) -> str | None:
    """Return the checkpoint's own template; Vicuna's for the original format, which has none."""
    folder = checkpoint.folder
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        return read_json_object(folder / "chat_template.json").get("chat_template")
    own = stored.get("chat_template") or getattr(tokenizer, "chat_template", None)
    if own is None and (checkpoint.is_original or "official_config" in checkpoint.config):
        return VICUNA_JINJA
    return own
