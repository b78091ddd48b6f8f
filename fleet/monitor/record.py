"""Writing a batch of checked reports: one transaction, however often the same reports arrive.

Rules kept here: (device, boot, sequence number) names a report for ever, so a repeated one changes
nothing but the time the device was last heard of, and is counted nowhere twice; a device's newest
step in a rollout only moves forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Table, and_, bindparam, or_, update

from fleet.monitor.baselines import add_to_baselines
from fleet.monitor.reports import Kind, ParsedReport
from fleet.registry.devices import apply_inventory, register
from fleet.rollout.counting import count_windows
from fleet.store.tables import deployment_events, deployments, windows
from fleet.store.upsert import insert

__all__ = ["Recorded", "record"]

_STEP_COLUMNS = (
    "device_id", "rollout_id", "deployment_id", "manifest_sha256", "phase", "outcome",
    "reason_code", "reason", "at_ms", "boot_id", "seq",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a batch came to."""

    windows: int = 0
    events: int = 0
    inventories: int = 0
    repeated: int = 0


def record(connection: Connection, reports: Sequence[ParsedReport], now_s: float) -> Recorded:
    """Store ``reports``, in order."""
    register(connection, (one.device_id for one in reports), now_s)
    by_kind: dict[Kind, list[ParsedReport]] = {kind: [] for kind in Kind}
    for one in reports:
        by_kind[one.kind].append(one)
    new_windows = _insert(connection, windows, by_kind[Kind.WINDOW], now_s)
    rows = [one.row for one in new_windows]
    add_to_baselines(connection, rows, now_s)
    count_windows(connection, rows, now_s)
    new_events = _insert(connection, deployment_events, by_kind[Kind.EVENT], now_s)
    _advance(connection, new_events, now_s)
    news = sum(
        apply_inventory(connection, one.device_id, one.row, one.active, now_s)
        for one in by_kind[Kind.INVENTORY]
    )
    stored = len(new_windows) + len(new_events) + news
    return Recorded(len(new_windows), len(new_events), news, len(reports) - stored)


def _insert(
    connection: Connection, table: Table, reports: Sequence[ParsedReport], now_s: float
) -> list[ParsedReport]:
    """Insert the reports that are not there yet; return those."""
    unique = {(one.device_id, one.boot_id, one.seq): one for one in reports}
    if not unique:
        return []
    key = (table.c.device_id, table.c.boot_id, table.c.seq)
    statement = insert(connection, table).on_conflict_do_nothing(index_elements=key).returning(*key)
    rows = [{**one.row, "received_s": now_s} for one in unique.values()]
    added = {tuple(row) for row in connection.execute(statement, rows)}
    return [one for identity, one in unique.items() if identity in added]


def _advance(connection: Connection, events: Sequence[ParsedReport], now_s: float) -> None:
    """Make each event the newest step of its device in its rollout, unless a newer one is known."""
    if not events:
        return
    step = insert(connection, deployments)
    new, old = step.excluded, deployments.c
    newer = or_(
        and_(old.boot_id == new.boot_id, old.seq < new.seq),
        and_(old.boot_id != new.boot_id, old.at_ms <= new.at_ms),
    )
    changed = {name: new[name] for name in (*_STEP_COLUMNS[2:], "updated_s")}
    step = step.on_conflict_do_update(
        index_elements=[old.device_id, old.rollout_id], set_=changed, where=newer
    )
    rows = [
        {name: event.row[name] for name in _STEP_COLUMNS} | {"updated_s": now_s} for event in events
    ]
    connection.execute(step, rows)
    committed = [
        {"of_device": row["device_id"], "of_rollout": row["rollout_id"], "at_s": now_s}
        for row in rows
        if row["outcome"] == "committed"
    ]
    if committed:
        first = update(deployments).where(
            old.device_id == bindparam("of_device"),
            old.rollout_id == bindparam("of_rollout"),
            old.committed_s.is_(None),
        )
        connection.execute(first.values(committed_s=bindparam("at_s")), committed)
