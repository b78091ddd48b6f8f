"""Who a rollout is for, read from the whole fleet at every tick: so that this costs little per device.

Rules kept here: what decides is the function that the devices themselves use; it is asked once for
each kind of device, since devices that say the same of themselves are all meant or all not; only
where a rollout names devices by their id is each one asked about.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Final, NamedTuple

from sqlalchemy import Connection, Text, cast, select

from agent.trust import BundleRelease, DeviceFacts, stratum_of
from fleet.rollout.fitness import is_meant
from fleet.rollout.record import Rollout
from fleet.store.tables import devices

__all__ = ["Member", "everyone", "members_of"]

_PAGE: Final = 500  # rows at once: fewer than the interpreter waits for before it looks for garbage
_ID: Final = "id"  # the label that every device has of its own


class Member(NamedTuple):
    """A device that a rollout is for, when it was last heard from, and the stratum it is compared in."""

    device_id: str
    last_seen_s: float
    stratum: str


def members_of(
    connection: Connection, rollout: Rollout, release: BundleRelease | None
) -> list[Member]:
    """The devices a rollout is for, by id."""
    found = [
        Member(device_id, seen_s, stratum)
        for device_id, seen_s, stratum in everyone(connection, rollout, release)
        if stratum is not None
    ]
    found.sort()
    return found


def everyone(
    connection: Connection, rollout: Rollout, release: BundleRelease | None
) -> Iterator[tuple[str, float, str | None]]:
    """Id, time of the last sign of life and stratum of every device, in no order.

    The stratum is None where the rollout is not for the device. It is for those that are of the
    bundle's class and hardware, have the labels asked for and none of those left out, and are of no
    stratum that was stopped.
    """
    stratum = _judge(rollout, release)
    by_id = any(label == _ID for label, _ in (*rollout.spec.selector, *rollout.spec.exclude))
    columns = devices.c
    query = select(
        columns.id,
        columns.last_seen_s,
        columns.device_class,
        columns.hardware,
        cast(columns.labels, Text),
        columns.execution_provider,
    )
    for page in connection.execute(query).partitions(_PAGE):
        for device_id, seen_s, device_class, hardware, labels, provider in page:
            asked = device_id if by_id else ""
            yield device_id, seen_s, stratum(asked, device_class, hardware, labels, provider)


def _judge(
    rollout: Rollout, release: BundleRelease | None
) -> Callable[[str, str, str, str, str], str | None]:
    """The stratum of a device by id, class, hardware, labels and provider; None: it is not meant."""
    spec, stopped = rollout.spec, frozenset(rollout.stopped)
    hardware = release.hardware if release is not None else ()

    @cache
    def judged(
        device_id: str, device_class: str, arch: str, labels: str, provider: str
    ) -> str | None:
        facts = DeviceFacts(
            device_id, device_class, arch, json.loads(labels), execution_provider=provider
        )
        if (hardware and arch not in hardware) or not is_meant(spec, facts):
            return None
        name = stratum_of(facts)
        return None if name in stopped else name

    return judged
