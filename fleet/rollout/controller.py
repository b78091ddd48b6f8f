"""The next action of a rollout: a pure function of a snapshot, asked twice it answers the same.

Rules kept here: only a running rollout is acted on; a FAIL rolls back at once, whatever the bake
time; a guard that blames one stratum (``stop_strata`` in its evidence) stops that one and lets the
others go on, unless none is left; only a PASS goes on; everything else holds, and says for what.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from fleet.rollout.approval import ApprovalGuard
from fleet.rollout.checks import CheckGuard
from fleet.rollout.gate import Finding, GateResult, Guard, Verdict, combine, judge
from fleet.rollout.gate.guards import guards_for
from fleet.rollout.record import Rollout
from fleet.rollout.snapshot import Snapshot
from fleet.rollout.spec import StageKind
from fleet.rollout.states import Event, State

__all__ = ["Action", "Step", "decide"]

# Worth telling when they hold, not when they pass; the evidence has them always.
_TAKEN_FOR_GRANTED: Final = frozenset({"silence", "release_limit", "approval", "outcomes"})

# On standby the bundle serves nothing, so nothing that it serves can be judged.
_WITHOUT_REQUESTS: Final = frozenset(
    {
        "coverage",
        "install_failures",
        "outcomes",
        "silence",
        "release_limit",
        "bake",
        "approval",
        "check",
    }
)


class Step(StrEnum):
    """What the controller can ask for."""

    ADVANCE = "advance"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    STOP_STRATUM = "stop_stratum"
    HOLD = "hold"

    @property
    def event(self) -> Event | None:
        """The transition it asks for; a hold asks for none."""
        return None if self is Step.HOLD else Event(self.value)


@dataclass(frozen=True, slots=True)
class Action:
    """One decision, with everything needed to see why. ``strata`` are those to stop."""

    step: Step
    verdict: Verdict
    reason: str
    evidence: dict[str, Any]
    blockers: tuple[str, ...] = ()  # the guards that did not pass
    strata: tuple[str, ...] = ()


def decide(snapshot: Snapshot, guards: Sequence[Guard] | None = None) -> Action | None:
    """What to do now with this rollout; None when it is not running.

    ``guards`` replaces the ones of the spec; an empty sequence holds.
    """
    rollout = snapshot.rollout
    if rollout.state is not State.RUNNING:
        return None
    result = judge(_guards(rollout) if guards is None else guards, snapshot)
    blamed = [finding for finding in result.findings if _blames(finding, rollout)]
    if blamed and not _fails(result, blamed):
        return _stop(blamed, result, snapshot)
    step = _step(result, rollout.is_last_stage)
    blockers = tuple(f.guard for f in result.findings if f.verdict is not Verdict.PASS)
    reason = _reason(step, result, snapshot)
    return Action(step, result.verdict, reason, _evidence(result, snapshot), blockers)


def _guards(rollout: Rollout) -> tuple[Guard, ...]:
    guards = guards_for(rollout.spec.guards)
    if any(rollout.needs_approval(index) for index in range(len(rollout.spec.stages))):
        guards = (*guards, ApprovalGuard())
    guards = (*guards, *(CheckGuard(check) for check in rollout.spec.checks))
    if rollout.current_stage.kind is StageKind.STANDBY:
        return tuple(guard for guard in guards if guard.name in _WITHOUT_REQUESTS)
    return guards


def _blames(finding: Finding, rollout: Rollout) -> list[str]:
    """The strata that the guard wants stopped and that are not yet."""
    named = finding.evidence.get("stop_strata", ())
    return [stratum for stratum in named if stratum not in rollout.stopped]


def _fails(result: GateResult, blamed: Sequence[Finding]) -> bool:
    """Whether a guard that blames no stratum fails the stage."""
    others = [finding for finding in result.findings if finding not in blamed]
    return bool(others) and combine(others).verdict is Verdict.FAIL


def _stop(blamed: Sequence[Finding], result: GateResult, snapshot: Snapshot) -> Action:
    """Stop what is blamed; roll back where that would leave nobody."""
    rollout = snapshot.rollout
    strata = sorted({stratum for finding in blamed for stratum in _blames(finding, rollout)})
    known = {stratum for finding in blamed for stratum in finding.evidence.get("strata", ())}
    why = "; ".join(dict.fromkeys(finding.reason for finding in blamed))
    blockers = tuple(finding.guard for finding in blamed)
    evidence = _evidence(result, snapshot)
    if known and known <= {*strata, *rollout.stopped}:
        reason = f"rolled back in {rollout.stage_name()}: {why}, and no other stratum is left"
        return Action(Step.ROLLBACK, Verdict.FAIL, reason, evidence, blockers)
    reason = f"stopping {', '.join(strata)} in {rollout.stage_name()}: {why}"
    return Action(Step.STOP_STRATUM, Verdict.FAIL, reason, evidence, blockers, tuple(strata))


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
        held_bp = rollout.spec.hold_back_bp
        rest = f"the {held_bp / 100:g} % held back follow; " if held_bp else ""
        return f"promoted: {rest}{passed}"
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
