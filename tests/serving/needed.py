"""Skips a module of tests whose packages are missing, and says which."""

from __future__ import annotations

import pytest

for _name in ("fastapi", "httpx", "uvicorn", "prometheus_client"):
    pytest.importorskip(_name, reason=f"{_name} is missing: it comes with the extra proxy")
