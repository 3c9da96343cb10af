"""Tokenizers of public checkpoints, those with ``tokenizer.model`` alone included."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from dynllava.errors import UserError
from dynllava.output.files import read_json_object, reason

from .files import TOKENIZER_FILES

IMAGE_TOKEN = "<image>"


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a checkpoint folder, None if it has none.

    Raises
    ------
    UserError
        If its files cannot be read.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(folder)
        if (folder / "tokenizer.model").is_file():
            return _from_sentencepiece(folder)
    except UserError:
        raise
    except Exception as error:
        # Tokenizer files are parsed by libraries with error classes of their own.
        raise UserError(
            f"{folder}: the tokenizer or processor cannot be read ({reason(error)})"
        ) from None
    return None


def _from_sentencepiece(folder: Path) -> Any:
    """Return the Llama tokenizer of a ``tokenizer.model`` without ``tokenizer.json``.

    transformers parses the file with a module that sentencepiece >= 0.2.3 generated for protobuf
    >= 7, which lmms-eval's requirements rule out.  sentencepiece itself reads it in any
    environment; the pieces then go the way they would have gone: the vocabulary in the file's
    order, merges in the order of the merged pieces.
    """
    from sentencepiece import SentencePieceProcessor
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    pieces = SentencePieceProcessor()
    pieces.Load(str(folder / "tokenizer.model"))
    vocabulary = {pieces.IdToPiece(index): index for index in range(pieces.GetPieceSize())}
    path = folder / "tokenizer_config.json"
    stored = read_json_object(path) if path.is_file() else {}
    switches = ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy")
    backend = LlamaTokenizer(
        vocab=vocabulary,
        merges=generate_merges(vocabulary),
        **{"add_bos_token": True, **{key: stored[key] for key in switches if key in stored}},
    )
    with tempfile.TemporaryDirectory() as scratch:
        backend.save_pretrained(scratch)
        for name in TOKENIZER_FILES:
            # Names of special tokens, padding side and the like are the checkpoint's own.
            if name.endswith(".json") and (folder / name).is_file():
                shutil.copy(folder / name, Path(scratch) / name)
        tokenizer = LlamaTokenizer.from_pretrained(scratch)
    tokenizer.name_or_path = str(folder)
    tokenizer.init_kwargs.pop("name_or_path", None)
    return tokenizer


def add_image_token(tokenizer: Any, token_id: int, where: Path) -> None:
    """Give ``<image>`` the id ``token_id``, the row that loading adds to the vocabulary.

    A vocabulary that is shorter than the embedding is filled up with tokens that no text holds.

    Raises
    ------
    UserError
        If the tokenizer has more tokens than the model has rows.
    """
    known = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if known == token_id:
        return
    if known is not None or len(tokenizer) > token_id:
        raise UserError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens, the model {token_id} rows; take "
            "the tokenizer files that belong to these weights"
        )
    fill = [f"<|unused_{index}|>" for index in range(len(tokenizer), token_id)]
    tokenizer.add_tokens([*fill, IMAGE_TOKEN], special_tokens=True)
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != token_id:
        raise UserError(f"{where}: <image> cannot be added to the tokenizer as {token_id}")
