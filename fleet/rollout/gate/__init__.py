"""When a stage advances, holds or rolls back: guards behind one door.

The light face: what a guard is and what it answers, which the command line needs too. What computes
is imported by name, because it is heavier (numpy): ``guards`` (which guards a rollout has),
``comparison``, ``look``.
"""

from fleet.rollout.gate.door import Finding, GateResult, Guard, Verdict, combine, judge

__all__ = ["Finding", "GateResult", "Guard", "Verdict", "combine", "judge"]
