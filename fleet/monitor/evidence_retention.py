"""How long the evidence of rollouts is kept: what comparisons were made from, a page at a time.

Rules kept here: while a rollout is under way nothing it may look at goes; the running sums of a stage
that was left go at once, since each look has its own copy of what it saw; the rest stays as long as
the steps of deployments do, so that an audit can make the decisions again; a ring goes last, so a
prune that is interrupted finds the rest again.
"""

from collections.abc import Iterator

from sqlalchemy import ColumnElement, Connection, Table, delete, select, tuple_

from fleet.rollout.states import ACTIVE, FINAL
from fleet.store.tables import (
    decision_snapshots,
    histories,
    looks,
    ring_counts,
    rings,
    rollouts,
    served,
)

__all__ = ["prune_evidence"]


def prune_evidence(connection: Connection, before_s: float, limit: int) -> int:
    """Delete up to ``limit`` rows that nothing needs any more; how many were deleted.

    Evidence of rollouts that ended before ``before_s`` goes. Fewer than ``limit``: there is no more.
    """
    left = limit
    for table, where in _what(connection, before_s):
        left -= _delete_page(connection, table, where, left)
        if left <= 0:
            break
    return limit - left


def _what(connection: Connection, before_s: float) -> Iterator[tuple[Table, ColumnElement[bool]]]:
    """What may go, in this order."""
    for ring_id in _left_rings(connection):
        yield ring_counts, ring_counts.c.ring_id == ring_id
    for rollout_id in _old_rollouts(connection, before_s):
        mine = select(rings.c.id).where(rings.c.rollout_id == rollout_id)
        for ring_id in connection.execute(mine).scalars().all():
            yield ring_counts, ring_counts.c.ring_id == ring_id
            yield served, served.c.ring_id == ring_id
            yield looks, looks.c.ring_id == ring_id
        for table in (decision_snapshots, histories, rings):
            yield table, table.c.rollout_id == rollout_id


def _left_rings(connection: Connection) -> list[int]:
    """Rings with sums of a stage that no rollout is in now."""
    now_in = (
        select(rings.c.id)
        .join(
            rollouts,
            (rings.c.rollout_id == rollouts.c.id)
            & (rings.c.stage == rollouts.c.stage)
            & (rings.c.started_s == rollouts.c.stage_started_s),
        )
        .where(rollouts.c.state.in_(sorted(ACTIVE)))
    )
    query = select(ring_counts.c.ring_id).distinct()
    found = connection.execute(query.where(ring_counts.c.ring_id.not_in(now_in)))
    return sorted(found.scalars())


def _old_rollouts(connection: Connection, before_s: float) -> list[str]:
    """Rollouts that ended long ago and have evidence left."""
    query = (
        select(rollouts.c.id)
        .where(
            rollouts.c.state.in_(sorted(FINAL)),
            rollouts.c.updated_s < before_s,
            rollouts.c.id.in_(select(rings.c.rollout_id)),
        )
        .order_by(rollouts.c.number)
    )
    return list(connection.execute(query).scalars())


def _delete_page(
    connection: Connection, table: Table, where: ColumnElement[bool], limit: int
) -> int:
    key = list(table.primary_key.columns)
    rows = connection.execute(select(*key).where(where).limit(limit)).all()
    if rows:
        names = [tuple(row) for row in rows]
        connection.execute(delete(table).where(tuple_(*key).in_(names)))
    return len(rows)
