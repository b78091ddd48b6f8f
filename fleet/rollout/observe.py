"""Reading what the fleet reported into a snapshot.

Rules kept here: counts are those received since the stage began, added up as they arrived; which arm
a device is in is decided by the functions the devices themselves use; a stratum that was stopped is
in neither arm, since its devices go back as they were told.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection, func, select

from agent.trust import BundleRelease, slots_of
from fleet.rollout.check_answers import read_answers
from fleet.rollout.looks import read_evidence
from fleet.rollout.members import Member, everyone
from fleet.rollout.record import Rollout
from fleet.rollout.snapshot import FAILED_OUTCOMES, ControlArm, DeviceView, Served, Snapshot
from fleet.rollout.spec import ALL_BP
from fleet.rollout.stored_rings import cohort_bp, ring_of
from fleet.store.tables import deployment_events, deployments, device_models, devices, served

__all__ = ["newest_report_s", "read_snapshot", "steps_of"]

_PAGE: Final = 5000  # devices of one query


def newest_report_s(connection: Connection) -> float:
    """When any device was last heard from; 0 when none ever was."""
    return float(connection.scalar(select(func.max(devices.c.last_seen_s))) or 0.0)


def steps_of(
    connection: Connection, rollout_id: str, after: str, limit: int
) -> list[dict[str, Any]]:
    """The newest step of each device in a rollout, by device id, from the one behind ``after`` on."""
    step = deployments.c
    query = (
        select(deployments)
        .where(step.rollout_id == rollout_id, step.device_id > after)
        .order_by(step.device_id)
        .limit(limit)
    )
    return [dict(row._mapping) for row in connection.execute(query)]


def read_snapshot(
    connection: Connection,
    rollout: Rollout,
    release: BundleRelease | None,
    now_s: float,
    listening_since_s: float,
) -> Snapshot:
    """Everything a decision about ``rollout`` looks at, in one consistent view of the database."""
    limit_bp = ALL_BP if release is None else release.limit_bp(now_s)
    share_bp = min(cohort_bp(rollout), limit_bp)
    slot = slots_of(rollout.manifest_sha256)
    cohort: list[Member] = []
    control_seen_s: list[float] = []
    others: list[str] = []
    strata: Counter[str] = Counter()
    for device_id, seen_s, stratum in everyone(connection, rollout, release):
        if stratum is None:
            others.append(device_id)
            continue
        strata[stratum] += 1
        if slot(device_id) < share_bp:
            cohort.append(Member(device_id, seen_s, stratum))
        else:
            control_seen_s.append(seen_s)
    cohort.sort()
    others += (device.device_id for device in cohort)
    ring = ring_of(connection, rollout)
    ring_id = None if ring is None else ring.id
    return Snapshot(
        rollout=rollout,
        cohort=_cohort(connection, rollout, cohort, ring_id, now_s),
        control=ControlArm(
            len(control_seen_s),
            *_heard(rollout, control_seen_s, now_s, listening_since_s),
            _served_by_control(connection, ring_id, others),
        ),
        now_s=now_s,
        listening_since_s=listening_since_s,
        limit_bp=limit_bp,
        limit_next=_next_limit(release, now_s, limit_bp),
        evidence=read_evidence(connection, rollout, now_s),
        checks=read_answers(connection, rollout),
        strata=dict(sorted(strata.items())),
    )


def _cohort(
    connection: Connection,
    rollout: Rollout,
    cohort: Sequence[Member],
    ring_id: int | None,
    now_s: float,
) -> tuple[DeviceView, ...]:
    steps = {
        row.device_id: row
        for row in connection.execute(
            select(deployments).where(deployments.c.rollout_id == rollout.id)
        )
    }
    serving = set(
        connection.scalars(
            select(device_models.c.device_id).where(
                device_models.c.model == rollout.model,
                device_models.c.manifest_sha256 == rollout.manifest_sha256,
            )
        )
    )
    ours = _served(connection, ring_id)
    views = (_view(device, steps, serving, ours) for device in cohort)
    tries, begun_s = _tries(connection, rollout), _begun_s(connection, rollout, now_s)
    if not tries and not begun_s:
        return tuple(views)
    return tuple(
        replace(view, tries=tries.get(view.device_id, 0), begun_s=begun_s.get(view.device_id, 0.0))
        for view in views
    )


def _tries(connection: Connection, rollout: Rollout) -> dict[str, int]:
    """How often each device has refused or reverted the bundle, where it may try again at all."""
    if rollout.spec.retries == 0:
        return {}
    step = deployment_events.c
    query = (
        select(step.device_id, func.count(step.deployment_id.distinct()))
        .where(step.rollout_id == rollout.id, step.outcome.in_(sorted(FAILED_OUTCOMES)))
        .group_by(step.device_id)
    )
    return {row[0]: int(row[1]) for row in connection.execute(query)}


def _begun_s(connection: Connection, rollout: Rollout, now_s: float) -> dict[str, float]:
    """When each device that is not done was first heard to have begun in this stage.

    Nobody is asked before those that began with the stage are due: until then nobody can be late.
    """
    if now_s <= rollout.deadline_s:
        return {}
    step, newest = deployment_events.c, deployments.c
    same = (newest.device_id == step.device_id) & (newest.rollout_id == step.rollout_id)
    query = (
        select(step.device_id, func.min(step.received_s))
        .join(deployments, same)
        .where(
            step.rollout_id == rollout.id,
            step.received_s >= rollout.stage_started_s,
            newest.outcome != "committed",
        )
        .group_by(step.device_id)
    )
    return {row[0]: float(row[1]) for row in connection.execute(query)}


def _view(
    device: Member, steps: Mapping[str, Any], serving: set[str], served: Mapping[str, Served]
) -> DeviceView:
    device_id = device.device_id
    step = steps.get(device_id)
    part = served.get(device_id, Served())
    heard_s = max(device.last_seen_s, part.last_window_s or 0.0)
    if step is None:
        serves = device_id in serving
        return DeviceView(device_id, heard_s, serves=serves, served=part, stratum=device.stratum)
    return DeviceView(
        device_id=device_id,
        last_heard_s=max(heard_s, step.updated_s),
        phase=step.phase,
        outcome=step.outcome,
        reason_code=step.reason_code,
        reason=step.reason,
        committed_s=step.committed_s,
        serves=device_id in serving,
        served=part,
        stratum=device.stratum,
    )


def _served(connection: Connection, ring_id: int | None) -> dict[str, Served]:
    """What each device has served with the rollout's bundle since the stage began."""
    columns = served.c
    query = select(
        columns.device_id,
        columns.requests,
        columns.failures,
        columns.over_objective,
        columns.output_violations,
        columns.last_window_s,
    ).where(columns.ring_id == ring_id, columns.ours)
    return {row[0]: Served(*row[1:]) for row in connection.execute(query).all()}


