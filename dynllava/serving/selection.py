"""From pictures to the embeddings that an engine gets: tower, selection, projector.

The same code as in :mod:`dynllava.engine`, on a model whose language model is not there.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from dynllava.engine.decoder import make_view
from dynllava.engine.early import cut_features
from dynllava.engine.family import family_of
from dynllava.engine.program import Program
from dynllava.engine.rows import ImageView, decide_rows
from dynllava.errors import UserError
from dynllava.images import UNREADABLE, ImagePreparation, open_image
from dynllava.methods.base import Method
from dynllava.methods.parameters import parse
from dynllava.methods.smaller import projected, sizing
from dynllava.models.export import METHOD_FILE, served_class
from dynllava.models.families import check_class_token
from dynllava.models.inputs import build_stream, prompt_hash
from dynllava.models.loading import load_image_side
from dynllava.output.files import read_json_object, reason

from .limits import Limits


@dataclass(frozen=True)
class Bundle:
    """What ``dynllava export`` wrote.

    Attributes
    ----------
    folder : Path
    method : str
        The method that stands in ``dynllava.json``.
    dtype : str
        Of the weights.
    layers : int
        Of the language model.
    """

    folder: Path
    method: str
    dtype: str
    layers: int

    @classmethod
    def read(cls, folder: Path) -> Bundle:
        """Read ``dynllava.json`` and ``config.json``.

        Raises
        ------
        UserError
            If the folder was not written by ``dynllava export``.
        """
        if not (folder / METHOD_FILE).is_file():
            raise UserError(f"{folder}: no {METHOD_FILE}; accepted is a folder of dynllava export")
        saved = read_json_object(folder / METHOD_FILE)
        method, dtype = saved.get("method"), saved.get("dtype")
        if not isinstance(method, str) or not isinstance(dtype, str):
            raise UserError(f"{folder / METHOD_FILE}: method and dtype are expected")
        text = read_json_object(folder / "config.json").get("text_config")
        layers = text.get("num_hidden_layers") if isinstance(text, dict) else None
        if not isinstance(layers, int):
            raise UserError(f"{folder / 'config.json'}: text_config.num_hidden_layers is expected")
        return cls(folder, method, dtype, layers)

    def check(self, methods: Sequence[str]) -> None:
        """Refuse methods that no stock engine runs, before anything is loaded.

        Raises
        ------
        UserError
            Naming the class of the first.
        """
        for text in methods:
            served_class(text, parse(text).create(), self.layers)


class ImageSide:
    """Tower, projector and processor of a bundle, for any number of methods.

    Parameters
    ----------
    bundle : Bundle
    device : str
    limits : Limits
        Of one picture.
    """

    def __init__(self, bundle: Bundle, device: str, limits: Limits) -> None:
        self.model, self.processor = load_image_side(bundle.folder, bundle.dtype, device)
        self.prepare = ImagePreparation(self.processor.image_processor)
        self.device, self.limits = torch.device(device), limits
        self.dtype = self.model.model.multi_modal_projector.linear_1.weight.dtype
        self.image_tokens = int(self.model.config.image_seq_length)

    def pixels(self, data: bytes) -> torch.Tensor:
        """Return float32 [3, S, S] of an encoded picture.

        Raises
        ------
        UserError
            If it is none, or larger than the limits allow; nothing is decoded then.
        """
        try:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
        except UnidentifiedImageError:
            raise UserError("not a readable image (of no known format)") from None
        except UNREADABLE as error:
            raise UserError(f"not a readable image ({reason(error)})") from None
        if width * height > self.limits.pixels:
            raise UserError(
                f"image of {width} x {height} pixels: accepted are {self.limits.pixels} in all"
            )
        return torch.from_numpy(self.prepare(open_image(data)))


class Selector:
    """Chooses the rows of pictures under one method.

    Parameters
    ----------
    side : ImageSide
    text : str
        The method with its parameters.

    Attributes
    ----------
    served : str
        ``"A"``: rows depend on the picture alone and may be shared; ``"B"``: also on the question.

    Raises
    ------
    UserError
        If a stock engine cannot run the method, or it does not fit the model.
    """

    def __init__(self, side: ImageSide, text: str) -> None:
        self.side, self.text = side, text
        chosen = parse(text)
        self.method = chosen.create()
        config = side.model.config
        self.layers = config.text_config.num_hidden_layers
        self.served = served_class(text, self.method, self.layers)
        plan = self.method.plan(self.layers)
        check_class_token(config, self.method, plan)
        plan.check_model(config.text_config.num_attention_heads, side.image_tokens)
        self.program = Program(self.method, self.layers)

    @property
    def shared(self) -> bool:
        """Whether a picture's rows are the same for every question."""
        return self.served == "A"

    @torch.inference_mode()
    def rows(
        self, pixels: torch.Tensor, questions: Sequence[str] | None = None
    ) -> list[torch.Tensor]:
        """Return the rows [K, D] of each picture that reach the language model's door.

        Parameters
        ----------
        pixels : Tensor [I, 3, S, S]
        questions : sequence of str, optional
            What is asked about each of them (class B).
        """
        side, program = self.side, self.program
        pixels = pixels.to(side.device, side.dtype)
        smaller = sizing(program.method)
        if smaller is not None:
            return list(smaller.encode_images(side.model, pixels).cpu())
        if program.features is not None:
            family = family_of(side.model.model, side.model.config)
            chosen = cut_features(program, family, pixels, {}, questions=questions)
            return [item.features.cpu() for item in chosen]
        found = list(projected(side.model, pixels))
        if program.embedded is not None:
            cut, method = program.embedded.cut, program.embedded.method
            found = [decide_rows(method, ImageView(item, cut)).features for item in found]
        return [item.cpu() for item in found]

    @torch.inference_mode()
    def finish(self, ids: Sequence[int], rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the rows that are left by a cut at layer 0 that looks at nothing.

        Such a cut sees the whole prompt at once (and a draw depends on its tokens), so it is made
        for every request; it costs no more than an index.

        Parameters
        ----------
        ids : sequence of int
            The prompt with an image position for every row.
        rows : sequence of Tensor [K, D]
            Each picture's.
        """
        decisions = self.program.prompt[0]
        if not decisions or not rows:
            return list(rows)
        prompt = torch.tensor([list(ids)])
        is_image = prompt == self.side.model.config.image_token_id
        valid = torch.ones_like(is_image)
        stream = build_stream(torch.zeros(*prompt.shape, 1), valid, is_image, None, None, None)
        sample = prompt_hash(prompt, stream, valid)
        view = make_view(stream, self.layers, sample, None, decoding=False, predictors={})
        selection = self.program.decide(decisions, view)
        if selection is None:
            return list(rows)
        kept = selection.keep[is_image].split([len(item) for item in rows])
        return [item[keep] for item, keep in zip(rows, kept, strict=True)]


def compacted(method: Method) -> Method:
    """Return a method whose cuts number positions anew, as an engine does.

    Where positions stay original by rule, this is what serving changes.
    """
    kind: Any = type(method)

    def plan(self: Any, layers: int) -> Any:
        own = kind.plan(self, layers)
        cuts = tuple(dataclasses.replace(cut, positions="compact") for cut in own.cuts)
        return dataclasses.replace(own, cuts=cuts)

    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    return type(kind.__name__, (kind,), {"plan": plan})(**values)
