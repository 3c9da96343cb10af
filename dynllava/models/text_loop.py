"""The layer loop in the text model's place, for any family."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from dynllava.engine.cache import SparseCache
from dynllava.engine.decoder import DecoderResult, Pass, first_images, make_view
from dynllava.engine.early import cut_early
from dynllava.engine.report import CallReport, detached
from dynllava.engine.stream import Segment, TokenStream, restore_columns
from dynllava.errors import UserError

from .calls import ModelCall, current
from .inputs import build_stream, prompt_hash
from .mixin import Stock


class SparseTextModel(Stock):
    """Mixin in front of a stock text model's class: its ``forward`` is the shared layer loop.

    It takes what every family's outer model passes on (embeddings, mask, positions, cache, and
    Qwen3-VL's deep features) and gives back hidden states in the caller's columns, zero where a
    token was dropped.
    """

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: SparseCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        visual_pos_masks: torch.Tensor | None = None,
        deepstack_visual_embeds: list[torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the layers under the wrapped model's method.

        Parameters
        ----------
        attention_mask : Tensor [B, columns or more], optional
            0 = padding.
        position_ids : Tensor [B, L] or [axes, B, L], optional
            Rotary positions of a prompt; on a cache they follow from what it has seen.
        past_key_values : SparseCache, optional
        inputs_embeds : Tensor [B, L, D]
        visual_pos_masks, deepstack_visual_embeds
            Features [image tokens, D] that are added behind the first layers (Qwen3-VL).
        """
        call = current()
        if call is None:
            raise UserError("the text model of a wrapped model is called through the outer model")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name):
                raise UserError(f"{name}=True: rows are dropped on the way, so it is not available")
        call.ran = True
        cache = call.model.cache_for(past_key_values, use_cache)
        stream = self._stream(call, inputs_embeds, attention_mask, position_ids, cache)
        columns = inputs_embeds.shape[1]
        continuing = cache is not None and not cache.is_empty
        sample_ids = call.sample_ids
        if sample_ids is None and continuing:
            sample_ids = cache.sample_ids
        elif sample_ids is None:
            is_prompt = (stream.segment != Segment.OUTPUT) & stream.valid()
            sample_ids = prompt_hash(call.input_ids, stream, is_prompt)
        early: dict[str, Any] = {}
        whole, seen = stream, stream.length
        if not continuing and call.early:
            stream, seen = cut_early(call.model.program, stream, call.images(), call.rows, early)
        view = make_view(
            stream,
            len(self.layers),
            sample_ids,
            cache,
            decoding=continuing,
            predictors=call.model.predictors(),
        )
        view.grids = call.grids
        model = call.model
        steps = model.compiled_steps
        compiled = steps.of(model.program) if steps else None
        decide = steps.decide if steps else None
        deep = deepstack_visual_embeds or ()
        first = first_images(whole) if deep else None
        run = Pass(self, model.program, view, cache, model.kernel, compiled, deep, first, decide)
        if not continuing:
            result = run.prompt(call.policy_hook)
        else:
            result = run.step() if stream.size == 1 else run.extend()
        if cache is not None:
            # Rotary positions go on behind the whole prompt's.
            cache.commit(result, whole, sample_ids, columns, seen)
        self._report(call, result, view.record | early, cache, continuing)
        hidden = self._columns(call, result.stream, columns)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)

    def _stream(
        self,
        call: ModelCall,
        embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: SparseCache | None,
    ) -> TokenStream:
        batch, columns = embeds.shape[:2]
        if attention_mask is None:
            valid = torch.ones(batch, columns, dtype=torch.bool, device=embeds.device)
        elif attention_mask.ndim != 2:
            raise UserError(
                f"attention_mask of shape {tuple(attention_mask.shape)}: "
                "accepted is [rows, columns]"
            )
        else:
            valid = attention_mask[:, -columns:].bool().to(embeds.device)
        if call.present is not None:
            valid = valid & call.present.to(valid.device)
        return build_stream(
            embeds,
            valid,
            call.is_image,
            call.prompt_length,
            cache,
            call.outputs_fed,
            is_learned=call.learned,
            position_ids=position_ids,
            axes=call.model.rotary_axes,
        )

    def _report(
        self,
        call: ModelCall,
        result: DecoderResult,
        record: dict[str, Any],
        cache: SparseCache | None,
        continuing: bool,
    ) -> None:
        report = call.model.last_report
        if not continuing or report is None or report.cache is not cache:
            report = call.model.last_report = CallReport.of_prompt(result, record, cache)
        else:
            report.record = detached(record)
        if cache is not None:
            report.decisions = cache.decisions
            report.kv_bytes_allocated = cache.allocated_bytes()

    def _columns(self, call: ModelCall, stream: TokenStream, columns: int) -> torch.Tensor:
        if not call.last_only:
            if call.sparse_logits and stream.size < columns:
                call.left = stream
                return stream.hidden
            return restore_columns(stream.hidden, stream, columns)
        if stream.size == 1:
            return stream.hidden
        last = (stream.length - 1).clamp(min=0).to(stream.hidden.device)
        index = last[:, None, None].expand(-1, 1, stream.hidden.shape[-1])
        return stream.hidden.gather(1, index)


@lru_cache
def sparse_text_class(stock: Any) -> type:
    """Return the class of a text model that runs under a method; it has the stock class's name."""
    return type(stock.__name__, (SparseTextModel, stock), {"__module__": __name__})
