"""Where a device stands with the fleet: all states and every step between them. Pure.

Rules kept here: a pair that is not in the table is refused with what can be done instead; only "accepted" may speak
where devices show certificates; "open" is a device that was heard of before it had an identity.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from fleet.errors import ConflictError

__all__ = ["STEPS", "Happening", "Standing", "step"]


class Standing(StrEnum):
    OPEN = "open"
    PENDING = "pending"
    ACCEPTED = "accepted"
    QUARANTINED = "quarantined"
    REVOKED = "revoked"


class Happening(StrEnum):
    ENROLLED = "enrolled"  # a good token, and no operator has to look
    ASKED = "asked"  # a good token, and one has to
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    CLONED = "cloned"  # a key was used that the device has left behind
    REVOKED = "revoked"


STEPS: Final[Mapping[tuple[Standing, Happening], Standing]] = {
    (Standing.OPEN, Happening.ENROLLED): Standing.ACCEPTED,
    (Standing.OPEN, Happening.ASKED): Standing.PENDING,
    (Standing.OPEN, Happening.REVOKED): Standing.REVOKED,
    (Standing.PENDING, Happening.ENROLLED): Standing.ACCEPTED,
    (Standing.PENDING, Happening.ASKED): Standing.PENDING,
    (Standing.PENDING, Happening.ACCEPTED): Standing.ACCEPTED,
    (Standing.PENDING, Happening.REJECTED): Standing.REVOKED,
    (Standing.PENDING, Happening.REVOKED): Standing.REVOKED,
    (Standing.ACCEPTED, Happening.CLONED): Standing.QUARANTINED,
    (Standing.ACCEPTED, Happening.REVOKED): Standing.REVOKED,
    (Standing.QUARANTINED, Happening.ACCEPTED): Standing.ACCEPTED,
    (Standing.QUARANTINED, Happening.CLONED): Standing.QUARANTINED,
    (Standing.QUARANTINED, Happening.REVOKED): Standing.REVOKED,
    # Tokens go with a revocation, so whoever enrols after it has one that was made after it, on purpose.
    (Standing.REVOKED, Happening.ENROLLED): Standing.ACCEPTED,
    (Standing.REVOKED, Happening.ASKED): Standing.PENDING,
    (Standing.REVOKED, Happening.REVOKED): Standing.REVOKED,
}

_ADVICE: Final[Mapping[Happening, str]] = {
    Happening.ACCEPTED: "only a pending or quarantined device can be accepted",
    Happening.REJECTED: "only a pending device can be rejected; `fleet device revoke` ends any other",
    Happening.ENROLLED: "revoke it first, then make a new token",
    Happening.ASKED: "revoke it first, then make a new token",
}


def step(device_id: str, standing: Standing, happening: Happening) -> Standing:
    """Where a device stands after something happened.

    Raises:
        ConflictError: that cannot happen to a device that stands there.
    """
    after = STEPS.get((standing, happening))
    if after is None:
        advice = _ADVICE.get(happening, "nothing was changed")
        raise ConflictError(f"device {device_id} is {standing}: {advice}")
    return after
