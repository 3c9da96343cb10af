"""H2O (Zhang et al., NeurIPS 2023): each head keeps its heavy hitters and its newest entries.

After every forward each key/value head keeps the ``recent`` newest entries and, of the others, the
``heavy`` ones that received most attention since they arrived.  Evicted entries are gone for good.
Three official programs share the name; this is the one that really drops entries
(``utils_real_drop``).  The two that only simulate dropping by masks live in the conformance check.

Prompt scores are column sums of the causal attention, computed in blocks of queries: memory grows
with the prompt, not with its square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dynllava.errors import UserError
from dynllava.plan import PerHead, Plan

from .base import Method, check_choice, share

#: Option -> how the plan runs the prompt.
PHASES = {"decode": "causal", "prefill+decode": "own_budget"}


@dataclass(frozen=True)
class H2O(Method):
    """Evicts cache entries per layer and head.

    Parameters
    ----------
    heavy, recent : float or int
        Budget of the heavy hitters and of the newest entries: a float is a share of the layer's
        prompt tokens (``int(share * N)``, fixed by the prompt), an integer a number of entries.
    position : str
        ``original``: entries and queries keep their rotary position.  ``rolled``: an entry's
        position is its rank in the cache at that step ("streaming").
    phase : str
        ``decode``: the prompt's own attention is full.  ``prefill+decode``: it is restricted to
        the keys that are heavy over the whole prompt and to the ``recent`` nearest ones.
    first_full_layers : int
        Layers from 0 on that are left alone.
    """

    name: ClassVar[str] = "h2o"
    summary: ClassVar[str] = "KV entries evicted per head: heavy hitters and the newest stay"
    source: ClassVar[str] = "arXiv 2306.14048, official repository FMInference/H2O"
    certificate: ClassVar[str] = "golden/baselines"

    heavy: float = share(0.25)
    recent: float = share(0.25)
    position: str = "original"
    phase: str = "decode"
    first_full_layers: int = 0

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        for name in ("heavy", "recent"):
            check_budget(name, getattr(self, name))
        if self.heavy + self.recent == 0:
            raise UserError("heavy=0, recent=0: accepted is a budget above 0")
        check_choice("position", self.position, ("original", "rolled"))
        check_choice("phase", self.phase, tuple(PHASES))
        full = self.first_full_layers
        if not isinstance(full, int) or isinstance(full, bool) or not 0 <= full < layers:
            raise UserError(
                f"first_full_layers={full!r}: accepted is a number from 0 to {layers - 1}"
            )
        store = PerHead(self.heavy, self.recent, full, rolled=self.position == "rolled")
        return Plan(store=store, prompt=PHASES[self.phase])


def check_budget(name: str, value: float) -> None:
    """Raise :class:`UserError` unless ``value`` is a share or a number of entries."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    most = 1 if isinstance(value, float) else math.inf
    if not number or not math.isfinite(value) or not 0 <= value <= most:
        raise UserError(
            f"{name}={value!r}: accepted is a share from 0.0 to 1.0 or a number of entries"
        )
