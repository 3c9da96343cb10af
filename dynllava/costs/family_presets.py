"""Public sizes of the families, from their published configurations.

Sizes whose source was not found are left out (``LLaVA-NeXT-34B``, InternVL3 1B, 2B and 14B,
Qwen2-VL-2B, OneVision-0.5B, SmolVLM2-2.2B and the largest Qwen towers).
"""

from __future__ import annotations

from dynllava.plan import ModelDims

from .towers import FamilyTower

_NEXT = tuple(
    (336 * rows, 336 * columns) for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
)
_ONEVISION = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))
_QWEN2_PIXELS = (3136, 12845056)
_QWEN3_PIXELS = (65536, 16777216)


def _dims(layers: int, hidden: int, heads: int, kv: int, mlp: int, vocab: int,
          head: int | None = None) -> ModelDims:  # fmt: skip
    return ModelDims(layers, hidden, heads, kv, head or hidden // heads, mlp, vocab)


def _next(text: ModelDims) -> FamilyTower:
    return FamilyTower("llava_next", 1024, 24, 16, 4096, 14, text.hidden, side=336,
                       class_token=True, pinpoints=_NEXT)  # fmt: skip


def _onevision(text: ModelDims) -> FamilyTower:
    return FamilyTower("llava_onevision", 1152, 26, 16, 4304, 14, text.hidden, side=384,
                       pinpoints=_ONEVISION, most_crops=9)  # fmt: skip


def _qwen2(text: ModelDims) -> FamilyTower:
    return FamilyTower("qwen2_vl", 1280, 32, 16, 5120, 14, text.hidden, merge=2, frames=2,
                       pixels=_QWEN2_PIXELS)  # fmt: skip


def _qwen25(text: ModelDims, mlp: int = 3420) -> FamilyTower:
    return FamilyTower("qwen2_5_vl", 1280, 32, 16, mlp, 14, text.hidden, merge=2, frames=2,
                       gated=True, window=112, full_layers=(7, 15, 23, 31),
                       pixels=_QWEN2_PIXELS)  # fmt: skip


def _qwen3(text: ModelDims, large: bool) -> FamilyTower:
    hidden, mlp, layers = (1152, 4304, 27) if large else (1024, 4096, 24)
    return FamilyTower("qwen3_vl", hidden, layers, 16, mlp, 16, text.hidden, merge=2, frames=2,
                       deep=3, pixels=_QWEN3_PIXELS)  # fmt: skip


def _internvl(text: ModelDims, large: bool = False) -> FamilyTower:
    hidden, mlp, layers, heads = (3200, 12800, 45, 25) if large else (1024, 4096, 24, 16)
    return FamilyTower("internvl", hidden, layers, heads, mlp, 14, text.hidden, side=448, merge=2,
                       class_token=True)  # fmt: skip


def _smol(text: ModelDims) -> FamilyTower:
    return FamilyTower("smolvlm", 768, 12, 12, 3072, 16, text.hidden, side=512, merge=4,
                       longest=2048)  # fmt: skip


_VICUNA_7B, _VICUNA_13B = (
    _dims(32, 4096, 32, 32, 11008, 32064), _dims(40, 5120, 40, 40, 13824, 32064)
)  # fmt: skip
_MISTRAL_7B = _dims(32, 4096, 32, 8, 14336, 32064)
_QWEN2_7B = (28, 3584, 28, 4, 18944)
_QWEN2_72B = (80, 8192, 64, 8, 29568)
_QWEN3_4B = _dims(36, 2560, 32, 8, 9728, 151936, 128)

#: Name -> (language model, tower, whether the lm head is tied).
SIZES: dict[str, tuple[ModelDims, FamilyTower, bool]] = {
    "llava-v1.6-vicuna-7b": (_VICUNA_7B, _next(_VICUNA_7B), False),
    "llava-v1.6-vicuna-13b": (_VICUNA_13B, _next(_VICUNA_13B), False),
    "llava-v1.6-mistral-7b": (_MISTRAL_7B, _next(_MISTRAL_7B), False),
}


def _add(name: str, text: ModelDims, tower: FamilyTower, tied: bool = False) -> None:
    SIZES[name] = (text, tower, tied)


for _name, _shape in (("7b", _QWEN2_7B), ("72b", _QWEN2_72B)):
    _text = _dims(*_shape, 152128)
    _add(f"llava-onevision-{_name}", _text, _onevision(_text))
    _text = _dims(*_shape, 152064)
    _add(f"qwen2-vl-{_name}", _text, _qwen2(_text))
for _name, _shape, _vocab, _mlp, _tied in (
    ("3b", (36, 2048, 16, 2, 11008), 151936, 3420, True),
    ("7b", _QWEN2_7B, 152064, 3420, False),
    ("32b", (64, 5120, 40, 8, 27648), 152064, 3456, False),
):
    _text = _dims(*_shape, _vocab)
    _add(f"qwen2.5-vl-{_name}", _text, _qwen25(_text, _mlp), _tied)
for _name, _shape, _large, _tied in (
    ("2b", (28, 2048, 16, 8, 6144), False, True),
    ("4b", (36, 2560, 32, 8, 9728), False, True),
    ("8b", (36, 4096, 32, 8, 12288), True, False),
    ("32b", (64, 5120, 64, 8, 25600), True, False),
):
    _text = _dims(*_shape, 151936, 128)
    _add(f"qwen3-vl-{_name}", _text, _qwen3(_text, _large), _tied)
for _name, _shape, _large in (
    ("8b", _QWEN2_7B, False),
    ("38b", (64, 5120, 40, 8, 27648), True),
    ("78b", _QWEN2_72B, True),
):
    _text = _dims(*_shape, 151674)
    _add(f"internvl3-{_name}", _text, _internvl(_text, _large))
for _name, _shape in (("256m", (30, 576, 9, 3, 1536)), ("500m", (32, 960, 15, 5, 2560))):
    _text = _dims(*_shape, 49280)
    _add(f"smolvlm2-{_name}", _text, _smol(_text))
