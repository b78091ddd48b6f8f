"""A certificate authority: a key, its own certificate, and what it signs.

Rules kept here: EC P-256 and SHA-256 throughout; an authority signs ends and no further authority (path length 0); key
usage, key identifiers and basic constraints stand in every certificate; times are seconds since the epoch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from fleet.errors import ConfigError

__all__ = [
    "Authority",
    "Revoked",
    "Wanted",
    "certificate_pem",
    "key_pem",
    "load_authority",
    "load_certificate",
    "make_authority",
    "new_key",
    "spki_sha256",
]

_DIGEST: Final = hashes.SHA256()


@dataclass(frozen=True, slots=True)
class Wanted:
    """A certificate to be signed. ``usages``: what its key may be used for over TLS."""

    common_name: str
    names: Sequence[x509.GeneralName]
    usages: Sequence[x509.ObjectIdentifier]
    public_key: ec.EllipticCurvePublicKey
    not_before_s: float
    not_after_s: float


@dataclass(frozen=True, slots=True)
class Revoked:
    """A certificate that is not to be accepted any more. ``serial``: as the certificate has it."""

    serial: int
    at_s: float
    reason: x509.ReasonFlags


@dataclass(frozen=True, slots=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return certificate_pem(self.certificate)

    def issue(self, wanted: Wanted) -> x509.Certificate:
        """Sign a certificate for an end: a server or a client."""
        own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = _builder(
            wanted.common_name, wanted.public_key, wanted.not_before_s, wanted.not_after_s
        )
        return (
            builder.issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(wanted.usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(wanted.names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False
            )
            .sign(self.key, _DIGEST)
        )

    def revocations(self, revoked: Iterable[Revoked], now_s: float, next_s: float) -> bytes:
        """The list of revoked certificates, PEM; ``next_s``: by when there is a newer one."""
        own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(_time(now_s))
            .next_update(_time(next_s))
            .add_extension(x509.CRLNumber(int(now_s * 1000)), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False
            )
        )
        for one in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(one.serial)
                .revocation_date(_time(one.at_s))
                .add_extension(x509.CRLReason(one.reason), critical=False)
                .build()
            )
        return builder.sign(self.key, _DIGEST).public_bytes(Encoding.PEM)


def make_authority(name: str, now_s: float, life_s: float) -> Authority:
    """A new authority, signed by itself."""
    key = new_key()
    builder = _builder(name, key.public_key(), now_s, now_s + life_s)
    certificate = (
        builder.issuer_name(_name(name))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, _DIGEST)
    )
    return Authority(certificate, key)


def load_authority(certificate: Path, key: Path) -> Authority:
    """Read an authority.

    Raises:
        ConfigError: a file is missing, unreadable, or not what it should be, or the two do not belong together.
    """
    try:
        loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(
            f"cannot read {key}: {error.strerror or error}. `fleet tls init` makes it; where it was lost, "
            "restore it from its backup"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{key} is not an unencrypted private key in PEM: {error}. Restore it from its backup"
        ) from error
    found = load_certificate(certificate)
    if not isinstance(loaded, ec.EllipticCurvePrivateKey) or (
        _spki(loaded.public_key()) != _spki(found.public_key())
    ):
        raise ConfigError(f"{key} is not the key of {certificate}: restore both from one backup")
    return Authority(found, loaded)


def load_certificate(path: Path) -> x509.Certificate:
    """The first certificate in a PEM file.

    Raises:
        ConfigError: the file is missing or holds none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror or error}. `fleet tls init` makes it"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{path} is no certificate in PEM: {error}. Restore it from its backup"
        ) from error


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def spki_sha256(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate's SubjectPublicKeyInfo (DER), hex: what a token names the server CA by."""
    digest = hashes.Hash(_DIGEST)
    digest.update(_spki(certificate.public_key()))
    return digest.finalize().hex()


def _spki(key: object) -> bytes:
    encode = key.public_bytes  # type: ignore[attr-defined]
    return bytes(encode(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _builder(
    name: str, key: ec.EllipticCurvePublicKey, not_before_s: float, not_after_s: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(not_before_s))
        .not_valid_after(_time(not_after_s))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _time(at_s: float) -> datetime:
    return datetime.fromtimestamp(int(at_s), UTC)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
