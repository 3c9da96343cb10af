"""What the methods promise is what it was before they were described by plans."""

from __future__ import annotations

import json
from pathlib import Path

from plan_entries import entries

FROZEN = Path(__file__).parents[1] / "data" / "plans.json"


def test_every_schedule_operation_length_and_budget_is_the_frozen_one():
    frozen = json.loads(FROZEN.read_text())
    found = {key: json.loads(json.dumps(value)) for key, value in entries()}
    # Methods that came later have no frozen entry.
    assert found.keys() >= frozen.keys()
    changed = {key for key in frozen if found[key] != frozen[key]}
    assert not changed, sorted(changed)[:20]
