"""What an operator can do to a rollout, each in one transaction of the caller's.

Rules kept here: nothing starts that the plan finds a problem with, unless it is forced; of one
model, no two rollouts are under way on the same devices; an operator may go on where the gate holds,
with a reason, and never where it fails; whoever acts and why is in the trail; what is asked for twice
happens once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from fleet.errors import ConflictError, NotFoundError, RefusedError, RequestError
from fleet.rollout import audit, records
from fleet.rollout.controller import Action, Step
from fleet.rollout.directives import may_share_devices
from fleet.rollout.fitness import Candidate, is_meant
from fleet.rollout.gate import Verdict
from fleet.rollout.planned import Plan
from fleet.rollout.planning import Planned
from fleet.rollout.record import Rollout
from fleet.rollout.spec import RolloutSpec, bundle_class
from fleet.rollout.states import ACTIVE, Event, State, next_state

__all__ = ["OPERATOR_EVENTS", "Asked", "advance", "change", "start", "stop_stratum"]

OPERATOR_EVENTS: Final = (
    Event.PAUSE,
    Event.RESUME,
    Event.APPROVE,
    Event.ADVANCE,
    Event.ABORT,
    Event.ROLLBACK,
    Event.STOP_STRATUM,
)
_DONE: Final = {
    Event.PAUSE: "paused",
    Event.RESUME: "resumed",
    Event.APPROVE: "approved",
    Event.ABORT: "aborted",
    Event.ROLLBACK: "rolled back",
}
_STRATUM: Final = re.compile(r"[a-z0-9-]{1,40}/[a-z0-9-]{1,40}")
SAMPLE: Final = 3  # devices named where two rollouts meet


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks for something, when and why."""

    at_s: float
    by: str = ""
    reason: str = ""

    def said(self, what: str) -> str:
        """``paused by an operator: REASON``."""
        return f"{what} by an operator" + (f": {self.reason}" if self.reason else "")


# --- start ----------------------------------------------------------------------------------------


def start(
    connection: Connection,
    made: Planned,
    asked: Asked,
    *,
    force: bool = False,
    supersede: bool = False,
) -> Rollout:
    """Start what was planned; with ``supersede`` it ends those that stand in its way.

    Raises:
        RefusedError: the plan has a problem and ``force`` is not set.
        ConflictError: another rollout of the model is under way on some of the same devices.
    """
    planned, spec = made.plan, made.plan.spec
    others = _in_the_way(connection, spec)
    if others and not supersede:
        raise ConflictError(_conflict(others[0], spec, made.candidates))
    if planned.problems and not force:
        raise RefusedError(
            f"the rollout of {spec.bundle} would not work: {'; '.join(planned.problems)} "
            "(--force starts it all the same)"
        )
    rollout = _new(planned, records.next_number(connection), asked.at_s)
    for other in others:
        records.apply_change(connection, other, _superseded_by(rollout, asked))
    evidence = {
        "plan": planned.to_json(),
        "forced": force,
        "by": asked.by,
        "supersedes": [other.id for other in others],
    }
    although = f", although {'; '.join(planned.problems)}" if planned.problems else ""
    entry = audit.Entry(
        rollout_id=rollout.id,
        at_s=asked.at_s,
        actor=audit.OPERATOR,
        action="start",
        from_state="",
        to_state=str(rollout.state),
        stage=0,
        verdict="",
        reason=rollout.reason + although,
        evidence=evidence,
    )
    records.add_rollout(connection, rollout, entry)
    return rollout


def _in_the_way(connection: Connection, spec: RolloutSpec) -> list[Rollout]:
    return [
        other
        for other in records.all_rollouts(connection)
        if other.state in ACTIVE and may_share_devices(other.spec, spec)
    ]


def _conflict(other: Rollout, spec: RolloutSpec, known: Sequence[Candidate]) -> str:
    """Which rollout, which devices, and what can be done."""
    both = [
        device.facts.device_id
        for device in known
        if is_meant(other.spec, device.facts) and is_meant(spec, device.facts)
    ]
    labels = {
        **dict(other.spec.selector),
        **dict(spec.selector),
        "class": bundle_class(spec.bundle),
    }
    which = ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
    named = ", ".join(both[:SAMPLE]) + (", ..." if len(both) > SAMPLE else "")
    count = f"{len(both)} known, {named}" if both else "none known yet"
    return (
        f"rollout {other.id} of {other.bundle} is {other.state} on some of the same devices: those "
        f"with {which} ({count}). Wait for it, end it with `fleet rollout abort {other.id}` or "
        f"`fleet rollout rollback {other.id}`, or start this one with --supersede"
    )


def _new(planned: Plan, number: int, now_s: float) -> Rollout:
    spec = planned.spec
    first = spec.stages[0]
    waits = first.approval
    return Rollout(
        id=f"r{number}",
        number=number,
        model=spec.model,
        bundle=spec.bundle,
        manifest_sha256=planned.manifest_sha256,
        previous_bundle=planned.previous_bundle,
        spec=spec,
        state=State.WAITING if waits else State.RUNNING,
        stage=0,
        stage_started_s=now_s,
        reason=(
            f"created; {first.words} needs approval: `fleet rollout approve r{number}`"
            if waits
            else f"started at {first.words}"
        ),
        created_s=now_s,
        updated_s=now_s,
    )


def _superseded_by(rollout: Rollout, asked: Asked) -> records.Change:
    return records.Change(
        event=Event.SUPERSEDE,
        actor=audit.OPERATOR,
        reason=asked.said(f"halted: superseded with {rollout.id} of {rollout.bundle}"),
        at_s=asked.at_s,
        evidence={"by": asked.by},
        details={"superseded_by": rollout.id},
    )


