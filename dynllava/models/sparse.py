"""What every model under a method can do: switch it, generate, score, say what a call did."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from dynllava.engine import attention
from dynllava.engine.cache import DEFAULT_CHUNK, SparseCache
from dynllava.engine.compiled import CompiledSteps, refuse_compiling
from dynllava.engine.per_thread import PerThread
from dynllava.engine.program import Program
from dynllava.engine.report import CallReport
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
from dynllava.plan import Predictor

from .calls import ModelCall, PromptImages, calling, prompt_images, remembering
from .config import SparsityConfig
from .early_images import IMAGE_ARGUMENTS, encoded, put_in, replaces_images
from .families import check_method, family_of, image_token, rotary_axes
from .inputs import check_call, check_continuation, learned_positions
from .layout import check_llava_images, image_map
from .limits import Limited, limited
from .mixin import Stock
from .scoring import chosen_scores, logits_on_cache, logits_without_cache

OWN_ARGUMENTS = (
    "prompt_length",
    "sample_ids",
    "outputs_fed",
    "policy_hook",
    "image_mask",
    "learned_mask",
    "questions",
)
WITHOUT_PREDICTORS = SparsityConfig(use_vision_predictor=False, use_output_text_predictor=False)
REFUSED_IN_GENERATE = {
    "assistant_model": "assisted decoding rolls the cache back",
    "prompt_lookup_num_tokens": "prompt lookup rolls the cache back",
    "prefill_chunk_size": "a method chooses from the whole prompt",
    "cache_implementation": "a method brings its own cache",
}


class SparseGeneration(Limited, Stock):
    """Mixin in front of a stock image-text-to-text class."""

    _stock: tuple[nn.Module, ...] = ()

    def _set_up(self) -> None:
        self.kv_chunk = DEFAULT_CHUNK
        self._reports = PerThread()
        self.compiled_steps: CompiledSteps | None = None
        self.rotary_axes = rotary_axes(self.config.text_config)
        self.image_predictor: ImagePredictor | None = None
        self.output_predictor: OutputPredictor | None = None
        self._take_over_attention()

    def _take_over_attention(self) -> None:
        """Route the decoder layers' attention through ours; remember the kernel asked for."""
        attention.register()
        own = getattr(self.model, family_of(self.config).text).config
        if own._attn_implementation != attention.NAME:
            self.kernel = attention.check_kernel(own._attn_implementation)
        own._attn_implementation = attention.NAME

    def set_attn_implementation(self, attn_implementation: Any, **kwargs: Any) -> None:
        """Choose the kernel: sdpa, eager or flash_attention_2."""
        super().set_attn_implementation(attn_implementation, **kwargs)
        self._take_over_attention()
        if self.compiled_steps is not None:
            refuse_compiling(self.kernel)

    @property
    def sparsity(self) -> SparsityConfig:
        """What the model's predictors were made for."""
        stored = getattr(self.config, "sparse_config", None)
        return WITHOUT_PREDICTORS if stored is None else SparsityConfig.from_dict(stored)

    def add_predictors(self, sparsity: SparsityConfig) -> None:
        """Give a model without predictors fresh, untrained ones."""
        self.config.sparse_config = sparsity.to_dict()
        self._build_predictors(sparsity)

    def _build_predictors(self, sparsity: SparsityConfig) -> None:
        weight = self.get_output_embeddings().weight
        for name, predictor in build_predictors(sparsity, self.config.text_config).items():
            setattr(self, f"{name}_predictor", predictor.to(weight.device, weight.dtype))

    def set_method(self, method: str | Method, **parameters: Any) -> None:
        """Switch the compression method in place.

        Parameters
        ----------
        method : str or Method
            A registered name with its parameters, or a method.

        Raises
        ------
        UserError
            If a parameter does not fit this model.
        """
        text = self.config.text_config
        chosen = create(method, **parameters) if isinstance(method, str) else method
        program = Program(chosen, text.num_hidden_layers)
        check_method(self.config, chosen, program.plan)
        check_predictors(program.plan, self.sparsity)
        for look in program.plan.looks:
            if isinstance(look, Predictor) and self.predictors().get(look.name) is None:
                raise UserError(
                    f"{chosen.name}: the model has no {look.name} predictor: accepted are methods "
                    "that need none, or add_predictors() and training"
                )
        program.plan.check_model(text.num_attention_heads, self._most_image_tokens())
        self.program = program

    @property
    def method(self) -> Method:
        """The compression method."""
        return self.program.method

    def _most_image_tokens(self) -> int:
        """Return the image tokens that a row can have: LLaVA-1.5's one picture, else any number."""
        llava = family_of(self.config).model_type == "llava"
        one = self.config.image_seq_length if llava else None
        return one or self.config.text_config.max_position_embeddings

    @property
    def last_report(self) -> CallReport | None:
        """What this thread's latest ``generate()`` or ``forward()`` did."""
        return self._reports.get()

    @last_report.setter
    def last_report(self, report: CallReport | None) -> None:
        self._reports.set(report)

    def predictors(self) -> dict[str, nn.Module | None]:
        """Return the learned predictors by name, None where there is none."""
        return {"image": self.image_predictor, "output": self.output_predictor}

    def unwrap(self) -> nn.Module:
        """Return the stock model that was wrapped; it was never changed."""
        if not self._stock:
            raise UserError("this model was loaded, not wrapped: there is no stock model to return")
        return self._stock[0]

    def new_cache(self) -> SparseCache:
        """Return an empty cache for one batch."""
        steps = self.compiled_steps
        return SparseCache(self.kv_chunk, None if steps is None else steps.buffers)

    def cache_for(self, cache: Any, use_cache: bool | None) -> SparseCache | None:
        """Return the cache of a call: the given one, a new one, or none."""
        if cache is not None:
            if not isinstance(cache, SparseCache):
                raise UserError(
                    f"past_key_values is a {type(cache).__name__}: accepted is a SparseCache"
                )
            return cache
        if use_cache is None:
            use_cache = not self.training and self.program.plan.uses_cache
        return self.new_cache() if use_cache else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stock outer model over the shared layer loop.

        Takes what the stock class takes, and:

        Parameters
        ----------
        past_key_values : SparseCache, optional
            Continued if not empty: one token a row is an output token, several are a new turn
            and are all stored.
        inputs_embeds : Tensor [B, L, D], optional
            Instead of ``input_ids``; then ``image_mask`` [B, L] bool marks image positions, and
            ``learned_mask`` [B, L] bool the learned tokens that stand for an image.
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
        questions : sequence of str, optional
            What each row asks, for methods that choose from an image by its question.
        policy_hook : PolicyHook, optional
            Training: masked softmax instead of dropping.

        Returns
        -------
        ModelOutput
            The stock class's; ``logits`` [B, L, V] or [B, 1, V].
        """
        if torch.compiler.is_compiling():
            raise UserError("torch.compile(model): accepted is model.set_compile()")
        own = {name: kwargs.pop(name) for name in OWN_ARGUMENTS if name in kwargs}
        given = _by_name(type(self), args, kwargs)
        image_mask, learned = own.pop("image_mask", None), own.pop("learned_mask", None)
        use_cache = False if given.get("labels") is not None else given.get("use_cache")
        # Some outer models would make a stock cache of their own.
        cache = self.cache_for(given.get("past_key_values"), use_cache)
        given |= {"past_key_values": cache, "use_cache": cache is not None}
        ids = given.get("input_ids")
        first = ids if ids is not None else given.get("inputs_embeds")
        if first is None or (ids is not None and given.get("inputs_embeds") is not None):
            raise UserError("pass exactly one of input_ids and inputs_embeds")
        if first.shape[0] == 0 or first.shape[1] == 0:
            raise UserError(f"an empty batch of shape {tuple(first.shape)}: at least one token")
        continuing = cache is not None and not cache.is_empty
        # Of a decode step everything is known: it is an output token, and no time may be lost.
        step = continuing and first.shape[1] == 1 and own.get("outputs_fed") is not False
        vocabulary = None if step else self.get_input_embeddings().num_embeddings
        check_call(
            first, vocabulary, given.get("attention_mask"), cache,
            labels=given.get("labels"), image_mask=image_mask, learned_mask=learned,
            prompt_length=own.get("prompt_length"), sample_ids=own.get("sample_ids"),
        )  # fmt: skip
        if ids is not None and ids.shape[1] > 1:
            learned = learned_positions(self, ids, self.program.plan.learned_token)
        if image_mask is None and ids is not None and not step:
            image_mask = ids == image_token(self.config)
        keep = given.get("logits_to_keep", 0)
        call = ModelCall(self, ids, image_mask, learned=learned, **own)
        if isinstance(keep, int):
            call.last_only = keep == 1
            call.sparse_logits = keep == 0 and given.get("labels") is None
        if cache is not None and continuing:
            if _images_given(given):
                raise UserError("an image on an existing cache is not supported: start anew")
            if self.rotary_axes > 1:
                given["position_ids"] = cache.next_positions(first.shape[1], first.device)
        else:
            self._enter(call, given)
        with calling(call):
            out = super().forward(**given)
        if not call.ran:
            raise RuntimeError("the stock model ran without dynllava's layer loop")
        return out if call.left is None else _in_columns(out, call.left, first.shape[1])

    def _enter(self, call: ModelCall, given: dict[str, Any]) -> None:
        """Take note of a prompt's images; ``given`` is what the stock class is called with."""
        if hasattr(self.model, "rope_deltas"):
            # What an earlier batch left here must not reach this one.
            self.model.rope_deltas = None
        if given.get("pixel_values_videos") is not None:
            raise UserError("videos are not supported: accepted are images")
        # Training masks instead of dropping, so it takes the whole images.
        chooses = call.policy_hook is None and replaces_images(self)
        call.early = call.policy_hook is None and any(cut.early for cut in self.program.plan.cuts)
        marks, known = call.is_image, prompt_images()
        sent = known is not None and (known.rows is not None or given.get("mm_encoder_outputs"))
        if known is not None and sent and marks is not None:
            images = known.of(marks)
        elif not _images_given(given):
            if marks is not None and bool(marks.any()):
                if chooses:
                    raise UserError(f"{self.method.name} looks at images: pass pixel_values")
                if call.input_ids is not None:
                    raise UserError("the prompt has an image placeholder but no image was given")
            return
        elif marks is None:
            raise UserError("inputs_embeds with an image: image_mask must mark the image tokens")
        else:
            self._check_images(call, given, marks)
            images = image_map(self.config, given, marks)
        call.is_image, call.pictures = images.is_patch, images.pictures
        if chooses and marks is not None:
            if images.rows is None:
                images = encoded(self, given, images, call.questions)
            put_in(self, call, given, images, marks)
        elif not call.early:
            call.grids = images.grids

    def _check_images(self, call: ModelCall, given: dict[str, Any], is_image: torch.Tensor) -> None:
        """Refuse images whose positions cannot be found."""
        pixels = given.get("pixel_values")
        if pixels is not None and family_of(self.config).model_type == "llava":
            check_llava_images(self.config, is_image, len(pixels))
        if given.get("image_grid_thw") is not None and call.input_ids is not None:
            positions = given.get("mm_token_type_ids"), given.get("position_ids")
            if all(item is None for item in positions):
                raise UserError(
                    "mm_token_type_ids is missing: pass all that the processor returns "
                    "(positions of image tokens cannot be found without it)"
                )

    def set_compile(
        self,
        enabled: bool = True,
        backend: str = "inductor",
        capacity: int | None = None,
        selection: bool = False,
    ) -> None:
        """Compile decode steps with ``torch.compile``, or stop doing so.

        The first steps of a method, a batch size and a cache size take seconds to minutes; it pays
        for long or many generations.  FastV's re-ranking decoder keeps its ordinary steps.

        Parameters
        ----------
        enabled : bool
            Whether steps are compiled.
        backend : str
            Backend of ``torch.compile``.
        capacity : int or None
            Tokens of a row, prompt and output, for which K and V lie in buffers that batches of
            one shape use one after the other, at fixed addresses; the memory stays taken.  A step
            is then compiled for one size.  None: each batch has room of its own, which grows.
        selection : bool
            Whether what a prompt's layers choose from their input is compiled too: scores, ranks
            and masks, not the choice before layer 0.

        Raises
        ------
        UserError
            If the attention kernel is FlashAttention's, or the capacity is no number from 2.
        """
        if enabled:
            refuse_compiling(self.kernel)
        if capacity is not None and (isinstance(capacity, bool) or capacity < 2):
            raise UserError(f"capacity={capacity!r}: accepted is a number of tokens from 2")
        self.compiled_steps = CompiledSteps(backend, capacity, selection) if enabled else None

    @limited
    @torch.no_grad()
    def score(
        self,
        input_ids: torch.Tensor,
        continuation_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        continuation_mask: torch.Tensor | None = None,
        sample_ids: torch.Tensor | None = None,
        return_logits: bool = False,
        **images: Any,
    ) -> torch.Tensor:
        """Return the log-probabilities of a continuation, decode-time sparsification active.

        The prompt is run first and alone, so that choosing image tokens never sees the answer.

        Parameters
        ----------
        input_ids : Tensor [B, L] int64
            Prompts.
        continuation_ids : Tensor [B, T] int64
            Continuations, right-padded.
        attention_mask : Tensor [B, L], optional
            Of the prompts.
        continuation_mask : Tensor [B, T], optional
            0 = padding.
        return_logits : bool
            Return the logits [B, T, V] that predict the continuation instead.
        **images
            What the family's processor gives beside the ids (``pixel_values`` and so on), and
            ``questions`` as in :meth:`forward`.

        Returns
        -------
        Tensor [B, T] float32
            Log-probability (natural logarithm) of each continuation token; 0 where padded.
        """
        mask = torch.ones_like(continuation_ids) if continuation_mask is None else continuation_mask
        check_continuation(input_ids, continuation_ids, mask)
        prompt_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompt = {"attention_mask": prompt_mask, "sample_ids": sample_ids, **images}
        if not self.program.plan.uses_cache:
            with remembering(self._take_images(input_ids, prompt)):
                logits = logits_without_cache(self, input_ids, continuation_ids, prompt)
        else:
            cache = self.new_cache()
            first = self(input_ids, past_key_values=cache, logits_to_keep=1, **prompt).logits
            logits = torch.cat(
                [first, *logits_on_cache(self, continuation_ids[:, :-1], mask, cache)], 1
            )
        return logits if return_logits else chosen_scores(logits, continuation_ids, mask)

    @limited
    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Generate as :meth:`transformers.GenerationMixin.generate` does.

        With ``inputs_embeds`` [B, L, D], ``image_mask`` [B, L] bool marks the image tokens; each
        unbroken run of them is an image.

        Raises
        ------
        UserError
            For modes that no method can keep its promises in (assisted decoding and others).
        """
        config = kwargs.get("generation_config")
        for name, reason in REFUSED_IN_GENERATE.items():
            if kwargs.get(name) is not None or getattr(config, name, None) is not None:
                raise UserError(f"generate({name}=...): not available, {reason}")
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        first = ids if ids is not None else kwargs.get("inputs_embeds")
        if first is not None and "prompt_length" not in kwargs:
            mask = kwargs.get("attention_mask")
            mask = torch.ones(first.shape[:2], device=first.device) if mask is None else mask
            kwargs["prompt_length"] = mask.long().sum(1)
        if not self.program.plan.uses_cache:
            if ids is None:
                # transformers always generates from embeddings with a cache.
                raise UserError(
                    f"{self.method.name} runs without a cache here: inputs_embeds cannot be "
                    "generated from, accepted are input_ids"
                )
            kwargs["use_cache"] = False
        with remembering(self._take_images(ids, kwargs)):
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
            # They mark the prompt: what is generated is text.
            for name in ("image_mask", "learned_mask"):
                prepared.pop(name, None)
        return prepared

    @torch.no_grad()
    def _take_images(self, ids: torch.Tensor | None, given: dict[str, Any]) -> PromptImages | None:
        """Return where the images of a prompt lie, None if there are none.

        Where the method puts its own rows in their place, those are made now, once, and the images
        leave ``given``.
        """
        questions = given.pop("questions", None)
        if ids is None or not _is_given(given.get("pixel_values")):
            return None
        # generate() encodes the images once and keeps neither them nor their sizes.
        images = image_map(self.config, given, ids == image_token(self.config))
        if replaces_images(self):
            images = encoded(self, given, images, questions)
            for name in IMAGE_ARGUMENTS:
                given.pop(name, None)
        return images

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


def _images_given(given: dict[str, Any]) -> bool:
    names = ("pixel_values", "pixel_values_videos", "mm_encoder_outputs")
    # generate() passes an empty dictionary of encoder outputs for prompts without images.
    return any(_is_given(given.get(name)) for name in names)


def _is_given(value: Any) -> bool:
    return value is not None and not (isinstance(value, dict) and not value)


def forward_of(stock: Any) -> Any:
    """Return ``forward`` of a class in front of ``stock``: its arguments and ours.

    ``generate`` looks at the signature for what it may pass on.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return SparseGeneration.forward(self, *args, **kwargs)

    signature = inspect.signature(stock.forward)
    *named, rest = signature.parameters.values()
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in OWN_ARGUMENTS]
    vars(forward)["__signature__"] = signature.replace(parameters=[*named, *more, rest])
    return forward


def _by_name(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what a call passes to the stock class's ``forward``, by name."""
    if not args:
        return kwargs
    given = dict(stock_signature(cls).bind_partial(None, *args, **kwargs).arguments)
    given |= given.pop("kwargs", {})
    given.pop("self")
    return given


def stock_signature(cls: type) -> inspect.Signature:
    """Return the signature of the stock class's ``forward``."""
    bases = (base for base in cls.__mro__ if not issubclass(base, SparseGeneration))
    stock: Any = next(base for base in bases if "forward" in vars(base))
    return inspect.signature(stock.forward)


def _in_columns(out: Any, left: TokenStream, columns: int) -> Any:
    """Return a stock output whose logits are those of the tokens left, in the caller's columns."""
    logits = restore_columns(out[0], left, columns)
    if isinstance(out, tuple):
        return (logits, *out[1:])
    out.logits = logits
    return out
