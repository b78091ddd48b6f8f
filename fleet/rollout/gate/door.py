"""The door every stage must pass: guards look at one snapshot, and the worst answer counts.

Rules kept here: verdicts are ordered PASS < HOLD < FAIL and combine by the worst; no guard at all
is a HOLD; a finding always carries a reason in plain words and the numbers it was made from. A
guard that compares arms statistically is a guard like any other: it implements ``Guard``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fleet.rollout.gate.verdict import SEVERITY, Verdict
from fleet.rollout.snapshot import Snapshot

__all__ = ["Finding", "GateResult", "Guard", "Verdict", "combine", "judge"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one guard found. ``reason`` is a clause without a full stop."""

    guard: str
    verdict: Verdict
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "guard": self.guard,
            "verdict": str(self.verdict),
            "reason": self.reason,
            "evidence": dict(self.evidence),
        }


class Guard(Protocol):
    """One condition on a stage. Pure: the same snapshot gets the same finding."""

    @property
    def name(self) -> str: ...

    def judge(self, snapshot: Snapshot) -> Finding: ...


@dataclass(frozen=True, slots=True)
class GateResult:
    """The verdict of the door, and every finding behind it in the order of the guards."""

    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]


def combine(findings: Sequence[Finding]) -> GateResult:
    """The worst verdict, with the reasons of every guard that gave it, each once."""
    if not findings:
        return GateResult(Verdict.HOLD, "no guard is set, so nothing can pass", ())
    worst = max((finding.verdict for finding in findings), key=SEVERITY.__getitem__)
    reasons = dict.fromkeys(finding.reason for finding in findings if finding.verdict is worst)
    return GateResult(worst, "; ".join(reasons), tuple(findings))


def judge(guards: Sequence[Guard], snapshot: Snapshot) -> GateResult:
    """Ask every guard and combine the answers."""
    return combine([guard.judge(snapshot) for guard in guards])