def _heard(
    rollout: Rollout, seen_s: Sequence[float], now_s: float, listening_since_s: float
) -> tuple[int, int]:
    """How many were heard from when the stage began or since, and how many of those are silent now."""
    silence_s = rollout.spec.guards.silence_s
    since_s = rollout.stage_started_s - silence_s
    active_s = [at_s for at_s in seen_s if at_s >= since_s]
    silent = sum(now_s - max(at_s, listening_since_s) > silence_s for at_s in active_s)
    return len(active_s), silent


def _served_by_control(
    connection: Connection, ring_id: int | None, others: Sequence[str]
) -> Served:
    """What everybody but ``others`` has served together with the bundle that was there before.

    The database adds up: control is most of a fleet, and nobody asks for its devices one by one.
    """
    columns = served.c
    counts = (
        columns.requests,
        columns.failures,
        columns.over_objective,
        columns.output_violations,
    )
    query = select(*(func.coalesce(func.sum(count), 0) for count in counts)).where(
        columns.ring_id == ring_id, ~columns.ours
    )
    sums = [int(value) for value in connection.execute(query).one()]
    for start in range(0, len(others), _PAGE):
        page = others[start : start + _PAGE]
        theirs = connection.execute(query.where(columns.device_id.in_(page))).one()
        sums = [had - int(less) for had, less in zip(sums, theirs, strict=True)]
    return Served(*sums)


def _next_limit(
    release: BundleRelease | None, now_s: float, limit_bp: int
) -> tuple[float, int] | None:
    """When the release allows a larger share than now, and which."""
    if release is None:
        return None
    coming = [
        (release.signed_at_s + float(after_s), share_bp)
        for after_s, share_bp in release.limits
        if release.signed_at_s + after_s > now_s and share_bp > limit_bp
    ]
    return min(coming, default=None)
