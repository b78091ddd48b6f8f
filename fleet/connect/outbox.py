"""The outbox: events in the database, written with the decisions they tell of.

Rules kept here: an event is there if and only if its decision is; each webhook has a place in the
order, and everything behind it waits; a place moves when an event is delivered or given up, and never
back; a new webhook begins with what happens from then on. So an event is sent at least once, in
order, under one message id, whenever the process ends.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, select, update

from fleet.connect.event_types import HELD
from fleet.connect.events import Event, hold_event
from fleet.connect.patience import Patience
from fleet.errors import NotFoundError
from fleet.rollout.record import Rollout
from fleet.store.tables import outbox, webhooks
from fleet.store.upsert import insert

__all__ = [
    "Pending",
    "Place",
    "add",
    "add_hold",
    "delivered",
    "failed",
    "next_pending",
    "places",
    "prune",
    "register",
    "try_now",
]

_MAX_ERROR_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class Pending:
    """The next event for a webhook: ``number`` is its place, ``message_id`` its name."""

    number: int
    message_id: str
    event: Event
    next_try_s: float
    failures: int


@dataclass(frozen=True, slots=True)
class Place:
    """How far a webhook has got."""

    name: str
    pending: int
    oldest_s: float | None
    delivered: int
    delivered_s: float | None
    failures: int
    next_try_s: float
    last_error: str
    given_up: int
    given_up_s: float | None


def add(connection: Connection, event: Event) -> None:
    """Put ``event`` into the outbox, in the transaction of what it tells of."""
    row = {
        "message_id": f"msg_{uuid.uuid4().hex}",
        "type": event.type,
        "at_s": event.at_s,
        "rollout_id": event.rollout_id,
        "path": event.path,
        "data": dict(event.data),
    }
    connection.execute(insert(connection, outbox).values(**row))


def add_hold(connection: Connection, rollout: Rollout, said: Mapping[str, Any]) -> None:
    """The same for a hold, if it is news: see ``hold_event``."""
    query = (
        select(outbox.c.at_s, outbox.c.data)
        .where(outbox.c.rollout_id == rollout.id, outbox.c.type == HELD)
        .order_by(outbox.c.id.desc())
        .limit(1)
    )
    row = connection.execute(query).first()
    last = None if row is None else {"at_s": row.at_s, "data": row.data}
    event = hold_event(rollout, said, last)
    if event is not None:
        add(connection, event)


# --- the places of webhooks -----------------------------------------------------------------------


def register(connection: Connection, wanted: Mapping[str, Sequence[str]]) -> None:
    """Let there be exactly these webhooks: types of events by name.

    One that was there keeps its place; one that is gone is forgotten with what it had not got.
    """
    connection.execute(delete(webhooks).where(webhooks.c.name.not_in(list(wanted))))
    newest = connection.scalar(select(func.coalesce(func.max(outbox.c.id), 0)))
    for name, types in wanted.items():
        fresh = {
            "name": name,
            "events": list(types),
            "delivered_id": newest,
            "delivered": 0,
            "failures": 0,
            "next_try_s": 0.0,
            "last_error": "",
            "given_up": 0,
        }
        added = insert(connection, webhooks).values(**fresh)
        # After a restart it is tried at once: what was wrong may have been put right.
        known = {"events": list(types), "next_try_s": 0.0}
        connection.execute(added.on_conflict_do_update(index_elements=["name"], set_=known))


def next_pending(connection: Connection, name: str) -> Pending | None:
    """The oldest event that the webhook has not got; None when it has all."""
    place = _place(connection, name)
    query = select(outbox).where(_waits(place)).order_by(outbox.c.id).limit(1)
    row = connection.execute(query).first()
    if row is None:
        return None
    event = Event(row.type, row.at_s, row.rollout_id, row.path, row.data)
    return Pending(row.id, row.message_id, event, place.next_try_s, place.failures)


def delivered(connection: Connection, name: str, number: int, now_s: float) -> None:
    """The webhook has taken event ``number``. Repeated, it changes nothing."""
    column = webhooks.c
    connection.execute(
        update(webhooks)
        .where(column.name == name, column.delivered_id < number)
        .values(
            delivered_id=number,
            delivered=column.delivered + 1,
            delivered_s=now_s,
            failures=0,
            next_try_s=0.0,
            last_error="",
        )
    )


def failed(
    connection: Connection, name: str, error: str, times_s: tuple[float, float], patience: Patience
) -> int:
    """A try has failed: wait, and give up what is too old or too much. Returns how many were.

    ``times_s`` are now, and how long the webhook asks to be left alone (0: it does not say).
    """
    now_s, asked_s = times_s
    place = _place(connection, name)
    column = webhooks.c
    failures = place.failures + 1
    wait: dict[str, Any] = {
        "failures": failures,
        "next_try_s": now_s + patience.wait_s(failures, asked_s),
        "last_error": error[:_MAX_ERROR_CHARS],
    }
    waiting = connection.scalar(select(func.count()).where(_waits(place))) or 0
    too_much = max(0, waiting - patience.most_pending)
    too_old = select(func.count()).where(_waits(place), outbox.c.at_s <= patience.too_old_s(now_s))
    gone = max(too_much, connection.scalar(too_old) or 0)
    if gone:
        upto = select(outbox.c.id).where(_waits(place)).order_by(outbox.c.id).offset(gone - 1)
        wait |= {
            "delivered_id": connection.scalar(upto.limit(1)),
            "given_up": column.given_up + gone,
            "given_up_s": now_s,
        }
    connection.execute(update(webhooks).where(column.name == name).values(**wait))
    return gone


def try_now(connection: Connection, name: str) -> None:
    """Forget the waiting time of a webhook: it is known to answer again."""
    values = {"failures": 0, "next_try_s": 0.0, "last_error": ""}
    connection.execute(update(webhooks).where(webhooks.c.name == name).values(**values))


def places(connection: Connection) -> list[Place]:
    """How far each webhook has got, by name."""
    found = []
    for row in connection.execute(select(webhooks).order_by(webhooks.c.name)).all():
        count = select(func.count(), func.min(outbox.c.at_s)).where(_waits(row))
        pending, oldest_s = connection.execute(count).one()
        values = {name: row._mapping[name] for name in Place.__slots__ if name in row._mapping}
        found.append(Place(pending=pending, oldest_s=oldest_s, **values))
    return found


def prune(connection: Connection, before_s: float) -> int:
    """Delete events from before ``before_s`` that no webhook waits for."""
    needed = [
        connection.scalar(select(func.min(outbox.c.id)).where(_waits(row)))
        for row in connection.execute(select(webhooks)).all()
    ]
    first = min((number for number in needed if number is not None), default=None)
    old = outbox.c.at_s < before_s
    if first is not None:
        old = and_(old, outbox.c.id < first)
    return connection.execute(delete(outbox).where(old)).rowcount


def _place(connection: Connection, name: str) -> Row[Any]:
    row = connection.execute(select(webhooks).where(webhooks.c.name == name)).first()
    if row is None:
        raise NotFoundError(f"there is no webhook {name!r}: see `fleet webhook list`")
    return row


def _waits(place: Row[Any]) -> ColumnElement[bool]:
    """The events that a webhook has not got."""
    return and_(outbox.c.id > place.delivered_id, outbox.c.type.in_(place.events))
