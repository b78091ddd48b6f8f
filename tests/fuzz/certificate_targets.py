"""Certificates that reach a device: what it is answered when it enrols and finds on its disk at each start, and what a
broker puts beside an acknowledgement."""

from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError

from agent.adapters.credentials import Seal
from agent.errors import LinkError
from agent.identity.certificate import parse_certificate
from protos import report_pb2
from protos.identity import DeviceName
from protos.signed import ACK, signed_bytes
from protos.topics import MANAGER
from tests.fuzz.holes import Target, refusals

__all__ = [
    "certificate_der",
    "certificate_targets",
    "feed_certificate",
    "feed_signed_ack",
    "signed_ack",
]

_KEY: Final = ec.derive_private_key(1815, ec.SECP256R1())


_CA_NAME: Final = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab device CA")])


def certificate_der(*names: x509.GeneralName, key: Any = _KEY, common: str = "cam-1") -> bytes:
    """A device's, or one with other names in it; the same in each run."""
    uri = x509.UniformResourceIdentifier(DeviceName("lab", "camera", "cam-1").uri)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_CA_NAME)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime(2027, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2027, 1, 8, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names or [uri]), critical=False)
        .sign(_KEY, hashes.SHA256(), ecdsa_deterministic=True)
    )
    return bytes(made.public_bytes(Encoding.DER))


def feed_certificate(data: bytes) -> None:
    """``data``: DER, as it would be behind the letters of PEM; or PEM itself."""
    pem = data if data.startswith(b"-----") else _pem(data)
    with refusals(ValueError):
        parse_certificate(pem)


def _pem(der: bytes) -> bytes:
    from base64 import b64encode

    text = b64encode(der)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"\n".join((b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""))


def _ca() -> x509.Certificate:
    begins, ends = datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_CA_NAME)
        .issuer_name(_CA_NAME)
        .public_key(_KEY.public_key())
        .serial_number(1)
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(_KEY, hashes.SHA256(), ecdsa_deterministic=True)
    )


_NOW_S: Final = datetime(2027, 1, 4, tzinfo=UTC).timestamp()
_MANAGER: Final = certificate_der(common=MANAGER)


def signed_ack(certificate: bytes = _MANAGER) -> bytes:
    """What the fleet manager sends over a broker, under its certificate or another."""
    ack = report_pb2.ReportAck(ids=[report_pb2.ReportId(boot_id="b", seq=7)]).SerializeToString()
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    signature = _KEY.sign(signed_bytes(ACK, "lab", "cam-1", ack), algorithm)
    made = report_pb2.SignedAck(ack=ack, signature=signature, certificate=certificate)
    return bytes(made.SerializeToString())


def feed_signed_ack(data: bytes) -> None:
    """``data``: the message, from a broker that nobody believes."""
    try:
        signed = report_pb2.SignedAck.FromString(data)
    except DecodeError:
        return  # dropped before
    with refusals(LinkError):
        Seal(("lab", "cam-1"), _KEY, _ca(), lambda: _NOW_S).open(signed)


def certificate_targets() -> list[Target]:
    """Everything of this module."""
    der = certificate_der()
    return [
        Target("certificate", (der, _pem(der)), feed_certificate),
        Target("signed-ack", (signed_ack(),), feed_signed_ack),
    ]
