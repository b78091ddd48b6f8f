"""What an operator can do to a rollout, each in one transaction of the caller's.

Rules kept here: nothing starts that the plan finds a problem with, unless it is forced; of one
model, no two rollouts are under way on the same devices; whoever acts and why is in the trail.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection

from fleet.errors import ConflictError, RefusedError
from fleet.rollout import audit, records
from fleet.rollout.changes import (
    Asked,
    Change,
    asked_for,
    created,
    stratum_stopped,
    superseded,
)
from fleet.rollout.directives import may_share_devices
from fleet.rollout.fitness import Candidate, is_meant
from fleet.rollout.planning import Planned
from fleet.rollout.record import Rollout
from fleet.rollout.spec import RolloutSpec, bundle_class
from fleet.rollout.states import ACTIVE, Event, State

__all__ = ["change", "start", "stop_stratum"]

SAMPLE: Final = 3  # devices named where two rollouts meet


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
    rollout = created(planned, records.next_number(connection), asked.at_s, asked)
    for other in others:
        records.apply_change(connection, other, superseded(rollout, asked))
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


def change(connection: Connection, rollout_id: str, event: Event, asked: Asked) -> Rollout:
    """Pause, resume, approve, abort or roll back. Asked for twice it happens once.

    Raises:
        NotFoundError: there is no such rollout.
        RequestError: the event is none of those.
        ConflictError: it is not possible in the rollout's state, or a newer one has taken over.
    """
    rollout = records.get_rollout(connection, rollout_id)
    happening = asked_for(rollout, event, asked)
    if event is Event.ROLLBACK and rollout.state not in ACTIVE:
        _refuse_outdated(connection, rollout)
    return _applied(connection, rollout, happening)


def stop_stratum(
    connection: Connection, rollout: Rollout, stratum: str, strata: Sequence[str], asked: Asked
) -> Rollout:
    """Let one stratum leave the bundle, and the others go on. Asked for twice it happens once.

    Raises:
        NotFoundError: no device is of that stratum. RequestError: it is no stratum.
        ConflictError: not possible in the rollout's state, or no other stratum is left.
    """
    return _applied(connection, rollout, stratum_stopped(rollout, stratum, strata, asked))


def _applied(connection: Connection, rollout: Rollout, happening: Change | None) -> Rollout:
    if happening is None:
        return rollout
    return records.apply_change(connection, rollout, happening)


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
