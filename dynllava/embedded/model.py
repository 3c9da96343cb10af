"""Configuration and assembly of the embedded LLaVA: stock transformers classes, tiny sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .scenes import IMAGE_SIZE, PATCH_SIZE
from .tokenizer import BOS, CHAT_TEMPLATE, EOS, IMAGE, PAD, build_tokenizer, vocabulary

if TYPE_CHECKING:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

HIDDEN = 128
TEXT_LAYERS = 6
VISION_LAYERS = 3
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2


def build_config() -> LlavaConfig:
    """Describe a LLaVA of about 1.5 M parameters."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    words = vocabulary()
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        # Logits are dot products with a normalised state: unit rows give them a useful scale.
        initializer_range=HIDDEN**-0.5,
        bos_token_id=words.index(BOS),
        eos_token_id=words.index(EOS),
        pad_token_id=words.index(PAD),
    )
    vision = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        hidden_act="relu",
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=HIDDEN,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.index(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )


def build_processor() -> LlavaProcessor:
    """Build the processor of the model: 96 x 96 pixels in, 144 image tokens out."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(
        # The shortest edge of a scene already has this size, so nothing is resampled.
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """Initialise a model in float32."""
    import torch
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(build_config())
