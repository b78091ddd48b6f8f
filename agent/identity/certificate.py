"""Keys and certificates as values: made, read and checked. No files.

Rules kept here: EC P-256; a certificate counts only for the device, class and key that it is meant for.
"""

from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from protos.identity import DeviceName

__all__ = [
    "NOT_A_CERTIFICATE",
    "DeviceCertificate",
    "new_key",
    "parse_certificate",
    "parse_key",
    "public_der",
    "request",
    "sign",
]

MAX_CHAIN_BYTES: Final = 64 * 1024
NOT_A_CERTIFICATE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library says, on reading or on being asked, of a certificate that is none."""


@dataclass(frozen=True, slots=True)
class DeviceCertificate:
    """A device's certificate. ``pem``: with the device CA's behind it; ``key_der``: SubjectPublicKeyInfo."""

    name: DeviceName
    serial: str
    not_before_s: float
    not_after_s: float
    key_der: bytes
    pem: bytes


def new_key() -> bytes:
    """A new private key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def parse_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """A private key.

    Raises:
        ValueError: it is none, or of another kind.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("it is no EC key")
    return key


def public_der(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half as SubjectPublicKeyInfo, DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def request(key: ec.EllipticCurvePrivateKey, device_id: str) -> bytes:
    """A signing request (PKCS #10, DER) for this key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return csr.public_bytes(Encoding.DER)


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA with SHA-256."""
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


def parse_certificate(pem: bytes) -> DeviceCertificate:
    """The first certificate of a chain.

    Raises:
        ValueError: it is none, or not a device's.
    """
    if len(pem) > MAX_CHAIN_BYTES:
        raise ValueError(f"it has {len(pem)} bytes, at most {MAX_CHAIN_BYTES} are read")
    try:
        return _parsed(pem)
    except NOT_A_CERTIFICATE as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _parsed(pem: bytes) -> DeviceCertificate:
    """Raises ValueError, and whatever else the library says of what is no certificate."""
    first = x509.load_pem_x509_certificate(pem)
    try:
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise ValueError("it names no device") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ValueError(f"it has {len(uris)} URIs, not one")
    return DeviceCertificate(
        name=DeviceName.parse(uris[0]),
        serial=f"{first.serial_number:x}",
        not_before_s=first.not_valid_before_utc.timestamp(),
        not_after_s=first.not_valid_after_utc.timestamp(),
        key_der=first.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        pem=pem,
    )
