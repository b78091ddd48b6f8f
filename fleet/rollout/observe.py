"""Reading what the fleet reported into a snapshot.

Rules kept here: counts are those received since the stage began, added up as they arrived; which arm
a device is in is decided by the functions the devices themselves use; a stratum that was stopped is
in neither arm, since its devices go back as they were told.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Connection, Text, cast, func, select

from agent.trust import BundleRelease, DeviceFacts, selects, slot_of, stratum_of
from fleet.rollout.check_answers import read_answers
from fleet.rollout.fitness import is_meant
from fleet.rollout.looks import read_evidence
from fleet.rollout.record import Rollout
from fleet.rollout.snapshot import ControlArm, DeviceView, Served, Snapshot, total
from fleet.rollout.spec import ALL_BP, bundle_class
from fleet.rollout.stored_rings import cohort_bp, ring_of
from fleet.store.tables import deployments, device_models, devices, served

__all__ = [
    "KnownDevice",
    "known_devices",
    "newest_report_s",
    "pool_of",
    "read_snapshot",
    "steps_of",
    "takes_part",
]


_LABELS_KEPT: Final = 50_000  # different ones


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A device of the fleet: what it says it is, and when it was last heard from."""

    facts: DeviceFacts
    last_seen_s: float


def known_devices(connection: Connection) -> list[KnownDevice]:
    """Every device, ordered by id."""
    rows = connection.execute(
        select(
            devices.c.id,
            devices.c.device_class,
            devices.c.hardware,
            cast(devices.c.labels, Text),
            devices.c.agent_version,
            devices.c.onnxruntime_version,
            devices.c.execution_provider,
            func.coalesce(devices.c.utc_offset_minutes, 0),
            devices.c.last_seen_s,
        ).order_by(devices.c.id)
    )
    return [
        KnownDevice(DeviceFacts(one, kind, arch, _labels(labels), *versions), seen_s)
        for one, kind, arch, labels, *versions, seen_s in rows
    ]


@lru_cache(maxsize=_LABELS_KEPT)
def _labels(text: str) -> Mapping[str, str]:
    """Labels as they are stored; every tick reads those of every device, and few differ.

    Devices with the same labels share them: nobody may change them.
    """
    labels: dict[str, str] = json.loads(text)
    return labels


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


def pool_of(
    known: Sequence[KnownDevice],
    bundle: str,
    selector: tuple[tuple[str, str], ...],
    release: BundleRelease | None,
) -> list[KnownDevice]:
    """The devices a rollout is for: of the bundle's class and hardware, with the labels asked for."""
    device_class = bundle_class(bundle)
    hardware = release.hardware if release is not None else ()
    return [
        device
        for device in known
        if device.facts.device_class == device_class
        and (not hardware or device.facts.hardware in hardware)
        and selects(selector, device.facts)
    ]


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
    known = pool_of(known_devices(connection), rollout.bundle, rollout.spec.selector, release)
    pool = [device for device in known if takes_part(rollout, device.facts)]
    cohort: list[KnownDevice] = []
    control: list[KnownDevice] = []
    for device in pool:
        slot = slot_of(rollout.manifest_sha256, device.facts.device_id)
        (cohort if slot < share_bp else control).append(device)
    ring = ring_of(connection, rollout)
    ring_id = None if ring is None else ring.id
    return Snapshot(
        rollout=rollout,
        cohort=_cohort(connection, rollout, cohort, ring_id),
        control=_control(connection, rollout, control, ring_id, (now_s, listening_since_s)),
        now_s=now_s,
        listening_since_s=listening_since_s,
        limit_bp=limit_bp,
        limit_next=_next_limit(release, now_s, limit_bp),
        evidence=read_evidence(connection, rollout, now_s),
        checks=read_answers(connection, rollout),
    )


def takes_part(rollout: Rollout, facts: DeviceFacts) -> bool:
    """Whether the device is not left out, and its stratum has not been stopped."""
    return is_meant(rollout.spec, facts) and stratum_of(facts) not in rollout.stopped


def _cohort(
    connection: Connection, rollout: Rollout, cohort: Sequence[KnownDevice], ring_id: int | None
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
    ours = _served(connection, ring_id, ours=True)
    return tuple(_view(device, steps, serving, ours) for device in cohort)


def _view(
    device: KnownDevice, steps: Mapping[str, Any], serving: set[str], served: Mapping[str, Served]
) -> DeviceView:
    device_id = device.facts.device_id
    step = steps.get(device_id)
    part = served.get(device_id, Served())
    heard_s = max(device.last_seen_s, part.last_window_s or 0.0)
    if step is None:
        return DeviceView(device_id, heard_s, serves=device_id in serving, served=part)
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
    )


def _control(
    connection: Connection,
    rollout: Rollout,
    control: Sequence[KnownDevice],
    ring_id: int | None,
    times_s: tuple[float, float],
) -> ControlArm:
    now_s, listening_since_s = times_s
    silence_s = rollout.spec.guards.silence_s
    active_since_s = rollout.stage_started_s - silence_s
    active = [device for device in control if device.last_seen_s >= active_since_s]
    silent = [d for d in active if now_s - max(d.last_seen_s, listening_since_s) > silence_s]
    theirs = _served(connection, ring_id, ours=False)
    parts = [theirs[d.facts.device_id] for d in control if d.facts.device_id in theirs]
    return ControlArm(len(control), len(active), len(silent), total(parts)[0])


def _served(connection: Connection, ring_id: int | None, *, ours: bool) -> dict[str, Served]:
    """What each device has served since the stage began; nothing before its ring has."""
    columns = served.c
    query = select(
        columns.device_id,
        columns.requests,
        columns.failures,
        columns.over_objective,
        columns.output_violations,
        columns.last_window_s,
    ).where(columns.ring_id == ring_id, columns.ours == ours)
    return {row[0]: Served(*row[1:]) for row in connection.execute(query)}


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
