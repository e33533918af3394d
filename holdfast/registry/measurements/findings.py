"""What measurements show: bottlenecks and faults, each with the numbers that it was concluded from.

A finding is only made where the data says it: every rule has a least number of measurements and a threshold, which stand
beside it. No finding is no promise that all is well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.registry.measurements import serving_findings, training_findings
from holdfast.registry.measurements.finding import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from holdfast.registry.measurements.measurement import Measurement

__all__ = ["NOTHING_FOUND", "NOTHING_MEASURED", "Finding", "Report", "Severity", "findings"]

NOTHING_FOUND = "No bottleneck or fault shows in what was measured."
NOTHING_MEASURED = "There is nothing to conclude from."
_RULES = (*training_findings.RULES, *serving_findings.RULES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A summary, and what it shows."""

    summary: Mapping[str, Any]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "summary": dict(self.summary),
            "findings": [finding.to_json() for finding in self.findings],
        }

    def render(self) -> str:
        """The findings as text, one paragraph each."""
        if not self.summary["measurements"]:
            return NOTHING_MEASURED
        if not self.findings:
            return NOTHING_FOUND
        return "\n".join(finding.render() for finding in self.findings)


def findings(measurements: Sequence[Measurement]) -> tuple[Finding, ...]:
    """All that the rules find, the gravest first."""
    found = [finding for rule in _RULES for finding in rule(measurements)]
    return tuple(sorted(found, key=lambda finding: list(Severity).index(finding.severity)))
