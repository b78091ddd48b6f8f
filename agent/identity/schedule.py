"""When a certificate is to be renewed, and by which way. Pure.

Rules kept here: at two thirds of its life, spread over a tenth of it so that a fleet that enrolled in one hour does
not renew in one hour; never after it has expired, then the identity key takes over.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from agent.identity.certificate import DeviceCertificate

__all__ = ["Need", "Plan", "plan"]

RENEW_AT: Final = 2 / 3
SPREAD: Final = 1 / 10
"""Of the certificate's life, around ``RENEW_AT``."""


class Need(Enum):
    WAIT = "wait"
    RENEW = "renew"
    LAPSED = "lapsed"


@dataclass(frozen=True, slots=True)
class Plan:
    """``wait_s``: seconds until it is worth asking again, when there is nothing to do now."""

    need: Need
    wait_s: float = 0.0


def plan(certificate: DeviceCertificate, now_s: float, jitter: float) -> Plan:
    """What this certificate needs now.

    Args:
        certificate: the one in use.
        now_s: the device's clock, seconds since the epoch. One that is behind the certificate's beginning is wrong,
            and taken for that beginning.
        jitter: 0 to 1, the device's own for this certificate.
    """
    now_s = max(now_s, certificate.not_before_s)
    if now_s >= certificate.not_after_s:
        return Plan(Need.LAPSED)
    life_s = certificate.not_after_s - certificate.not_before_s
    due_s = certificate.not_before_s + life_s * (RENEW_AT + SPREAD * (jitter - 0.5))
    if now_s >= due_s:
        return Plan(Need.RENEW)
    return Plan(Need.WAIT, due_s - now_s)
