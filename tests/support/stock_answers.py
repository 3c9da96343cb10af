"""Answers of stock transformers and of a plain sparse loop, without any code of dynllava.

Pixels, token ids and greedy answers of published folders, computed from the files alone: what the
toolkit's own routes are compared with.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import sentencepiece
import torch
from PIL import Image
from public_layouts import INSIDE
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def square(picture: Image.Image, mean: list[float]) -> Image.Image:
    """Official ``expand2square``: centred on a square of the mean colour."""
    side = max(picture.size)
    out = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    out.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return out


def pixels(picture: Image.Image, aspect: str, folder: Path) -> torch.Tensor:
    """Pixel values [1, 3, S, S] by the image processor of ``folder`` (the tower's, or its own)."""
    values = json.loads((folder / "preprocessor_config.json").read_text())
    if "image_processor_type" in values:
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    else:
        size = values["crop_size"]
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": values["size"]},
            crop_size={"height": size, "width": size},
            image_mean=values["image_mean"],
            image_std=values["image_std"],
        )
    if aspect == "pad":
        picture = square(picture, values["image_mean"])
    return processor(picture, return_tensors="pt")["pixel_values"]


def official_ids(folder: Path, question: str) -> list[int]:
    """``tokenizer_image_token`` on the ``vicuna_v1`` prompt with sentencepiece; -200: the image."""
    reader = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    before, after = f"{SYSTEM}USER: <image>\n{question} ASSISTANT:".split("<image>")
    return [1, *reader.encode(before), -200, *reader.encode(after)]


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder in float32, under its stored name."""
    state: dict[str, torch.Tensor] = {}
    for path in sorted([*folder.glob("*.bin"), *folder.glob("*.safetensors")]):
        if path.name == "training_args.bin":
            continue
        state |= torch.load(path, weights_only=True) if path.suffix == ".bin" else load_file(path)
    return {name: value.float() for name, value in state.items()}


class Original:
    """LLaVA's own forward on stock Llama and CLIP: features spliced between embedded pieces.

    ``folder`` is in the original or the official format; ``tower`` the folder of its CLIP, from
    which weights are read unless they are inside.
    """

    def __init__(self, folder: Path, tower: Path) -> None:
        self.folder, self.tower = folder, tower
        self.config = json.loads((folder / "config.json").read_text())
        self.state = state = state_of(folder)
        own = {k.removeprefix(INSIDE + "vision_model."): v for k, v in state.items() if INSIDE in k}
        self.vision = CLIPVisionModel.from_pretrained(tower).eval()
        if own:
            values = json.loads((tower / "config.json").read_text())
            config = CLIPVisionConfig(**values.get("vision_config", values))
            self.vision = CLIPVisionModel(config).eval()
            assert not self.vision.load_state_dict(own, strict=False).missing_keys
        values = {k: v for k, v in self.config.items() if k != "model_type"}
        self.text = LlamaForCausalLM(LlamaConfig(**values)).eval()
        assert not self.text.load_state_dict(state, strict=False).missing_keys

    @torch.no_grad()
    def embedded(self, ids: list[int], pixel_values: torch.Tensor) -> tuple[torch.Tensor, range]:
        """Return embeddings [1, N, D] and the places of the image's tokens (none without one)."""
        embed = self.text.get_input_embeddings()
        if -200 not in ids:
            return embed(torch.tensor(ids))[None], range(0)
        layer = self.config["mm_vision_select_layer"]
        hidden = self.vision(pixel_values, output_hidden_states=True).hidden_states[layer]
        if self.config.get("mm_vision_select_feature") != "cls_patch":
            hidden = hidden[:, 1:]
        for index in (0, 2):
            at = f"model.mm_projector.{index}."
            hidden = F.linear(hidden, self.state[at + "weight"], self.state[at + "bias"])
            hidden = F.gelu(hidden) if index == 0 else hidden
        at = ids.index(-200)
        first, last = (embed(torch.tensor(part)) for part in (ids[:at], ids[at + 1 :]))
        return torch.cat([first, hidden[0], last])[None], range(at, at + hidden.shape[1])

    @torch.no_grad()
    def generate(self, ids: list[int], pixel_values: torch.Tensor, tokens: int) -> list[int]:
        """Stock greedy ``generate`` on the spliced embeddings."""
        embeds, _ = self.embedded(ids, pixel_values)
        mask = torch.ones(embeds.shape[:2], dtype=torch.int64)
        out = self.text.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=tokens, do_sample=False
        )
        return out[0].tolist()

    def answer(self, question: str, picture: Image.Image, aspect: str, tokens: int) -> str:
        """Greedy answer as text."""
        values = pixels(picture, aspect, self.tower)
        return self.decode(self.generate(official_ids(self.folder, question), values, tokens))

    def decode(self, ids: list[int]) -> str:
        """Text of an answer's ids, as fast tokenizers put bytes together.

        Bytes that make no text are one mark each; sentencepiece would make fewer of some.
        """
        name = str(self.folder / "tokenizer.model")
        reader = sentencepiece.SentencePieceProcessor(model_file=name)
        text, waiting = "", b""
        for token in [*(token for token in ids if token > 2), None]:
            if token is not None and reader.IsByte(token):
                waiting += bytes([int(reader.IdToPiece(token)[3:5], 16)])
                continue
            try:
                text += waiting.decode()
            except UnicodeDecodeError:
                text += "\ufffd" * len(waiting)
            text, waiting = text + ("" if token is None else reader.IdToPiece(token)), b""
        return text.replace("▁", " ").strip()


