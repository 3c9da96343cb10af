"""Processors of the families beside LLaVA-1.5: the checkpoint's own rules, images and text alone.

transformers' classes of several families also hold a video processor, which needs torchvision (and
SmolVLM's a package that spells numbers).  No video is ever asked about here, so the classes below
leave that part out and work without either; how a picture is resized, cut and counted is the stock
class's own code.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers.processing_utils import ProcessorMixin

from dynllava.errors import UserError
from dynllava.output.files import reason

from .tokenizers import load_tokenizer

#: ``model_type`` -> (module, class) of its processor in transformers.
STOCK = {
    "llava_next": ("llava_next", "LlavaNextProcessor"),
    "llava_onevision": ("llava_onevision", "LlavaOnevisionProcessor"),
    "qwen2_vl": ("qwen2_vl", "Qwen2VLProcessor"),
    "qwen2_5_vl": ("qwen2_5_vl", "Qwen2_5_VLProcessor"),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLProcessor"),
    "internvl": ("internvl", "InternVLProcessor"),
    "idefics3": ("idefics3", "Idefics3Processor"),
}
#: Entries of ``processor_config.json`` that are no arguments of the class.
_PARTS = ("image_processor", "tokenizer", "video_processor", "processor_class", "auto_map")


class ImagesOnly(ProcessorMixin):
    """Mixin in front of a stock processor's class: its parts are images and text."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Return the names of the parts."""
        return ["image_processor", "tokenizer"]


class PixtralImages(ImagesOnly):
    """Mistral 3's processor: ``[IMG]`` per merged patch, a token behind each row, one at the end.

    Parameters
    ----------
    image_processor, tokenizer
    patch_size, spatial_merge_size : int
        Pixels of a patch's side, patches of an image token's side.
    chat_template : str, optional
    image_token, image_break_token, image_end_token : str
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: Any = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.step = patch_size * spatial_merge_size
        self.image_token, self.break_token = image_token, image_break_token
        self.end_token = image_end_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

    def _process_images(self, images: Any, **options: Any) -> Any:
        # Sides become multiples of an image token's side.
        options["patch_size"] = {"height": self.step, "width": self.step}
        return super()._process_images(images, **options)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """Return the text that stands for one picture."""
        height, width = (int(side) // self.step for side in image_inputs["image_sizes"][image_idx])
        row = self.image_token * width
        return self.break_token.join([row] * height) + self.end_token

    @property
    def model_input_names(self) -> list[str]:
        """Return what the model takes."""
        return [*super().model_input_names, "image_sizes"]


def load_family_processor(folder: Path, model_type: str, image_backend: str = "pil") -> Any:
    """Return the processor of a checkpoint folder, None if it has no tokenizer.

    Parameters
    ----------
    folder : Path
    model_type : str
        Of the checkpoint.
    image_backend : str
        ``"pil"`` or ``"torchvision"``.

    Raises
    ------
    UserError
        If the files cannot be read, or no image processor is there.
    """
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        return None
    try:
        values, _ = ProcessorMixin.get_processor_dict(folder)
        if "image_processor" not in values and not (folder / "preprocessor_config.json").is_file():
            raise UserError(
                f"{folder}: no preprocessor_config.json, so nothing says how its images are "
                "prepared; take the file of the same checkpoint"
            )
        images = AutoImageProcessor.from_pretrained(folder, backend=image_backend)
        cls = processor_class(model_type)
        accepted = inspect.signature(cls.__init__).parameters
        own = {k: v for k, v in values.items() if k in accepted and k not in _PARTS}
        own.setdefault("chat_template", getattr(tokenizer, "chat_template", None))
        processor = cls(images, tokenizer, **own)
    except UserError:
        raise
    except Exception as error:
        # Processor files are parsed by libraries with error classes of their own.
        raise UserError(
            f"{folder}: the tokenizer or processor cannot be read ({reason(error)})"
        ) from None
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


@lru_cache
def processor_class(model_type: str) -> Any:
    """Return the class of a family's processors, without its video part."""
    from importlib import import_module

    if model_type == "mistral3":
        return PixtralImages
    if model_type == "smolvlm":
        return _smolvlm_class()
    module, name = STOCK[model_type]
    stock = getattr(import_module(f"transformers.models.{module}.processing_{module}"), name)
    return type(name, (ImagesOnly, stock), {"__module__": __name__})


def _smolvlm_class() -> Any:
    from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

    class SmolVlmImages(ImagesOnly, SmolVLMProcessor):
        # transformers' own asks for a package that spells out how many frames a video has.
        def __init__(
            self,
            image_processor: Any = None,
            tokenizer: Any = None,
            image_seq_len: int = 169,
            chat_template: Any = None,
        ) -> None:
            for name, usual in (
                ("fake_image_token", "<fake_token_around_image>"),
                ("image_token", "<image>"),
                ("end_of_utterance_token", "<end_of_utterance>"),
                ("global_image_token", "<global-img>"),
            ):
                setattr(self, name, getattr(tokenizer, name, usual))
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.image_seq_len = image_seq_len
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

        apply_chat_template = ProcessorMixin.apply_chat_template

    return SmolVlmImages
