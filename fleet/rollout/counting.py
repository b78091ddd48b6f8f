"""Adding windows, as they are stored, to what the stages under way keep of each device.

Rules kept here: in the transaction that stores the windows, and only for windows that are new, so a
repeated report counts once; a few rows for each device that reported, whatever the fleet's size; only
stages of rollouts that are under way count, and a stage that was left never changes again.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, select

from fleet.errors import ServerError
from fleet.rollout.frozen import FrozenRing
from fleet.rollout.gate.drift import MIN_OUTPUTS, drift_scores
from fleet.rollout.gate.exposure import Exposure, Windows, offset_s
from fleet.rollout.gate.ring import Counts, FloatArray, IntArray
from fleet.rollout.sources import (
    DRIFT,
    columns_of,
    counters_of,
    levels_of,
    output_names,
    outputs_of,
    rates_of,
)
from fleet.rollout.stored_rings import OpenRing, open_rings, read_ring
from fleet.store.tables import ring_counts, served
from fleet.store.upsert import insert

__all__ = ["CLOCK_SLACK_MS", "add_exposure", "add_served", "count_windows", "read_counts"]

log = logging.getLogger(__name__)

CLOCK_SLACK_MS: Final = 24 * 3_600_000  # a device's clock may be this far behind ours
_HEAD: Final = 2  # of a row of counts: seconds of the open minute, closed minutes
_PAGE: Final = 500


def count_windows(connection: Connection, rows: Sequence[Mapping[str, Any]], now_s: float) -> None:
    """Count windows that came in at ``now_s`` for every stage that is under way.

    A ring that cannot be read any more is missing its counts, and its stage holds; the intake goes on.
    """
    if not rows:
        return
    for ring in open_rings(connection, {row["model"] for row in rows}):
        mine = [row for row in rows if row["model"] == ring.model]
        add_served(connection, ring, mine, now_s)
        try:
            add_exposure(connection, ring, mine)
        except ServerError as error:
            log.error("windows of rollout %s are not compared: %s", ring.rollout_id, error)


# --- plain counts, for absolute limits ----------------------------------------------------------


def add_served(
    connection: Connection, ring: OpenRing, rows: Sequence[Mapping[str, Any]], now_s: float
) -> None:
    """Add to what each device served since the stage began, with the rollout's bundle or another."""
    sums: dict[tuple[bool, str], list[int]] = {}
    for row in rows:
        ours = _whose(ring, row)
        if ours is None:
            continue
        one = sums.setdefault((ours, row["device_id"]), [0, 0, 0, 0])
        # One answer can be outside its range and not finite: the larger count has both.
        violations = max(row["non_finite"], row["output_violations"])
        counts = (row["requests"], row["failures"], row["over_objective"], violations)
        one[:] = [had + more for had, more in zip(one, counts, strict=True)]
    if not sums:
        return
    names = ("requests", "failures", "over_objective", "output_violations")
    added = insert(connection, served)
    changed = {name: served.c[name] + added.excluded[name] for name in names}
    key = [served.c.ring_id, served.c.ours, served.c.device_id]
    added = added.on_conflict_do_update(
        index_elements=key, set_=changed | {"last_window_s": added.excluded.last_window_s}
    )
    values = [
        {"ring_id": ring.id, "ours": ours, "device_id": device_id, "last_window_s": now_s}
        | dict(zip(names, one, strict=True))
        for (ours, device_id), one in sorted(sums.items())
    ]
    connection.execute(added, values)


def _whose(ring: OpenRing, row: Mapping[str, Any]) -> bool | None:
    """True: of the rollout's bundle. False: of another that answers. None: it does not count.

    A bundle's windows count only when this rollout brought it or it served meanwhile, so that late
    reports of an earlier try do not.
    """
    if row["manifest_sha256"] == ring.manifest_sha256:
        meanwhile = row["end_ms"] >= int(ring.created_s * 1000)
        return True if row["rollout_id"] == ring.rollout_id or meanwhile else None
    if row["manifest_sha256"] == "" or row["role"] != "":
        return None
    recent = row["end_ms"] >= int(ring.started_s * 1000) - CLOCK_SLACK_MS
    return False if recent else None


# --- counts at equal exposure, for comparisons --------------------------------------------------


