"""Load a model of any accepted kind with one call."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import torch

from dynllava.engine import attention, flash
from dynllava.engine.compiled import refuse_compiling
from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.methods.base import Method
from dynllava.output.files import reason
from dynllava.plan.names import FULL

from .checkpoints import check_state, hf_config, official_state
from .config import NO_PREDICTORS, DynamicLlavaConfig, SparsityConfig
from .files import WeightFiles
from .hub import locate
from .layouts import Checkpoint, Layout, check_methods, download, inspect
from .limits import Limits
from .modeling import DynamicLlavaForConditionalGeneration
from .processors import check_backend
from .processors import load_processor as processor_of
from .sanity import build_config, check_finite
from .stock import UNTRAINED, load_stock
from .tensors import Reader, outlines, stream

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
#: Names in stored files -> names in the module tree, for folders that transformers wrote.
_STORED_PREFIXES = (
    ("model.language_model.model.", "model.language_model."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


def load_model(
    pretrained: str | Path,
    method: str | Method | None = None,
    method_args: dict[str, Any] | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    attn_implementation: str = "sdpa",
    device_map: str | dict[str, Any] | None = None,
    compile: bool = False,
    vision_tower: str | Path | None = None,
    image_backend: str = "pil",
    untrained: bool = False,
    limits: dict[str, Any] | None = None,
) -> tuple[DynamicLlavaForConditionalGeneration, Any]:
    """Load a model and its processor.

    Parameters
    ----------
    pretrained : str or Path
        ``"embedded"`` (``"embedded-dense"``: before its predictors were trained), a local folder,
        a snapshot of the hub's cache, or a hub name.  Accepted kinds: Dynamic-LLaVA in Hugging
        Face or official format, LLaVA-1.5 in Hugging Face or original format, and
        stock checkpoints of the other families (``docs/supported_models.md``), which are wrapped.
    method : str or Method, optional
        Default: ``dynamic_llava`` where the checkpoint has predictors, else ``full``.
    method_args : dict, optional
        The method's parameters.
    dtype : str or torch.dtype
        float32, bfloat16 or float16 (commands choose :func:`default_dtype`).
    device : str or torch.device
        Where to put the model (ignored with ``device_map``).
    attn_implementation : str
        sdpa, eager or flash_attention_2.
    device_map : str or dict, optional
        As in ``from_pretrained``.
    compile : bool
        Compile decode steps (:meth:`~DynamicLlavaForConditionalGeneration.set_compile`).
    vision_tower : str or Path, optional
        Folder or hub name of the vision tower of a checkpoint in the original format; default:
        the one that it names.
    image_backend : str
        What resizes images: ``"pil"`` (as LLaVA was trained) or ``"torchvision"``.
    untrained : bool
        Give a checkpoint without predictors fresh ones where ``dynamic_llava`` needs them, instead
        of refusing.
    limits : dict, optional
        ``kv_bytes``, ``prefill_flops`` that no batch may exceed
        (:meth:`~dynllava.models.limits.Limited.set_limits`).

    Returns
    -------
    tuple
        The model in eval mode, and the processor (None if the folder has no tokenizer).

    Raises
    ------
    UserError
        If the checkpoint cannot be read or the method does not fit it.
    """
    check_device(device)
    Limits.of(limits or {})
    checkpoint = inspect(pretrained, vision_tower).require()
    if checkpoint.layout is Layout.STOCK:
        check_backend(image_backend)
        kernel = attention.check_kernel(attn_implementation)
        model, processor = load_stock(
            checkpoint, method, method_args or {}, parse_dtype(dtype), kernel, device, device_map,
            image_backend, untrained,
        )  # fmt: skip
        if compile:
            model.set_compile()
        model.set_limits(limits)
        return model, processor
    name = method if method is None or isinstance(method, str) else method.name
    if name is not None and not untrained:
        check_methods(checkpoint, [name])
    if compile:
        refuse_compiling(attn_implementation)
        if device_map is not None:
            raise UserError("compile=True with device_map: accepted is one device")
    kernel, dtype = attention.check_kernel(attn_implementation), parse_dtype(dtype)
    if kernel == flash.NAME:
        flash.check_available(dtype, "cuda" if device_map is not None else device)
    checkpoint = download(checkpoint).require()
    model = _build(checkpoint, kernel, dtype)
    model = _place(model, device, device_map)
    if method is None and not _trained_predictors(model):
        method = FULL
    if method is not None:
        chosen = create(method, **(method_args or {})) if isinstance(method, str) else method
        if chosen.learned:
            _ensure_predictors(model)
        model.set_method(chosen)
    elif method_args:
        name = model.method.name
        model.set_method(name, **{**model.method.parameters(), **method_args})
    if compile:
        model.set_compile()
    model.set_limits(limits)
    return model.eval(), processor_of(checkpoint, model.config, image_backend)


def load_image_side(
    folder: str | Path, dtype: str | torch.dtype = "float32", device: str | torch.device = "cpu"
) -> tuple[DynamicLlavaForConditionalGeneration, Any]:
    """Load vision tower and projector of a LLaVA in llava-hf's layout, not its language model.

    Parameters
    ----------
    folder, dtype, device
        See :func:`load_model`.

    Returns
    -------
    tuple
        The model, whose language model has no weights (``meta`` tensors), and the processor.

    Raises
    ------
    UserError
        If the checkpoint cannot be read, is of another layout or has no tokenizer.
    """
    check_device(device)
    checkpoint = inspect(folder).require()
    if checkpoint.layout is not Layout.LLAVA_HF:
        raise UserError(f"{folder}: {checkpoint.layout}; accepted is a folder of dynllava export")
    values = {key: value for key, value in checkpoint.config.items() if key != "model_type"}
    values["sparse_config"] = dict(NO_PREDICTORS)
    config = build_config(DynamicLlavaConfig, values, checkpoint.folder / "config.json")
    config._attn_implementation = "sdpa"
    model = skeleton(config, checkpoint.folder)
    for part, name in (("vision_tower", "vision tower"), ("multi_modal_projector", "projector")):
        module = getattr(model.model, part)
        read = functools.partial(stream, prefix=f"{part}.")
        found = read_hf_state(checkpoint.stored, parse_dtype(dtype), read)
        state = {key.removeprefix(f"model.{part}."): value for key, value in found.items()}
        check_finite(state.items(), checkpoint.folder)
        try:
            module.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise UserError(f"{checkpoint.folder}: the {name} ({reason(error)})") from None
    _rebuild_buffers(model)
    for part in ("vision_tower", "multi_modal_projector"):
        getattr(model.model, part).to(device)
    processor = processor_of(checkpoint, model.config)
    if processor is None:
        raise UserError(f"{checkpoint.folder}: no tokenizer")
    return model.eval(), processor


def resolve(pretrained: str | Path) -> Path:
    """Return the local folder of ``pretrained``: an embedded model, a folder, or a hub name.

    Of a hub model that is not in the cache, only the small files are fetched.
    """
    return locate(pretrained).folder


def check_device(device: str | torch.device) -> torch.device:
    """Return the device called ``device``, refusing one that this machine or build has not."""
    try:
        found = torch.device(device)
        if found.type != "meta":
            torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # Without a CUDA build, torch answers with an assertion.
        why = f"not available here ({reason(error)}); accepted are cpu, cuda, cuda:0 ..."
        raise UserError(f"device={str(device)!r}: {why}") from None
    return found


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the torch dtype of a name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r}: accepted are {', '.join(DTYPES)}")
    return DTYPES[dtype]


def default_dtype(device: str | torch.device) -> str:
    """Return what every command computes in unless told otherwise.

    float16 on a GPU, as the published evaluations; float32 elsewhere.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError:
        # What is no device at all gets the line of check_device.
        kind = check_device(device).type
    return "float16" if kind == "cuda" else "float32"


