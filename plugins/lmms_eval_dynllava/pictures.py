"""Pictures that several prompts ask about go through the vision tower once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dynllava.models.early_images import replaces_images
from dynllava.models.families import family_of


class PictureCache:
    """Features of pictures behind the projector, found by the content of their pixels.

    What was used longest ago leaves first.  Features of a picture do not depend on the prompt, on
    the method or on other pictures, so answers are those without the cache.

    Parameters
    ----------
    limit : float
        Bytes of host memory that features may take; 0 = every picture is encoded anew.

    Attributes
    ----------
    held : int
        Bytes taken now.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.held = 0
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def serves(self, model: Any) -> bool:
        """Return whether the cache can stand for the tower under the model's method.

        Not where a method chooses rows before the projector or resizes pictures (it looks into the
        tower), and not for families whose pictures become crops or patches of several sizes.
        """
        config = getattr(model, "config", None)
        if config is None or not self.limit:
            return False
        return family_of(config).model_type == "llava" and not replaces_images(model)

    def encoded(self, model: Any, pixels: torch.Tensor) -> dict[str, BaseModelOutputWithPooling]:
        """Return what stock models take in place of pixels (``mm_encoder_outputs``).

        Parameters
        ----------
        model : PreTrainedModel
        pixels : Tensor [images, 3, S, S]
            On the host, as the image processor made them.
        """
        keys = [_content(picture) for picture in pixels]
        found = {key: self._features[key] for key in keys if key in self._features}
        new = {key: index for index, key in enumerate(keys) if key not in found}
        if new:
            chosen = pixels[list(new.values())].to(model.device, model.dtype)
            out = model.model.get_image_features(pixel_values=chosen, return_dict=True)
            found |= zip(new, out.pooler_output, strict=True)
        for key in keys:
            self._keep(key, found[key])
        features = [found[key].to(model.device) for key in keys]
        return {"image": BaseModelOutputWithPooling(pooler_output=features)}

    def _keep(self, key: bytes, features: torch.Tensor) -> None:
        """Hold features, as the last ones used."""
        if key in self._features:
            self._features.move_to_end(key)
            return
        # A copy: the tensor is a part of its batch's, which would stay.
        own = features.detach().to("cpu", copy=True)
        if own.nbytes > self.limit:
            return
        self._features[key] = own
        self.held += own.nbytes
        while self.held > self.limit:
            self.held -= self._features.popitem(last=False)[1].nbytes


def _content(picture: torch.Tensor) -> bytes:
    return hashlib.blake2b(picture.contiguous().numpy(), digest_size=16).digest()
