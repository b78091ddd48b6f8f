"""Who may speak: from a certificate and what the database knows of it to yes or no, with the reason in words. Pure.

Rules kept here: nothing known is a no; the database is asked, never the certificate alone; a certificate that was
left behind is good for calls under way for ``GRACE_S`` and no longer; whoever renews with one is an alarm.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fleet.registry.standing import Standing
from protos.identity import DeviceName

__all__ = ["GRACE_S", "Known", "Peer", "Refusal", "State", "Verdict", "judge_call", "judge_renewal"]

GRACE_S: Final = 60.0
"""Calls of a device that has just changed its certificate may still come over the connection before."""


class State(StrEnum):
    """Of a certificate. Issued: signed, and not used yet."""

    ISSUED = "issued"
    CURRENT = "current"
    SUPERSEDED = "superseded"
    REVOKED = "revoked"


class Refusal(StrEnum):
    NO_CERTIFICATE = "no_certificate"
    UNKNOWN_CERTIFICATE = "unknown_certificate"
    OTHER_DEVICE = "other_device"
    NOT_ACCEPTED = "not_accepted"
    QUARANTINED = "quarantined"
    REVOKED = "revoked"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    CLONED = "cloned"
    TOKEN = "token"  # noqa: S105 (the word, not one)
    OTHER_KEY = "other_key"
    REQUEST = "request"
    NONCE = "nonce"
    NOT_DUE = "not_due"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who a certificate says is at the other end. ``fingerprint``: SHA-256 of it (DER), hex."""

    name: DeviceName
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Known:
    """What the database knows of a certificate and its device."""

    name: DeviceName
    serial: str
    state: State
    superseded_s: float
    not_after_s: float
    standing: Standing
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``refusal`` None: yes. ``first_use``: the certificate becomes the current one now."""

    refusal: Refusal | None = None
    reason: str = ""
    first_use: bool = False


def judge_call(peer: Peer, known: Known | None, asked_id: str | None, now_s: float) -> Verdict:
    """Whether the holder of a certificate may make a call that speaks of device ``asked_id`` (None: of no device)."""
    refused = _judge_device(peer, known, now_s)
    if refused is not None:
        return refused
    assert known is not None
    if asked_id is not None and asked_id != known.name.device_id:
        return Verdict(
            Refusal.OTHER_DEVICE,
            f"the certificate is of device {known.name.device_id}, the call speaks of {asked_id[:80]!r}",
        )
    if known.state is State.REVOKED:
        return Verdict(
            Refusal.REVOKED, f"certificate {known.serial} of {known.name.device_id} was revoked"
        )
    if known.state is State.SUPERSEDED and now_s - known.superseded_s > GRACE_S:
        return Verdict(
            Refusal.SUPERSEDED,
            f"certificate {known.serial} of {known.name.device_id} was left behind: a newer one is in use",
        )
    return Verdict(first_use=known.state is State.ISSUED)


def judge_renewal(peer: Peer, known: Known | None, now_s: float) -> Verdict:
    """Whether the holder of a certificate gets the next one; CLONED: it is held by two, and neither is believed."""
    refused = _judge_device(peer, known, now_s)
    if refused is not None:
        return refused
    assert known is not None
    if known.state in (State.SUPERSEDED, State.REVOKED):
        return Verdict(
            Refusal.CLONED,
            f"certificate {known.serial} of {known.name.device_id} asked to be renewed after it was left behind: "
            "two hold this device's keys",
        )
    return Verdict(first_use=known.state is State.ISSUED)


def _judge_device(peer: Peer, known: Known | None, now_s: float) -> Verdict | None:
    if known is None or known.name != peer.name:
        return Verdict(
            Refusal.UNKNOWN_CERTIFICATE,
            f"the fleet manager did not give {peer.name.device_id} this certificate: enrol again",
        )
    device_id, why = known.name.device_id, f" ({known.reason})" if known.reason else ""
    if known.standing is Standing.QUARANTINED:
        return Verdict(
            Refusal.QUARANTINED,
            f"device {device_id} is quarantined{why}: an operator has to accept or revoke it",
        )
    if known.standing is Standing.REVOKED:
        return Verdict(
            Refusal.REVOKED, f"device {device_id} was revoked{why}: enrol it with a new token"
        )
    if known.standing is not Standing.ACCEPTED:
        return Verdict(
            Refusal.NOT_ACCEPTED, f"device {device_id} is {known.standing}, not accepted"
        )
    if now_s >= known.not_after_s:
        return Verdict(Refusal.EXPIRED, f"certificate {known.serial} of {device_id} has expired")
    return None
