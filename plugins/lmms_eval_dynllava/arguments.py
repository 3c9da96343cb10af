"""The arguments behind ``--model_args``: parsed, checked, one clear line for what is wrong."""

from __future__ import annotations

import dataclasses
import inspect
import math
from dataclasses import dataclass, field
from typing import Any

from dynllava.errors import UserError
from dynllava.images import ASPECTS
from dynllava.methods.parameters import MethodText, convert, nearest, parse
from dynllava.methods.parameters import accepted as accepted_parameters
from dynllava.methods.plugins import load_file
from dynllava.plan.names import LEARNED
from dynllava.records.environment import code_version

DTYPES = ("float32", "bfloat16", "float16")
AUTO_BATCH_SIZE = 32


@dataclass
class ModelArguments:
    """What ``--model_args`` accepts beside the method's own parameters.

    Attributes
    ----------
    pretrained : str
        Local folder, hub name, or ``embedded``.
    method : str or None
        A name from :func:`dynllava.methods.names`, with parameters behind a colon if wanted, or a
        composition (``fastv:k=2;keep_ratio=0.25+h2o:heavy=0.25``); None: what the checkpoint was
        trained for.
    plugin : str or None
        Files with further methods, separated by ``;``.
    dtype : str or None
        None: float16 on a GPU, as the published evaluations, and float32 elsewhere.
    attn_implementation, device, device_map : str or None
        As in transformers; ``device_map=auto`` spreads one model over several devices.
    compile : bool
        Compile decode steps with ``torch.compile``.
    conv_template : str or None
        ``checkpoint`` (its own), ``vicuna_v1`` or ``plain``; None: the checkpoint's own if it has
        one, else ``vicuna_v1``.
    image_aspect : str or None
        ``pad`` (the paper's), ``crop`` or ``checkpoint``; None: ``pad`` for LLaVA-1.5 and
        ``checkpoint`` for the other families, which accept nothing else.
    image_backend : str
        ``pil`` or ``torchvision``.
    vision_tower : str or None
        Folder or hub name, instead of the tower that a checkpoint in the original format names.
    batch_size : int or str
        A number, or ``auto``: starts at ``max_batch_size`` and halves when memory runs out.
    max_new_tokens : int
        For tasks that set none.
    picture_cache : float
        GiB of host memory for features of pictures that several prompts ask about; 0 = every
        prompt's picture goes through the vision tower.
    code_version : str or None
        Must be this code's version if given; see :func:`check_cache`.
    parameters : dict
        The method's hyper-parameters, from its text and from arguments of their names.
    """

    pretrained: str = "embedded"
    method: str | None = None
    plugin: str | None = None
    dtype: str | None = None
    attn_implementation: str = "sdpa"
    compile: bool = False
    device: str | None = None
    device_map: str | None = None
    conv_template: str | None = None
    image_aspect: str | None = None
    image_backend: str = "pil"
    vision_tower: str | None = None
    batch_size: int | str = 1
    max_batch_size: int = AUTO_BATCH_SIZE
    max_new_tokens: int = 1024
    picture_cache: float = 1.0
    code_version: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of the first batch."""
        return self.max_batch_size if self.batch_size == "auto" else int(self.batch_size)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> ModelArguments:
        """Return the checked arguments.

        Raises
        ------
        UserError
            For an unknown or impossible argument.
        """
        own = {item.name for item in dataclasses.fields(cls)} - {"parameters"}
        given = {key: value for key, value in values.items() if value is not None}
        parameters = {key: item for key, item in given.items() if key not in own}
        arguments = cls(
            **{key: value for key, value in given.items() if key in own}, parameters=parameters
        )
        arguments._check(own)
        return arguments

    def _check(self, own: set[str]) -> None:
        for path in (self.plugin or "").split(";"):
            if path:
                load_file(path)
        if self.method is not None:
            text = parse(self.method)
            self.method = text.name
            for key in text.parameters:
                if key in self.parameters:
                    raise UserError(f"method={text.name}: {key} is given twice")
        else:
            text = MethodText(LEARNED, {})
        accepted = list(accepted_parameters(text.name))
        for key in self.parameters:
            if key not in accepted:
                owner = self.method or "the checkpoint's method"
                raise UserError(
                    f"unknown argument {key}: {nearest(key, [*own, *accepted])}"
                    f"accepted are {', '.join(sorted(own))}; "
                    f"for {owner}: {', '.join(accepted) or 'none'}"
                )
        flat = {key: convert(text.name, key, value) for key, value in self.parameters.items()}
        self.parameters = {**text.parameters, **flat}
        if self.method is not None:
            MethodText(self.method, self.parameters).create()
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype}: accepted are {', '.join(DTYPES)}")
        if not isinstance(self.compile, bool):
            raise UserError(f"compile={self.compile}: accepted are True and False")
        if self.image_aspect is not None and self.image_aspect not in ASPECTS:
            raise UserError(f"image_aspect={self.image_aspect}: accepted are {', '.join(ASPECTS)}")
        for name in ("batch_size", "max_batch_size", "max_new_tokens"):
            self._check_count(name)
        size = self.picture_cache
        if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 <= size < math.inf:
            raise UserError(f"picture_cache={size}: accepted is a number of GiB from 0")
        running = code_version()
        if self.code_version is not None and str(self.code_version) != running:
            raise UserError(f"code_version={self.code_version}: the code that runs is {running}")

    def _check_count(self, name: str) -> None:
        value = getattr(self, name)
        if name == "batch_size" and value == "auto":
            return
        if isinstance(value, bool) or not str(value).isdecimal() or int(value) < 1:
            raise UserError(f"{name}={value}: accepted is an integer from 1")
        setattr(self, name, int(value))


def check_cache(given: str | None) -> None:
    """Refuse lmms-eval's answer cache unless its key holds the version of this code.

    The cache is keyed by model name and ``--model_args`` alone, so answers of older code would
    come back without the model being asked.  lmms-eval does not tell a model that a cache is in
    use, so the calling frame is looked at (read only).

    Raises
    ------
    UserError
        With the argument to add.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "simple_evaluate":
        frame = frame.f_back
    if given is None and frame is not None and frame.f_locals.get("use_cache"):
        raise UserError(
            "use_cache would return answers of older code: "
            f"add code_version={code_version()} to model_args"
        )
