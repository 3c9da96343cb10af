"""Tokenizer files of the public checkpoints: a real sentencepiece model, tiny, made on the spot."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers.tokenization_utils_base import generate_merges

TEXT = """A chat between a curious user and an artificial intelligence assistant.
The assistant gives helpful, detailed, and polite answers to the user's questions.
USER: What is it? ASSISTANT: a red circle
USER: Which of these words comes last? Answer the question using a single word or phrase.
Is there a snowboard in the image? yes no left right above below between
How many shapes are in the picture? Describe the image in a few words.
"""
#: AddedToken fields as the files of 2023 have them.
PLAIN = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def sentencepiece_model(extra_pieces: int = 120) -> bytes:
    """Return the bytes of a ``tokenizer.model`` made as LLaMA's was: BPE with byte fallback."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXT.splitlines() * 4),
        model_writer=out,
        model_type="bpe",
        vocab_size=3 + 256 + extra_pieces,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
        num_threads=1,
    )
    return out.getvalue()


def pieces_of(model: bytes) -> dict[str, int]:
    reader = sentencepiece.SentencePieceProcessor(model_proto=model)
    return {reader.IdToPiece(index): index for index in range(reader.GetPieceSize())}


def write_original(folder: Path, model: bytes) -> None:
    """liuhaotian's files: ``tokenizer.model`` and two small ones."""
    (folder / "tokenizer.model").write_bytes(model)
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        **{
            key: {"__type": "AddedToken", "content": value, **PLAIN}
            for key, value in SPECIAL.items()
        },
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": 2048,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    dump(folder / "tokenizer_config.json", config)
    names = {key: {"content": value, **PLAIN} for key, value in SPECIAL.items()}
    dump(folder / "special_tokens_map.json", {**names, "pad_token": "<unk>"})


def write_llava_hf(folder: Path, model: bytes, with_image: bool = True) -> None:
    """llava-hf's files: both tokenizer formats, ``<image>`` and ``<pad>`` added."""
    pieces = pieces_of(model)
    first = len(pieces)
    added = {"<image>": first, "<pad>": first + 1} if with_image else {"<pad>": first}
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, **added}
    fast = Tokenizer(
        BPE(pieces, generate_merges(pieces), fuse_unk=True, byte_fallback=True, unk_token="<unk>")
    )
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer.model").write_bytes(model)
    dump(folder / "added_tokens.json", added)
    decoder = {
        str(number): {"content": name, **PLAIN, "special": True} for name, number in special.items()
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": None,
        "added_tokens_decoder": decoder,
        **SPECIAL,
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {"image_token": "<image>"} if with_image else {},
        **({"image_token": "<image>"} if with_image else {}),
        "legacy": False,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<pad>",
        "padding_side": "left",
        "processor_class": "LlavaProcessor",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "trust_remote_code": False,
        "use_default_system_prompt": False,
    }
    dump(folder / "tokenizer_config.json", config)
    names = {key: {"content": value, **PLAIN} for key, value in SPECIAL.items()}
    dump(
        folder / "special_tokens_map.json",
        {**names, "pad_token": {"content": "<pad>", **PLAIN}},
    )


def dump(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
