"""Which keys may sign for a device now: those of the certificates with which it may make calls.

Rules kept here: one judgement for both ways to the fleet manager (``admission.judge_call``); a device that is not
accepted has no key, and neither has one that is unknown.
"""

import asyncio
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection, select

from fleet.messaging.signatures import Keys, key_digest
from fleet.registry.admission import Peer, judge_call
from fleet.registry.certificates import find_certificate
from fleet.store.engine import Store
from fleet.store.tables import device_certificates as rows

__all__ = ["EnrolledKeys"]


class EnrolledKeys:
    """Implements ``fleet.messaging.signatures.DeviceKeys`` over the tables of identities."""

    def __init__(self, store: Store, fleet: str, now_s: Callable[[], float]) -> None:
        self._store = store
        self._fleet = fleet
        self._now_s = now_s

    async def public_keys(self, device_id: str) -> Keys | None:
        """The keys of its certificates that are accepted now; none where it may not speak."""
        return await asyncio.to_thread(self._read, device_id)

    def _read(self, device_id: str) -> Keys:
        with self._store.read() as connection:
            return _keys(connection, self._fleet, device_id, self._now_s())


def _keys(
    connection: Connection, fleet: str, device_id: str, now_s: float
) -> dict[bytes, ec.EllipticCurvePublicKey]:
    query = select(rows.c.fingerprint, rows.c.pem).where(
        rows.c.device_id == device_id, rows.c.not_after_s > now_s
    )
    found = {}
    for fingerprint, pem in connection.execute(query).all():
        known = find_certificate(connection, fleet, fingerprint)
        if (
            known is None
            or judge_call(Peer(known.name, fingerprint), known, device_id, now_s).refusal
        ):
            continue
        key = x509.load_pem_x509_certificate(pem.encode()).public_key()
        if isinstance(key, ec.EllipticCurvePublicKey):
            found[key_digest(key)] = key
    return found
