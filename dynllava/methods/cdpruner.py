"""CDPruner (Zhang et al., NeurIPS 2025): patches that are relevant to the question and differ.

Written from a description of the rule; no official recording was made, so there is no certificate.
Relevance comes from CLIP's own two towers: the cosine of a patch, projected as CLIP projects its
class token, and the question.  A greedy search then picks the patches of largest determinant under
the kernel ``r_i cos(x_i, x_j) r_j``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dynllava.errors import UserError
from dynllava.plan import ModelDims, Operation, Plan, Question, Shape, Stage

from .patches import Patches

if TYPE_CHECKING:
    import torch

    from dynllava.engine.rows import ImageView


@dataclass(frozen=True)
class CDPruner(Patches):
    """Keeps patches by relevance to the question and by diversity.

    Parameters
    ----------
    keep_ratio, keep, positions
        See :class:`Patches`.
    text_tower : str or None
        Folder of the CLIP model (both towers, with its tokenizer) whose vision tower the model
        has; nothing runs without it.
    question : str or None
        What is asked in every row; None = what the caller says of each (``questions=``; lmms-eval
        and ``compare`` do).
    """

    name: ClassVar[str] = "cdpruner"
    summary: ClassVar[str] = "patches relevant to the question that differ from each other"
    source: ClassVar[str] = "arXiv 2506.10967, from a description (no official recording)"

    text_tower: str | None = None
    question: str | None = None

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        look = Question(self.text_tower, self.question)
        return self.before(self.keeps(), look, work=(self._work,))

    def choose(self, view: ImageView) -> torch.Tensor:  # type: ignore[override]
        """Return [N] bool: the greedy picks."""
        import torch

        unit = torch.nn.functional.normalize(view.features.float(), dim=-1)
        weight = self.relevance(view.features, self.question or view.question)
        picked = determinantal(weight[:, None] * (unit @ unit.T) * weight, view.count())
        none = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
        return none.index_fill(0, picked, True)

    def relevance(self, patches: torch.Tensor, question: str | None) -> torch.Tensor:
        """Return [N] float32 from 0 to 1 within the image: *minus* the cosine, as published."""
        import torch

        if not question:
            raise UserError(
                f"{self.name}: no question was given: accepted are its parameter question, or "
                "questions= with one text a row"
            )
        model, words = question_of(self.text_tower or "", question)
        width = model.config.vision_config.hidden_size
        if patches.shape[-1] != width:
            own = patches.shape[-1]
            raise UserError(f"{self.text_tower}: a tower {width} wide, the model's is {own}")
        model = model.to(patches.device)
        with torch.no_grad():
            shared = model.visual_projection(model.vision_model.post_layernorm(patches.float()))
        unit = torch.nn.functional.normalize(shared, dim=-1)
        found = -(unit @ words.to(unit).T).mean(1)
        low, high = found.aminmax()
        return (found - low) / (high - low).clamp(min=1e-12)

    def _work(
        self, shape: Shape, dims: ModelDims, stages: tuple[Stage, ...]
    ) -> Iterator[Operation]:
        """Return the text tower's layers, relevance, kernel and search."""
        if dims.tower is None or self.text_tower is None or not shape.images:
            return
        config = json.loads((Path(self.text_tower) / "config.json").read_text(encoding="utf-8"))
        text, shared = {**_TEXT, **config.get("text_config", {})}, config.get("projection_dim", 512)
        rows, size = text["max_position_embeddings"], text["hidden_size"]
        layer = size * (4 * size + 2 * text["intermediate_size"] + 2 * rows)
        work = [
            ("text_tower", rows, layer, text["num_hidden_layers"]),
            ("question", 1, size, shared),
        ]
        for image in shape.images:
            count, width = image.patches, dims.tower.hidden
            kept = self.keeps().count(shape, count, count)
            work += [("relevance", count, shared, width + 1), ("kernel", count, width, count)]
            work += [("search", 1, kept * (kept - 1) // 2, count)]
        for name, *sizes in work:
            yield Operation(name, "ranking", None, "prefill", *sizes)


#: CLIP's own sizes, which its configurations leave out.
_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
         "max_position_embeddings": 77}  # fmt: skip


@functools.lru_cache(maxsize=1024)
def question_of(folder: str, question: str) -> tuple[Any, torch.Tensor]:
    """Return a CLIP model and the unit embeddings [segments, P] of a text in it."""
    import torch

    model, tokenizer = towers(folder)
    most = model.config.text_config.max_position_embeddings
    ids = tokenizer(question, add_special_tokens=False).input_ids
    # A text that is longer than the tower's positions is read in segments.
    parts = [ids[at : at + most - 2] for at in range(0, max(1, len(ids)), most - 2)]
    rows = [[tokenizer.bos_token_id, *part, tokenizer.eos_token_id] for part in parts]
    padded = [row + [tokenizer.eos_token_id] * (most - len(row)) for row in rows]
    with torch.no_grad():
        found = model.get_text_features(torch.tensor(padded, device=model.device))
    return model, torch.nn.functional.normalize(found.pooler_output, dim=-1)


@functools.lru_cache(maxsize=1)
def towers(folder: str) -> tuple[Any, Any]:
    """Return the CLIP model of a folder, in float32, and its tokenizer."""
    from transformers import AutoTokenizer, CLIPModel

    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True)
        return model.float().eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"text_tower={folder}: no CLIP model with a tokenizer ({error})") from None


def determinantal(kernel: torch.Tensor, count: int) -> torch.Tensor:
    """Return ``count`` rows of a kernel [N, N], greedily of the largest determinant.

    Incremental Cholesky (Chen et al. 2018).  Of equal gains the first is picked, none twice.
    """
    import torch

    gain = kernel.diagonal().clone()
    factors = kernel.new_zeros(count, len(kernel))
    picked = torch.zeros(count, dtype=torch.int64, device=kernel.device)
    for step in range(count):
        pick = picked[step] = gain.argmax()
        root = gain[pick].clamp(min=1e-12).sqrt()
        factors[step] = (kernel[pick] - factors[:step, pick] @ factors[:step]) / root
        gain = (gain - factors[step] ** 2).index_fill(0, picked[: step + 1], -torch.inf)
    return picked