def add_exposure(
    connection: Connection, open_ring: OpenRing, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Add to the counts of the devices of the ring's pool, each role of windows apart."""
    frozen = read_ring(connection, open_ring.id, open_ring.digest)
    for role in frozen.roles:
        mine = [row for row in rows if row["role"] == role and row["device_id"] in frozen.place]
        if role != "":
            mine = [row for row in mine if row["manifest_sha256"] == open_ring.manifest_sha256]
        if mine:
            _add_role(connection, open_ring.id, frozen, role, mine)


def _add_role(
    connection: Connection,
    ring_id: int,
    frozen: FrozenRing,
    role: str,
    rows: Sequence[Mapping[str, Any]],
) -> None:
    places = np.array([frozen.place[row["device_id"]] for row in rows], dtype=np.int64)
    who, device = np.unique(places, return_inverse=True)
    before = _stored_exposure(connection, (ring_id, role), frozen, who)
    after = before.add(_windows(frozen, device.astype(np.int64), rows))
    changed = np.flatnonzero(
        (after.minutes != before.minutes) | (after.open_s != before.open_s)
    ).tolist()
    if not changed:
        return
    table = _table_of(after)
    added = insert(connection, ring_counts)
    columns = ring_counts.c
    added = added.on_conflict_do_update(
        index_elements=[columns.ring_id, columns.role, columns.device],
        set_={"body": added.excluded.body},
    )
    values = [
        {"ring_id": ring_id, "role": role, "device": int(who[n]), "body": table[n].tobytes()}
        for n in changed
    ]
    connection.execute(added, values)


def _windows(frozen: FrozenRing, device: IntArray, rows: Sequence[Mapping[str, Any]]) -> Windows:
    names = frozen.ring.metrics
    columns = columns_of(rows)
    bad, total = rates_of(names, columns, counters_of(names, [row["counters"] for row in rows]))
    outputs = outputs_of(frozen.labels, [row["output_counts"] for row in rows])
    return Windows(
        device=device,
        start_s=np.array([row["start_ms"] for row in rows]) / 1000,
        end_s=np.array([row["end_ms"] for row in rows]) / 1000,
        counts=Counts(bad | outputs, total | outputs, levels_of(names, columns)),
    )


def _stored_exposure(
    connection: Connection, key: tuple[int, str], frozen: FrozenRing, who: IntArray
) -> Exposure:
    """The exposure of the devices ``who`` (pool indices, ascending), as it is stored."""
    ring = frozen.ring
    table = np.zeros((len(who), _width(frozen)))
    row_of = {int(device): number for number, device in enumerate(who)}
    columns = ring_counts.c
    wanted = who.tolist()
    for start in range(0, len(wanted), _PAGE):
        query = select(columns.device, columns.body).where(
            columns.ring_id == key[0],
            columns.role == key[1],
            columns.device.in_(wanted[start : start + _PAGE]),
        )
        for device, body in connection.execute(query):
            table[row_of[device]] = np.frombuffer(body, dtype="<f8")
    offsets_s = [offset_s(ring.seed, ring.device_ids[device]) for device in wanted]
    return _exposure_of(frozen, table, np.array(offsets_s))


def _columns(frozen: FrozenRing) -> tuple[str, ...]:
    """What is counted of each device: the ring's metrics, and its answers by label for the drift."""
    return (*frozen.ring.metrics, *output_names(frozen.labels))


def _width(frozen: FrozenRing) -> int:
    return _HEAD + 4 * len(_columns(frozen))


def _exposure_of(frozen: FrozenRing, table: FloatArray, offsets_s: FloatArray) -> Exposure:
    names = _columns(frozen)
    half = _HEAD + 2 * len(names)
    return Exposure(
        started_s=frozen.ring.started_s,
        metrics=names,
        offsets_s=offsets_s,
        open_s=table[:, 0],
        open=table[:, _HEAD:half],
        closed=table[:, half:],
        minutes=table[:, 1].astype(np.int64),
    )


def _table_of(exposure: Exposure) -> FloatArray:
    head = np.column_stack([exposure.open_s, exposure.minutes.astype(np.float64)])
    return np.hstack([head, exposure.open, exposure.closed]).astype("<f8")


def read_counts(connection: Connection, ring_id: int, frozen: FrozenRing, role: str = "") -> Counts:
    """What the devices of a ring have reported so far, in pool order."""
    table = np.zeros((frozen.ring.size, _width(frozen)))
    query = select(ring_counts.c.device, ring_counts.c.body).where(
        ring_counts.c.ring_id == ring_id, ring_counts.c.role == role
    )
    rows = connection.execute(query).all()
    if rows:
        bodies = np.frombuffer(b"".join(row[1] for row in rows), dtype="<f8")
        table[[row[0] for row in rows]] = bodies.reshape(len(rows), -1)
    nothing = np.zeros(frozen.ring.size)  # the offsets matter only to what is added
    return _with_drift(frozen, _exposure_of(frozen, table, nothing).counts())


def _with_drift(frozen: FrozenRing, counts: Counts) -> Counts:
    """The answers by label as one level, against the device's own past, or the pool's without one."""
    names = output_names(frozen.labels)
    if not names:
        return counts
    outputs = np.column_stack([counts.bad[name] for name in names])
    has_past = frozen.outputs.sum(axis=1, keepdims=True) >= MIN_OUTPUTS
    past = np.where(has_past, frozen.outputs, frozen.outputs.sum(axis=0))
    return Counts(
        {name: values for name, values in counts.bad.items() if name not in names},
        {name: values for name, values in counts.total.items() if name not in names},
        {**counts.level, DRIFT: drift_scores(outputs, past)},
        counts.reported,
    )