# --- what happens to one that there is -----------------------------------------------------------


def change(connection: Connection, rollout_id: str, event: Event, asked: Asked) -> Rollout:
    """Pause, resume, approve, abort or roll back.

    Raises:
        NotFoundError: there is no such rollout.
        RequestError: the event is none of those.
        ConflictError: it is not possible in the rollout's state, or a newer one has taken over.
    """
    if event not in _DONE:
        raise RequestError(f"{event} is the controller's decision, not an operator's")
    rollout = records.get_rollout(connection, rollout_id)
    if event is Event.APPROVE:
        return _approve(connection, rollout, asked)
    if event is Event.ROLLBACK and rollout.state not in ACTIVE:
        _refuse_outdated(connection, rollout)
    happening = _happening(event, asked.said(_DONE[event]), asked)
    return records.apply_change(connection, rollout, happening)


def _approve(connection: Connection, rollout: Rollout, asked: Asked) -> Rollout:
    """The first stage of one that waits, else the next stage. Twice is as once."""
    next_state(rollout.state, Event.APPROVE, rollout.id)
    stage = 0 if rollout.state is State.WAITING else rollout.stage + 1
    stages = rollout.spec.stages
    if stage == len(stages) or not stages[stage].approval:
        raise ConflictError(
            f"rollout {rollout.id} is in {rollout.stage_name()}, and no approval is needed to go on"
        )
    if stage > 0 and rollout.is_approved(stage):
        return rollout
    approved = sorted({*rollout.details.get("approved", ()), stage})
    said = asked.said(f"{rollout.stage_name(stage)} approved")
    happening = _happening(Event.APPROVE, said, asked, details={"approved": approved})
    return records.apply_change(connection, rollout, happening)


def advance(
    connection: Connection, rollout: Rollout, action: Action | None, asked: Asked
) -> Rollout:
    """Go on although the gate holds; ``action`` is what it would do now.

    Raises:
        RequestError: no reason is given.
        RefusedError: the gate fails the stage, or a stratum of it.
        ConflictError: the rollout is not running.
    """
    if not asked.reason.strip():
        raise RequestError(
            f"going on with rollout {rollout.id} although the gate holds needs a reason: say it "
            "with --reason"
        )
    if action is not None and action.verdict is Verdict.FAIL:
        raise RefusedError(
            f"rollout {rollout.id} cannot go on: the gate does not hold, it fails: {action.reason}"
        )
    event = Event.PROMOTE if rollout.is_last_stage else Event.ADVANCE
    goal = "promoted" if rollout.is_last_stage else rollout.stage_name(rollout.stage + 1)
    said = f"advanced to {goal}" if event is Event.ADVANCE else goal
    held = "" if action is None else action.reason
    evidence = {} if action is None else dict(action.evidence)
    if action is not None and action.step is not Step.HOLD:
        held = ""  # the controller was about to do the same
    evidence |= {"override": bool(held), "gate_said": held}
    reason = asked.said(said) + (f" (the gate was {held})" if held else "")
    verdict = "" if action is None else str(action.verdict)
    happening = _happening(event, reason, asked, verdict=verdict, evidence=evidence)
    return records.apply_change(connection, rollout, happening)


def stop_stratum(
    connection: Connection, rollout_id: str, stratum: str, strata: Sequence[str], asked: Asked
) -> Rollout:
    """Let one stratum leave the bundle, and the others go on. Twice is as once.

    ``strata`` are those of the devices the rollout is for.

    Raises:
        NotFoundError: there is no such rollout, or no device of that stratum.
        RequestError: it is no stratum.
        ConflictError: not possible in the rollout's state, or no other stratum is left.
    """
    rollout = records.get_rollout(connection, rollout_id)
    if not _STRATUM.fullmatch(stratum):
        raise RequestError(
            f"stratum {stratum!r:.80} is not understood: write CLASS/PROVIDER, like edge/cpu"
        )
    if stratum in rollout.stopped:
        return rollout
    if stratum not in strata:
        known = ", ".join(strata) or "none"
        raise NotFoundError(f"no device of rollout {rollout.id} is in {stratum}: there is {known}")
    stopped = [*rollout.stopped, stratum]
    if set(strata) <= set(stopped):
        raise ConflictError(
            f"{stratum} is the last stratum of rollout {rollout.id} that goes on: use "
            f"`fleet rollout rollback {rollout.id}`"
        )
    said = asked.said(f"{stratum} stopped")
    happening = _happening(Event.STOP_STRATUM, said, asked, details={"stopped": stopped})
    return records.apply_change(connection, rollout, happening)


def _happening(event: Event, said: str, asked: Asked, **more: Any) -> records.Change:
    """The event as an operator's; ``more`` are fields of the change."""
    evidence = {**more.pop("evidence", {}), "by": asked.by}
    return records.Change(event, audit.OPERATOR, said, asked.at_s, evidence=evidence, **more)


def _refuse_outdated(connection: Connection, rollout: Rollout) -> None:
    """A finished rollout can be rolled back while nothing newer has been started in its place."""
    for newer in records.all_rollouts(connection):
        if newer.number > rollout.number and may_share_devices(newer.spec, rollout.spec):
            if newer.state is State.ROLLED_BACK:
                continue  # its devices are back on this one
            raise ConflictError(
                f"rollout {rollout.id} is {rollout.state} and {newer.id} came after it: roll "
                f"{newer.id} back instead, or start a rollout of the bundle you want"
            )
