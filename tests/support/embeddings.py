"""Embeddings of a prompt as the stock model makes them."""

import torch


def embeddings(model, inputs):
    """Return (embeddings [B, L, D] with image features in place, image mask [B, L] bool)."""
    ids = inputs["input_ids"]
    embeds, is_image = model.get_input_embeddings()(ids), ids == model.config.image_token_id
    if inputs.get("pixel_values") is not None:
        found = model.model.get_image_features(inputs["pixel_values"], return_dict=True)
        features = torch.cat(list(found.pooler_output)).to(embeds)
        embeds = embeds.masked_scatter(is_image[..., None], features)
    return embeds, is_image
