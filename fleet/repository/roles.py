"""The roles of the repository: who signs what, for how long, and in which file.

Rules kept here:

* Every role has keys of its own, so that losing an online key loses neither a bundle's approval nor the root.
* The order of the delegated roles is their order of trust: emergency stands before rollout.
* The timestamp is short-lived, and shorter while a rollout is under way: until it expires, a broker can hide a halt.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tuf.api.metadata import Metadata, Signed
from tuf.api.serialization.json import JSONSerializer

from fleet.errors import ConfigError

__all__ = [
    "DEVICE_CLASS",
    "EMERGENCY",
    "KEY_NAME_FIELD",
    "ONLINE_ROLES",
    "SIMPLE_RELEASE",
    "SIMPLE_ROLES",
    "TOP_ROLES",
    "VALIDITY",
    "RolePlan",
    "Validity",
    "expiry",
    "file_name",
    "is_release_role",
    "needs_renewal",
    "notice_s",
    "production_roles",
    "release_plan",
    "release_role",
    "to_bytes",
    "validity_s",
]

TOP_ROLES: Final = ("root", "targets", "snapshot", "timestamp")
"""Roles whose keys the root names; every other role's keys are named by targets."""

ONLINE_ROLES: Final = ("rollout", "snapshot", "timestamp")
"""Roles that the server signs itself."""

EMERGENCY: Final = "emergency"
SIMPLE_RELEASE: Final = "release"
"""The release role of a simple folder: one for every class."""

KEY_NAME_FIELD: Final = "x-muster-name"
"""Field of a key in root and targets: a name for people, and of its file, ``release-camera-1``."""

DEVICE_CLASS: Final = re.compile(r"[a-z0-9-]{1,40}")
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Validity:
    """How long each role's signature holds, in seconds."""

    root_s: int = 400 * _DAY_S
    targets_s: int = 365 * _DAY_S
    release_s: int = 180 * _DAY_S
    emergency_s: int = 30 * _DAY_S
    rollout_s: int = 7 * _DAY_S
    snapshot_s: int = 7 * _DAY_S
    timestamp_s: int = _DAY_S
    timestamp_under_way_s: int = 2 * 3_600


VALIDITY: Final = Validity()


@dataclass(frozen=True, slots=True)
class RolePlan:
    """How a role begins.

    Attributes:
        name: the role.
        keys: how many keys it has.
        threshold: how many of them must sign.
        offline: the server never needs the keys; they are made to be taken away.
        paths: what it speaks for; empty for the roles in the root.
    """

    name: str
    keys: int = 1
    threshold: int = 1
    offline: bool = False
    paths: tuple[str, ...] = ()


_ROLLOUT: Final = RolePlan("rollout", paths=("rollouts/*",))
_EMERGENCY_PATHS: Final = ("rollouts/*/emergency",)

SIMPLE_ROLES: Final = (
    RolePlan("root"),
    RolePlan("targets"),
    RolePlan(SIMPLE_RELEASE, paths=("bundles/*/*",)),
    RolePlan(EMERGENCY, paths=_EMERGENCY_PATHS),
    _ROLLOUT,
    RolePlan("snapshot"),
    RolePlan("timestamp"),
)
"""``fleet init``: every role with one key in the folder, one release role for every class."""


def production_roles(classes: Iterable[str]) -> tuple[RolePlan, ...]:
    """``fleet init --production``: thresholds, offline keys, one release role for each device class.

    Raises:
        ConfigError: no class is named, one twice, or one has no usable name.
    """
    names = list(classes)
    if not names:
        raise ConfigError(
            "a production fleet has a release role for each device class: name them, --class camera"
        )
    if len(set(names)) != len(names):
        raise ConfigError(f"a device class is named twice: {', '.join(names)}")
    return (
        RolePlan("root", keys=5, threshold=3, offline=True),
        RolePlan("targets", keys=3, threshold=2, offline=True),
        *(release_plan(name) for name in names),
        RolePlan(EMERGENCY, keys=3, threshold=2, offline=True, paths=_EMERGENCY_PATHS),
        _ROLLOUT,
        RolePlan("snapshot"),
        RolePlan("timestamp"),
    )


def release_plan(device_class: str) -> RolePlan:
    """The release role of one device class: two of three offline keys.

    Raises:
        ConfigError: the class has no usable name.
    """
    role = release_role(device_class)
    paths = (f"bundles/{device_class}/*",)
    return RolePlan(role, keys=3, threshold=2, offline=True, paths=paths)


def release_role(device_class: str) -> str:
    """The name of the release role of one device class, ``release-CLASS``.

    Raises:
        ConfigError: the class has no usable name.
    """
    if not DEVICE_CLASS.fullmatch(device_class):
        raise ConfigError(
            f"device class {device_class[:80]!r} is not of the form {DEVICE_CLASS.pattern}: "
            "use lower-case letters, digits and dashes"
        )
    return f"{SIMPLE_RELEASE}-{device_class}"


def is_release_role(role: str) -> bool:
    """Whether a role approves bundles, of one class or of all."""
    return role == SIMPLE_RELEASE or role.startswith(f"{SIMPLE_RELEASE}-")


def validity_s(role: str) -> int:
    """How long a signature of this role holds, in seconds; of the timestamp while nothing is under way."""
    seconds: int = getattr(VALIDITY, f"{SIMPLE_RELEASE if is_release_role(role) else role}_s")
    return seconds


def notice_s(role: str) -> float:
    """How long before the expiry of an offline role people should begin to sign it again, in seconds.

    A tenth of the validity, as holders of keys are not all reached in a day, and a fortnight at least.
    """
    return max(14.0 * _DAY_S, validity_s(role) / 10)


def file_name(role: str, version: int) -> str:
    """The name by which the repository serves a role: ``12.snapshot.json``, ``timestamp.json``."""
    return "timestamp.json" if role == "timestamp" else f"{version}.{role}.json"


def expiry(now_s: float, validity_s: float) -> datetime:
    """The time a signature made now expires."""
    return datetime.fromtimestamp(int(now_s), tz=UTC) + timedelta(seconds=validity_s)


def needs_renewal(signed: Signed, now_s: float, validity_s: float) -> bool:
    """Whether less than half of the validity is left."""
    return signed.expires.timestamp() - now_s < validity_s / 2


def to_bytes(metadata: "Metadata[Any]") -> bytes:
    """A metadata file as it is served: compact JSON."""
    return metadata.to_bytes(JSONSerializer(compact=True))
