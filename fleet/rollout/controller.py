"""The next action of a rollout: a pure function of a snapshot, asked twice it answers the same.

Rules kept here: only a running rollout is acted on; a FAIL rolls back at once, whatever the bake
time; only a PASS goes on; everything else holds, and says for what.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from fleet.rollout.gate import GateResult, Guard, Verdict, guards_for, judge
from fleet.rollout.snapshot import Snapshot
from fleet.rollout.states import Event, State

__all__ = ["Action", "Step", "decide"]

# Worth telling when they hold, not when they pass; the evidence has them always.
_TAKEN_FOR_GRANTED: Final = frozenset({"silence", "release_limit"})


class Step(StrEnum):
    """What the controller can ask for."""

    ADVANCE = "advance"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    HOLD = "hold"

    @property
    def event(self) -> Event | None:
        """The transition it asks for; a hold asks for none."""
        return None if self is Step.HOLD else Event(self.value)


@dataclass(frozen=True, slots=True)
class Action:
    """One decision, with everything needed to see why."""

    step: Step
    verdict: Verdict
    reason: str
    evidence: dict[str, Any]
    blockers: tuple[str, ...] = ()  # the guards that did not pass


def decide(snapshot: Snapshot, guards: Sequence[Guard] | None = None) -> Action | None:
    """What to do now with this rollout; None when it is not running.

    ``guards`` replaces the ones of the spec; an empty sequence holds.
    """
    rollout = snapshot.rollout
    if rollout.state is not State.RUNNING:
        return None
    result = judge(guards_for(rollout.spec.guards) if guards is None else guards, snapshot)
    step = _step(result, rollout.is_last_stage)
    blockers = tuple(f.guard for f in result.findings if f.verdict is not Verdict.PASS)
    reason = _reason(step, result, snapshot)
    return Action(step, result.verdict, reason, _evidence(result, snapshot), blockers)


def _step(result: GateResult, last: bool) -> Step:
    if result.verdict is Verdict.FAIL:
        return Step.ROLLBACK
    if result.verdict is Verdict.HOLD:
        return Step.HOLD
    return Step.PROMOTE if last else Step.ADVANCE


def _reason(step: Step, result: GateResult, snapshot: Snapshot) -> str:
    rollout = snapshot.rollout
    passed = "; ".join(f.reason for f in result.findings if f.guard not in _TAKEN_FOR_GRANTED)
    if step is Step.ADVANCE:
        return f"going on to {rollout.stage_name(rollout.stage + 1)}: {passed}"
    if step is Step.PROMOTE:
        return f"promoted: {passed}"
    if step is Step.ROLLBACK:
        return f"rolled back in {rollout.stage_name()}: {result.reason}"
    return f"holding: {result.reason}"


def _evidence(result: GateResult, snapshot: Snapshot) -> dict[str, Any]:
    rollout, control = snapshot.rollout, snapshot.control
    served, devices = snapshot.served()
    return {
        "now_s": snapshot.now_s,
        "stage": rollout.stage,
        "stage_started_s": rollout.stage_started_s,
        "percent_bp": rollout.current_stage.percent_bp,
        "limit_bp": snapshot.limit_bp,
        "listening_since_s": snapshot.listening_since_s,
        "cohort": {
            **snapshot.tally().to_json(),
            "requests": served.requests,
            "failures": served.failures,
            "over_objective": served.over_objective,
            "output_violations": served.output_violations,
            "devices_with_requests": devices,
        },
        "control": {
            "devices": control.devices,
            "active": control.active,
            "silent": control.silent,
            "requests": control.served.requests,
            "failures": control.served.failures,
            "over_objective": control.served.over_objective,
            "output_violations": control.served.output_violations,
        },
        "findings": [finding.to_json() for finding in result.findings],
    }
