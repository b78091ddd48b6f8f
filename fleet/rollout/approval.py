"""A person's approval of the next stage: a guard like any other.

Rules kept here: it never fails a stage, and nothing but an operator's word makes it pass, and where a
second person is asked for, only the word of somebody who did not move the rollout; where the next stage
asks for nobody it is no obstacle.
"""

from dataclasses import dataclass

from fleet.rollout.gate.door import Finding, Verdict
from fleet.rollout.snapshot import Snapshot

__all__ = ["ApprovalGuard"]


@dataclass(frozen=True, slots=True)
class ApprovalGuard:
    """The next stage begins once a person has approved it, if it says so."""

    name: str = "approval"

    def judge(self, snapshot: Snapshot) -> Finding:
        """PASS, or HOLD with the command that approves."""
        rollout = snapshot.rollout
        following = rollout.stage + 1
        if rollout.is_last_stage or not rollout.needs_approval(following):
            return Finding(self.name, Verdict.PASS, "no approval is needed")
        name = rollout.stage_name(following)
        if rollout.is_approved(following):
            return Finding(self.name, Verdict.PASS, f"{name} is approved", {"stage": following})
        needed = rollout.approver_words(following)
        reason = f"{name} needs {needed}: `fleet rollout approve {rollout.id}`"
        return Finding(self.name, Verdict.HOLD, reason, {"stage": following})
