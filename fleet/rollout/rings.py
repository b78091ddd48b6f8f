"""The beginning of a stage: who is compared with whom, frozen before the first number is seen.

Rules kept here: a stage has one ring for each time it was begun, written in one transaction with what
had come in since, so it can be asked for again at any time and a process that dies loses nothing;
which arm a device is in is decided by the function the devices use; baselines are those of before
the rollout.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from sqlalchemy import Connection, func, select

from agent.trust import BundleRelease, slots_of
from fleet.rollout.counting import add_exposure, add_served
from fleet.rollout.frozen import ARM_ROLES, Expected, FrozenRing, expected_effects, held_metrics
from fleet.rollout.gate.evidence import hashes
from fleet.rollout.gate.opening import Pool, RingPlan, open_ring
from fleet.rollout.gate.ring import Counts
from fleet.rollout.history import History, failure_budgets, history_of, keep_history
from fleet.rollout.members import Member, members_of
from fleet.rollout.record import Rollout
from fleet.rollout.spec import ALL_BP
from fleet.rollout.stored_rings import OpenRing, StoredRing, cohort_bp, open_rings, ring_of
from fleet.store.tables import bundles, device_models, looks, rings, windows
from fleet.store.upsert import insert

__all__ = [
    "SEEN_S",
    "PreparedRing",
    "begin_ring",
    "freeze",
    "prepare_ring",
    "share_left",
    "store_ring",
]

SEEN_S: Final = 120.0  # two heartbeats: who was not heard from for longer is in no comparison
LEAST_SHARE: Final = 0.5  # of a ring's alpha that a resumed stage has at least
_PAGE: Final = 2000  # windows that are counted at once


@dataclass(frozen=True, slots=True)
class PreparedRing:
    """A ring that is frozen and not yet stored."""

    rollout: Rollout
    attempt: int
    body: bytes
    hashes: Mapping[str, str]
    history: bytes  # as stored: making these bytes of a large fleet takes a while
    taken_s: float


def begin_ring(
    connection: Connection, rollout: Rollout, release: BundleRelease | None, now_s: float
) -> StoredRing:
    """Freeze the ring of the stage the rollout is in, unless that is done."""
    prepared = prepare_ring(connection, rollout, release, now_s)
    if prepared is not None:
        store_ring(connection, prepared)
    stored = ring_of(connection, rollout)
    assert stored is not None
    return stored


def prepare_ring(
    connection: Connection, rollout: Rollout, release: BundleRelease | None, now_s: float
) -> PreparedRing | None:
    """Freeze a ring without storing it; None when the stage has one.

    It reads the whole fleet, so it is kept apart from ``store_ring``, which has to keep the intake
    waiting.
    """
    if ring_of(connection, rollout) is not None:
        return None
    matching = members_of(connection, rollout, release)
    ids = [device.device_id for device in matching]
    history = history_of(connection, rollout, ids, now_s)
    attempt = _attempts(connection, rollout)
    alpha = rollout.spec.guards.alpha * share_left(connection, rollout, attempt)
    pool = _pool(connection, rollout, matching, now_s)
    frozen = freeze(rollout, pool, history, alpha, failure_budgets(connection, rollout))
    body = frozen.to_bytes()
    parts = hashes(frozen.ring, Counts())
    del parts["counts"]
    parts["body"] = hashlib.sha256(body).hexdigest()
    return PreparedRing(rollout, attempt, body, parts, history.to_bytes(), now_s)


def store_ring(connection: Connection, prepared: PreparedRing) -> None:
    """Store a ring, unless the stage has one, with the windows that came in since the stage began."""
    rollout = prepared.rollout
    if ring_of(connection, rollout) is not None:
        return
    keep_history(connection, rollout, prepared.history, prepared.taken_s)
    row = {
        "rollout_id": rollout.id,
        "stage": rollout.stage,
        "attempt": prepared.attempt,
        "started_s": rollout.stage_started_s,
        "body": prepared.body,
        "hashes": dict(prepared.hashes),
    }
    connection.execute(insert(connection, rings).values(**row))
    _count_since(connection, rollout)


def freeze(
    rollout: Rollout,
    pool: Pool,
    history: History,
    alpha: float,
    budgets: Mapping[str, float],
) -> FrozenRing:
    """The ring of a stage, from the devices in it and what they were like before. Pure."""
    stage, guards = rollout.current_stage, rollout.spec.guards
    paired = stage.kind in ARM_ROLES
    plan = RingPlan(
        rollout_id=rollout.id,
        stage=rollout.stage,
        rings=len(rollout.spec.stages),
        started_s=rollout.stage_started_s,
        bake_s=stage.bake_s,
        percent_bp=ALL_BP if paired else cohort_bp(rollout),
        metrics=tuple(name for name, _ in guards.metrics),
        tolerances=dict(guards.metrics),
        alpha=alpha,
    )
    past = history.of(pool.device_ids)
    ring = open_ring(plan, pool, past.counts)
    kept = history.of(ring.device_ids)
    given = Expected(kept.counts, kept.seconds, paired, _traffic(rollout))
    expected = expected_effects(ring, given)
    return FrozenRing(
        ring=ring,
        kind=stage.kind,
        statistics=guards.statistics,
        held=held_metrics(ring, guards.statistics, expected),
        expected=expected,
        labels=kept.labels,
        outputs=kept.outputs,
        budgets=budgets,
    )


def _traffic(rollout: Rollout) -> float:
    stage = rollout.current_stage
    return stage.traffic_bp / ALL_BP if stage.kind in ARM_ROLES else 1.0


def _attempts(connection: Connection, rollout: Rollout) -> int:
    query = select(func.count()).where(
        rings.c.rollout_id == rollout.id, rings.c.stage == rollout.stage
    )
    return int(connection.execute(query).scalar_one())


def share_left(connection: Connection, rollout: Rollout, attempt: int) -> float:
    """What a stage that was resumed may spend: what was left when it was paused, at least half.

    So every resumption, which a person asks for, adds at most half a ring to the chance of a false
    alarm. ``attempt`` counts the runs of the stage before this one.

    Raises:
        ValueError: the run before it is no longer stored.
    """
    if attempt == 0:
        return 1.0
    query = (
        select(rings.c.id)
        .where(
            rings.c.rollout_id == rollout.id,
            rings.c.stage == rollout.stage,
            rings.c.attempt == attempt - 1,
        )
        .order_by(rings.c.attempt.desc())
        .limit(1)
    )
    last = connection.scalar(query)
    if last is None:
        raise ValueError(
            f"run {attempt} of the stage is gone, and run {attempt + 1} follows from it"
        )
    evidence = connection.execute(
        select(looks.c.k, looks.c.evidence)
        .where(looks.c.ring_id == last)
        .order_by(looks.c.number.desc())
        .limit(1)
    ).first()
    if evidence is None:
        return 1.0
    done = int(evidence.k) / len(evidence.evidence["looks_s"])
    return max(LEAST_SHARE, 1.0 - done)


def _pool(
    connection: Connection, rollout: Rollout, matching: Sequence[Member], now_s: float
) -> Pool:
    """Who is compared: heard from lately, and running what the others run, or this rollout's bundle.

    Where both bundles run on each device of the stage, the pool is the stage.
    """
    running = _running(connection, rollout)
    stable = _stable(connection, rollout)
    seen_s = now_s - max(SEEN_S, rollout.spec.guards.silence_s)
    share_bp = cohort_bp(rollout)
    paired = rollout.current_stage.kind in ARM_ROLES
    ids: list[str] = []
    strata: list[str] = []
    cohort: list[bool] = []
    slot = slots_of(rollout.manifest_sha256)
    for device_id, last_seen_s, stratum in matching:
        runs = running.get(device_id, "")
        chosen = slot(device_id) < share_bp
        fits = runs in (stable, rollout.manifest_sha256) if stable else True
        if last_seen_s < seen_s or not fits or (paired and not chosen):
            continue
        ids.append(device_id)
        strata.append(stratum)
        cohort.append(chosen)
    return Pool(ids, strata, cohort)


def _running(connection: Connection, rollout: Rollout) -> dict[str, str]:
    columns = device_models.c
    query = select(columns.device_id, columns.manifest_sha256)
    rows = connection.execute(query.where(columns.model == rollout.model))
    return {row[0]: row[1] for row in rows.all()}


def _stable(connection: Connection, rollout: Rollout) -> str:
    """The manifest of the bundle that the others run; "" when there was none before."""
    query = select(bundles.c.manifest_sha256).where(bundles.c.path == rollout.previous_bundle)
    return connection.scalar(query) or ""


def _count_since(connection: Connection, rollout: Rollout) -> None:
    """Count the windows that came in between the beginning of the stage and now."""
    for ring in open_rings(connection, [rollout.model]):
        if (ring.rollout_id, ring.started_s) != (rollout.id, rollout.stage_started_s):
            continue
        for rows in _pages(_windows_since(connection, ring)):
            for received_s, together in groupby(rows, key=lambda row: float(row["received_s"])):
                add_served(connection, ring, list(together), received_s)
            add_exposure(connection, ring, rows)


def _windows_since(connection: Connection, ring: OpenRing) -> list[Mapping[str, Any]]:
    query = (
        select(windows)
        .where(windows.c.model == ring.model, windows.c.received_s >= ring.started_s)
        .order_by(windows.c.received_s, windows.c.device_id, windows.c.boot_id, windows.c.seq)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def _pages(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    page: list[Mapping[str, Any]] = []
    for row in rows:
        page.append(row)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page
