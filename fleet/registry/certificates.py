"""The device_certificates table: what the device CA signed, and which of it still counts.

Rules kept here: small functions over a connection, the caller owns the transaction; a device has at most one current
certificate and one that is issued and not used yet; a certificate is never deleted before it has expired.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection, and_, delete, insert, or_, select, update

from fleet.registry.admission import Known, State
from fleet.registry.authority import Revoked
from fleet.registry.standing import Standing
from fleet.store.tables import device_certificates as rows
from fleet.store.tables import device_identities, devices
from protos.identity import DeviceName

__all__ = [
    "add_certificate",
    "current_pem",
    "find_certificate",
    "forget_expired",
    "in_use",
    "not_to_be_accepted",
    "supersede",
    "withdraw",
]

KEPT_S: Final = 30 * 86_400.0
"""How long an expired certificate is remembered, so that whoever shows it is told what it is."""
_LIVE: Final = (State.ISSUED, State.CURRENT)


def add_certificate(
    connection: Connection, name: DeviceName, certificate: x509.Certificate, now_s: float
) -> str:
    """Note a certificate that was signed now; an earlier one that was never used is withdrawn. Its PEM."""
    unused = and_(rows.c.device_id == name.device_id, rows.c.state == State.ISSUED)
    connection.execute(update(rows).where(unused).values(state=State.REVOKED, changed_s=now_s))
    pem = certificate.public_bytes(Encoding.PEM).decode()
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    connection.execute(
        insert(rows),
        {
            "serial": f"{certificate.serial_number:x}",
            "device_id": name.device_id,
            "device_class": name.device_class,
            "fingerprint": sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
            "key_sha256": sha256(key).hexdigest(),
            "pem": pem,
            "not_before_s": certificate.not_valid_before_utc.timestamp(),
            "not_after_s": certificate.not_valid_after_utc.timestamp(),
            "state": State.ISSUED,
            "changed_s": now_s,
        },
    )
    return pem


def find_certificate(connection: Connection, fleet: str, fingerprint: str) -> Known | None:
    """What is known of the certificate with this fingerprint; None: it is not one of ours."""
    query = (
        select(rows, devices.c.standing, device_identities.c.reason)
        .join(devices, devices.c.id == rows.c.device_id)
        .join(device_identities, device_identities.c.device_id == rows.c.device_id)
        .where(rows.c.fingerprint == fingerprint)
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    return Known(
        name=DeviceName(fleet, row.device_class, row.device_id),
        serial=row.serial,
        state=State(row.state),
        superseded_s=row.changed_s,
        not_after_s=row.not_after_s,
        standing=Standing(row.standing),
        reason=row.reason,
    )


def in_use(
    connection: Connection, device_id: str, key_sha256: str = ""
) -> Mapping[str, Any] | None:
    """The certificate a device has, or was given last; with ``key_sha256`` only one for this key. None: none."""
    query = (
        select(rows)
        .where(rows.c.device_id == device_id, rows.c.state.in_(_LIVE))
        .order_by(rows.c.state, rows.c.changed_s.desc())  # "current" sorts before "issued"
    )
    if key_sha256:
        query = query.where(rows.c.key_sha256 == key_sha256)
    row = connection.execute(query).first()
    return None if row is None else row._asdict()


def current_pem(connection: Connection, device_id: str) -> str | None:
    """The certificate by which an accepted device is known now, PEM; None: it has none."""
    standing = connection.execute(select(devices.c.standing).where(devices.c.id == device_id))
    if standing.scalar() != Standing.ACCEPTED:
        return None
    found = in_use(connection, device_id)
    return None if found is None else str(found["pem"])


def supersede(connection: Connection, device_id: str, serial: str, now_s: float) -> None:
    """The certificate ``serial`` was used for the first time: it is the current one, the one before is left behind."""
    before = and_(rows.c.device_id == device_id, rows.c.state == State.CURRENT)
    connection.execute(update(rows).where(before).values(state=State.SUPERSEDED, changed_s=now_s))
    connection.execute(
        update(rows).where(rows.c.serial == serial).values(state=State.CURRENT, changed_s=now_s)
    )


def withdraw(connection: Connection, device_id: str, now_s: float) -> None:
    """Revoke every certificate of a device."""
    theirs = and_(rows.c.device_id == device_id, rows.c.state != State.REVOKED)
    connection.execute(update(rows).where(theirs).values(state=State.REVOKED, changed_s=now_s))


def not_to_be_accepted(connection: Connection, now_s: float) -> list[Revoked]:
    """For the CRL: certificates that have not expired and are not to be accepted, in the order of their serials."""
    query = (
        select(rows, devices.c.standing)
        .join(devices, devices.c.id == rows.c.device_id)
        .where(
            rows.c.not_after_s > now_s,
            or_(rows.c.state.not_in(_LIVE), devices.c.standing != Standing.ACCEPTED),
        )
        .order_by(rows.c.serial)
    )
    return [
        Revoked(int(row.serial, 16), row.changed_s, _why(row.state, row.standing))
        for row in connection.execute(query)
    ]


def forget_expired(connection: Connection, now_s: float) -> None:
    """Delete what expired long ago, but the last certificate of no device."""
    connection.execute(
        delete(rows).where(rows.c.not_after_s < now_s - KEPT_S, rows.c.state.not_in(_LIVE))
    )


def _why(state: str, standing: str) -> x509.ReasonFlags:
    if state == State.SUPERSEDED:
        return x509.ReasonFlags.superseded
    if standing == Standing.QUARANTINED:
        return x509.ReasonFlags.certificate_hold
    return x509.ReasonFlags.unspecified
