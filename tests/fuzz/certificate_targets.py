"""What a device is answered when it enrols, and what it finds on its disk at each start: a certificate."""

from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.identity.certificate import parse_certificate
from protos.identity import DeviceName
from tests.fuzz.holes import Target, refusals

__all__ = ["certificate_der", "certificate_target", "feed_certificate"]

_KEY: Final = ec.derive_private_key(1815, ec.SECP256R1())


def certificate_der(*names: x509.GeneralName, key: Any = _KEY) -> bytes:
    """A device's, or one with other names in it; the same in each run."""
    uri = x509.UniformResourceIdentifier(DeviceName("lab", "camera", "cam-1").uri)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cam-1")])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
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
    return b"\n".join(
        (b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b"")
    )


def certificate_target() -> Target:
    der = certificate_der()
    return Target("certificate", (der, _pem(der)), feed_certificate)
