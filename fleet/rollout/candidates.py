"""Reading what a plan looks at: every device with what it says of itself and what it serves."""

from collections.abc import Callable, Iterable

from sqlalchemy import Connection, select

from agent.bundle import Manifest, parse_manifest
from agent.bundle.errors import ManifestError
from agent.trust import DeviceFacts
from fleet.rollout.fitness import Candidate
from fleet.rollout.snapshot import FAILED_OUTCOMES
from fleet.store.tables import deployments, device_models, devices

__all__ = ["ReadManifest", "read_candidates", "read_manifests"]

ReadManifest = Callable[[str], bytes | None]
"""The bytes of a manifest by digest; None when they are not here."""


def read_candidates(connection: Connection, model: str, manifest_sha256: str) -> list[Candidate]:
    """Every device of the fleet, by id, for a plan of this bundle of ``model``."""
    serves = {
        row.device_id: row.manifest_sha256
        for row in connection.execute(
            select(device_models.c.device_id, device_models.c.manifest_sha256).where(
                device_models.c.model == model
            )
        )
    }
    refused = set(
        connection.scalars(
            select(deployments.c.device_id).where(
                deployments.c.manifest_sha256 == manifest_sha256,
                deployments.c.outcome.in_(FAILED_OUTCOMES),
            )
        )
    )
    return [
        Candidate(
            facts=DeviceFacts(
                device_id=row.id,
                device_class=row.device_class,
                hardware=row.hardware,
                labels=row.labels,
                agent_version=row.agent_version,
                onnxruntime_version=row.onnxruntime_version,
                execution_provider=row.execution_provider,
                utc_offset_minutes=row.utc_offset_minutes or 0,
            ),
            last_seen_s=row.last_seen_s,
            memory_bytes=row.memory_bytes,
            disk_free_bytes=row.disk_free_bytes,
            battery_percent=row.battery_percent,
            on_battery=row.on_battery,
            serves=serves.get(row.id, ""),
            refused=row.id in refused,
        )
        for row in connection.execute(select(devices).order_by(devices.c.id))
    ]


def read_manifests(read: ReadManifest, digests: Iterable[str]) -> dict[str, Manifest]:
    """Those of the manifests that are here and can be understood."""
    found: dict[str, Manifest] = {}
    for digest in digests:
        raw = read(digest) if digest else None
        if raw is None:
            continue
        try:
            found[digest] = parse_manifest(raw)
        except ManifestError:
            continue  # a plan can do without: the bytes are then those of a device that has nothing
    return found