class LlavaHf:
    """Stock ``LlavaForConditionalGeneration`` and ``AutoProcessor`` on a llava-hf folder.

    For a converted folder ``images`` names the one whose image processor makes the pixels, and
    ``official`` the one whose ids (:func:`official_ids`) are used.
    """

    def __init__(self, folder: Path) -> None:
        self.images, self.official = folder, None
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.processor = AutoProcessor.from_pretrained(folder)

    def inputs(self, question: str, picture: Image.Image, aspect: str) -> dict[str, torch.Tensor]:
        """The processor's ids (its own template), pixels by :func:`pixels`."""
        values = pixels(picture, aspect, self.images)
        if self.official is not None:
            ids = official_ids(self.official, question)
            at, size = ids.index(-200), self.model.config.vision_config
            image = [self.processor.image_token_id] * (size.image_size // size.patch_size) ** 2
            row = torch.tensor([[*ids[:at], *image, *ids[at + 1 :]]])
            return {
                "input_ids": row,
                "attention_mask": torch.ones_like(row),
                "pixel_values": values,
            }
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True
        )
        found = dict(self.processor(picture, text, return_tensors="pt"))
        return {**found, "pixel_values": values}

    @torch.no_grad()
    def answer(
        self, question: str, picture: Image.Image, aspect: str, tokens: int, model=None
    ) -> str:
        """Greedy answer as text; ``model``: another one in place of the stock model."""
        inputs = self.inputs(question, picture, aspect)
        out = (model or self.model).generate(**inputs, max_new_tokens=tokens, do_sample=False)
        ids = out[0, inputs["input_ids"].shape[1] :].tolist()
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


