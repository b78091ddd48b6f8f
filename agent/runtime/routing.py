"""Which of two versions answers a request, and which requests are copied. Pure: values in, one answer out.

Rules kept here:

- An assignment is sticky: it hangs on the salt (the rollout's id) and on the value of the routing parameter alone, so
  one caller gets one version for as long as the rollout lasts, on every thread and after every restart.
- Shares are nested: whoever is in at 1 % is still in at 10 %.
- The value is the routing parameter's, else the request's id. A request with neither cannot be sent to the same
  version again, so it belongs to the version that is active, where it is noted as ``UNROUTABLE``.
- The same value is the same caller however it is written: 7, 7.0 and "7" are one.
"""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

__all__ = [
    "SLOTS",
    "UNROUTABLE",
    "Asker",
    "Role",
    "Share",
    "copied",
    "routed_to_arm",
    "routing_value",
    "slot_of",
]

SLOTS: Final = 10_000
"""Number of places; one place is one basis point."""
UNROUTABLE: Final = "unroutable"
"""The kind, in the active version's window, of requests in which nothing says to which arm they belong."""
_ARM: Final = b"arm-v1"
_COPY: Final = b"copy-v1"


class Role(StrEnum):
    """How a version that is loaded beside the active one takes part."""

    SHADOW = "shadow"
    """Gets copies of requests; answers nobody."""
    ARM = "arm"
    """Answers its share of the requests."""
    STANDBY = "standby"
    """Warm, to take over; gets no request."""


@dataclass(frozen=True, slots=True)
class Share:
    """What the directive says about the version beside. ``traffic_bp``: of an arm the share of requests it answers,
    of a shadow the share that is copied, in basis points."""

    manifest_sha256: str
    role: Role
    traffic_bp: int = 0
    routing_key: str = ""
    """The request parameter that is hashed; "" is the request's id."""
    salt: str = ""


class Asker(Protocol):
    """What routing looks at in a request."""

    @property
    def parameters(self) -> Mapping[str, bool | int | float | str]: ...

    @property
    def request_id(self) -> str: ...


def routing_value(share: Share, asker: Asker) -> str | None:
    """What stands for the caller of a request; None when nothing does."""
    value = asker.parameters.get(share.routing_key) if share.routing_key else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else str(value)
    return text or asker.request_id or None


def routed_to_arm(share: Share, value: str) -> bool:
    """Whether the arm answers requests of this routing value."""
    return slot_of(_ARM, share.salt, value) < share.traffic_bp


def copied(share: Share, request_id: str, number: int) -> bool:
    """Whether the shadow gets a copy of a request; ``number`` stands for a request without an id.

    Not sticky: a shadow must see what every caller asks.
    """
    if share.traffic_bp >= SLOTS:
        return True
    return slot_of(_COPY, share.salt, request_id or f"#{number}") < share.traffic_bp


def slot_of(domain: bytes, salt: str, value: str) -> int:
    """The place of a value: the first 8 bytes (big-endian) of SHA-256 over the domain, a zero byte, the digest of the
    salt and the value in UTF-8, modulo 10000."""
    digest = hashlib.sha256(_prefix(domain, salt) + value.encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest()[:8], "big") % SLOTS


@functools.lru_cache(maxsize=128)
def _prefix(domain: bytes, salt: str) -> bytes:
    # The salt's digest has a fixed length, so that no salt and value can be taken for another pair.
    return domain + b"\0" + hashlib.sha256(salt.encode("utf-8", "surrogatepass")).digest()
