"""When a stage advances, holds or rolls back: guards behind one door."""

from fleet.rollout.gate.door import Finding, GateResult, Guard, Verdict, combine, judge
from fleet.rollout.gate.guards import guards_for

__all__ = ["Finding", "GateResult", "Guard", "Verdict", "combine", "guards_for", "judge"]