def load_processor(
    pretrained: str | Path, vision_tower: str | Path | None = None, image_backend: str = "pil"
) -> Any:
    """Return the processor of a checkpoint, or None if it has no tokenizer."""
    return processor_of(inspect(pretrained, vision_tower), image_backend=image_backend)


def read_hf_state(
    weights: WeightFiles, dtype: torch.dtype | None = None, read: Reader = stream
) -> dict[str, torch.Tensor]:
    """Return a Hugging Face LLaVA's tensors under the names of the module tree."""
    state = {}
    for name, tensor in read(weights, dtype):
        for stored, own in _STORED_PREFIXES:
            if name.startswith(stored):
                name = own + name[len(stored) :]
                break
        state[name] = tensor
    return state


def check_fit(checkpoint: Checkpoint) -> int:
    """Refuse tensors whose names or shapes are not those of the configured model.

    No weights are read.  Where the files do not tell all shapes (they are still to be downloaded,
    or hold more than tensors), nothing is checked.

    Returns
    -------
    int
        How many tensors were compared.

    Raises
    ------
    UserError
        As loading would.
    """
    if checkpoint.layout is Layout.STOCK:
        # Which stored name is which parameter is transformers' own matter: loading says it.
        return 0
    tower = checkpoint.tower
    outside = checkpoint.is_original and tower is not None and not tower.inside
    for part in (checkpoint.weights, *((tower.weights,) if tower and outside else ())):
        if part is None or part.missing or part.names is None or part.names - set(part.shapes):
            return 0
    return len(_outlined(checkpoint, None, outlines)[1])


