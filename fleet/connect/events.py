"""What is told to others: a decision about a rollout as an event. Pure.

Rules kept here: every change is told, and a hold only when it is news: a stage that bakes is expected
to wait, so it is told once something else keeps it, or what keeps it cannot mend itself; numbers are
sums over arms, and no event names a device, a label or a person.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from fleet.connect.event_types import HELD, STARTED, TEST
from fleet.rollout.record import Rollout
from fleet.rollout.states import Event as Happening

__all__ = [
    "Event",
    "body_of",
    "change_event",
    "event_of_test",
    "hold_event",
    "start_event",
]

_OF_CHANGES: Final[Mapping[Happening, str]] = {
    Happening.ADVANCE: "rollout.stage",
    Happening.PROMOTE: "rollout.promoted",
    Happening.ROLLBACK: "rollout.rolled_back",
    Happening.STOP_STRATUM: "rollout.stratum_stopped",
    Happening.PAUSE: "rollout.paused",
    Happening.RESUME: "rollout.resumed",
    Happening.APPROVE: "rollout.approved",
    Happening.ABORT: "rollout.aborted",
    Happening.SUPERSEDE: "rollout.superseded",
}
URGENT: Final = frozenset({"silence", "check"})
"""Guards whose hold is told while a stage still bakes: nothing gets better by waiting for the bake."""
AGAIN_S: Final = 300.0  # between two events that the same rollout is held

_COUNTS: Final = ("requests", "failures", "over_objective", "output_violations")
_CANARY: Final = ("targeted", "reachable", "installed", "reported", "failed", *_COUNTS)
_CONTROL: Final = ("devices", "active", "silent", *_COUNTS)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. ``data`` is JSON; ``path`` is where the API tells more, or ""."""

    type: str
    at_s: float
    rollout_id: str
    path: str
    data: Mapping[str, Any]


def start_event(rollout: Rollout) -> Event:
    """A rollout was made: it runs, or waits for approval of its first stage."""
    return _event(STARTED, rollout, rollout.created_s, rollout.reason)


def change_event(
    before: Rollout, after: Rollout, happening: Happening, said: Mapping[str, Any]
) -> Event:
    """Something happened to a rollout.

    Args:
        said: ``at_s``, ``actor``, ``reason``, ``verdict`` and ``evidence`` of the decision.
    """
    more = {
        "actor": said["actor"],
        "verdict": said["verdict"],
        "from_state": str(before.state),
        "from_stage": before.stage + 1,
        "numbers": _numbers(said["evidence"]),
    }
    return _event(_OF_CHANGES[happening], after, said["at_s"], said["reason"], **more)


def hold_event(
    rollout: Rollout, said: Mapping[str, Any], last: Mapping[str, Any] | None
) -> Event | None:
    """A rollout holds; None when that is no news.

    Args:
        said: ``at_s``, ``reason``, ``verdict``, ``evidence`` and ``blockers`` of the decision, and
            ``waits``: what would make it go on, in words.
        last: the newest event that this rollout is held: ``at_s`` and ``data``; None without one.
    """
    blockers: Sequence[str] = said["blockers"]
    told = sorted(
        _urgent(blockers, said["evidence"]) if "bake" in blockers else frozenset(blockers)
    )
    if not told:
        return None
    if last is not None and not _is_news(rollout, said["at_s"], told, last):
        return None
    more = {
        "actor": "controller",
        "verdict": said["verdict"],
        "holding": told,
        "waits": list(said["waits"]),
        "stage_started_s": rollout.stage_started_s,
        "numbers": _numbers(said["evidence"]),
    }
    return _event(HELD, rollout, said["at_s"], said["reason"], **more)


def _urgent(blockers: Sequence[str], evidence: Mapping[str, Any]) -> frozenset[str]:
    """What is told during a bake; not that a check has yet to answer for the first time."""
    urgent = URGENT & set(blockers)
    findings: Sequence[Mapping[str, Any]] = evidence.get("findings", ())
    asked = [one for one in findings if one["guard"] == "check" and one["verdict"] != "pass"]
    if asked and not any("said" in one["evidence"] for one in asked):
        return urgent - {"check"}
    return urgent


def _is_news(rollout: Rollout, at_s: float, told: Sequence[str], last: Mapping[str, Any]) -> bool:
    if last["data"].get("stage_started_s") != rollout.stage_started_s:
        return True
    is_other: bool = last["data"].get("holding") != told
    return is_other and at_s - last["at_s"] >= AGAIN_S


def event_of_test(at_s: float, target: str) -> Event:
    """What ``fleet webhook test`` sends."""
    reason = f"a test of the webhook {target}: nothing has happened"
    return Event(TEST, at_s, "", "", {"webhook": target, "reason": reason})


def body_of(event: Event, link: str) -> dict[str, Any]:
    """The payload as it is sent: type, time, data. ``link`` is the base of addresses of the API."""
    data = dict(event.data)
    if event.path:
        data["link"] = link.rstrip("/") + event.path
    moment = datetime.fromtimestamp(event.at_s, UTC).isoformat(timespec="milliseconds")
    return {"type": event.type, "timestamp": moment.replace("+00:00", "Z"), "data": data}


def _event(kind: str, rollout: Rollout, at_s: float, reason: str, **more: Any) -> Event:
    data = {
        "rollout": rollout.id,
        "model": rollout.model,
        "bundle": rollout.bundle,
        "previous_bundle": rollout.previous_bundle,
        "state": str(rollout.state),
        "stage": rollout.stage + 1,
        "stages": len(rollout.spec.stages),
        "percent": rollout.percent_bp / 100,
        "reason": reason,
        **more,
    }
    return Event(kind, at_s, rollout.id, f"/v1/rollouts/{rollout.id}", data)


def _numbers(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Both arms in sums; empty for a decision that was not made from numbers."""
    cohort, control = evidence.get("cohort"), evidence.get("control")
    if not isinstance(cohort, Mapping) or not isinstance(control, Mapping):
        return {}
    return {
        "canary": {name: cohort[name] for name in _CANARY if name in cohort},
        "control": {name: control[name] for name in _CONTROL if name in control},
    }
