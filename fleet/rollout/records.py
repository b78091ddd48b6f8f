"""Rollouts in the database: rows in and out, and the directives that follow from them.

Rules kept here: a rollout changes by one function, which checks the transition, writes the audit
entry and the event for webhooks, and brings the directives in line, all in the caller's transaction.
"""

from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, select, update

from fleet.connect import outbox
from fleet.connect.events import change_event, start_event
from fleet.errors import ConflictError, NotFoundError
from fleet.rollout import audit
from fleet.rollout.changes import Change, changed
from fleet.rollout.directives import desired_directives
from fleet.rollout.parsing import parse_spec
from fleet.rollout.record import Rollout
from fleet.rollout.states import State
from fleet.store.tables import bundles, directives, rollouts

__all__ = [
    "LATEST",
    "add_rollout",
    "all_rollouts",
    "apply_change",
    "get_rollout",
    "next_number",
    "running_rollouts",
    "set_reason",
    "sync_directives",
]

LATEST: Final = "latest"


def all_rollouts(connection: Connection) -> list[Rollout]:
    """Every rollout, newest first."""
    rows = connection.execute(select(rollouts).order_by(rollouts.c.number.desc()))
    return [_rollout(dict(row._mapping)) for row in rows]


def running_rollouts(connection: Connection) -> list[Rollout]:
    """The rollouts the controller has to decide about, oldest first."""
    query = select(rollouts).where(rollouts.c.state == str(State.RUNNING))
    rows = connection.execute(query.order_by(rollouts.c.number))
    return [_rollout(dict(row._mapping)) for row in rows]


def get_rollout(connection: Connection, rollout_id: str) -> Rollout:
    """The rollout with this id; ``latest`` is the newest one.

    Raises:
        NotFoundError: there is none; the message names the newest.
    """
    newest = connection.scalar(select(rollouts.c.id).order_by(rollouts.c.number.desc()).limit(1))
    wanted = newest if rollout_id == LATEST else rollout_id
    row = connection.execute(select(rollouts).where(rollouts.c.id == wanted)).first()
    if row is not None:
        return _rollout(dict(row._mapping))
    hint = f"the newest is {newest}" if newest else "none has been started"
    raise NotFoundError(f"there is no rollout {rollout_id!r}: {hint}; see `fleet rollout list`")


def next_number(connection: Connection) -> int:
    """Numbers count up over the whole fleet and are never used twice."""
    return int(connection.scalar(select(func.coalesce(func.max(rollouts.c.number), 0))) or 0) + 1


def add_rollout(connection: Connection, rollout: Rollout, entry: audit.Entry) -> None:
    """Store a new rollout with its first audit entry, and let its directive speak."""
    row = rollout.to_json()
    for derived in ("stages", "percent_bp"):
        del row[derived]
    connection.execute(insert(rollouts).values(**row))
    audit.append(connection, entry)
    outbox.add(connection, start_event(rollout))
    sync_directives(connection, rollout.created_s)


def apply_change(connection: Connection, rollout: Rollout, change: Change) -> Rollout:
    """Let ``change`` happen to ``rollout`` as it was read, and return it as it is then.

    Raises:
        ConflictError: the event is not possible in its state, or it has changed since it was read.
    """
    after = changed(rollout, change)
    done = connection.execute(
        update(rollouts)
        .where(
            rollouts.c.id == rollout.id,
            rollouts.c.state == str(rollout.state),
            rollouts.c.stage == rollout.stage,
        )
        .values(
            state=str(after.state),
            stage=after.stage,
            stage_started_s=after.stage_started_s,
            reason=after.reason,
            updated_s=after.updated_s,
            details=dict(after.details),
        )
    )
    if done.rowcount != 1:
        raise ConflictError(f"rollout {rollout.id} has changed meanwhile: look at it and try again")
    entry = audit.Entry(
        rollout_id=rollout.id,
        at_s=change.at_s,
        actor=change.actor,
        action=str(change.event),
        from_state=str(rollout.state),
        to_state=str(after.state),
        stage=after.stage,
        verdict=change.verdict,
        reason=change.reason,
        evidence=change.evidence,
    )
    audit.append(connection, entry)
    outbox.add(connection, change_event(rollout, after, change.event, entry.to_json()))
    sync_directives(connection, change.at_s)
    return after


def set_reason(connection: Connection, rollout: Rollout, reason: str, at_s: float) -> None:
    """Keep the newest reason for holding beside the rollout, for whoever asks how it goes."""
    connection.execute(
        update(rollouts)
        .where(rollouts.c.id == rollout.id, rollouts.c.state == str(rollout.state))
        .values(reason=reason, updated_s=at_s)
    )


def sync_directives(connection: Connection, at_s: float) -> bool:
    """Make the table of directives what the rollouts ask for; True when anything differed."""
    lengths = {
        row.path: row.manifest_bytes
        for row in connection.execute(select(bundles.c.path, bundles.c.manifest_bytes))
    }
    wanted = {d.id: d.to_json() for d in desired_directives(all_rollouts(connection), lengths)}
    stored = {row.rollout_id: row.body for row in connection.execute(select(directives))}
    for rollout_id in stored.keys() - wanted.keys():
        connection.execute(delete(directives).where(directives.c.rollout_id == rollout_id))
    for rollout_id, body in wanted.items():
        if rollout_id not in stored:
            row = {"number": body["number"], "body": body, "updated_s": at_s}
            connection.execute(insert(directives).values(rollout_id=rollout_id, **row))
        elif stored[rollout_id] != body:
            same = directives.c.rollout_id == rollout_id
            connection.execute(update(directives).where(same).values(body=body, updated_s=at_s))
    return stored != wanted


def _rollout(row: dict[str, Any]) -> Rollout:
    return Rollout(**{**row, "spec": parse_spec(row["spec"]), "state": State(row["state"])})
