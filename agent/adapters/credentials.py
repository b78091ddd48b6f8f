"""The device's certificate at work over a broker: mutual TLS, signed reports up, verified acknowledgements down.

Rules kept here:
- The files are read anew for each connection: a renewed certificate is used from the next one on, and a connection
  signs with the key it was opened with.
- Only the fleet manager acknowledges: a signature counts when its certificate was issued by the device CA, for the
  fleet manager's name, and is valid now.
- What cannot be used becomes LinkError that names the file; nothing else gets out.
"""

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf.message import DecodeError

from agent.errors import LinkError
from agent.identity.certificate import NOT_A_CERTIFICATE
from agent.state_dir import IdentityPaths
from protos import report_pb2, topics
from protos.signed import ACK, REPORTS, signed_bytes

__all__ = ["Credentials", "DeviceCredentials", "Seal", "Stamp"]

_SIGNATURE: Final = ec.ECDSA(hashes.SHA256())

Stamp = tuple[tuple[int, int, int], ...]
"""Of each file: when it was written (ns), its size (bytes) and its inode."""


class Seal:
    """Signs the reports of one device and verifies the acknowledgements that it gets."""

    __slots__ = ("_ca", "_device_id", "_fleet", "_key", "_key_sha256", "_known", "_now_s")

    def __init__(
        self,
        names: tuple[str, str],
        key: ec.EllipticCurvePrivateKey,
        device_ca: x509.Certificate,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """``names``: fleet and device."""
        self._fleet, self._device_id = names
        self._key = key
        self._ca = device_ca
        self._now_s = now_s
        self._key_sha256 = sha256(
            key.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        ).digest()
        self._known: tuple[bytes, x509.Certificate] | None = None

    def sign(self, batch: bytes) -> report_pb2.SignedReports:
        """A serialized ReportBatch, signed."""
        signature = self._key.sign(
            signed_bytes(REPORTS, self._fleet, self._device_id, batch), _SIGNATURE
        )
        return report_pb2.SignedReports(
            batch=batch, signature=signature, key_sha256=self._key_sha256
        )

    def open(self, signed: report_pb2.SignedAck) -> report_pb2.ReportAck:
        """The acknowledgement in ``signed``.

        Raises:
            LinkError: the fleet manager did not make it; says why.
        """
        key = self._manager_key(signed.certificate)
        body = signed_bytes(ACK, self._fleet, self._device_id, signed.ack)
        try:
            key.verify(signed.signature, body, _SIGNATURE)
            ack: report_pb2.ReportAck = report_pb2.ReportAck.FromString(signed.ack)
        except InvalidSignature as error:
            raise LinkError("an acknowledgement whose signature is wrong") from error
        except DecodeError as error:
            raise LinkError("a signed acknowledgement that is none") from error
        return ack

    def _manager_key(self, raw: bytes) -> ec.EllipticCurvePublicKey:
        if self._known is None or self._known[0] != raw:
            self._known = (raw, self._manager(raw))
        certificate = self._known[1]
        now = datetime.fromtimestamp(self._now_s(), UTC)
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise LinkError(
                f"an acknowledgement under a certificate that is valid from "
                f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M}"
            )
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key

    def _manager(self, raw: bytes) -> x509.Certificate:
        try:
            certificate = x509.load_der_x509_certificate(raw)
            certificate.verify_directly_issued_by(self._ca)
            names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            is_ec = isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
        except (*NOT_A_CERTIFICATE, InvalidSignature) as error:
            raise LinkError(
                "an acknowledgement under a certificate that the device CA did not issue"
            ) from error
        if [name.value for name in names] != [topics.MANAGER] or not is_ec:
            raise LinkError(
                "an acknowledgement under a certificate that is not the fleet manager's"
            )
        return certificate


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one connection uses. ``stamp``: of the files it was read from."""

    tls: ssl.SSLContext
    seal: Seal
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class DeviceCredentials:
    """The files of an enrolled device; see ``agent.state_dir.IdentityPaths``."""

    paths: IdentityPaths
    fleet: str
    device_id: str
    now_s: Callable[[], float] = field(default=time.time)

    def stamp(self) -> Stamp:
        """Changes when a file does. Raises LinkError when one cannot be looked at."""
        try:
            found = [
                path.stat()
                for path in (self.paths.certificate, self.paths.device_key, self.paths.server_ca)
            ]
        except OSError as error:
            raise LinkError(
                f"this device has no certificate to show: {error.filename}: {error.strerror}. "
                "`fleet-agent enroll` gets one"
            ) from error
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in found)

    def load(self) -> Credentials:
        """Read the files. Blocking, some milliseconds.

        Raises:
            LinkError: one is missing, cannot be read or does not fit the others.
        """
        stamp = self.stamp()
        paths = self.paths
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_verify_locations(paths.server_ca)
            context.load_cert_chain(paths.certificate, paths.device_key)
            key = serialization.load_pem_private_key(paths.device_key.read_bytes(), None)
            chain = x509.load_pem_x509_certificates(paths.certificate.read_bytes())
            chain[0].verify_directly_issued_by(chain[-1])
        except (OSError, *NOT_A_CERTIFICATE, InvalidSignature) as error:
            raise LinkError(
                f"the certificate in {paths.folder} cannot be used: {error or type(error).__name__}. "
                "If it stays so, enrol this device again (`fleet-agent enroll`)"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or len(chain) < 2:
            raise LinkError(
                f"{paths.certificate} must hold the device's certificate and the device CA's behind "
                "it, for an elliptic-curve key: enrol this device again (`fleet-agent enroll`)"
            )
        return Credentials(
            context, Seal((self.fleet, self.device_id), key, chain[-1], self.now_s), stamp
        )
