"""One conclusion from measurements."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Finding", "Severity"]


class Severity(StrEnum):
    """How much a finding matters, gravest first."""

    FAULT = "fault"
    """Something went wrong."""
    BOTTLENECK = "bottleneck"
    """Time or machines are wasted."""
    HINT = "hint"
    """Worth a look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was concluded, about whom, and from which numbers."""

    rule: str
    """Stable name of the rule, such as ``data-loading``."""
    severity: Severity
    subject: str
    text: str
    """One or two sentences: what is so, and what may help."""
    numbers: Mapping[str, float]
    """What it was concluded from, by name."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        body = {name: getattr(self, name) for name in self.__slots__}
        return body | {"severity": self.severity.value, "numbers": dict(self.numbers)}

    def render(self) -> str:
        """The finding as one line of text with its numbers."""
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
        return f"{self.severity.value}: {self.subject}: {self.text} ({numbers})"
