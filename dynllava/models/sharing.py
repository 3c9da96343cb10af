"""Two decoders with the same parameter objects."""

from __future__ import annotations

from torch import nn


def share_decoder(target: nn.Module, stock: nn.Module) -> None:
    """Make ``target`` use the stock decoder's modules, with attention modules of its own.

    Only the attention modules read the configuration that names the attention function, so they
    alone are new; their projections are the stock model's objects.
    """
    for name, module in stock.named_children():
        if name != "layers":
            setattr(target, name, module)
    for own, shared in zip(target.layers, stock.layers, strict=True):
        for name, module in shared.named_children():
            if name != "self_attn":
                setattr(own, name, module)
        for name, module in shared.self_attn.named_children():
            setattr(own.self_attn, name, module)
