"""The bundles table: what the release role has signed, for questions. The signed metadata is the truth."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from agent.bundle import Manifest
from agent.trust import BundleRelease
from fleet.store.tables import bundles
from fleet.store.upsert import insert

__all__ = ["add_bundle", "bundle_paths", "count_bundles", "list_bundles"]


def add_bundle(
    connection: Connection, release: BundleRelease, manifest: Manifest, now_s: float
) -> bool:
    """Note a published bundle; False when it is noted already."""
    row = {
        "path": release.path,
        "model": release.model,
        "version": release.version,
        "device_class": release.device_class,
        "manifest_sha256": release.sha256,
        "manifest_bytes": release.length,
        "size_bytes": manifest.size_bytes,
        "release": release.release,
        "published_s": now_s,
    }
    statement = insert(connection, bundles).values(row)
    result = connection.execute(statement.on_conflict_do_nothing(index_elements=[bundles.c.path]))
    return int(result.rowcount) > 0


def list_bundles(connection: Connection) -> Sequence[dict[str, Any]]:
    """Every bundle, the newest first."""
    query = select(bundles).order_by(bundles.c.published_s.desc(), bundles.c.path)
    return [row._asdict() for row in connection.execute(query)]


def bundle_paths(connection: Connection) -> frozenset[str]:
    return frozenset(connection.execute(select(bundles.c.path)).scalars())


def count_bundles(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).select_from(bundles)).scalar_one())