def _build(
    checkpoint: Checkpoint, kernel: str, dtype: torch.dtype
) -> DynamicLlavaForConditionalGeneration:
    folder = checkpoint.folder
    model, state = _outlined(checkpoint, dtype, stream, kernel)
    check_finite(state.items(), folder)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    _rebuild_buffers(model)
    _load_generation_config(model, folder)
    return model


def _outlined(
    checkpoint: Checkpoint, dtype: torch.dtype | None, read: Reader, kernel: str = "sdpa"
) -> tuple[DynamicLlavaForConditionalGeneration, dict[str, torch.Tensor]]:
    """Return the model without weights, and the tensors that it takes."""
    folder, state = checkpoint.folder, None
    if checkpoint.is_original:
        state, values = official_state(checkpoint, dtype, read)
    else:
        values = {k: v for k, v in checkpoint.config.items() if k != "model_type"}
        if checkpoint.model_type == "llava":
            values["sparse_config"] = dict(NO_PREDICTORS)
    config = build_config(DynamicLlavaConfig, values, folder / "config.json")
    config._attn_implementation = kernel
    model = skeleton(config, folder)
    if state is None:
        state = read_hf_state(checkpoint.stored, dtype, read)
    check_state(model, state, folder)
    return model, state


def skeleton(config: DynamicLlavaConfig, folder: Path) -> DynamicLlavaForConditionalGeneration:
    """Return the model without weights, or say which configuration makes none."""
    try:
        with torch.device("meta"):
            return DynamicLlavaForConditionalGeneration(config)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    except Exception as error:
        # Whatever a field holds that transformers' layers do not expect.
        raise UserError(f"{folder}/config.json: makes no model ({reason(error)})") from None


def _rebuild_buffers(model: torch.nn.Module) -> None:
    """Compute the buffers that checkpoints do not hold (they were created on the meta device)."""
    language_model = model.model.language_model
    language_model.rotary_emb = type(language_model.rotary_emb)(config=language_model.config)
    for module in model.modules():
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta and name == "position_ids":
                positions = torch.arange(buffer.shape[-1]).expand(buffer.shape)
                module.register_buffer(name, positions, persistent=False)


def _load_generation_config(model: DynamicLlavaForConditionalGeneration, folder: Path) -> None:
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(folder)
        except Exception as error:
            raise UserError(
                f"{folder}/generation_config.json: cannot be read ({reason(error)})"
            ) from None
    if "official_config" in model.config.to_dict():
        # The added placeholder row must never be generated.
        model.generation_config.suppress_tokens = [model.config.image_token_index]


def _place(
    model: DynamicLlavaForConditionalGeneration,
    device: str | torch.device,
    device_map: str | dict[str, Any] | None,
) -> DynamicLlavaForConditionalGeneration:
    if device_map is None:
        try:
            return model.to(device)
        except RuntimeError as error:
            raise UserError(f"device={str(device)!r}: {reason(error)}", 1) from None
    from accelerate import dispatch_model, infer_auto_device_map

    if isinstance(device_map, str):
        if device_map != "auto":
            return model.to(device_map)
        device_map = infer_auto_device_map(
            model, no_split_module_classes=["LlamaDecoderLayer", "CLIPEncoderLayer"]
        )
    return dispatch_model(model, device_map=device_map)


def _trained_predictors(model: DynamicLlavaForConditionalGeneration) -> bool:
    return model.image_predictor is not None or model.output_predictor is not None


def _ensure_predictors(model: DynamicLlavaForConditionalGeneration) -> None:
    """Give a plain LLaVA fresh predictors, and say that they are untrained."""
    if _trained_predictors(model):
        return
    warnings.warn(UNTRAINED, stacklevel=3)
    model.add_predictors(SparsityConfig())


__all__ = [
    "default_dtype",
    "hf_config",
    "load_image_side",
    "load_model",
    "load_processor",
    "parse_dtype",
    "resolve",
]
