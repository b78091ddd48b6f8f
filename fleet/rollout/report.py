"""A rollout as people and programs see it: stages, arms, reasons. Pure: a snapshot in, JSON out."""

from collections.abc import Sequence
from typing import Any

from fleet.rollout.audit import Entry
from fleet.rollout.controller import Action
from fleet.rollout.gate.evidence import as_json
from fleet.rollout.outlook import waits_of
from fleet.rollout.record import Rollout
from fleet.rollout.snapshot import ControlArm, Served, Snapshot, Standing
from fleet.rollout.states import FINAL, State

__all__ = ["describe"]


def describe(
    snapshot: Snapshot, action: Action | None, entries: Sequence[Entry] = ()
) -> dict[str, Any]:
    """One rollout with its stages, both arms, its devices' failures and its last decisions."""
    rollout = snapshot.rollout
    return {
        **rollout.to_json(),
        "now_s": snapshot.now_s,
        "final": rollout.state in FINAL,
        "verdict": str(action.verdict) if action is not None else "",
        "stage_list": _stages(snapshot),
        "held_back": _held_back(rollout),
        "stopped": list(rollout.stopped),
        "arms": {"canary": _canary(snapshot), "control": _control(snapshot.control)},
        "comparison": _comparison(snapshot),
        "waits": [wait.to_json() for wait in waits_of(rollout, action)],
        "findings": action.evidence["findings"] if action is not None else [],
        "failed_devices": _failed_devices(snapshot),
        "decisions": [entry.to_json() for entry in entries],
    }


def _comparison(snapshot: Snapshot) -> dict[str, Any] | None:
    """The newest look at this stage: each metric in both arms, and when the next one is due."""
    evidence = snapshot.evidence
    if evidence is None or not snapshot.rollout.spec.guards.compares:
        return None
    ring, result = evidence.frozen.ring, evidence.result
    held = evidence.frozen.held
    metrics = [] if result is None else [as_json(metric) for metric in result.metrics]
    return {
        "look": 0 if result is None else result.look,
        "number": evidence.number,
        "looks": len(ring.looks_s),
        "next_look_s": evidence.next_look_s,
        "canaries": ring.canaries,
        "devices": ring.size,
        "reported": None if result is None else result.reported,
        "p_value": None if result is None else result.p_value,
        "reason": "" if result is None else result.reason,
        "metrics": [{**metric, "holds": metric["name"] in held} for metric in metrics],
    }


def _stages(snapshot: Snapshot) -> list[dict[str, Any]]:
    rollout = snapshot.rollout
    stages = []
    for index, stage in enumerate(rollout.spec.stages):
        if index < rollout.stage or rollout.state is State.PROMOTED:
            state = "done"
        elif index == rollout.stage:
            state = "current" if rollout.state is State.RUNNING else str(rollout.state)
        else:
            state = "next"
        stages.append(
            {
                **stage.to_json(),
                "stage": index,
                "kind": str(stage.kind),
                "words": stage.words,
                "state": state,
                "approval": rollout.needs_approval(index),
                "approved": rollout.is_approved(index),
                "second_person": rollout.needs_second(index),
                "approved_by": list(rollout.approved_by(index)),
            }
        )
    return stages


def _held_back(rollout: Rollout) -> dict[str, Any]:
    """The devices that stay control until the last stage has baked: how many, and whether they wait."""
    is_over = rollout.state is State.PROMOTED
    held_bp = rollout.spec.hold_back_bp
    return {"percent_bp": held_bp, "state": "done" if is_over else "held" if held_bp else "none"}


def _canary(snapshot: Snapshot) -> dict[str, Any]:
    tally = snapshot.tally()
    served, devices = snapshot.served()
    return {**tally.to_json(), **_rates(served), "devices_with_requests": devices}


def _control(control: ControlArm) -> dict[str, Any]:
    return {
        "targeted": control.devices,
        "reachable": control.active - control.silent,
        "silent": control.silent,
        **_rates(control.served),
    }


def _rates(served: Served) -> dict[str, Any]:
    def share(part: int) -> float | None:
        return part / served.requests if served.requests else None

    return {
        "requests": served.requests,
        "failures": served.failures,
        "over_objective": served.over_objective,
        "output_violations": served.output_violations,
        "error_rate": share(served.failures),
        "over_latency_rate": share(served.over_objective),
        "output_violation_rate": share(served.output_violations),
    }


MAX_FAILED = 50
_FAILED = (Standing.REFUSED, Standing.REVERTED, Standing.STUCK, Standing.SILENT)


def _failed_devices(snapshot: Snapshot) -> list[dict[str, str]]:
    """Up to MAX_FAILED devices that failed, and how."""
    failed = []
    for device in snapshot.cohort:
        standing = snapshot.standing(device)
        if standing in _FAILED:
            failed.append(
                {
                    "device_id": device.device_id,
                    "standing": str(standing),
                    "phase": device.phase,
                    "reason_code": device.reason_code,
                    "reason": device.reason,
                }
            )
            if len(failed) == MAX_FAILED:
                break
    return failed
