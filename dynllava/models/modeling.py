"""Dynamic-LLaVA as a Hugging Face model, and the wrapper for stock LLaVA models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

from dynllava.engine import attention
from dynllava.engine.cache import DEFAULT_CHUNK, SparseCache
from dynllava.engine.compiled import CompiledSteps
from dynllava.engine.decoder import DecoderResult, Pass, PolicyHook, make_view
from dynllava.engine.early import cut_early, cut_features
from dynllava.engine.family import family_of
from dynllava.engine.per_thread import PerThread
from dynllava.engine.program import Program
from dynllava.engine.report import CallReport, detached
from dynllava.engine.stream import TokenStream, restore_columns
from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.methods.base import Method
from dynllava.methods.predictors import (
    ImagePredictor,
    OutputPredictor,
    build_predictors,
    check_predictors,
)
from dynllava.plan import Segment

from .config import DynamicLlavaConfig, SparsityConfig
from .families import check_class_token
from .inputs import (
    build_stream,
    check_call,
    check_continuation,
    check_images,
    embed,
    learned_positions,
    prompt_hash,
)
from .limits import Limited, limited
from .sparse import chosen_scores
from .token_packer import TokenPacker


class DynamicLlavaForConditionalGeneration(Limited, LlavaForConditionalGeneration):
    """LLaVA whose decoder runs under a compression method.

    The method is ``dynamic_llava`` with the checkpoint's parameters unless :meth:`set_method` says
    otherwise.  Positions are computed from ``attention_mask``; a ``position_ids`` argument is
    ignored.
    """

    config_class = DynamicLlavaConfig
    _supports_flash_attn = True
    _supports_sdpa = True

    def __init__(self, config: DynamicLlavaConfig) -> None:
        super().__init__(config)
        if config.token_packer:
            self.model.multi_modal_projector = TokenPacker(
                config.vision_config.hidden_size,
                config.text_config.hidden_size,
                **config.token_packer,
            )
        self.image_predictor: ImagePredictor | None = None
        self.output_predictor: OutputPredictor | None = None
        self._build_predictors(config.sparsity())
        self._reports = PerThread()
        self.kv_chunk = DEFAULT_CHUNK
        self.compiled_steps: CompiledSteps | None = None
        self._stock: tuple[nn.Module, ...] = ()
        self._take_over_attention()
        self.set_method(default_method(config))
        self.post_init()

    def _build_predictors(self, sparsity: SparsityConfig) -> None:
        for name, predictor in build_predictors(sparsity, self.config.text_config).items():
            setattr(self, f"{name}_predictor", predictor)

    def add_predictors(self, sparsity: SparsityConfig) -> None:
        """Give a model without predictors fresh, untrained ones."""
        self.config.sparse_config = sparsity.to_dict()
        self._build_predictors(sparsity)
        for predictor in (self.image_predictor, self.output_predictor):
            if predictor is not None:
                predictor.to(self.lm_head.weight.device, self.lm_head.weight.dtype)

    def _take_over_attention(self) -> None:
        """Route the decoder layers' attention through ours; remember the kernel asked for."""
        attention.register()
        text_config = self.model.language_model.config
        chosen = text_config._attn_implementation
        if chosen != attention.NAME:
            self.kernel = attention.check_kernel(chosen)
        text_config._attn_implementation = attention.NAME
        refuse_sliding_windows(text_config)

    def set_attn_implementation(self, attn_implementation: Any, **kwargs: Any) -> None:
        """Choose the kernel: sdpa, eager or flash_attention_2."""
        super().set_attn_implementation(attn_implementation, **kwargs)
        self._take_over_attention()
        if self.compiled_steps is not None:
            refuse_compiling(self.kernel)

    # ------------------------------------------------------------------ method

    def set_method(self, method: str | Method, **parameters: Any) -> None:
        """Switch the compression method in place.

        Parameters
        ----------
        method : str or Method
            A registered name with its parameters, or a method.

        Raises
        ------
        UserError
            If a parameter does not fit this model or checkpoint.
        """
        chosen = create(method, **parameters) if isinstance(method, str) else method
        plan = chosen.plan(self.config.text_config.num_hidden_layers)
        check_predictors(plan, self.config.sparsity())
        check_class_token(self.config, chosen, plan)
        plan.check_model(self.config.text_config.num_attention_heads, self.config.image_seq_length)
        self.method = chosen

    @property
    def last_report(self) -> CallReport | None:
        """What this thread's latest ``generate()`` or ``forward()`` did."""
        return self._reports.get()

    @last_report.setter
    def last_report(self, report: CallReport | None) -> None:
        self._reports.set(report)

    @property
    def method(self) -> Method:
        """The compression method."""
        return self.program.method

    @method.setter
    def method(self, method: Method) -> None:
        self.program = Program(method, self.config.text_config.num_hidden_layers)

    def set_compile(self, enabled: bool = True, backend: str = "inductor") -> None:
        """Compile decode steps with ``torch.compile``, or stop doing so.

        The first steps of a method, a batch size and a cache size take seconds to minutes; it pays
        for long or many generations.  FastV's re-ranking decoder keeps its ordinary steps.

        Parameters
        ----------
        enabled : bool
            Whether steps are compiled.
        backend : str
            Backend of ``torch.compile``.

        Raises
        ------
        UserError
            If the attention kernel is FlashAttention's.
        """
        if enabled:
            refuse_compiling(self.kernel)
        self.compiled_steps = CompiledSteps(backend) if enabled else None

    def unwrap(self) -> LlavaForConditionalGeneration:
        """Return the stock model that was wrapped; it was never changed."""
        if not self._stock:
            raise UserError("this model was loaded, not wrapped: there is no stock model to return")
        return self._stock[0]

    def new_cache(self) -> SparseCache:
        """Return an empty cache for one batch."""
        return SparseCache(self.kv_chunk)

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: SparseCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        use_cache: bool | None = None,
        image_mask: torch.Tensor | None = None,
        learned_mask: torch.Tensor | None = None,
        prompt_length: torch.Tensor | None = None,
        sample_ids: torch.Tensor | None = None,
        outputs_fed: bool | None = None,
        policy_hook: PolicyHook | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:
        """Run the model under its method.

        Parameters
        ----------
        input_ids : Tensor [B, L] int64
            Tokens with ``config.image_token_index`` at image positions.
        pixel_values : Tensor [images, 3, S, S]
            One image for each row that has image positions.
        attention_mask : Tensor [B, L or more], optional
            0 = padding, on any side.
        past_key_values : SparseCache, optional
            Continued if not empty: one token a row is an output token, several are a new turn
            and are all stored.
        inputs_embeds : Tensor [B, L, D], optional
            Instead of ``input_ids``; then ``image_mask`` [B, L] bool marks image positions, and
            ``learned_mask`` [B, L] bool the learned tokens that stand for an image.
        labels : Tensor [B, L] int64, optional
            -100 = no loss.
        logits_to_keep : int
            0 = all columns of the caller's layout (zero logits where a token was dropped or
            padded), 1 = each row's last token.
        prompt_length : Tensor [B] int64, optional
            Prompt tokens per row, padding not counted; later tokens are output tokens (no-cache
            decoding).  Default: everything is prompt.
        sample_ids : Tensor [B] int64, optional
            Stable identity of each row; default: a hash of the prompt.
        outputs_fed : bool, optional
            Several tokens fed on a cache are output tokens and judged (scoring a continuation).
        policy_hook : PolicyHook, optional
            Training: masked softmax instead of dropping.

        Returns
        -------
        LlavaCausalLMOutputWithPast
            ``logits`` [B, L, V] or [B, 1, V].
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("pass exactly one of input_ids and inputs_embeds")
        first = input_ids if input_ids is not None else inputs_embeds
        if first.shape[0] == 0 or first.shape[1] == 0:
            raise UserError(f"an empty batch of shape {tuple(first.shape)}: at least one token")
        cache = self._cache_for(past_key_values, use_cache, labels)
        continuing = cache is not None and not cache.is_empty
        check_call(
            first, self.get_input_embeddings().num_embeddings, attention_mask, cache,
            labels=labels, image_mask=image_mask, learned_mask=learned_mask,
            prompt_length=prompt_length, sample_ids=sample_ids,
        )  # fmt: skip
        cuts_features = self.program.features is not None and policy_hook is None
        embeds, is_image, present = embed(
            self, input_ids, inputs_embeds, pixel_values, image_mask, placed_later=cuts_features
        )
        if continuing and pixel_values is not None:
            raise UserError("a second image on an existing cache is not supported: start anew")
        batch, columns = embeds.shape[:2]
        if attention_mask is None:
            valid = torch.ones(batch, columns, dtype=torch.bool, device=embeds.device)
        else:
            valid = attention_mask[:, -columns:].bool().to(embeds.device)
        if present is not None:
            valid = valid & present
        if input_ids is not None and columns > 1:
            token = self.program.plan.learned_token
            learned_mask = learned_positions(self, input_ids, token)
        stream = build_stream(
            embeds, valid, is_image, prompt_length, cache, outputs_fed, learned_mask
        )
        if sample_ids is None:
            is_prompt = (stream.segment != Segment.OUTPUT) & stream.valid()
            sample_ids = (
                cache.sample_ids if continuing else prompt_hash(input_ids, stream, is_prompt)
            )
        seen = stream.length
        early: dict[str, Any] = {}
        if not continuing and policy_hook is None and self.program.cuts_early:
            stream, seen = self._cut_early(stream, is_image, pixel_values, early)
        result, record = self._run(stream, cache, sample_ids, policy_hook)
        record.update(early)
        if cache is not None:
            cache.commit(result, stream, sample_ids, columns, seen)
        self._report(result, record, cache, continuing)

        hidden = self._select_hidden(result.stream, columns, logits_to_keep)
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.text_config.vocab_size,
                **kwargs,
            )
        return LlavaCausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _cut_early(
        self,
        stream: TokenStream,
        is_image: torch.Tensor,
        pixels: torch.Tensor | None,
        record: dict[str, Any],
    ) -> tuple[TokenStream, torch.Tensor]:
        """Return the stream behind the cuts before layer 0, and the next token's position."""
        rows, counts = None, is_image.sum(1).tolist()
        tokens = sum(counts) // max(1, 0 if pixels is None else len(pixels))
        if self.program.features is not None and any(counts):
            if pixels is None:
                raise UserError(f"{self.method.name} looks at images: pass pixel_values")
            vision = self.config.vision_config
            tokens = (vision.image_size // vision.patch_size) ** 2
            tokens += self.config.vision_feature_select_strategy == "full"
            check_images(is_image, len(pixels), tokens)
            rows = cut_features(self.program, family_of(self.model, self.config), pixels, record)
        if pixels is None:
            images = [[count] if count else [] for count in counts]
        else:
            images = [[tokens] * (count // tokens) if count else [] for count in counts]
        return cut_early(self.program, stream, images, rows, record)

    def _cache_for(
        self, cache: SparseCache | None, use_cache: bool | None, labels: torch.Tensor | None
    ) -> SparseCache | None:
        if cache is not None:
            if not isinstance(cache, SparseCache):
                raise UserError(
                    f"past_key_values is a {type(cache).__name__}: accepted is a SparseCache"
                )
            return cache
        if use_cache is None:
            use_cache = not self.training and labels is None and self.program.plan.uses_cache
        return self.new_cache() if use_cache else None

    def _run(
        self,
        stream: TokenStream,
        cache: SparseCache | None,
        sample_ids: torch.Tensor,
        policy_hook: PolicyHook | None,
    ) -> tuple[DecoderResult, dict[str, Any]]:
        continuing = cache is not None and not cache.is_empty
        view = make_view(
            stream,
            self.config.text_config.num_hidden_layers,
            sample_ids,
            cache,
            decoding=continuing,
            predictors={"image": self.image_predictor, "output": self.output_predictor},
        )
        step = self.compiled_steps.of(self.program) if self.compiled_steps is not None else None
        run = Pass(self.model.language_model, self.program, view, cache, self.kernel, step)
        if not continuing:
            return run.prompt(policy_hook), view.record
        return (run.step() if stream.size == 1 else run.extend()), view.record

    def _report(
        self,
        result: DecoderResult,
        record: dict[str, Any],
        cache: SparseCache | None,
        continuing: bool,
    ) -> None:
        if not continuing or self.last_report is None or self.last_report.cache is not cache:
            self.last_report = CallReport.of_prompt(result, record, cache)
        else:
            self.last_report.record = detached(record)
        if cache is not None:
            self.last_report.decisions = cache.decisions
            self.last_report.kv_bytes_allocated = cache.allocated_bytes()

    def _select_hidden(
        self, stream: TokenStream, columns: int, logits_to_keep: int | torch.Tensor
    ) -> torch.Tensor:
        if isinstance(logits_to_keep, int) and logits_to_keep == 1:
            if stream.size == 1:
                return stream.hidden
            last = (stream.length - 1).clamp(min=0).to(stream.hidden.device)
            index = last[:, None, None].expand(-1, 1, stream.hidden.shape[-1])
            return stream.hidden.gather(1, index)
        hidden = restore_columns(stream.hidden, stream, columns)
        if isinstance(logits_to_keep, int):
            return hidden if logits_to_keep == 0 else hidden[:, -logits_to_keep:]
        return hidden[:, logits_to_keep]

    # ------------------------------------------------------------------ generation

    @limited
    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Generate as :meth:`transformers.GenerationMixin.generate` does.

        The number of prompt tokens is passed on explicitly, so that without a cache the selection
        stays that of the prompt.
        """
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        embeds = kwargs.get("inputs_embeds")
        first = ids if ids is not None else embeds
        if first is not None and "prompt_length" not in kwargs:
            mask = kwargs.get("attention_mask")
            mask = torch.ones(first.shape[:2], device=first.device) if mask is None else mask
            kwargs["prompt_length"] = mask.long().sum(1)
        if not self.program.plan.uses_cache:
            if embeds is not None:
                # transformers always generates from embeddings with a cache.
                raise UserError(
                    f"{self.method.name} runs without a cache here: inputs_embeds cannot be "
                    "generated from, accepted are input_ids"
                )
            kwargs["use_cache"] = False
        return super().generate(inputs, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of one of ``generate``'s calls."""
        prepared = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration:
            # The prompt's: what is generated is text.
            prepared.pop("image_mask", None)
        return prepared

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Give ``generate`` a sparse cache."""
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache:
            model_kwargs["past_key_values"] = self.new_cache()
            return
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )

    @limited
    @torch.no_grad()
    def score(
        self,
        input_ids: torch.Tensor,
        continuation_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        continuation_mask: torch.Tensor | None = None,
        sample_ids: torch.Tensor | None = None,
        return_logits: bool = False,
    ) -> torch.Tensor:
        """Return the log-probabilities of a continuation, decode-time sparsification active.

        The prompt is run first and alone, so that choosing image tokens never sees the answer.

        Parameters
        ----------
        input_ids : Tensor [B, L] int64
            Prompts.
        continuation_ids : Tensor [B, T] int64
            Continuations, right-padded.
        pixel_values, attention_mask
            As in :meth:`forward`, for the prompts.
        continuation_mask : Tensor [B, T], optional
            0 = padding.
        return_logits : bool
            Return the logits [B, T, V] that predict the continuation instead.

        Returns
        -------
        Tensor [B, T] float32
            Log-probability of each continuation token; 0 where padded.
        """
        mask = torch.ones_like(continuation_ids) if continuation_mask is None else continuation_mask
        check_continuation(input_ids, continuation_ids, mask)
        if not self.program.plan.uses_cache:
            stacked = self._logits_without_cache(
                input_ids, continuation_ids, pixel_values, attention_mask, sample_ids
            )
            return stacked if return_logits else chosen_scores(stacked, continuation_ids, mask)
        cache = self.new_cache()
        first = self(
            input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            past_key_values=cache,
            logits_to_keep=1,
            sample_ids=sample_ids,
        ).logits
        logits = [first]
        fed, fed_mask = continuation_ids[:, :-1], mask[:, :-1]
        if fed.shape[1] and self.program.plan.stepwise:
            for column in range(fed.shape[1]):
                logits.append(
                    self(
                        fed[:, column : column + 1], past_key_values=cache, logits_to_keep=1
                    ).logits
                )
        elif fed.shape[1]:
            logits.append(
                self(fed, attention_mask=fed_mask, past_key_values=cache, outputs_fed=True).logits
            )
        stacked = torch.cat(logits, 1)
        return stacked if return_logits else chosen_scores(stacked, continuation_ids, mask)

    def _logits_without_cache(
        self,
        input_ids: torch.Tensor,
        continuation_ids: torch.Tensor,
        pixel_values: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        sample_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the logits [B, T, V] that predict the continuation, one whole pass a token."""
        prompt_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = []
        for fed in range(continuation_ids.shape[1]):
            fed_ids = continuation_ids[:, :fed]
            out = self(
                torch.cat([input_ids, fed_ids], 1),
                pixel_values=pixel_values,
                attention_mask=torch.cat([prompt_mask, torch.ones_like(fed_ids)], 1),
                prompt_length=prompt_mask.long().sum(1),
                sample_ids=sample_ids,
                use_cache=False,
                logits_to_keep=1,
            )
            logits.append(out.logits)
        return torch.cat(logits, 1)


def default_method(config: DynamicLlavaConfig) -> Method:
    """Return ``dynamic_llava`` with the parameters a checkpoint was trained for."""
    sparsity = config.sparsity()
    return create(
        "dynamic_llava",
        sparse_layer=sparsity.sparse_layer,
        vision_keep_rate=sparsity.vision_keep_rate if sparsity.use_vision_predictor else 1.0,
        output_keep_rate=(
            sparsity.output_text_keep_rate if sparsity.use_output_text_predictor else 1.0
        ),
        output_threshold=sparsity.output_threshold,
    )


def refuse_compiling(kernel: str) -> None:
    """Refuse to compile around a kernel that the compiler cannot see into."""
    if kernel == "flash_attention_2":
        raise UserError("compile=True with flash_attention_2: accepted are sdpa and eager")


def refuse_sliding_windows(text_config: Any) -> None:
    """Refuse text models with layers that see a window only: dropped tokens would shift it."""
    kinds = getattr(text_config, "layer_types", None) or []
    if "sliding_attention" in kinds or (
        not kinds and getattr(text_config, "sliding_window", None) is not None
    ):
        raise UserError("text models with sliding-window attention are not supported")


AutoConfig.register(DynamicLlavaConfig.model_type, DynamicLlavaConfig, exist_ok=True)
AutoModelForImageTextToText.register(
    DynamicLlavaConfig, DynamicLlavaForConditionalGeneration, exist_ok=True
)
