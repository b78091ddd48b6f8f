"""How long reports are kept: what is old is deleted, a page at a time.

Rules kept here: nothing a decision may still look at is deleted, so reports of rollouts that are not
final stay, and so do all windows of their models since the stage began (the control arm's); nor is
the newest window of a device. One transaction reads and deletes at most one page, and between two of
them whoever else waits for the writer has a turn.

Deleted rows leave free pages, which new reports fill: the file stops growing, it does not shrink.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Table,
    and_,
    delete,
    exists,
    not_,
    or_,
    select,
    tuple_,
)

from fleet.connect import outbox
from fleet.errors import FleetError
from fleet.monitor.baselines import prune_hours
from fleet.monitor.evidence_retention import prune_evidence
from fleet.rollout.check_answers import prune_answers
from fleet.rollout.states import ACTIVE
from fleet.store.tables import deployment_events, rollouts, windows
from fleet.store.writer import Writer

__all__ = ["Pruned", "Pruner", "Retention", "prune_events", "prune_windows"]

_LOG = logging.getLogger(__name__)

Place = tuple[float, str, str, int]
"""Received, device, boot, sequence number: where in the order of arrival a report stands."""

START: Place = (float("-inf"), "", "", 0)


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what is kept, and how gently the rest goes."""

    keep_windows_s: float = 30 * 86_400.0
    keep_events_s: float = 365 * 86_400.0
    keep_told_s: float = 7 * 86_400.0  # events that no webhook waits for any more
    every_s: float = 3600.0
    page_rows: int = 500  # looked at, and at most deleted, in one transaction
    pause_s: float = 0.05  # between two transactions


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows went; ``pages``: transactions over reports."""

    windows: int = 0
    events: int = 0
    pages: int = 0
    evidence: int = 0  # rows that comparisons were made from


class Pruner:
    """Deletes old reports with the writer that stores new ones."""

    def __init__(
        self,
        writer: Writer,
        retention: Retention | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._writer = writer
        self._retention = retention or Retention()
        self._now_s = now_s

    async def run(self) -> None:
        """Prune at once and then every ``every_s``, until cancelled."""
        while True:
            try:
                pruned = await self.prune()
            except FleetError as error:
                # Old reports do no harm: the next round tries again.
                _LOG.error("old reports were not deleted: %s", error)
            else:
                if pruned.windows or pruned.events:
                    _LOG.info(
                        "%d old windows and %d old events deleted", pruned.windows, pruned.events
                    )
            await asyncio.sleep(self._retention.every_s)

    async def prune(self) -> Pruned:
        """Delete everything that is too old now.

        Raises:
            ServerError: the database refused; what was deleted before stays deleted.
        """
        now_s = self._now_s()
        found, pages = await self._pages(prune_windows, now_s - self._retention.keep_windows_s)
        events, more = await self._pages(prune_events, now_s - self._retention.keep_events_s)
        evidence = await self._prune_evidence(now_s)
        return Pruned(found, events, pages + more, evidence)

    async def _prune_evidence(self, now_s: float) -> int:
        """Hours that no baseline reads, and what comparisons of long ago were made from."""
        deleted = await self._writer.run(lambda c: prune_hours(c, now_s))
        told_s = now_s - self._retention.keep_told_s
        deleted += await self._writer.run(lambda c: outbox.prune(c, told_s))
        deleted += await self._writer.run(prune_answers)
        rows, before_s = self._retention.page_rows, now_s - self._retention.keep_events_s
        while True:
            count = await self._writer.run(lambda c: prune_evidence(c, before_s, rows))
            deleted += count
            if count < rows:
                return deleted
            await asyncio.sleep(self._retention.pause_s)

    async def _pages(
        self,
        prune: Callable[[Connection, float, Place, int], tuple[int, Place | None]],
        before_s: float,
    ) -> tuple[int, int]:
        deleted = pages = 0
        place: Place | None = START
        while place is not None:
            if pages:
                await asyncio.sleep(self._retention.pause_s)
            after, rows = place, self._retention.page_rows
            count, place = await self._writer.run(lambda c: prune(c, before_s, after, rows))  # noqa: B023 -- awaited in this turn
            deleted += count
            pages += 1
        return deleted, pages


def prune_windows(
    connection: Connection, before_s: float, after: Place, limit: int
) -> tuple[int, Place | None]:
    """Look at up to ``limit`` windows that arrived before ``before_s``, from behind ``after`` on.

    Returns how many were deleted, and where to go on (None: there are no more).
    """
    newer = windows.alias()
    is_newest = not_(
        exists().where(
            newer.c.device_id == windows.c.device_id,
            or_(
                newer.c.end_ms > windows.c.end_ms,
                and_(newer.c.end_ms == windows.c.end_ms, newer.c.seq > windows.c.seq),
            ),
        )
    )
    needed = [is_newest]
    for rollout in _under_way(connection):
        needed += [
            windows.c.rollout_id == rollout.id,
            and_(
                windows.c.model == rollout.model,
                windows.c.received_s >= rollout.stage_started_s,
            ),
        ]
    return _prune_page(connection, windows, or_(*needed), (before_s, after, limit))


def prune_events(
    connection: Connection, before_s: float, after: Place, limit: int
) -> tuple[int, Place | None]:
    """The same for the steps of deployments."""
    needed = deployment_events.c.rollout_id.in_([one.id for one in _under_way(connection)])
    return _prune_page(connection, deployment_events, needed, (before_s, after, limit))


def _under_way(connection: Connection) -> list[Row[tuple[str, str, float]]]:
    columns = rollouts.c
    query = select(columns.id, columns.model, columns.stage_started_s)
    return list(connection.execute(query.where(columns.state.in_(sorted(ACTIVE)))))


def _prune_page(
    connection: Connection,
    table: Table,
    needed: ColumnElement[bool],
    page: tuple[float, Place, int],
) -> tuple[int, Place | None]:
    before_s, after, limit = page
    columns = table.c
    key = tuple_(columns.device_id, columns.boot_id, columns.seq)
    order = (columns.received_s, columns.device_id, columns.boot_id, columns.seq)
    query = (
        select(*order, needed.label("needed"))
        .where(columns.received_s < before_s)
        .order_by(*order)
        .limit(limit)
    )
    if after is not START:
        at_once = and_(columns.received_s == after[0], key <= tuple_(*after[1:]))
        query = query.where(columns.received_s >= after[0], not_(at_once))
    rows = connection.execute(query).all()
    old = [tuple(row[1:4]) for row in rows if not row.needed]
    if old:
        connection.execute(delete(table).where(key.in_(old)))
    return len(old), tuple(rows[-1][:4]) if len(rows) == limit else None
