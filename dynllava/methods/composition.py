"""Two methods at once: one that drops image tokens and one that manages the cache of the rest.

``create("fastv+h2o", fastv_k=2, h2o_heavy=0.25)``: each part keeps its own parameters, prefixed
with its name.  The cache method works on each layer's own tokens, so its shares count what the
other part left there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from dynllava.engine.stream import TokenStream
from dynllava.errors import UserError
from dynllava.methods.base import (
    Method,
    ModelDims,
    Observed,
    Operation,
    Probe,
    PromptShape,
    Schedule,
    Selection,
    StepContext,
)

if TYPE_CHECKING:
    from dynllava.engine.cache import LayerStore, Lengths

#: Any prompt with more image tokens than a method could keep by rounding.
_TRIAL = PromptShape(8, 64, 8)


@dataclass
class Composition(Method):
    """Runs two methods in one pass.

    Parameters
    ----------
    first, second : Method
        Whose selections are joined; at most one of them may drop image tokens, drop output
        tokens, or bring a cache of its own.
    """

    summary: ClassVar[str] = "two methods in one pass"

    first: Method
    second: Method

    def __post_init__(self) -> None:
        # An instance has the name that creates it, which is no class's.
        vars(self)["name"] = f"{self.first.name}+{self.second.name}"
        vars(self)["sets_grid"] = self.first.sets_grid or self.second.sets_grid

    @property
    def parts(self) -> tuple[Method, Method]:
        """Both methods."""
        return self.first, self.second

    def check_model(self, heads: int, image_tokens: int) -> None:
        """See :meth:`Method.check_model`."""
        for part in self.parts:
            part.check_model(heads, image_tokens)

    def validate(self, num_layers: int) -> None:
        """See :meth:`Method.validate`; also refuse parts that get in each other's way."""
        for part in self.parts:
            part.validate(num_layers)
        trials = [part.schedule(_TRIAL, num_layers) for part in self.parts]
        if all(min(trial.prefill_rows) < _TRIAL.total for trial in trials):
            raise UserError(f"{self.name}: both parts drop image tokens; one of them may")
        managers = [self._manages_cache(part) for part in self.parts]
        if all(managers):
            raise UserError(f"{self.name}: both parts drop cache entries; one of them may")
        for part, other, manages in (
            (self.first, self.second, managers[1]),
            (self.second, self.first, managers[0]),
        ):
            if manages and (part.needs_whole_cache() or not part.uses_cache()):
                raise UserError(
                    f"{self.name}: this form of {part.name} cannot work on a cache that "
                    f"{other.name} changes"
                )

    def _manages_cache(self, part: Method) -> bool:
        return part.output_layer() is not None or _own_store(part)

    def check_checkpoint(self, sparse_config: dict[str, Any]) -> None:
        """See :meth:`Method.check_checkpoint`."""
        for part in self.parts:
            part.check_checkpoint(sparse_config)

    def probe(self, layer: int, ctx: StepContext) -> Probe | None:
        """Ask for what either part asks for."""
        probes = [probe for part in self.parts if (probe := part.probe(layer, ctx)) is not None]
        if len(probes) < 2:
            return probes[0] if probes else None
        rows = [probe.query_rows for probe in probes if probe.query_rows is not None]
        sums = any(probe.column_sums for probe in probes)
        return Probe(query_rows=rows[0] if rows else None, column_sums=sums)

    def select(self, layer: int, ctx: StepContext, observed: Observed | None) -> Selection | None:
        """Keep what both parts keep."""
        first, second = (part.select(layer, ctx, observed) for part in self.parts)
        if first is None or second is None:
            return first if second is None else second
        # Only the part that drops image tokens merges or renumbers.
        if second.merged is not None or second.renumber:
            first, second = second, first
        return replace(first, keep=first.keep & second.keep)

    def output_layer(self) -> int | None:
        """See :meth:`Method.output_layer`."""
        layers = [part.output_layer() for part in self.parts]
        return layers[0] if layers[0] is not None else layers[1]

    def make_store(
        self, layer: int, stream: TokenStream, lengths: Lengths, chunk: int
    ) -> LayerStore:
        """Return the store of the part that brings one."""
        owner = self.second if _own_store(self.second) else self.first
        return owner.make_store(layer, stream, lengths, chunk)

    def scores_stepwise(self) -> bool:
        """See :meth:`Method.scores_stepwise`."""
        return any(part.scores_stepwise() for part in self.parts)

    def encode_images(self, model: Any, pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
        """See :meth:`Method.encode_images`; of the part that makes pictures smaller."""
        return self._sizing.encode_images(model, pixel_values, **options)

    def tower_grid(self, rows: int, columns: int) -> tuple[int, int]:
        """See :meth:`Method.tower_grid`."""
        return self._sizing.tower_grid(rows, columns)

    @property
    def _sizing(self) -> Method:
        return self.second if self.second.sets_grid else self.first

    def uses_cache(self) -> bool:
        """See :meth:`Method.uses_cache`."""
        return all(part.uses_cache() for part in self.parts)

    def needs_whole_cache(self) -> bool:
        """See :meth:`Method.needs_whole_cache`."""
        return any(part.needs_whole_cache() for part in self.parts)

    def compact_positions(self) -> bool:
        """See :meth:`Method.compact_positions`."""
        return any(part.compact_positions() for part in self.parts)

    def schedule(self, shape: PromptShape, num_layers: int) -> Schedule:
        """Join both schedules: the fewer rows, then the cache budget on those."""
        first, second = (part.schedule(shape, num_layers) for part in self.parts)
        rows = tuple(map(min, first.prefill_rows, second.prefill_rows))
        drops = tuple(a or b for a, b in zip(first.drops_output, second.drops_output, strict=True))
        keep = first.output_keep if any(first.drops_output) else second.output_keep
        joined = Schedule(rows, rows, drops, (None,) * num_layers, keep)
        for part in self.parts:
            joined = part.limit_cache(joined)
        return joined

    def overhead(self, shape: PromptShape, dims: ModelDims) -> list[Operation]:
        """Return both parts' operations, on the rows that are left in each layer."""
        rows = self.schedule(shape, dims.layers).prefill_rows
        return [op for part in self.parts for op in part.overhead_on(rows, shape, dims)]

    def parameters(self) -> dict[str, Any]:
        """Return both parts' parameters, prefixed with their names."""
        return {
            f"{part.name}_{key}": value
            for part in self.parts
            for key, value in part.parameters().items()
        }


def _own_store(method: Method) -> bool:
    return type(method).make_store is not Method.make_store


def compose(name: str, parameters: dict[str, Any], create: Callable[..., Method]) -> Composition:
    """Return the composition ``a+b`` with parameters ``a_x`` and ``b_y``.

    Raises
    ------
    UserError
        For other than two parts, or a parameter without a part's prefix.
    """
    names = name.split("+")
    if len(names) != 2 or names[0] == names[1]:
        raise UserError(f"method={name!r}: accepted are two different methods, as in fastv+h2o")
    own: dict[str, dict[str, Any]] = {part: {} for part in names}
    for key, value in parameters.items():
        # The longest matching name wins, should one be the beginning of the other.
        owner = max((part for part in names if key.startswith(f"{part}_")), key=len, default=None)
        if owner is None:
            raise UserError(
                f"{name} has no parameter {key!r}: accepted are the parts' parameters with prefix "
                f"{names[0]}_ or {names[1]}_"
            )
        own[owner][key.removeprefix(f"{owner}_")] = value
    return Composition(*(create(part, **own[part]) for part in names))
