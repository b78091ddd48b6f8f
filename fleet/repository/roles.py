"""The roles of the repository: who signs what, for how long, and in which file.

Rules kept here:

* Every role has its own key, so that losing an online key loses neither a bundle's approval nor the
root. * The timestamp is short-lived, and shorter while a rollout is under way: until it expires, a
broker can hide a halt.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tuf.api.metadata import Metadata, Signed
from tuf.api.serialization.json import JSONSerializer

__all__ = [
    "KEY_ROLES",
    "OFFLINE_ROLES",
    "VALIDITY",
    "Validity",
    "expiry",
    "file_name",
    "needs_renewal",
    "to_bytes",
]

KEY_ROLES: Final = ("root", "targets", "release", "rollout", "snapshot", "timestamp")
"""Every role that has a key, in the order in which they are made."""

OFFLINE_ROLES: Final = ("root", "targets", "release")
"""Roles whose keys the server never needs."""


@dataclass(frozen=True, slots=True)
class Validity:
    """How long each role's signature holds, in seconds."""

    root_s: int = 400 * 86_400
    targets_s: int = 365 * 86_400
    release_s: int = 180 * 86_400
    rollout_s: int = 7 * 86_400
    snapshot_s: int = 7 * 86_400
    timestamp_s: int = 86_400
    timestamp_under_way_s: int = 2 * 3_600


VALIDITY: Final = Validity()


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
