"""Reports signed by devices, and acknowledgements signed for them: nothing depends on a broker's honesty.

Rules kept here: pure; where a device's keys are known, a report counts only under one of them, for this fleet and this
device; each refusal has a code for the counters and is never acknowledged.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protos import report_pb2
from protos.signed import ACK, REPORTS, signed_bytes

__all__ = [
    "AckSigner",
    "DeviceKeys",
    "Keys",
    "NoIdentities",
    "SignatureRefusedError",
    "key_digest",
    "open_reports",
    "require_identity",
]

_SIGNATURE: Final = ec.ECDSA(hashes.SHA256())

Keys = Mapping[bytes, ec.EllipticCurvePublicKey]
"""Public keys by ``key_digest``: more than one while a certificate is being renewed."""


class DeviceKeys(Protocol):
    """Who may speak for a device now; the device table is the truth behind it."""

    async def public_keys(self, device_id: str) -> Keys | None:
        """The keys of its certificates that are accepted now.

        Empty: none is (revoked, quarantined, pending, or unknown in a fleet with identities). None: devices of this
        fleet need none.

        Raises:
            ServerError: they could not be looked up.
        """
        ...


class NoIdentities:
    """Of a fleet whose devices are known by nothing but their names."""

    async def public_keys(self, device_id: str) -> Keys | None:
        return None


class SignatureRefusedError(ValueError):
    """Reports that do not come from the device they name. ``code`` is for counters."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def key_digest(key: ec.EllipticCurvePublicKey) -> bytes:
    """SHA-256 of the public key as SubjectPublicKeyInfo (DER)."""
    raw = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return sha256(raw).digest()


def open_reports(
    payload: bytes, fleet: str, device_id: str, keys: Keys | None
) -> report_pb2.ReportBatch:
    """The batch that came on the report topic of ``device_id``; about 0.2 ms of CPU where it is signed.

    Raises:
        SignatureRefusedError: it is not signed, or not by a key that is accepted.
        google.protobuf.message.DecodeError: it is no such message.
    """
    signed = report_pb2.SignedReports.FromString(payload)
    if keys is None:
        return _batch(signed.batch if signed.signature else payload)
    require_identity(keys)
    if not signed.signature:
        raise SignatureRefusedError("unsigned", "it is not signed, and this device is enrolled")
    key = keys.get(signed.key_sha256)
    if key is None:
        raise SignatureRefusedError(
            "unknown_key",
            f"it is signed with a key that is not this device's ({signed.key_sha256.hex()[:16]})",
        )
    try:
        key.verify(
            signed.signature, signed_bytes(REPORTS, fleet, device_id, signed.batch), _SIGNATURE
        )
    except InvalidSignature as error:
        raise SignatureRefusedError(
            "bad_signature", "its signature is not this device's over these reports"
        ) from error
    return _batch(signed.batch)


def _batch(raw: bytes) -> report_pb2.ReportBatch:
    batch: report_pb2.ReportBatch = report_pb2.ReportBatch.FromString(raw)
    return batch


def require_identity(keys: Keys | None) -> None:
    """Raises SignatureRefusedError for a device that has no key that is accepted."""
    if keys is not None and not keys:
        raise SignatureRefusedError("no_identity", "no certificate of this device is accepted")


class AckSigner:
    """Signs acknowledgements with the fleet manager's key as a client of the broker."""

    __slots__ = ("_certificate", "_fleet", "_key")

    def __init__(self, fleet: str, key: ec.EllipticCurvePrivateKey, certificate: bytes) -> None:
        """``certificate``: of ``key``, DER, as devices verify it against the device CA."""
        self._fleet = fleet
        self._key = key
        self._certificate = certificate

    def sign(self, device_id: str, ack: report_pb2.ReportAck) -> report_pb2.SignedAck:
        """``ack`` for this device and no other."""
        raw = ack.SerializeToString()
        signature = self._key.sign(signed_bytes(ACK, self._fleet, device_id, raw), _SIGNATURE)
        return report_pb2.SignedAck(ack=raw, signature=signature, certificate=self._certificate)
