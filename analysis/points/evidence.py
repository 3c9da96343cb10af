"""Own runs that say nothing: their method looks at a part of the model that was never trained."""

from __future__ import annotations

import functools
import json

from dynllava.embedded.untrained import CLASS_TOKEN, untrained
from dynllava.methods.titles import recorded
from dynllava.records import RunRecord

CAVEAT = f"{CLASS_TOKEN} untrained: no evidence even about the toy"


def caveat(record: RunRecord) -> str:
    """Return why a record is evidence about nothing; empty where it is some.

    Such runs stand in tables of their own, on no front and in no verdict.
    """
    if CLASS_TOKEN not in untrained(record.model.checkpoint_hash):
        return ""
    parameters = json.dumps(record.method.parameters, sort_keys=True)
    looks = _looks_at_class_token(record.method.name, parameters, record.model.layers or 32)
    return CAVEAT if looks else ""


@functools.cache
def _looks_at_class_token(name: str, parameters: str, layers: int) -> bool:
    method = recorded(name, json.loads(parameters))
    return method is not None and method.plan(layers).looks_at_class_token
