"""Parts of the shipped checkpoints that their training never used.

The tower's class token takes part in no loss of :mod:`dynllava.embedded.train`: of all object
patches 31 % are among the 48 of 144 that it attends to most, where chance gives 33 % and the
trained image predictor finds nearly all (``tests/embedded/test_untrained.py``).  Methods that look
at it choose by noise, so their results say nothing, not even about this model.
"""

from __future__ import annotations

CLASS_TOKEN = "class token"
#: Content hash of a checkpoint (as run records have it) -> parts of it.
UNTRAINED = {
    "sha256:d97b1a47dd82f64fbbc6613e150e292c7997417c470048607b1da05774e9b73b": {CLASS_TOKEN},
    "sha256:e2bc3131966dc8d81f95854f5cedaff8f574a1a14811d414e662425e5ab3e258": {CLASS_TOKEN},
    "sha256:7d2b8aa88ec248078ddd7130e795466bbe98d1d8a4387f5c05da96dd02b58c47": {CLASS_TOKEN},
}


def untrained(checkpoint_hash: str | None) -> frozenset[str]:
    """Return the parts of a checkpoint that were never trained; none of one that is not shipped."""
    return frozenset(UNTRAINED.get(checkpoint_hash or "", ()))
