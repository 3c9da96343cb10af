"""The lmms-eval plugin's model as a sweep uses it."""

from __future__ import annotations

from lmms_eval_dynllava.models import DynamicLlavaSimple


class SweepAdapter(DynamicLlavaSimple):
    """Stays alive between runs."""

    def clean(self) -> None:
        """Free nothing: the next run uses the same model, and a collection takes seconds."""
