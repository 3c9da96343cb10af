"""From limits to methods: what fits by count, joined with what is known of its accuracy."""

from .question import Question
from .search import choose

__all__ = ["Question", "choose"]
