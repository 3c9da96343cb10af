"""What the checks before a run found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dynllava.errors import UserError

LEVELS = ("ok", "note", "no")


@dataclass(frozen=True)
class Finding:
    """One answer.

    Attributes
    ----------
    level : str
        ``"ok"``; ``"note"``: worth knowing; ``"no"``: the run cannot start.
    topic : str
        What it is about.
    text : str
        One line.
    """

    level: str
    topic: str
    text: str


@dataclass
class Preflight:
    """All answers, in the order of the checks."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether the run can start."""
        return not any(item.level == "no" for item in self.findings)

    def add(self, level: str, topic: str, text: object) -> None:
        """Append a finding; line breaks in ``text`` become spaces."""
        self.findings.append(Finding(level, topic, " ".join(str(text).split())))

    def require(self) -> Preflight:
        """Return self, or raise :class:`UserError` with the first reason against the run."""
        for item in self.findings:
            if item.level == "no":
                raise UserError(item.text)
        return self

    def text(self) -> str:
        """Return one line a finding, and the answer."""
        width = max((len(item.topic) for item in self.findings), default=0)
        lines = [f"{item.level:<4}  {item.topic:<{width}}  {item.text}" for item in self.findings]
        against = sum(item.level == "no" for item in self.findings)
        verdict = "the run can start" if self.ready else f"the run cannot start: {against} problems"
        return "\n".join([*lines, verdict.replace(": 1 problems", ": 1 problem")])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"ready": self.ready, "findings": [vars(item) for item in self.findings]}
