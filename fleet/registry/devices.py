"""The devices table: who there is, what they are, what they say they serve.

Rules kept here: small functions over a connection; the caller owns the transaction. A device is
known from its first report on, or from its enrolment: then its class and the labels of its token are
not its own to say; an older inventory never overwrites a newer one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from fleet.errors import NotFoundError
from fleet.store.tables import device_identities, device_models, devices
from fleet.store.upsert import insert

__all__ = [
    "apply_inventory",
    "count_devices",
    "get_device",
    "list_devices",
    "models_of",
    "register",
    "set_all_offline",
    "set_online",
]

_DESCRIPTION_COLUMNS = (
    "device_class", "hardware", "labels", "agent_version", "onnxruntime_version", "memory_bytes",
    "disk_free_bytes", "cpu_count", "operating_system", "boot_id", "inventory_ms",
    "execution_provider", "utc_offset_minutes", "battery_percent", "on_battery", "trust",
)  # fmt: skip


def register(connection: Connection, device_ids: Iterable[str], now_s: float) -> None:
    """Note that these devices were heard of now, and add those that are new."""
    rows = [
        {"id": one, "first_seen_s": now_s, "last_seen_s": now_s} for one in sorted(set(device_ids))
    ]
    if not rows:
        return
    heard = insert(connection, devices)
    heard = heard.on_conflict_do_update(
        index_elements=[devices.c.id], set_={"last_seen_s": heard.excluded.last_seen_s}
    )
    connection.execute(heard, rows)


def apply_inventory(
    connection: Connection,
    device_id: str,
    row: Mapping[str, Any],
    active: Sequence[Mapping[str, Any]],
    now_s: float,
) -> bool:
    """Take over what a registered device says about itself; whether it was news.

    Within one start of the device only a newer inventory counts. Another start counts always: its
    clock may have been set back in between.
    """
    stored = connection.execute(
        select(devices.c.boot_id, devices.c.inventory_ms).where(devices.c.id == device_id)
    ).one()
    if stored.boot_id == row["boot_id"] and row["inventory_ms"] < stored.inventory_ms:
        return False
    said = {name: row[name] for name in _DESCRIPTION_COLUMNS}
    connection.execute(
        update(devices)
        .where(devices.c.id == device_id)
        .values(said | _by_enrolment(connection, device_id, said["labels"]))
    )
    connection.execute(delete(device_models).where(device_models.c.device_id == device_id))
    rows = {one["model"]: {**one, "device_id": device_id, "updated_s": now_s} for one in active}
    if rows:
        connection.execute(insert(connection, device_models), list(rows.values()))
    return True


def _by_enrolment(
    connection: Connection, device_id: str, labels: Mapping[str, str]
) -> dict[str, Any]:
    """What an enrolled device is, whatever it says; empty for one that never enrolled."""
    query = select(device_identities.c.device_class, device_identities.c.labels)
    found = connection.execute(query.where(device_identities.c.device_id == device_id)).first()
    if found is None:
        return {}
    return {"device_class": found.device_class, "labels": {**labels, **found.labels}}


def set_online(connection: Connection, device_id: str, online: bool) -> None:
    """Note whether a registered device is connected."""
    connection.execute(update(devices).where(devices.c.id == device_id).values(online=online))


def set_all_offline(connection: Connection) -> None:
    """Forget who was connected: after a start of the fleet manager nobody is, until they say so."""
    connection.execute(update(devices).where(devices.c.online).values(online=False))


def list_devices(
    connection: Connection, *, after: str = "", limit: int = 1000
) -> list[dict[str, Any]]:
    """Devices by id, from the one behind ``after`` on."""
    query = select(devices).where(devices.c.id > after).order_by(devices.c.id).limit(limit)
    return [row._asdict() for row in connection.execute(query)]


def get_device(connection: Connection, device_id: str) -> dict[str, Any]:
    """One device.

    Raises:
        NotFoundError: nothing was ever heard of it.
    """
    row = connection.execute(select(devices).where(devices.c.id == device_id)).first()
    if row is None:
        raise NotFoundError(
            f"no device {device_id!r} in this fleet: `fleet device list` shows those that have "
            "reported"
        )
    return row._asdict()


def models_of(connection: Connection, device_ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What each of these devices says it serves, by device id."""
    found: dict[str, list[dict[str, Any]]] = {one: [] for one in device_ids}
    query = (
        select(device_models)
        .where(device_models.c.device_id.in_(device_ids))
        .order_by(device_models.c.device_id, device_models.c.model)
    )
    for row in connection.execute(query):
        found[row.device_id].append(row._asdict())
    return found


def count_devices(connection: Connection) -> tuple[int, int]:
    """How many devices are known, and how many of them are connected."""
    query = select(func.count(), func.count().filter(devices.c.online)).select_from(devices)
    total, online = connection.execute(query).one()
    return int(total), int(online)
