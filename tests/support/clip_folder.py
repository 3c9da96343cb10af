"""A folder with a tiny random CLIP: both towers and a tokenizer of a few words."""

import torch
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

WORDS = ("is", "there", "a", "red", "circle", "what", "?")


def save_clip(folder, width=32):
    """Write a tiny random CLIP whose vision tower is as wide as the tiny model's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    text = {"vocab_size": 16, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 6, "bos_token_id": 0,
            "eos_token_id": 1, "pad_token_id": 1}  # fmt: skip
    vision = {"hidden_size": width, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "image_size": 32, "patch_size": 8}  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    CLIPModel(config).save_pretrained(folder)
    vocabulary = {word: place for place, word in enumerate(("<s>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)