class SparseLoop(Original):
    """Dynamic-LLaVA's inference with a KV cache as one plain loop over layers and tokens.

    Written from the paper (section 3, A.4.1) and the recorded behaviour of the official code:
    layers before ``sparse_layer`` see everything; there, the image tokens with the highest
    ``log_softmax(logits)[keep]`` stay, ``int(n * rate)`` of them, in order; a generated token is
    judged when it is fed, and its keys and values are forgotten after its step unless
    ``logit[keep] > logit[drop]``.  Positions are never renumbered.
    """

    def layer(self, index: int, x, positions, cache: list) -> torch.Tensor:
        """One Llama layer on rows ``x`` [n, D]; ``cache[index]`` is (keys, values) [m, H, d]."""
        config, state = self.config, self.state
        heads, size = config["num_attention_heads"], x.shape[-1] // config["num_attention_heads"]
        at = f"model.layers.{index}."
        normed = self.norm(x, at + "input_layernorm.weight")
        q, k, v = (
            (normed @ state[f"{at}self_attn.{name}_proj.weight"].T).view(-1, heads, size)
            for name in "qkv"
        )
        base = config.get("rope_theta", 10000.0)
        angle = positions[:, None] * base ** (-torch.arange(0, size, 2).double() / size)
        cos, sin = (torch.cat([f(angle)] * 2, -1)[:, None].float() for f in (torch.cos, torch.sin))
        q, k = (
            t * cos + torch.cat([-t[..., size // 2 :], t[..., : size // 2]], -1) * sin
            for t in (q, k)
        )
        old = cache[index]
        keys, values = (torch.cat([a, b]) for a, b in zip(old, (k, v), strict=True))
        scores = torch.einsum("qhd,khd->hqk", q, keys) * size**-0.5
        rows = torch.arange(len(x))[:, None] + len(old[0])
        scores = scores.masked_fill(torch.arange(len(keys))[None] > rows, float("-inf"))
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).flatten(1)
        cache[index] = (keys, values)
        x = x + mixed @ state[at + "self_attn.o_proj.weight"].T
        normed = self.norm(x, at + "post_attention_layernorm.weight")
        gate, up = (normed @ state[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        return x + (F.silu(gate) * up) @ state[at + "mlp.down_proj.weight"].T

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """RMS norm."""
        scale = (x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]).rsqrt()
        return x * scale * self.state[name]

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Linear layer of a predictor."""
        return F.linear(x, self.state[name + ".weight"], self.state.get(name + ".bias"))

    def layer_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """LayerNorm of a predictor."""
        return F.layer_norm(
            x, x.shape[-1:], self.state[name + ".weight"], self.state[name + ".bias"]
        )

    def image_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Image predictor: [P, D] to [P, 2]."""
        at, sparse = "model.image_score_predictor.", self.config["sparse_config"]
        x = F.gelu(self.linear(self.layer_norm(x, at + "down_mlp.0"), at + "down_mlp.1"))
        heads = sparse["nhead"]
        for block in range(sparse["num_layers"]):
            inner = f"{at}transformer.{block}."
            qkv = self.linear(self.layer_norm(x, inner + "norm1"), inner + "attn.qkv")
            q, k, v = qkv.view(len(x), 3, heads, -1).unbind(1)
            weight = (torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5).softmax(-1)
            mixed = torch.einsum("hqk,khd->qhd", weight, v).flatten(1)
            x = x + self.linear(mixed, inner + "attn.proj")
            inside = F.gelu(self.linear(self.layer_norm(x, inner + "norm2"), inner + "mlp.fc1"))
            x = x + self.linear(inside, inner + "mlp.fc2")
        local, shared = x.chunk(2, -1)
        x = torch.cat([local, shared.mean(0, keepdim=True).expand_as(shared)], -1)
        for index in (0, 2):
            x = F.gelu(self.linear(x, f"{at}output_mlp.{index}"))
        return self.linear(x, at + "output_mlp.4")

    def output_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Output predictor: [1, D] to [1, 2]."""
        at = "model.output_text_score_predictor.output_mlp."
        x = self.layer_norm(x, at + "0")
        for index in (1, 3, 5):
            x = F.gelu(self.linear(x, f"{at}{index}"))
        return self.linear(x, at + "7")

    def generate(self, ids, pixel_values, tokens) -> list[int]:
        """Greedy ids; what :meth:`run` saw on the way stays on the loop."""
        self.run(ids, pixel_values, tokens)
        return self.found

    @torch.no_grad()
    def run(self, ids, pixel_values, tokens, rate=None, fed=None) -> None:
        """Prefill, then up to ``tokens - 1`` steps; fills the lists below, one entry a step.

        Parameters
        ----------
        ids : list of int
            Prompt, -200 for the image (or none).
        pixel_values : Tensor [1, 3, S, S] or None
        tokens : int
            Tokens to find; fewer where end of text comes first.
        rate : float, optional
            Share of image tokens to keep; default: the checkpoint's.
        fed : list of int, optional
            Tokens to feed instead of those found; end of text then ends nothing.

        Attributes set: ``found`` (argmax ids), ``logits`` ([V] each, the prompt's first),
        ``kept_images`` (indices), ``image_scores`` ([P, 2]), ``kept_outputs`` (bool a fed token),
        ``output_scores`` ([2] each), ``lengths`` (cached tokens of each layer, the prompt's first).
        """
        sparse, config = self.config["sparse_config"], self.config
        start, layers = sparse["sparse_layer"], config["num_hidden_layers"]
        rate = sparse["vision_keep_rate"] if rate is None else rate
        embeds, image = self.embedded(ids, pixel_values)
        x, positions = embeds[0], torch.arange(embeds.shape[1])
        heads = config["num_attention_heads"]
        empty = torch.zeros(0, heads, x.shape[-1] // heads)
        cache = [(empty, empty)] * layers
        self.found, self.logits, self.lengths = [], [], []
        self.kept_images, self.image_scores = [], None
        self.judges = sparse["use_output_text_predictor"]
        self.kept_outputs, self.output_scores = [], []
        while True:
            for index in range(layers):
                if index == start and not self.found and image:
                    self.image_scores = self.image_logits(x[image.start : image.stop])
                    scores = self.image_scores.log_softmax(-1)[:, 0]
                    best = scores.topk(int(len(image) * rate)).indices.sort().values + image.start
                    self.kept_images = (best - image.start).tolist()
                    stay = [*range(image.start), *best.tolist(), *range(image.stop, len(x))]
                    x, positions = x[stay], positions[stay]
                elif index == start and self.found and self.judges:
                    self.output_scores.append(self.output_logits(x)[0])
                    keep, drop = self.output_scores[-1].tolist()
                    self.kept_outputs.append(keep > drop)
                x = self.layer(index, x, positions, cache)
            if self.kept_outputs and not self.kept_outputs[-1]:
                cache[start:] = [(k[:-1], v[:-1]) for k, v in cache[start:]]
            self.lengths.append([len(keys) for keys, _ in cache])
            hidden = self.norm(x[-1:], "model.norm.weight")
            self.logits.append((hidden @ self.state["lm_head.weight"].T)[0])
            self.found.append(int(self.logits[-1].argmax()))
            if len(self.found) == tokens or (fed is None and self.found[-1] == 2):
                return
            token = self.found[-1] if fed is None else fed[len(self.found) - 1]
            x = self.state["model.embed_tokens.weight"][token][None]
            positions = positions[-1:] + 1


@functools.cache
def reference(layout: str, folder: Path, tower: Path, sparse: bool = False):
    """Return what answers a folder of this layout (``original``, ``official``, ``llava-hf``)."""
    if layout == "llava-hf":
        return LlavaHf(folder)
    return (SparseLoop if sparse else Original)(folder, tower)
