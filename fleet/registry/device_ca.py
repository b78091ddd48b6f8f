"""What a device asks to have signed, checked, and the certificate that it gets.

Rules kept here: of a signing request only the key counts, its subject and extensions are ignored; the key must be EC
P-256 and the request signed by it; the name in a certificate comes from the database.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from fleet.errors import RequestError
from fleet.registry.authority import Authority, Wanted
from protos.identity import MAX_CSR_BYTES, DeviceName

__all__ = ["DeviceKey", "check_proof", "identity_key", "issue_to_device", "requested_key"]

BACKDATED_S: Final = 3600.0
"""How far clocks of brokers may be behind ours."""


_NOT_A_REQUEST: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    InvalidSignature,
    x509.InvalidVersion,
)
"""What the library says of what is no signing request."""


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """A device's public key. ``der``: its SubjectPublicKeyInfo; ``sha256`` of that, hex."""

    public: ec.EllipticCurvePublicKey
    der: bytes
    sha256: str


def requested_key(csr: bytes) -> DeviceKey:
    """The key that a PKCS #10 request (DER) asks a certificate for.

    Raises:
        RequestError: it is no request, too large, of another kind of key, or not signed by it.
    """
    if len(csr) > MAX_CSR_BYTES:
        raise RequestError(f"the signing request has {len(csr)} bytes, at most {MAX_CSR_BYTES}")
    try:
        request = x509.load_der_x509_csr(csr)
        # The kind of key first: checking a signature by whatever key a stranger thinks of can take long.
        key = _checked(request.public_key(), "the key of the signing request")
        is_signed = request.is_signature_valid
    except _NOT_A_REQUEST as error:
        raise RequestError(f"the signing request is not PKCS #10 in DER: {error}") from error
    if not is_signed:
        raise RequestError("the signing request is not signed by the key it asks for")
    return key


def identity_key(der: bytes) -> DeviceKey:
    """A device's long-lived public key.

    Raises:
        RequestError: it is no key, or of another kind.
    """
    if len(der) > MAX_CSR_BYTES:
        raise RequestError(f"the identity key has {len(der)} bytes, at most {MAX_CSR_BYTES}")
    try:
        key = load_der_public_key(der)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RequestError(f"the identity key is no public key in DER: {error}") from error
    return _checked(key, "the identity key")


def check_proof(key: DeviceKey, proof: bytes, message: bytes) -> None:
    """Raises RequestError: ``proof`` is not this key's signature over ``message``."""
    try:
        key.public.verify(proof, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise RequestError("the proof is not signed by the identity key") from error


def issue_to_device(
    authority: Authority, name: DeviceName, key: DeviceKey, now_s: float, life_s: float
) -> x509.Certificate:
    """A certificate by which a device is known, good for ``life_s`` seconds from ``now_s`` on."""
    return authority.issue(
        Wanted(
            common_name=name.device_id,
            names=[x509.UniformResourceIdentifier(name.uri)],
            usages=[ExtendedKeyUsageOID.CLIENT_AUTH],
            public_key=key.public,
            not_before_s=now_s - BACKDATED_S,
            not_after_s=now_s + life_s,
        )
    )


def _checked(key: object, what: str) -> DeviceKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestError(f"{what} is not on the curve P-256")
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return DeviceKey(key, der, sha256(der).hexdigest())
